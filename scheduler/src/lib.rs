//! The scheduler: a cycle over a snapshot, plugins as leaf functions.
//!
//! [`plan::cycle`] decides and does no I/O: it takes a batch of pods off the [`queue`], looks at the
//! nodes of a [`snapshot`], and says for each pod where it goes or why it goes nowhere. A pod that
//! was given a node is assumed to be there at once, so the next pod sees its node fuller. The shell
//! ([`run`]) feeds the snapshot from watches and carries the decisions out, many bindings at once;
//! a binding that is refused takes back that one assumption and nothing else, and one whose answer was
//! lost is sent again until it is known what came of it.
//!
//! A plugin is a file of leaf functions: `filter` says whether a pod fits a node and why not,
//! `score` how well. There is no preemption: pods of higher priority go first, none is evicted.

mod binding;
pub mod metrics;
pub mod plan;
pub mod plugin;
pub mod pod;
pub mod queue;
pub mod reason;
pub mod resources;
mod shell;
pub mod snapshot;

pub use metrics::Metrics;
pub use plan::{Decision, Tuning, cycle};
pub use pod::PodInfo;
pub use reason::{Reason, Refusal};
pub use shell::{Scheduler, SchedulerConfig, run};
pub use snapshot::Snapshot;
