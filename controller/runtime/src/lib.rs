//! The one reconcile loop: caches, queue, runner, back-off, events, leader scope.
//!
//! A component decides in a pure [`Reconcile`] and leaves the doing to a shell. What the shell needs
//! stands here: [`Caches`] decode each object once per process and hand out `Arc`s of it; a
//! [`WorkQueue`] holds each key once and keeps one plan per key in flight; [`run`] builds a view,
//! plans, carries out the actions in order through a [`Client`], stops at the first failure and backs
//! off. A write's answer goes into the cache at once, so a controller sees what it did before the
//! watch says so and never does it twice. [`LeaderScope`] bounds what must run once in the cluster.
//!
//! Nothing here knows our own API server: a `kube::Client` of any Kubernetes API server will do.

pub mod backoff;
pub mod cache;
pub mod client;
pub mod clock;
pub mod endpoints;
pub mod event;
pub mod key;
pub mod leader;
pub mod metrics;
pub mod queue;
pub mod reconcile;
pub mod runner;
pub mod supervise;
pub mod workqueue;

pub use cache::{Cached, Caches, Change, Delta, Index, MetaSource, Store, Stored, Subscription};
pub use client::{Client, ClientError};
pub use clock::{Clock, ManualClock, SystemClock};
pub use endpoints::Endpoints;
pub use event::{EventType, Recorder};
pub use key::ObjectKey;
pub use leader::{AlwaysLeader, HeldTerm, LeaderScope, LeaseScope, Term, TermScope};
pub use metrics::Metrics;
pub use reconcile::{Plan, Reconcile};
pub use runner::{ActError, Controller, run};
pub use supervise::{Health, supervise};
pub use workqueue::WorkQueue;
