//! The store from outside: what it promises to its user.

mod common;

use common::{apply, config, create, delete, object, pod, put, value_of};
use rkube_store::{
    Command, EventKind, Lagged, Outcome, Precondition, Scope, Store, StoreConfig, StoreError,
    ViewError, WatchError, WatchType, Write,
};
use std::time::{Duration, Instant};

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let (a, b) = (pod("x", "a"), pod("x", "b"));
    assert_eq!(apply(&store, create(&a, "1")).await, 1);
    assert_eq!(apply(&store, create(&b, "2")).await, 2);
    assert_eq!(apply(&store, put(&a, "3")).await, 3);
    assert_eq!(apply(&store, delete(&b)).await, 4);
    let before = store.status();
    store.shutdown().await.unwrap();
    assert!(matches!(store.propose(put(&a, "4")).await, Err(StoreError::Closed)));

    let store = Store::open(config(dir.path())).unwrap();
    let after = store.status();
    assert_eq!((after.revision, after.state_hash), (4, before.state_hash));
    assert!(after.term > before.term);
    assert_eq!(value_of(&store.view().get(&a).unwrap()), "3");
    assert_eq!(store.view().get(&a).unwrap().created_revision, 1);
    assert!(store.view().get(&b).is_none());
    assert_eq!(store.read_barrier().await.unwrap(), 4);
    assert_eq!(apply(&store, put(&a, "5")).await, 5);
}

#[tokio::test]
async fn snapshots_cut_the_log_and_carry_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let text = "x".repeat(10_000);
    for round in 0..500 {
        apply(&store, put(&pod("x", &format!("p{}", round % 50)), &format!("{round}{text}"))).await;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.status().snapshot_index == 0 {
        assert!(Instant::now() < deadline, "no snapshot was taken");
        apply(&store, put(&pod("x", "tick"), &format!("{:?}", Instant::now()))).await;
    }
    let before = store.status();
    let count = store.view().count(&Scope::all("pods"));
    store.shutdown().await.unwrap();
    let wal_bytes: u64 = std::fs::read_dir(dir.path().join("wal"))
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(wal_bytes < 5 << 20, "the log has {wal_bytes} bytes");

    let store = Store::open(config(dir.path())).unwrap();
    let after = store.status();
    assert_eq!((after.revision, after.state_hash), (before.revision, before.state_hash));
    assert_eq!(store.view().count(&Scope::all("pods")), count);
    assert_eq!(value_of(&store.view().get(&pod("x", "p49")).unwrap()), format!("499{text}"));
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let error = Store::open(config(dir.path())).err().unwrap();
    assert!(
        matches!(&error, StoreError::Locked { pid, .. } if *pid == std::process::id().to_string())
    );
    assert!(error.to_string().contains(&dir.path().display().to_string()));
    store.shutdown().await.unwrap();
    Store::open(config(dir.path())).unwrap();
}

#[tokio::test]
async fn preconditions_refuse_and_take_no_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let a = pod("x", "a");
    apply(&store, create(&a, "n1")).await;
    let refused = |outcome| match outcome {
        Ok(Outcome::Refused { precondition, current }) => (precondition, current),
        other => panic!("{other:?}"),
    };
    let (place, current) = refused(store.propose(create(&a, "n2")).await);
    assert_eq!((place, current.unwrap().revision), (0, 1));

    let stale = Command {
        preconditions: vec![Precondition::Live(a.clone()), Precondition::RevisionIs(a.clone(), 7)],
        ..put(&a, "n2")
    };
    assert_eq!(refused(store.propose(stale).await).0, 1);
    let taken = Command {
        preconditions: vec![Precondition::NoneIndexed {
            resource: "pods".into(),
            term: "node=n1".into(),
        }],
        ..put(&a, "n2")
    };
    assert_eq!(refused(store.propose(taken).await).1.unwrap().key, a);
    let fenced = Command { term: Some(99), ..put(&a, "n2") };
    assert!(matches!(store.propose(fenced).await, Ok(Outcome::Fenced { term: 2 })));
    let current = Command { term: Some(store.status().term), ..put(&a, "n2") };
    assert_eq!(apply(&store, current).await, 2);
    // The same bytes again: nothing happens.
    assert_eq!(apply(&store, put(&a, "n2")).await, 2);
    assert_eq!(store.view().indexed("pods", "node=n1").count(), 0);
    assert_eq!(store.view().indexed("pods", "node=n2").count(), 1);
}

#[tokio::test]
async fn a_repeated_request_is_applied_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let a = pod("x", "a");
    let command = Command { request_id: 77, ..create(&a, "1") };
    assert_eq!(apply(&store, command.clone()).await, 1);
    apply(&store, put(&a, "2")).await;
    assert_eq!(apply(&store, command.clone()).await, 1);
    store.shutdown().await.unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    assert_eq!(apply(&store, command).await, 1);
    assert_eq!(value_of(&store.view().get(&a).unwrap()), "2");
}

