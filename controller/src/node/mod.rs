//! Nodes: their health, the taints that follow from it, the pods that have to leave, and the share of
//! the pods' addresses that each node gets.
//!
//! A node is healthy as long as its lease is renewed or its status posted. When that was seen last is
//! told by this process' own clock, so no node's clock matters and a controller that starts anew
//! gives every node the full grace period.

pub mod ipam;
mod lifecycle;
mod shell;
mod taint;

pub use lifecycle::{Action, Rule, View};
pub(crate) use shell::start;
