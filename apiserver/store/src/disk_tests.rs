//! A disk that is full, lies, or can't be read; and how much of it a long life takes.

use crate::cipher::tests::source;
use crate::codec::tests::entry_data;
use crate::command::{Command, Write};
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::error::StoreError;
use crate::files::{self, Begin, Dirs, OpenConfig, Opened};
use crate::object::{Header, Key, NewObject};
use crate::snapshot::{self, Snapshot};
use crate::state::State;
use crate::wal::LogWrite;
use raft::eraftpb::{ConfState, Entry, HardState};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const DIR: &str = "/store";

fn open(disk: &SimDisk, segment_bytes: u64) -> Result<Opened, StoreError> {
    let config = OpenConfig {
        dir: Path::new(DIR),
        begin: Begin::Found,
        nonce: 7,
        segment_bytes,
        remember: 1024,
        key: source(7),
    };
    files::open(Arc::new(disk.clone()), config)
}

fn dirs() -> Dirs {
    Dirs::of(Path::new(DIR))
}

fn lease(number: u64) -> Command {
    let name = format!("node-{}", number % 40);
    let json = format!(
        r#"{{"metadata":{{"name":"{name}"}},"spec":{{"holderIdentity":"{name}","renewTime":{number}}}}}"#
    );
    let new = NewObject { json: json.into(), splice_at: 13, header: Header::default() };
    let key = Key::new("leases", "kube-node-lease", &name);
    Command::unconditional(u128::from(number) + 1, vec![Write::Put(key, new)])
}

fn entry(index: u64, commands: &[Command]) -> Entry {
    let data = entry_data(commands, index - 1).into();
    Entry { index, term: 1, data, ..Entry::default() }
}

fn one(index: u64) -> LogWrite {
    LogWrite { entries: vec![entry(index, &[lease(index)])], ..LogWrite::default() }
}

fn save(disk: &SimDisk, opened: &Opened, state: &State) -> Result<u64, StoreError> {
    let conf_state = ConfState::from((vec![opened.core.identity.member_id], vec![]));
    let snapshot = Snapshot { state: state.clone(), conf_state, identity: opened.core.identity };
    snapshot::save(disk, &dirs().snap, &opened.cipher, &snapshot)
}

/// A small log behind a small snapshot, cleanly closed.
fn image() -> SimDisk {
    let disk = SimDisk::default();
    let mut opened = open(&disk, 20 << 10).unwrap();
    let mut state = State::default();
    for index in 2..=9 {
        opened.wal.append(&one(index)).unwrap();
        if index <= 5 {
            state.begin_entry(index, 1, 1024);
            state.apply(lease(index), index - 1);
        }
    }
    save(&disk, &opened, &state).unwrap();
    opened.wal.close().unwrap();
    disk
}

/// What is found again: the state's hash, and the entries behind it.
fn found(opened: &Opened) -> (u64, u64, Vec<u64>) {
    let state = &opened.core.state;
    let entries = opened.core.entries.iter().map(|entry| entry.index).collect();
    (state.applied_index, state.hash, entries)
}

#[test]
fn every_flipped_byte_is_refused_or_harmless() {
    let disk = image();
    let expected = found(&open(&disk.copy(), 20 << 10).unwrap());
    let (mut refused, mut harmless) = (0, 0);
    for (path, content) in disk.all() {
        let used = content.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        for byte in 0..=used {
            let flipped = disk.copy();
            flipped.flip(&path, byte * 8 + byte % 8);
            match open(&flipped, 20 << 10) {
                Ok(opened) => {
                    assert_eq!(found(&opened), expected, "{path:?} byte {byte}");
                    harmless += 1;
                }
                Err(
                    StoreError::Corrupt { .. }
                    | StoreError::NewerFormat { .. }
                    | StoreError::Key { .. },
                ) => refused += 1,
                Err(other) => panic!("{path:?} byte {byte}: {other}"),
            }
        }
    }
    // Harmless is what lies in the mark of the clean end, and a letter's case in the key.
    assert!(refused > 3000 && harmless < 80, "{refused} refused, {harmless} harmless");
}

#[test]
fn a_read_that_fails_is_an_error_and_changes_nothing() {
    let disk = image();
    let before = disk.all();
    let count = {
        let disk = disk.copy();
        open(&disk, 20 << 10).unwrap();
        disk.reads()
    };
    for read in 1..=count {
        let failing = disk.copy();
        failing.fail_read(read);
        match open(&failing, 20 << 10) {
            Err(StoreError::Io { .. }) => {
                open(&failing, 20 << 10).unwrap_or_else(|error| panic!("read {read}: {error}"));
            }
            Err(other) => panic!("read {read}: {other}"),
            // Only the list of what is left over comes behind the log's opening.
            Ok(_) => panic!("read {read} was not noticed"),
        }
    }
    assert!(disk.all() == before && count > 6, "{count}");
}