#[tokio::test]
async fn lists_are_ranges_in_key_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    for (namespace, name) in [("b", "1"), ("a", "2"), ("a", "1"), ("a-b", "1"), ("b", "2")] {
        apply(&store, create(&pod(namespace, name), "n")).await;
    }
    let view = store.view();
    let names = |scope: &Scope, after: Option<&rkube_store::Key>| -> Vec<String> {
        let name =
            |o: std::sync::Arc<rkube_store::Object>| format!("{}/{}", o.key.namespace, o.key.name);
        view.range(scope, after).map(name).collect()
    };
    assert_eq!(names(&Scope::all("pods"), None), ["a/1", "a/2", "a-b/1", "b/1", "b/2"]);
    assert_eq!(names(&Scope::all("pods"), Some(&pod("a", "2"))), ["a-b/1", "b/1", "b/2"]);
    assert_eq!(names(&Scope::namespace("pods", "a"), None), ["a/1", "a/2"]);
    assert_eq!(names(&Scope::namespace("pods", "b"), Some(&pod("a", "1"))), ["b/1", "b/2"]);
    assert_eq!(names(&Scope::namespace("pods", "a"), Some(&pod("a", "1"))), ["a/2"]);
    assert_eq!(names(&Scope::object(&pod("b", "1")), None), ["b/1"]);
    let by_name = Scope { name: Some("1".into()), ..Scope::all("pods") };
    assert_eq!(names(&by_name, None), ["a/1", "a-b/1", "b/1"]);
    assert_eq!(names(&Scope::all("nodes"), None), Vec::<String>::new());
    assert_eq!(view.count(&Scope::all("pods")), 5);
    assert_eq!(view.count(&Scope::namespace("pods", "a")), 2);
    assert_eq!(view.page(&Scope::all("pods"), None, 2).len(), 2);
    // A view does not change.
    apply(&store, delete(&pod("a", "1"))).await;
    assert_eq!(view.count(&Scope::all("pods")), 5);
    assert_eq!(store.view().count(&Scope::all("pods")), 4);
}

#[tokio::test]
async fn a_watch_delivers_all_events_in_order_and_whole_revisions() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let (a, b) = (pod("x", "a"), pod("y", "b"));
    let mut all = store.watch(Scope::all("pods"), 0).unwrap();
    let mut one = store.watch(Scope::namespace("pods", "y"), 0).unwrap();
    apply(&store, create(&a, "1")).await;
    let both = vec![Write::Put(a.clone(), object(&a, "2")), Write::Put(b.clone(), object(&b, "2"))];
    apply(&store, Command::unconditional(0, both)).await;
    apply(&store, delete(&a)).await;

    let mut events = Vec::new();
    while events.len() < 4 {
        events.extend(all.next_batch().await.unwrap());
    }
    let seen: Vec<_> =
        events.iter().map(|e| (e.revision, e.watch_type(), &*e.object.key.name)).collect();
    assert_eq!(
        seen,
        [
            (1, WatchType::Added, "a"),
            (2, WatchType::Modified, "a"),
            (2, WatchType::Added, "b"),
            (3, WatchType::Deleted, "a"),
        ]
    );
    let deleted = &events[3];
    assert_eq!((deleted.kind, deleted.object.revision), (EventKind::Delete, 3));
    assert_eq!(value_of(&deleted.object), "2");
    assert_eq!(deleted.previous.as_ref().unwrap().revision, 2);
    let line = deleted.json_line(WatchType::Deleted);
    let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(
        (&read["type"], &read["object"]["metadata"]["resourceVersion"]),
        (&"DELETED".into(), &"3".into())
    );
    assert_eq!(line.as_ptr(), deleted.json_line(WatchType::Deleted).as_ptr(), "encoded once");

    assert_eq!(one.next_batch().await.unwrap().len(), 1);
    assert_eq!(one.progress(), 3, "nothing more in scope");
    assert!(all.try_batch().unwrap().is_empty());
    assert_eq!(all.progress(), 3);

    // From the past, from now, from the future.
    let mut past = store.watch(Scope::all("pods"), 2).unwrap();
    assert_eq!(past.next_batch().await.unwrap()[0].revision, 3);
    let mut now = store.watch(Scope::all("pods"), 3).unwrap();
    assert!(now.try_batch().unwrap().is_empty());
    assert_eq!(store.watch(Scope::all("pods"), 4).err(), Some(WatchError::Future { current: 3 }));
}

#[tokio::test]
async fn a_watch_waits_and_is_woken() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let a = pod("x", "a");
    let mut watch = store.watch(Scope::object(&a), 0).unwrap();
    let waiting = tokio::spawn(async move { watch.next_batch().await.map(|e| e[0].revision) });
    tokio::task::yield_now().await;
    apply(&store, create(&pod("x", "other"), "1")).await;
    apply(&store, create(&a, "1")).await;
    assert_eq!(waiting.await.unwrap(), Ok(2));
}

