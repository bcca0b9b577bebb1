//! What is done to a directory while no store runs on it: snapshot files, restoring one, and
//! recovering from the one member that is left.

mod common;

use common::{apply, config, create, delete, pod, put, value_of};
use rkube_store::{
    Begin, Command, Identity, Key, LogEnd, MemberChange, MemberInfo, Outcome, REVISIONS_SKIPPED,
    Role, Scope, SnapshotInfo, Store, StoreConfig, StoreError, existing, inspect_snapshot, log_end,
    recover, restore,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn named(name: &str) -> MemberInfo {
    MemberInfo { name: name.into(), ..MemberInfo::default() }
}

fn open(dir: &Path) -> Store {
    Store::open(StoreConfig { info: named("old"), ..config(dir) }).unwrap()
}

/// A directory with a member of forty objects that has also deleted some, and taken a snapshot.
async fn member(dir: &Path) -> Store {
    let small = StoreConfig { snapshot_every_bytes: 20_000, info: named("old"), ..config(dir) };
    let store = Store::open(small).unwrap();
    for n in 0..45 {
        apply(&store, put(&pod("x", &format!("p{n}")), &n.to_string())).await;
    }
    for n in 40..45 {
        apply(&store, delete(&pod("x", &format!("p{n}")))).await;
    }
    while store.status().snapshot_index == 0 {
        apply(&store, put(&pod("x", "p0"), "0")).await;
        apply(&store, put(&pod("x", "p0"), "other")).await;
    }
    apply(&store, put(&pod("x", "p0"), "last")).await;
    store
}

/// Names, values and revisions of all objects.
fn objects(store: &Store) -> Vec<(Key, String, u64)> {
    let (view, scope) = (store.view(), Scope::all("pods"));
    view.range(&scope, None).map(|o| (o.key.clone(), value_of(&o), o.revision)).collect()
}

async fn write_snapshot(store: &Store, file: &Path) -> SnapshotInfo {
    let stream = store.snapshot().await.unwrap();
    let info = stream.info;
    fs::write(file, stream.flatten().collect::<Vec<u8>>()).unwrap();
    info
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match path.is_dir() {
            true => copy_dir(&path, &to),
            false => drop(fs::copy(&path, &to).unwrap()),
        }
    }
}

/// Every file below a directory and its content, but for the lock, which every look takes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "lock" {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// A store that was made from another one has its objects, goes on far above its revisions, and
/// answers requests that the old one knew anew.
async fn goes_on(
    store: &Store,
    expected: &[(Key, String, u64)],
    revision: u64,
    identity: Identity,
) {
    assert_eq!(store.identity(), identity);
    assert_eq!(objects(store), expected);
    assert_eq!(store.view().revision(), revision + REVISIONS_SKIPPED);
    let next = apply(store, create(&pod("x", "new"), "1")).await;
    assert_eq!(next, revision + REVISIONS_SKIPPED + 1);
    apply(store, delete(&pod("x", "new"))).await;
    assert!(store.watch(Scope::all("pods"), revision).is_err(), "watches begin anew");
    let again = Command { request_id: REQUEST, ..put(&pod("x", "p1"), "again") };
    let Outcome::Applied { revision: applied, .. } = store.propose(again).await.unwrap() else {
        panic!("not applied");
    };
    assert!(applied > revision + REVISIONS_SKIPPED, "{applied}");
    let members = store.members();
    assert!(members.len() == 1 && members[0].id == identity.member_id);
    assert_eq!(members[0].role, Role::Voter);
}

const REQUEST: u128 = 77;

#[tokio::test]
async fn a_snapshot_file_says_what_it_holds_and_becomes_a_new_cluster() {
    let temp = TempDir::new().unwrap();
    let store = member(&temp.path().join("old")).await;
    let known = Command { request_id: REQUEST, ..put(&pod("x", "p1"), "known") };
    apply(&store, known).await;
    let file = temp.path().join("backup");
    let info = write_snapshot(&store, &file).await;
    let (expected, status, old) = (objects(&store), store.status(), store.identity());
    let holds = SnapshotInfo {
        cluster_id: old.cluster_id,
        index: status.applied_index,
        revision: status.revision,
        objects: 40,
        state_hash: status.state_hash,
    };
    assert_eq!((info, inspect_snapshot(&file).unwrap()), (holds, holds));
    store.shutdown().await.unwrap();

    let dir = temp.path().join("new");
    assert_eq!(existing(&dir).unwrap(), None);
    let identity = restore(&file, &dir, &named("new"), None).unwrap();
    assert!(identity.cluster_id != old.cluster_id && identity.member_id != old.member_id);
    assert_eq!(existing(&dir).unwrap(), Some(identity));
    for begin in [Begin::Existing, Begin::Found] {
        let config = StoreConfig { begin, info: named("new"), ..config(&dir) };
        let store = Store::open(config).unwrap();
        if begin == Begin::Existing {
            goes_on(&store, &expected, info.revision, identity).await;
            assert!(store.was_removed(old.member_id), "the old member is none of this cluster");
            assert_eq!(store.members()[0].info.name, "new");
        }
        assert_eq!(value_of(&store.view().get(&pod("x", "p1")).unwrap()), "again");
        store.shutdown().await.unwrap();
    }
    // Where a member is nothing is restored.
    let before = files(&dir);
    let refused = restore(&file, &dir, &named("new"), None).unwrap_err();
    assert!(matches!(refused, StoreError::Members(_)), "{refused}");
    assert!(files(&dir) == before);
}

