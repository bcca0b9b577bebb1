//! The controllers: each a pure reconcile over a view, one module per kind.
//!
//! A module's rule decides from a view of the caches and a time; its shell feeds the rule and carries
//! out the actions. Controllers patch what is theirs and never put a whole object back. They know
//! nothing of our API server: any Kubernetes API server will do.

mod claim;
mod common;
mod config;
mod context;
pub mod deployment;
pub mod endpointslice;
pub mod garbage;
pub mod namespace;
pub mod node;
pub mod podgc;
pub mod replicaset;
mod resources;
mod run;
#[cfg(test)]
mod testing;

pub use config::ControllersConfig;
pub use resources::Resource;
pub use run::{Parts, run};
