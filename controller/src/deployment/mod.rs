//! Deployments: one ReplicaSet per pod template, and the way from one to the next.
//!
//! The set of a template is named by the template's hash, so a second attempt to create it finds it.
//! Only sets are written here; pods are the ReplicaSet controller's.

mod plan;
mod revision;
mod rollout;
mod scale;
mod shell;
mod status;

pub use plan::{Action, Rule, View};
pub(crate) use shell::start;