#[tokio::test]
async fn a_restored_cluster_keeps_its_key_where_it_is_told_to() {
    let temp = TempDir::new().unwrap();
    let store = member(&temp.path().join("old")).await;
    let (file, dir, key) =
        (temp.path().join("backup"), temp.path().join("new"), temp.path().join("key"));
    let info = write_snapshot(&store, &file).await;
    fs::copy(temp.path().join("old/key"), &key).unwrap();
    let expected = objects(&store);
    let identity = restore(&file, &dir, &named("new"), Some(key.clone())).unwrap();
    assert!(!dir.join("key").exists());
    let without = Store::open(config(&dir)).err();
    assert!(matches!(without, Some(StoreError::Key { .. })), "{without:?}");
    let end = log_end(&dir, Some(key.clone())).unwrap();
    assert_eq!((end.identity, end.commit), (identity, end.last_index));
    let config = StoreConfig { encryption_key: Some(key), ..config(&dir) };
    goes_on(&Store::open(config).unwrap(), &expected, info.revision, identity).await;
}

#[tokio::test]
async fn a_damaged_snapshot_file_is_refused() {
    let temp = TempDir::new().unwrap();
    let store = member(&temp.path().join("old")).await;
    let (file, dir) = (temp.path().join("backup"), temp.path().join("new"));
    write_snapshot(&store, &file).await;
    let bytes = fs::read(&file).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&file, bytes).unwrap();
        let error = inspect_snapshot(&file).err();
        let damaged =
            matches!(error, Some(StoreError::Corrupt { .. } | StoreError::NewerFormat { .. }));
        assert!(damaged, "{what}: {error:?}");
    };
    for place in (0..100).chain((100..bytes.len()).step_by(37)).chain([bytes.len() - 1]) {
        let mut flipped = bytes.clone();
        flipped[place] ^= 1 << (place % 8);
        refused(&flipped, &format!("byte {place}"));
        refused(&bytes[..place], &format!("cut off at {place}"));
    }
    refused(&[&bytes[..], &[0]].concat(), "longer");
    refused(&[&bytes[..], &bytes[..]].concat(), "twice");
    // Nothing is made of it either.
    let error = restore(&file, &dir, &named("new"), None).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }) && !dir.exists(), "{error}");
    let missing = inspect_snapshot(&temp.path().join("none")).unwrap_err();
    assert!(matches!(missing, StoreError::Io { .. }), "{missing}");
}

