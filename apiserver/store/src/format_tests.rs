//! The form of the files: version 1 opens, whose they are, what is encrypted, and how log and
//! snapshots from other members fit.

use crate::cipher::tests::source;
use crate::cipher::{Cipher, KeySource};
use crate::codec::tests::entry_data;
use crate::command::{Command, Write};
use crate::disk::sim::{Fault, SimDisk};
use crate::disk::{Disk, RealDisk};
use crate::error::StoreError;
use crate::files::{self, Begin, Dirs, OpenConfig, Opened};
use crate::member::Identity;
use crate::object::{Header, Key, NewObject};
use crate::snapshot::stream::{Chunks, Receiver};
use crate::snapshot::{self, Snapshot};
use crate::state::State;
use crate::store::Store;
use crate::wal::{LogWrite, Reset};
use crate::{Scope, StoreConfig};
use raft::eraftpb::{ConfState, Entry, HardState};
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/store";
const SEGMENT: u64 = 40 << 10;
const JOINER: Identity = Identity { cluster_id: 0xc1, member_id: 5 };

fn config(begin: Begin) -> OpenConfig<'static> {
    OpenConfig {
        dir: Path::new(DIR),
        begin,
        nonce: 7,
        segment_bytes: SEGMENT,
        remember: 1 << 40,
        key: source(7),
    }
}

fn open(disk: &SimDisk, begin: Begin) -> Result<Opened, StoreError> {
    files::open(Arc::new(disk.clone()), config(begin))
}

fn snap_dir() -> std::path::PathBuf {
    Dirs::of(Path::new(DIR)).snap
}