#[tokio::test]
async fn who_falls_behind_the_history_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        Store::open(StoreConfig { history_bytes: 20_000, archive: false, ..config(dir.path()) })
            .unwrap();
    let quiet_key = pod("quiet", "q");
    apply(&store, create(&quiet_key, "1")).await;
    apply(&store, create(&pod("x", "a"), "0")).await;
    let mut slow = store.watch(Scope::all("pods"), 1).unwrap();
    let mut quiet = store.watch(Scope::object(&quiet_key), 1).unwrap();
    for round in 1..100 {
        apply(&store, put(&pod("x", "a"), &format!("{round}"))).await;
    }
    assert!(matches!(slow.next_batch().await, Err(Lagged { at: 1, .. })));
    let Err(WatchError::Compacted { oldest }) = store.watch(Scope::all("pods"), 1) else {
        panic!("the history should be too short");
    };
    assert!(store.watch(Scope::all("pods"), oldest - 1).is_err());
    let mut resumed = store.watch(Scope::all("pods"), oldest).unwrap();
    assert_eq!(resumed.next_batch().await.unwrap()[0].revision, oldest + 1);
    // Nothing in its scope was dropped, so it has missed nothing.
    apply(&store, put(&quiet_key, "2")).await;
    assert_eq!(quiet.next_batch().await.unwrap()[0].revision, 102);
}

#[tokio::test]
async fn the_past_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let (a, b) = (pod("x", "a"), pod("x", "b"));
    apply(&store, create(&a, "1")).await;
    apply(&store, create(&b, "1")).await;
    apply(&store, put(&a, "2")).await;
    apply(&store, delete(&b)).await;
    apply(&store, create(&b, "3")).await;
    let values = |view: rkube_store::View| -> Vec<String> {
        view.range(&Scope::all("pods"), None).map(|o| value_of(&o)).collect()
    };
    let expected: [&[&str]; 6] = [&[], &["1"], &["1", "1"], &["2", "1"], &["2"], &["2", "3"]];
    for (revision, expected) in expected.iter().enumerate() {
        let view = store.view_at(revision as u64, "pods").await.unwrap();
        assert_eq!(view.revision(), revision as u64);
        assert_eq!(values(view.clone()), *expected, "at {revision}");
        assert_eq!(
            view.indexed("pods", "node=1").count(),
            expected.iter().filter(|v| **v == "1").count()
        );
    }
    assert!(matches!(store.view_at(6, "pods").await, Err(ViewError::Future { .. })));
}

#[tokio::test]
async fn the_archive_reaches_behind_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let small =
        || StoreConfig { history_bytes: 3_000, archive_revisions: 50, ..config(dir.path()) };
    let store = Store::open(small()).unwrap();
    for round in 1..=40 {
        apply(&store, put(&pod("x", &format!("p{}", round % 4)), &format!("{round}"))).await;
    }
    let check = async |store: &Store, revision: u64| {
        let view = store.view_at(revision, "pods").await.unwrap();
        let values: Vec<_> = view.range(&Scope::all("pods"), None).map(|o| value_of(&o)).collect();
        let newest =
            |name: u64| (1..=revision).rev().find(|r| r % 4 == name).map(|r| r.to_string());
        assert_eq!(values, (0..4).filter_map(newest).collect::<Vec<_>>(), "at {revision}");
    };
    for revision in [0, 1, 2, 5, 20, 38, 40] {
        check(&store, revision).await;
    }
    store.shutdown().await.unwrap();
    let store = Store::open(small()).unwrap();
    check(&store, 7).await;
    for round in 41..=90 {
        apply(&store, put(&pod("x", &format!("p{}", round % 4)), &format!("{round}"))).await;
    }
    check(&store, 60).await;
    assert!(matches!(store.view_at(20, "pods").await, Err(ViewError::Compacted(_))));
    store.shutdown().await.unwrap();

    // Without its directory nothing current is lost, and damage only makes it begin anew.
    std::fs::remove_dir_all(dir.path().join("history")).unwrap();
    std::fs::create_dir(dir.path().join("history")).unwrap();
    std::fs::write(dir.path().join("history/db"), "no database").unwrap();
    let store = Store::open(small()).unwrap();
    apply(&store, put(&pod("x", "p1"), "91")).await;
    assert_eq!(store.status().revision, 91);
    check_current(&store).await;
}

async fn check_current(store: &Store) {
    assert_eq!(value_of(&store.view().get(&pod("x", "p1")).unwrap()), "91");
    assert_eq!(store.view_at(91, "pods").await.unwrap().revision(), 91);
}

#[tokio::test]
async fn a_command_too_large_is_refused_and_one_at_the_limit_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let big = "x".repeat(200 << 10);
    let error = store.propose(put(&pod("x", "a"), &big)).await.err().unwrap();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    let fits = "x".repeat(63 << 10);
    for round in 0..20 {
        apply(&store, put(&pod("x", "a"), &format!("{round}{fits}"))).await;
    }
    store.shutdown().await.unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    assert_eq!(store.status().revision, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let mut writers = Vec::new();
    for writer in 0..32 {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            for round in 0..20 {
                let key = pod("x", &format!("{writer}-{round}"));
                apply(&store, create(&key, "1")).await;
                assert!(store.view().get(&key).is_some(), "a writer reads its own write");
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.status().revision, 640);
    assert_eq!(store.read_barrier().await.unwrap(), 640);
    let batches = store.metrics().batches.load(std::sync::atomic::Ordering::Relaxed);
    assert!(batches < 400, "{batches} batches");
}