#[tokio::test]
async fn who_runs_or_is_not_there_is_left_alone() {
    let temp = TempDir::new().unwrap();
    let (dir, empty) = (temp.path().join("old"), temp.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    assert_eq!(existing(&empty).unwrap(), None);
    assert!(matches!(log_end(&empty, None), Err(StoreError::Io { .. })));
    assert!(matches!(recover(&empty, None), Err(StoreError::Io { .. })));
    assert_eq!(existing(&empty).unwrap(), None, "nobody was made by asking");

    let store = member(&dir).await;
    assert_eq!(existing(&dir).unwrap(), Some(store.identity()));
    assert!(matches!(log_end(&dir, None), Err(StoreError::Locked { .. })));
    assert!(matches!(recover(&dir, None), Err(StoreError::Locked { .. })));
    store.shutdown().await.unwrap();
    drop(store);
    // A damaged one is not recovered from: what its log holds is not known.
    let log = fs::read_dir(dir.join("wal")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&log).unwrap();
    bytes[40] ^= 1;
    fs::write(&log, bytes).unwrap();
    let before = files(&dir);
    assert!(matches!(recover(&dir, None), Err(StoreError::Corrupt { .. })));
    assert!(matches!(log_end(&dir, None), Err(StoreError::Corrupt { .. })));
    assert!(files(&dir) == before);
}

/// The directory of a member that had added another one, of which nothing was ever heard.
async fn survivor(dir: &Path) -> (Vec<(Key, String, u64)>, LogEnd) {
    let store = member(dir).await;
    let known = Command { request_id: REQUEST, ..put(&pod("x", "p1"), "known") };
    apply(&store, known).await;
    store.change_members(MemberChange::Add { id: 9, info: named("gone") }).await.unwrap();
    let (status, identity) = (store.status(), store.identity());
    let expected = objects(&store);
    let members = store.members();
    store.shutdown().await.unwrap();
    drop(store);
    let end = log_end(dir, None).unwrap();
    assert_eq!((end.identity, end.last_index), (identity, status.last_index));
    assert!(end.last_term == status.term && end.commit <= end.last_index, "{end:?}");
    assert!(end.members.iter().all(|member| members.contains(member)), "{end:?}");
    assert_eq!(log_end(dir, None).unwrap(), end, "looking changes nothing");
    (expected, end)
}

#[tokio::test]
async fn a_member_that_is_left_becomes_a_cluster() {
    let temp = TempDir::new().unwrap();
    let dir = temp.path().join("old");
    let (expected, end) = survivor(&dir).await;
    let old = end.identity;
    // One that was cut short before it counted is begun anew.
    fs::create_dir_all(dir.join("recovering/wal")).unwrap();
    fs::write(dir.join("recovering/wal/0000000000000001.log"), "half").unwrap();
    let before = ["key", "snap"].map(|part| part_of(&dir, part));
    let identity = recover(&dir, None).unwrap();
    assert!(identity.cluster_id != old.cluster_id && identity.member_id != old.member_id);
    assert_eq!(existing(&dir).unwrap(), Some(identity));
    let aside = dir.join(format!("before-{:x}", old.cluster_id));
    for (part, before) in ["key", "snap"].iter().zip(before) {
        assert!(part_of(&aside, part) == before, "the old files stay");
    }
    assert_eq!(log_end(&aside, None).unwrap(), end, "all of them");
    let revision = expected.iter().map(|(_, _, revision)| *revision).max().unwrap();
    let store = open(&dir);
    goes_on(&store, &expected, revision, identity).await;
    assert!(store.was_removed(9) && store.was_removed(old.member_id));
    assert_eq!(store.members()[0].info.name, "old");
    store.shutdown().await.unwrap();
    drop(store);
    // And once more, with another name for what goes aside.
    let again = recover(&dir, None).unwrap();
    let store = open(&dir);
    assert!(again.cluster_id != identity.cluster_id && store.identity() == again);
    assert!(aside.exists() && dir.join(format!("before-{:x}", identity.cluster_id)).exists());
}

fn part_of(dir: &Path, part: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let path = dir.join(part);
    let found = match path.is_dir() {
        true => files(&path),
        false => BTreeMap::from([(path.clone(), fs::read(&path).unwrap())]),
    };
    let below = |(path, bytes): (PathBuf, _)| (path.strip_prefix(dir).unwrap().to_owned(), bytes);
    found.into_iter().map(below).collect()
}

/// The moves that finish a recovery, in their order: whence and where to.
fn moves(dir: &Path, old: Identity) -> Vec<(PathBuf, PathBuf)> {
    let from = dir.join(format!("recovered-from-{:x}", old.cluster_id));
    let aside = dir.join(format!("before-{:x}", old.cluster_id));
    let of_part = |part| [(dir.join(part), aside.join(part)), (from.join(part), dir.join(part))];
    ["key", "snap", "wal"].into_iter().flat_map(of_part).collect()
}

#[tokio::test]
async fn a_recovery_cut_short_is_finished_by_whoever_comes_next() {
    let temp = TempDir::new().unwrap();
    let whole = temp.path().join("whole");
    let (expected, end) = survivor(&whole).await;
    let old = end.identity;
    let revision = expected.iter().map(|(_, _, revision)| *revision).max().unwrap();
    let identity = recover(&whole, None).unwrap();
    for done in 0..=6 {
        let half = |name: &str| {
            let dir = temp.path().join(format!("{name}{done}"));
            copy_dir(&whole, &dir);
            let moves = moves(&dir, old);
            fs::create_dir(moves[1].0.parent().unwrap()).unwrap();
            for (from, to) in moves[done..].iter().rev() {
                fs::rename(to, from).unwrap();
            }
            let aside = moves[0].1.parent().unwrap().to_owned();
            if done == 0 {
                fs::remove_dir(&aside).unwrap();
            }
            (dir, aside)
        };
        let finished = |dir: &Path, aside: &Path| {
            assert!(!moves(dir, old)[1].0.parent().unwrap().exists(), "{done}");
            assert_eq!(log_end(aside, None).unwrap(), end, "{done}");
        };
        let (dir, aside) = half("open");
        assert!(existing(&dir).unwrap().is_some(), "{done}: nobody restores over it");
        let store = open(&dir);
        goes_on(&store, &expected, revision, identity).await;
        finished(&dir, &aside);
        store.shutdown().await.unwrap();

        let (dir, aside) = half("look");
        assert_eq!(log_end(&dir, None).unwrap().identity, identity, "{done}");
        finished(&dir, &aside);

        let (dir, aside) = half("again");
        let again = recover(&dir, None).unwrap();
        finished(&dir, &aside);
        assert!(dir.join(format!("before-{:x}", identity.cluster_id)).exists(), "{done}");
        goes_on(&open(&dir), &expected, revision + REVISIONS_SKIPPED, again).await;
    }
}
