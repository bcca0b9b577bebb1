//! Pods: what is known of each ([`state`]), what to do next ([`plan`]), what to tell the API
//! ([`status`]), and the tasks that carry it out ([`worker`]).

pub mod backoff;
pub mod env;
pub mod lifecycle;
pub mod plan;
pub mod prober;
pub mod probes;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod start;
pub mod state;
pub mod status;
pub mod volumes;
pub mod worker;

mod actions;
#[cfg(test)]
mod simulation;

pub(crate) use actions::clean;