fn put(n: u64) -> Command {
    let json = format!(r#"{{"metadata":{{"n":{n}}},"f":"{}"}}"#, "f".repeat(500)).into();
    let new = NewObject { json, splice_at: 13, header: Header::default() };
    let key = Key::new("pods", "x", &(n % 1000).to_string());
    Command::unconditional(u128::from(n), vec![Write::Put(key, new)])
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: entry_data(&[put(index)], index - 1).into(), ..Entry::default() }
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> LogWrite {
    LogWrite { entries: range.map(|index| entry(index, term)).collect(), ..LogWrite::default() }
}

fn hard_state(term: u64, vote: u64, commit: u64) -> Option<HardState> {
    Some(HardState { term, vote, commit, ..HardState::default() })
}

/// The state after the entries up to `index`, the last one of this term.
fn snapshot_at(index: u64, term: u64, identity: Identity) -> Snapshot {
    let mut state = State::default();
    for index in 2..=index {
        state.begin_entry(index, term, 1 << 40);
        state.apply(put(index), index - 1);
    }
    Snapshot { state, conf_state: ConfState::from((vec![1, 5], vec![])), identity }
}

fn receive(
    disk: &SimDisk,
    cipher: &Arc<Cipher>,
    snapshot: &Snapshot,
) -> Result<Snapshot, StoreError> {
    let mut receiver = Receiver::begin(Arc::new(disk.clone()), &snap_dir(), JOINER, cipher.clone());
    for chunk in Chunks::new(snapshot) {
        receiver.write(&chunk)?;
    }
    receiver.finish()
}

fn reset(index: u64, term: u64) -> LogWrite {
    let conf_state = ConfState::from((vec![1, 5], vec![]));
    LogWrite { reset: Some(Box::new(Reset { index, term, conf_state })), ..LogWrite::default() }
}

fn indices(opened: &Opened) -> Vec<u64> {
    opened.core.entries.iter().map(|entry| entry.index).collect()
}

fn applied(opened: &Opened) -> (u64, u64) {
    (opened.core.state.applied_index, opened.core.state.applied_term)
}

fn copy_of_version_1(to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v1");
    for dir in ["wal", "snap"] {
        std::fs::create_dir_all(to.join(dir)).unwrap();
        for file in std::fs::read_dir(from.join(dir)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(dir).join(file.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn a_directory_of_version_1_opens_and_gets_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    copy_of_version_1(dir.path());
    let known = files::existing(&RealDisk, dir.path()).unwrap();
    assert_eq!(known, Some(Identity { cluster_id: 0, member_id: 1 }));
    let mut identity = None;
    for _ in 0..3 {
        let store = Store::open(StoreConfig::new(dir.path())).unwrap();
        let view = store.view();
        assert_eq!(view.count(&Scope::all("secrets")), 8);
        for n in 0..40 {
            let resource = if n % 5 == 0 { "secrets" } else { "pods" };
            let object = view.get(&Key::new(resource, "default", &format!("p{n}")));
            // p(n-1) of the pods was deleted after n%7==3.
            let deleted = resource == "pods" && (n + 1) % 7 == 3;
            assert_eq!(object.is_none(), deleted, "{resource} p{n}");
        }
        let found = store.identity();
        assert!(found.cluster_id != 0 && found.member_id == 1, "{found}");
        assert_eq!(*identity.get_or_insert(found), found, "it is drawn once");
        assert_eq!(files::existing(&RealDisk, dir.path()).unwrap(), Some(found));
        store.propose(put(900)).await.unwrap();
        store.shutdown().await.unwrap();
    }
}

#[test]
fn a_founder_begins_at_entry_1_and_is_known_at_once() {
    let disk = SimDisk::default();
    assert_eq!(files::existing(&disk, Path::new(DIR)).unwrap(), None);
    let opened = open(&disk, Begin::Found).unwrap();
    let identity = opened.core.identity;
    assert!(identity.cluster_id != 0 && identity.member_id != 0, "{identity}");
    disk.power_loss(3);
    assert_eq!(files::existing(&disk, Path::new(DIR)).unwrap(), Some(identity));
    for begin in [Begin::Existing, Begin::Found, Begin::Join(identity)] {
        let OpenConfig { nonce, .. } = config(begin);
        let other = OpenConfig { nonce: nonce + 1, ..config(begin) };
        let opened = files::open(Arc::new(disk.clone()), other).unwrap();
        assert_eq!((opened.core.identity, applied(&opened)), (identity, (1, 1)));
        assert_eq!(opened.core.conf_state.voters, [identity.member_id]);
        assert_eq!((opened.core.hard_state.term, opened.core.hard_state.commit), (1, 1));
        assert_eq!(opened.snapshot_index, 0);
    }
    let error = open(&disk, Begin::Join(JOINER)).err().unwrap();
    assert!(matches!(error, StoreError::OtherMember { found, expected, .. }
        if found == identity && expected == JOINER));
    assert!(error.to_string().contains("needs a new id"), "{error}");
}

#[test]
fn nothing_is_opened_where_nothing_is() {
    assert!(matches!(open(&SimDisk::default(), Begin::Existing), Err(StoreError::Io { .. })));
}

#[test]
fn a_joiner_waits_for_a_snapshot_and_goes_on_behind_it() {
    let disk = SimDisk::default();
    let mut opened = open(&disk, Begin::Join(JOINER)).unwrap();
    assert!(opened.core.conf_state.voters.is_empty());
    assert_eq!((opened.core.identity, applied(&opened)), (JOINER, (0, 0)));
    let sent = snapshot_at(40, 3, Identity { cluster_id: JOINER.cluster_id, member_id: 1 });
    let received = receive(&disk, &opened.cipher, &sent).unwrap();
    assert_eq!((received.state.hash, received.identity), (sent.state.hash, JOINER));
    let write = LogWrite { hard_state: hard_state(3, 0, 40), ..reset(40, 3) };
    opened.wal.append(&write).unwrap();
    opened.wal.append(&entries(41..=90, 3)).unwrap();
    drop(opened);
    disk.power_loss(1);
    let opened = open(&disk, Begin::Existing).unwrap();
    assert_eq!((applied(&opened), opened.snapshot_index), ((40, 3), 40));
    assert_eq!(indices(&opened), (41..=90).collect::<Vec<_>>());
    assert_eq!(opened.core.conf_state.voters, [1, 5]);
}

/// A member with entries 2..=30 of term 2, and a snapshot from another one beside its log.
fn behind(index: u64, term: u64) -> (SimDisk, Identity) {
    let disk = SimDisk::default();
    let mut opened = open(&disk, Begin::Join(JOINER)).unwrap();
    let own = snapshot_at(10, 2, JOINER);
    snapshot::save(&disk, &snap_dir(), &opened.cipher, &own).unwrap();
    opened.wal.append(&reset(10, 2)).unwrap();
    let hard_state = hard_state(2, 5, 20);
    opened.wal.append(&LogWrite { hard_state, ..entries(11..=30, 2) }).unwrap();
    receive(&disk, &opened.cipher, &snapshot_at(index, term, JOINER)).unwrap();
    (disk, opened.core.identity)
}

#[test]
fn a_crash_between_snapshot_and_reset_is_made_good() {
    // index, term, entries kept, term and vote and commit behind it
    let cases = [
        (25, 2, 26..31, (2, 5, 25)), // the log has it
        (30, 2, 31..31, (2, 5, 30)), // the log ends there
        (50, 2, 51..51, (2, 5, 50)), // the log ends before
        (50, 4, 51..51, (4, 0, 50)), // and in an older term
        (25, 3, 26..26, (3, 0, 25)), // the log is another one there
    ];
    for (index, term, kept, (hard_term, vote, commit)) in cases {
        let (disk, _) = behind(index, term);
        for again in 0..3 {
            let opened = open(&disk, Begin::Existing).unwrap();
            assert_eq!(applied(&opened), (index, term));
            assert_eq!(indices(&opened), kept.clone().collect::<Vec<_>>(), "{index} {term}");
            let hard = &opened.core.hard_state;
            assert_eq!((hard.term, hard.vote, hard.commit), (hard_term, vote, commit));
            assert_eq!(disk.list(&snap_dir()).unwrap().len(), 1, "older ones are gone");
            disk.power_loss(again);
        }
        // The log goes on, and older files can go.
        let mut opened = open(&disk, Begin::Existing).unwrap();
        let from = kept.end;
        opened.wal.append(&entries(from..=from + 99, 5)).unwrap();
        opened.wal.cut(index).unwrap();
        drop(opened);
        disk.power_loss(9);
        let opened = open(&disk, Begin::Existing).unwrap();
        assert_eq!(opened.core.entries.back().unwrap().index, from + 99);
    }
}

#[test]
fn a_log_that_begins_behind_the_newest_snapshot_is_refused() {
    let (disk, _) = behind(50, 4);
    drop(open(&disk, Begin::Existing).unwrap());
    let newest = snap_dir().join(format!("{:016x}.snap", 50));
    disk.remove(&newest).unwrap();
    let error = open(&disk, Begin::Existing).err().unwrap();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    // An older one does not help.
    let older = snapshot_at(10, 2, JOINER);
    let cipher = source(7).find(&disk, Path::new(DIR)).unwrap().cipher.unwrap();
    snapshot::save(&disk, &snap_dir(), &cipher, &older).unwrap();
    let error = open(&disk, Begin::Existing).err().unwrap();
    assert!(error.to_string().contains("begins behind entry 50"), "{error}");
}

#[test]
fn two_snapshots_in_a_row_and_an_older_one_are_safe() {
    let disk = SimDisk::default();
    let mut opened = open(&disk, Begin::Join(JOINER)).unwrap();
    for (index, term) in [(20, 2), (35, 3)] {
        receive(&disk, &opened.cipher, &snapshot_at(index, term, JOINER)).unwrap();
        opened.wal.append(&reset(index, term)).unwrap();
    }
    opened.wal.append(&entries(36..=60, 3)).unwrap();
    // One that was on its way for long, then one of our own that was in work for as long.
    receive(&disk, &opened.cipher, &snapshot_at(22, 2, JOINER)).unwrap();
    snapshot::remove_older(&disk, &snap_dir(), 22).unwrap();
    opened.wal.cut(22).unwrap();
    drop(opened);
    disk.power_loss(4);
    let opened = open(&disk, Begin::Existing).unwrap();
    assert_eq!(applied(&opened), (35, 3));
    assert_eq!(indices(&opened), (36..=60).collect::<Vec<_>>());
}

#[test]
fn a_damaged_stream_leaves_nothing() {
    let disk = SimDisk::default();
    let opened = open(&disk, Begin::Join(JOINER)).unwrap();
    let sent = snapshot_at(700, 3, JOINER);
    let chunks: Vec<_> = Chunks::new(&sent).collect();
    assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk.len() < 600 << 10));
    let stream = chunks.concat();
    let write = |bytes: &[u8], size: usize| {
        let disk = Arc::new(disk.clone());
        let mut receiver = Receiver::begin(disk, &snap_dir(), JOINER, opened.cipher.clone());
        bytes.chunks(size).try_for_each(|chunk| receiver.write(chunk))?;
        receiver.finish()
    };
    let places = (0..stream.len()).step_by(stream.len() / 150).chain(0..60);
    for place in places {
        let mut flipped = stream.clone();
        flipped[place] ^= 1 << (place % 8);
        for damaged in [&flipped[..], &stream[..place]] {
            let error = write(damaged, 100_000).err();
            assert!(
                matches!(error, Some(StoreError::Corrupt { .. } | StoreError::NewerFormat { .. })),
                "{place}: {error:?}"
            );
            assert!(disk.list(&snap_dir()).unwrap().is_empty(), "{place}");
        }
    }
    let swapped = chunks.iter().rev().flatten().copied().collect::<Vec<_>>();
    let twice = [&chunks[0][..], &stream[..]].concat();
    let longer = [&stream[..], &chunks[0][..]].concat();
    for wrong in [swapped, twice, longer] {
        assert!(matches!(write(&wrong, 1 << 20), Err(StoreError::Corrupt { .. })));
    }
    let stranger = Identity { cluster_id: 0xc2, member_id: 1 };
    let foreign = Chunks::new(&snapshot_at(5, 3, stranger)).collect::<Vec<_>>().concat();
    assert!(matches!(write(&foreign, 1 << 20), Err(StoreError::OtherMember { .. })));
    assert!(disk.list(&snap_dir()).unwrap().is_empty());
    assert_eq!(write(&stream, 777).unwrap().state.hash, sent.state.hash);
}

#[test]
fn a_fault_or_a_full_disk_while_receiving_leaves_nothing_that_counts() {
    let fresh = || {
        let disk = SimDisk::default();
        let cipher = open(&disk, Begin::Join(JOINER)).unwrap().cipher;
        (disk, cipher)
    };
    let sent = snapshot_at(600, 3, JOINER);
    let (disk, cipher) = fresh();
    let before = disk.operations();
    receive(&disk, &cipher, &sent).unwrap();
    let operations = disk.operations() - before;
    assert!(operations >= 6, "{operations}");
    for operation in 1..=operations {
        for (fault, loss) in [(Fault::Io, 1), (Fault::Crash, 2), (Fault::Crash, 3)] {
            let (disk, cipher) = fresh();
            disk.fail_at(disk.operations() + operation, fault);
            receive(&disk, &cipher, &sent).err().unwrap();
            disk.power_loss(loss);
            let opened = open(&disk, Begin::Existing).unwrap();
            let found = disk.list(&snap_dir()).unwrap();
            assert!(found.iter().all(|name| name.ends_with(".snap")), "{found:?}");
            let expected = if found.is_empty() { (0, 0) } else { (600, 3) };
            assert_eq!(applied(&opened), expected, "operation {operation}");
        }
    }
    let (disk, cipher) = fresh();
    let used = disk.used();
    disk.limit(Some(used + 100_000));
    assert!(receive(&disk, &cipher, &sent).err().unwrap().is_disk_full());
    assert_eq!(disk.used(), used, "the part is gone");
    disk.limit(None);
    receive(&disk, &cipher, &sent).unwrap();
}

#[test]
fn a_wrong_or_missing_key_is_refused_and_nothing_is_changed() {
    let disk = SimDisk::default();
    let mut opened = open(&disk, Begin::Found).unwrap();
    opened.wal.append(&entries(2..=30, 1)).unwrap();
    snapshot::save(&disk, &snap_dir(), &opened.cipher, &snapshot_at(20, 1, opened.core.identity))
        .unwrap();
    drop(opened);
    let key = Path::new(DIR).join("key");
    let (without, other) = (disk.copy(), disk.copy());
    without.remove(&key).unwrap();
    source(8).make(&other, Path::new(DIR)).unwrap();
    for changed in [without, other] {
        let before = changed.all();
        let error = open(&changed, Begin::Found).err().unwrap();
        assert!(matches!(&error, StoreError::Key { file, .. } if *file == key), "{error}");
        assert!(changed.all() == before, "{error}");
    }
    // The key may be kept elsewhere; then that file counts.
    disk.rename(&key, Path::new("/keys/store")).unwrap();
    let elsewhere = |path: &str| OpenConfig {
        key: KeySource { file: Some(path.into()), ..source(9) },
        ..config(Begin::Existing)
    };
    let opened = files::open(Arc::new(disk.clone()), elsewhere("/keys/store")).unwrap();
    assert_eq!((applied(&opened), indices(&opened).len()), ((20, 1), 10));
    let missing = files::open(Arc::new(disk.clone()), elsewhere("/keys/none")).err().unwrap();
    assert!(missing.to_string().contains("/keys/none"), "{missing}");
}

/// All files below a directory.
fn files_below(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files_below(&path, found),
            false => found.push(path),
        }
    }
}

