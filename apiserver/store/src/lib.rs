//! The replicated store: one ordered history of revisions, agreed on by Raft, kept in a
//! write-ahead log and held in memory as the bytes that go out.
//!
//! The core (Raft driver, log, state machine, watch history) is sans-IO: clock, disk, network and
//! randomness are inputs, so that a whole cluster replays from a seed. The shell around it owns
//! the threads.

mod archive;
#[cfg(test)]
mod cluster_tests;
mod codec;
pub mod command;
pub mod config;
mod core;
mod disk;
mod driver;
pub mod error;
pub mod event;
#[cfg(test)]
mod fault_tests;
mod files;
mod history;
mod lock;
mod log_thread;
mod memlog;
pub mod metrics;
pub mod object;
mod past;
mod root;
mod shared;
#[cfg(test)]
mod sim_tests;
mod snapshot;
mod state;
mod store;
mod view;
mod wal;
mod watch;

pub use command::{Command, Outcome, Precondition, Write};
pub use config::StoreConfig;
pub use error::{Compacted, Lagged, StoreError, ViewError, WatchError};
pub use event::{Event, EventKind, WatchType, json_line};
pub use metrics::Metrics;
pub use object::{ENCODINGS, EncodeError, Header, Key, NewObject, Object, Scope};
pub use store::{Status, Store};
pub use view::View;
pub use watch::Watch;
