//! The replicated store: one ordered history of revisions, agreed on by Raft, kept in a
//! write-ahead log and held in memory as the bytes that go out.
//!
//! The core (Raft driver, log, state machine, watch history) is sans-IO: clock, disk, network and
//! randomness are inputs, so that a whole cluster replays from a seed. The shell around it owns
//! the threads.

mod admin;
mod archive;
mod cipher;
mod codec;
pub mod command;
pub mod config;
mod core;
#[cfg(test)]
mod crash_tests;
mod disk;
#[cfg(test)]
mod disk_tests;
mod driver;
pub mod error;
pub mod event;
#[cfg(test)]
mod fault_tests;
mod files;
#[cfg(test)]
mod format_tests;
mod frame;
#[cfg(test)]
mod full_disk_tests;
mod history;
mod lock;
mod log_thread;
pub mod member;
mod memlog;
pub mod metrics;
mod mix;
pub mod object;
mod past;
mod receive_thread;
mod replica;
mod root;
mod roster;
mod shared;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
#[cfg(test)]
mod sim_tests;
mod snapshot;
mod state;
mod store;
mod ticker;
mod transfer;
mod upkeep;
mod view;
mod wal;
mod watch;

pub use admin::{
    LogEnd, REVISIONS_SKIPPED, SnapshotInfo, SnapshotStream, existing, inspect_snapshot, log_end,
    recover, restore,
};
pub use command::{Command, Outcome, Precondition, Write};
pub use config::StoreConfig;
pub use error::{Compacted, Lagged, StoreError, ViewError, WatchError};
pub use event::{Event, EventKind, WatchType, json_line};
pub use files::Begin;
pub use member::{
    CONTACT_MOST, Identity, Leadership, Member, MemberChange, MemberInfo, Role, TICK, Transport,
};
pub use metrics::Metrics;
pub use object::{ENCODINGS, EncodeError, Header, Key, NewObject, Object, Scope};
pub use store::{Progress, Status, Store};
pub use view::View;
pub use watch::Watch;
