//! The whole store, threads and all, on a disk that fails.

use crate::cipher::tests::source;
use crate::command::{Command, Outcome, Write};
use crate::config::StoreConfig;
use crate::disk::sim::{Fault, SimDisk};
use crate::driver::Input;
use crate::error::StoreError;
use crate::files::{self, Begin, OpenConfig};
use crate::history::History;
use crate::log_thread::{LogTask, LogThread};
use crate::object::{Header, Key, NewObject};
use crate::shared::Shared;
use crate::store::{Status, Store};
use crate::view::View;
use crate::wal::LogWrite;
use raft::eraftpb::Entry;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc::unbounded_channel;

fn config(dir: &Path) -> StoreConfig {
    StoreConfig { segment_bytes: 128 << 10, archive: false, ..StoreConfig::new(dir) }
}

fn open(dir: &Path, disk: &SimDisk) -> Result<Store, StoreError> {
    Store::open_on(config(dir), Arc::new(disk.clone()))
}

async fn put(store: &Store, n: usize) -> Result<u64, StoreError> {
    let json = format!(r#"{{"metadata":{{"n":{n}}},"f":"{}"}}"#, "f".repeat(4000));
    let new = NewObject { json: json.into(), splice_at: 13, header: Header::default() };
    let write = Write::Put(Key::new("pods", "x", &format!("p{}", n % 7)), new);
    match store.propose(Command::unconditional(0, vec![write])).await? {
        Outcome::Applied { revision, .. } => Ok(revision),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_failed_sync_stops_the_store_and_every_call_says_so() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let store = open(dir.path(), &disk).unwrap();
    put(&store, 1).await.unwrap();
    // The next operation is the write, the one behind it the sync.
    disk.fail_at(disk.operations() + 2, Fault::Io);
    let error = put(&store, 2).await.unwrap_err();
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    assert!(store.failed().await.to_string().contains("sync"));
    assert!(matches!(put(&store, 3).await, Err(StoreError::Failed(_))));
    assert!(matches!(store.read_barrier().await, Err(StoreError::Failed(_))));
    assert!(store.shutdown().await.is_err());
    assert_eq!(store.view().revision(), 1, "what is not durable is not seen");
    drop(store);

    disk.power_loss(1);
    let store = open(dir.path(), &disk).unwrap();
    assert!(store.view().revision() >= 1);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let store = open(dir.path(), &disk).unwrap();
    disk.limit(Some(disk.used()));
    let mut acknowledged = 0;
    let error = loop {
        match put(&store, acknowledged as usize).await {
            Ok(revision) => acknowledged = revision,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    assert!(acknowledged > 10);
    assert!(matches!(put(&store, 0).await, Err(StoreError::DiskFull { .. })));
    assert_eq!(store.read_barrier().await.unwrap(), acknowledged, "reads go on");
    disk.limit(None);
    assert_eq!(put(&store, 1000).await.unwrap(), acknowledged + 1, "no refused write took one");
    drop(store);
}

/// What another member leads can't be refused: it waits, and goes on by itself.
#[tokio::test]
async fn a_followers_log_waits_for_room() {
    let disk = SimDisk::default();
    let config = OpenConfig {
        dir: Path::new("/store"),
        begin: Begin::Found,
        nonce: 1,
        segment_bytes: 64 << 10,
        remember: 1,
        key: source(1),
    };
    let opened = files::open(Arc::new(disk.clone()), config).unwrap();
    let history = Arc::new(History::new(1, Duration::ZERO, 0));
    let shared = Arc::new(Shared::new(View::default(), history, Status::default()));
    let (inputs, mut reports) = unbounded_channel();
    let mut log = LogThread::start(opened.wal, shared, inputs.downgrade()).unwrap();
    disk.limit(Some(disk.used()));
    for number in 1..=6 {
        let data = vec![7; 20 << 10].into();
        let entry = Entry { index: number + 1, term: 1, data, ..Entry::default() };
        let entries = vec![entry];
        log.send(LogTask::Append(Box::new(LogWrite { number, entries, ..LogWrite::default() })));
    }
    let (mut persisted, mut refused, mut full) = (0, 0, 0);
    while persisted < 6 {
        match reports.recv().await.unwrap() {
            Input::Persisted { number, .. } => {
                assert_eq!(number, persisted + 1);
                persisted = number;
            }
            // The log thread wants its next file, and gets none at first.
            Input::Prepared(Err(StoreError::DiskFull { .. })) => refused += 1,
            Input::LogFull => {
                assert_eq!((persisted, refused), (3, 2), "as many as one file holds");
                full += 1;
                disk.limit(None);
            }
            Input::Prepared(prepared) => drop(prepared.unwrap()),
            Input::LogFailed(error) => panic!("{error}"),
            _ => panic!("nobody else reports"),
        }
    }
    assert_eq!((full, refused), (1, 2), "it is told once");
    log.close().unwrap();
}

#[tokio::test]
async fn a_failed_snapshot_harms_nobody() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let small = StoreConfig { snapshot_every_bytes: 40_000, ..config(dir.path()) };
    let store = Store::open_on(small, Arc::new(disk.clone())).unwrap();
    disk.limit(Some(disk.used() + (2 << 17)));
    let failures = || store.metrics().snapshot_failures.load(Ordering::Relaxed);
    let mut n = 0;
    while failures() == 0 {
        // The log takes the room that a snapshot would need.
        if put(&store, n).await.is_err() {
            break;
        }
        n += 1;
        assert!(n < 10_000, "no snapshot failed");
    }
    disk.limit(None);
    let taken = || store.metrics().snapshots.load(Ordering::Relaxed);
    let before = taken();
    while taken() == before {
        put(&store, n).await.unwrap();
        n += 1;
        assert!(n < 20_000, "no snapshot was taken");
    }
    store.shutdown().await.unwrap();
}
