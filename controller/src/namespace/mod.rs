//! Namespace deletion: everything in a namespace that goes away is deleted, pods first; when nothing
//! is left the namespace's finalizer is removed.

mod plan;
mod shell;

pub use plan::{Action, Content, Rule, View};
pub(crate) use shell::start;