#[tokio::test]
async fn no_file_has_a_secret_in_plain() {
    const TEXT: &str = "correct horse battery staple";
    // Its base64.
    const BASE64: &str = "Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ";
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("history")).unwrap();
    std::fs::write(dir.path().join("history/db"), TEXT).unwrap();
    let config = StoreConfig { snapshot_every_bytes: 4 << 10, ..StoreConfig::new(dir.path()) };
    let store = Store::open(config).unwrap();
    let key = Key::new("secrets", "x", "s");
    let write = |n: u64| {
        let filler = "f".repeat(1000);
        let json = format!(
            r#"{{"metadata":{{"n":{n}}},"a":"{TEXT}","data":{{"b":"{BASE64}=="}},"f":"{filler}"}}"#
        );
        let new = NewObject { json: json.into(), splice_at: 13, header: Header::default() };
        Command::unconditional(0, vec![Write::Put(key.clone(), new)])
    };
    for n in 0..20 {
        store.propose(write(n)).await.unwrap();
    }
    while store.status().snapshot_index == 0 {
        store.propose(write(21)).await.unwrap();
        store.propose(write(22)).await.unwrap();
    }
    let old = store.view_at(3, "secrets").await.unwrap();
    assert_eq!(old.get(&key).unwrap().revision, 3);
    store.shutdown().await.unwrap();
    let mut found = Vec::new();
    files_below(dir.path(), &mut found);
    let below = |part: &str| found.iter().any(|path| path.starts_with(dir.path().join(part)));
    assert!(below("wal") && below("snap") && below("history/sealed"), "{found:?}");
    for path in found {
        let bytes = std::fs::read(&path).unwrap();
        for text in [TEXT, BASE64] {
            let plain = bytes.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!plain, "{} has {text:?}", path.display());
        }
    }
}
