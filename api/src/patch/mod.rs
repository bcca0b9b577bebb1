//! The four ways to change a part of an object: JSON patch, merge patch, strategic merge patch
//! and server-side apply, with the bookkeeping of field managers.

pub mod apply;
pub mod fieldset;
pub mod json;
pub mod managed;
pub mod merge;
pub mod strategic;
pub mod structured;

pub use apply::{Writer, track_update};
