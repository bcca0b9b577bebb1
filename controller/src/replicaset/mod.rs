//! ReplicaSets: as many pods as the spec says.
//!
//! Names of new pods follow from the set's uid and the pods that it already has, so a second attempt
//! from the same view asks for the same names and creates nothing twice.

mod plan;
mod rank;
mod shell;

pub use plan::{Action, Rule, View};
pub(crate) use shell::start;