#[test]
fn a_write_that_went_elsewhere_is_found() {
    const SEGMENT: usize = 20 << 10;
    let disk = SimDisk::default();
    let mut opened = open(&disk, SEGMENT as u64).unwrap();
    let (mut places, mut id, mut end) = (Vec::new(), 1, 0);
    for index in 2..=40 {
        let commands: Vec<_> = (0..3).map(|n| lease(index * 3 + n)).collect();
        let entries = vec![entry(index, &commands)];
        let write = LogWrite { entries, ..LogWrite::default() };
        let written = opened.wal.append(&write).unwrap() as usize;
        let offset = SEGMENT - opened.wal.room().current as usize;
        id += u64::from(offset < end);
        end = offset;
        places.push((id, offset - written, offset));
    }
    drop(opened);
    let path = |id: u64| dirs().wal.join(format!("{id:016x}.log"));
    assert!(id > 1 && places.len() == 39, "the log has several files");
    for (id, from, to) in &places {
        for (other, place, _) in &places {
            if (id, from) == (other, place) {
                continue;
            }
            let (wrong, bytes) = (disk.copy(), disk.content(&path(*id))[*from..*to].to_vec());
            wrong.open(&path(*other)).unwrap().write(&bytes, *place as u64).unwrap();
            let error = open(&wrong, 20 << 10).err();
            assert!(matches!(error, Some(StoreError::Corrupt { .. })), "{id} {from}: {error:?}");
        }
    }
}

#[test]
fn a_full_disk_still_takes_what_an_election_needs() {
    let disk = SimDisk::default();
    let mut opened = open(&disk, 40 << 10).unwrap();
    disk.limit(Some(disk.used()));
    let mut index = 2;
    while opened.wal.room().fits(600) {
        opened.wal.append(&one(index)).unwrap();
        index += 1;
    }
    let refused = opened.wal.prepare().unwrap_err();
    assert!(matches!(refused, StoreError::DiskFull { .. }), "{refused}");
    for term in 2..50 {
        let hard_state = HardState { term, vote: 1, commit: index - 1, ..HardState::default() };
        let empty = Entry { index, term, ..Entry::default() };
        let hard_state = Some(hard_state);
        let write = LogWrite { hard_state, entries: vec![empty], ..LogWrite::default() };
        opened.wal.append(&write).unwrap();
        index += 1;
        if term % 16 == 0 {
            // A restart finds the disk as full.
            drop(opened);
            opened = open(&disk, 40 << 10).unwrap();
        }
    }
    // A snapshot has no room either, and leaves none of it taken.
    let used = disk.used();
    assert!(save(&disk, &opened, &State::default()).is_err_and(|error| error.is_disk_full()));
    assert_eq!(disk.used(), used);
    // At the very end a write is refused whole, and goes on when there is room.
    let long = LogWrite {
        entries: (index..index + 200).map(|i| entry(i, &[])).collect(),
        ..LogWrite::default()
    };
    assert!(matches!(opened.wal.append(&long), Err(StoreError::DiskFull { .. })));
    disk.limit(None);
    opened.wal.append(&long).unwrap();
    drop(opened);
    let last = open(&disk, 40 << 10).unwrap().core.entries.back().unwrap().index;
    assert_eq!(last, index + 199);
}

/// 40 nodes that renew their leases every 10 s for 30 days make 10 million updates; here are
/// 300 000 of them, with the bounds that must hold for any number.
#[test]
fn a_month_of_leases_takes_no_more_room_than_a_day() {
    const BATCHES: u64 = 1000;
    const BATCH: u64 = 300;
    const SEGMENT: u64 = 512 << 10;
    const SNAPSHOT_EVERY: u64 = 2 << 20;
    let begun = Instant::now();
    let disk = SimDisk::default();
    let mut opened = open(&disk, SEGMENT).unwrap();
    let mut state = State::default();
    let (mut since, mut snapshots, mut written, mut most) = (0, 0, 0, 0);
    let mut early = 0;
    for batch in 0..BATCHES {
        let commands: Vec<_> = (0..BATCH).map(|n| lease(batch * BATCH + n)).collect();
        let index = batch + 2;
        let entries = vec![entry(index, &commands)];
        let bytes = opened.wal.append(&LogWrite { entries, ..LogWrite::default() }).unwrap();
        state.begin_entry(index, 1, 1024);
        commands.into_iter().for_each(|command| drop(state.apply(command, index - 1)));
        (since, written) = (since + bytes, written + bytes);
        if since >= SNAPSHOT_EVERY {
            save(&disk, &opened, &state).unwrap();
            snapshot::remove_older(&disk, &dirs().snap, index).unwrap();
            opened.wal.cut(index).unwrap();
            (since, snapshots) = (0, snapshots + 1);
        }
        most = most.max(disk.used());
        if batch == BATCHES / 3 {
            early = most;
        }
    }
    let remembered = state.remembered.iter().count();
    println!(
        "{} updates, {} MiB of log, {snapshots} snapshots, at most {} KiB on disk ({} KiB after a \
         third), {} objects, {remembered} requests remembered, {:?}",
        BATCHES * BATCH,
        written >> 20,
        most >> 10,
        early >> 10,
        state.root.clone().into_objects().count(),
        begun.elapsed()
    );
    assert_eq!(state.root.clone().into_objects().count(), 40);
    assert!(remembered as u64 <= (1 << 16) + BATCH);
    // The log since the last snapshot, the files at both ends, two snapshots.
    assert!(most <= SNAPSHOT_EVERY + 3 * SEGMENT + 2 * (4 << 20), "{most}");
    assert!(most <= early + SEGMENT, "{early} then {most}");
    drop(opened);
    let again = open(&disk, SEGMENT).unwrap();
    let last = again.core.entries.back().map_or(again.snapshot_index, |entry| entry.index);
    assert_eq!(last, BATCHES + 1);
}
