//! Watchers under load: each stream, replayed, is the state.

mod common;

use common::{config, delete, pod, put};
use rkube_store::{EventKind, Outcome, Scope, Store, StoreConfig, Watch};
use std::collections::BTreeMap;
use std::time::Duration;

const WRITERS: usize = 4;
const ROUNDS: usize = 120;

/// Follows a scope from a revision until `last` is covered; answers with name → revision.
async fn follow(
    mut watch: Watch,
    last: u64,
    mut state: BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let mut at = 0;
    let mut promised = 0;
    while watch.progress() < last {
        let batch = tokio::time::timeout(Duration::from_millis(50), watch.next_batch()).await;
        let Ok(batch) = batch else { continue };
        let batch = batch.expect("the history is long enough");
        assert!(batch[0].revision > promised, "an event at a revision that a bookmark covered");
        for event in batch {
            assert!(event.revision >= at, "order");
            assert!(watch.scope().contains(&event.object.key));
            at = event.revision;
            let name = format!("{}/{}", event.object.key.namespace, event.object.key.name);
            let before = state.get(&name).copied();
            assert_eq!(
                event.previous.as_ref().map(|o| o.revision),
                before,
                "{name}: none left out"
            );
            match event.kind {
                EventKind::Put => state.insert(name, event.revision),
                EventKind::Delete => state.remove(&name),
            };
        }
        promised = watch.progress();
        assert!(promised >= at);
    }
    state
}

fn state_of(view: &rkube_store::View, scope: &Scope) -> BTreeMap<String, u64> {
    let entry = |o: std::sync::Arc<rkube_store::Object>| {
        (format!("{}/{}", o.key.namespace, o.key.name), o.revision)
    };
    view.range(scope, None).map(entry).collect()
}

async fn write(store: &Store, writer: usize) {
    for round in 0..ROUNDS {
        let key = pod(&format!("n{}", round % 3), &format!("o{}", (round * 7 + writer) % 5));
        let command = match (round + writer) % 4 {
            0 => delete(&key),
            _ => put(&key, &format!("{writer}-{round}")),
        };
        assert!(matches!(store.propose(command).await, Ok(Outcome::Applied { .. })));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_replays_to_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig { archive: false, ..config(dir.path()) }).unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move { write(&store, writer).await })
        })
        .collect();
    let scopes = [
        Scope::all("pods"),
        Scope::namespace("pods", "n1"),
        Scope::object(&pod("n2", "o3")),
        Scope { name: Some("o1".into()), ..Scope::all("pods") },
    ];
    // List, then watch from there, at different moments.
    let mut lists = Vec::new();
    while !writers.iter().all(|writer| writer.is_finished()) {
        if lists.len() < 200 {
            let view = store.view();
            let scope = scopes[lists.len() % scopes.len()].clone();
            let watch = store.watch(scope.clone(), view.revision()).unwrap();
            lists.push((watch, state_of(&view, &scope)));
        }
        tokio::task::yield_now().await;
    }
    let last = store.read_barrier().await.unwrap();
    let view = store.view();
    for (watch, listed) in lists {
        let scope = watch.scope().clone();
        assert_eq!(follow(watch, last, listed).await, state_of(&view, &scope), "{scope:?}");
    }
    for writer in writers {
        writer.await.unwrap();
    }
    // A past revision read later is what a list at that revision was.
    for revision in [1, last / 2, last - 1] {
        let past = store.view_at(revision, "pods").await.unwrap();
        let watch = store.watch(Scope::all("pods"), revision).unwrap();
        let listed = state_of(&past, &Scope::all("pods"));
        assert_eq!(follow(watch, last, listed).await, state_of(&view, &Scope::all("pods")));
    }
}
