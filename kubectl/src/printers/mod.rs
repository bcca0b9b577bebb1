//! From objects to text: `-o` and what stands behind it.

pub mod custom_columns;
pub mod json;
pub mod output;
pub mod table;
pub mod tabwriter;
pub mod yaml;

pub use output::{Format, OutputFlags};
