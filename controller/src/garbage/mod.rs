//! The garbage collector: deletes what its owners have left behind.
//!
//! An object is looked at when it appears, when its owners or finalizers change, and when an owner of
//! it goes. Owners are found in the caches by uid; one that is not there is asked for at the API
//! server before anything is deleted for the lack of it.

mod graph;
mod plan;
mod shell;

pub use plan::{Action, Dependent, Owner, OwnerState, Policy, Rule, View, collect};
pub(crate) use shell::start;
