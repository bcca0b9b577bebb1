//! Every image that a power loss can leave of a recorded run: appends, replaced entries, files
//! that are full, snapshots, one that comes from another member, a clean end, a crash.
//!
//! The disk is kept as it is before each sync; then each subset of what was not synced (sectors,
//! allocations, changes of directories) is tried, or a seeded sample of the subsets if there are
//! too many. Whatever is left must open, with what was acknowledged or with a prefix of what was
//! on its way.

use crate::cipher::tests::source;
use crate::codec::tests::entry_data;
use crate::codec::{ENTRY_VERSION, Item, Names, read_entry};
use crate::command::{Command, Write};
use crate::disk::Disk;
use crate::disk::sim::{Fault, SimDisk};
use crate::error::StoreError;
use crate::files::{self, Begin, Dirs, OpenConfig, Opened};
use crate::object::{Header, Key, NewObject};
use crate::snapshot::stream::{Chunks, Receiver};
use crate::snapshot::{self, Snapshot};
use crate::state::State;
use crate::wal::{LogWrite, Reset};
use raft::eraftpb::{ConfState, Entry, HardState};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/store";
const SEGMENT: u64 = 24 << 10;
/// Up to so many parts all subsets are tried, beyond it this many of them.
const ALL_UP_TO: usize = 12;
const SAMPLE: u64 = 256;

/// A log's last entry and the state there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome {
    index: u64,
    hash: u64,
}

/// What may be found from an image on, until the next step.
struct Step {
    from_image: usize,
    allowed: Vec<Outcome>,
    hard_states: Vec<(u64, u64)>,
}

struct Run {
    disk: SimDisk,
    opened: Option<Opened>,
    /// The terms of the entries 2.. that are acknowledged.
    terms: Vec<u64>,
    hard_state: HardState,
    steps: Vec<Step>,
}

fn open(disk: &SimDisk) -> Result<Opened, StoreError> {
    let config = OpenConfig {
        dir: Path::new(DIR),
        begin: Begin::Found,
        nonce: 7,
        segment_bytes: SEGMENT,
        remember: 1 << 40,
        key: source(7),
    };
    files::open(Arc::new(disk.clone()), config)
}

fn snap_dir() -> std::path::PathBuf {
    Dirs::of(Path::new(DIR)).snap
}

fn entry(index: u64, term: u64) -> Entry {
    // 1 to 4 sectors.
    let filler = "f".repeat((index * 397 % 1500) as usize);
    let json = format!(r#"{{"metadata":{{"n":{index},"t":{term}}},"f":"{filler}"}}"#);
    let new = NewObject { json: json.into(), splice_at: 13, header: Header::default() };
    let write = Write::Put(Key::new("pods", "x", &(index % 9).to_string()), new);
    let command = Command::unconditional(u128::from(index), vec![write]);
    let data = entry_data(&[command], index - 1).into();
    Entry { index, term, data, ..Entry::default() }
}

fn apply(state: &mut State, entry: &Entry) {
    state.begin_entry(entry.index, entry.term, 1 << 40);
    for item in read_entry(&entry.data, &mut Names::default(), ENTRY_VERSION).unwrap() {
        let Item::Command { since, command } = item else { panic!("{item:?}") };
        state.apply(command, since);
    }
}

/// The state after the entries 2.. of these terms.
fn state(terms: &[u64]) -> State {
    let mut state = State { applied_index: 1, applied_term: 1, ..State::default() };
    for (place, term) in terms.iter().enumerate() {
        apply(&mut state, &entry(place as u64 + 2, *term));
    }
    state
}

fn outcome(terms: &[u64]) -> Outcome {
    Outcome { index: terms.len() as u64 + 1, hash: state(terms).hash }
}

impl Run {
    fn begin() -> Self {
        let disk = SimDisk::default();
        disk.record();
        let (opened, steps) = (None, Vec::new());
        let hard_state = HardState { term: 1, commit: 1, ..HardState::default() };
        let mut run = Self { disk, opened, terms: Vec::new(), hard_state, steps };
        run.step(vec![], vec![]);
        run.opened = Some(open(&run.disk).unwrap());
        run
    }

    /// From here on what is acknowledged may be found, or one of these.
    fn step(&mut self, more: Vec<Outcome>, terms_and_votes: Vec<(u64, u64)>) {
        let mut allowed = vec![outcome(&self.terms)];
        allowed.extend(more);
        let mut hard_states = vec![(self.hard_state.term, self.hard_state.vote)];
        hard_states.extend(terms_and_votes);
        let from_image = self.disk.recorded().len();
        self.steps.push(Step { from_image, allowed, hard_states });
    }

    fn opened(&mut self) -> &mut Opened {
        self.opened.as_mut().unwrap()
    }

    /// Appends entries of a term, replacing those at and behind `index`.
    fn append(&mut self, index: u64, count: u64, term: u64) -> Result<(), StoreError> {
        let mut terms = self.terms[..index as usize - 2].to_vec();
        let mut on_the_way = Vec::new();
        for _ in 0..count {
            terms.push(term);
            on_the_way.push(outcome(&terms));
        }
        let commit = self.hard_state.commit.max(index - 1);
        let hard_state = HardState { term, vote: term % 3, commit, ..HardState::default() };
        self.step(on_the_way, vec![(term, term % 3)]);
        let write = LogWrite {
            entries: (index..index + count).map(|index| entry(index, term)).collect(),
            hard_state: Some(hard_state.clone()),
            ..LogWrite::default()
        };
        self.opened().wal.append(&write)?;
        (self.terms, self.hard_state) = (terms, hard_state);
        self.step(vec![], vec![]);
        Ok(())
    }

    fn append_many(&mut self, count: u64, term: u64) {
        let mut left = count;
        while left > 0 {
            let (next, now) = (self.terms.len() as u64 + 2, (left % 3 + 1).min(left));
            self.append(next, now, term).unwrap();
            left -= now;
        }
    }

    fn snapshot_of(&mut self, terms: &[u64]) -> Snapshot {
        let conf_state = ConfState::from((vec![1], vec![]));
        Snapshot { state: state(terms), conf_state, identity: self.opened().core.identity }
    }

    fn snapshot(&mut self) {
        let terms = self.terms.clone();
        let snapshot = self.snapshot_of(&terms);
        let (index, disk) = (snapshot.state.applied_index, self.disk.clone());
        snapshot::save(&disk, &snap_dir(), &self.opened().cipher, &snapshot).unwrap();
        snapshot::remove_older(&disk, &snap_dir(), index).unwrap();
        self.opened().wal.cut(index).unwrap();
    }

    /// A snapshot with so many more entries comes from another member.
    fn install(&mut self, more: usize, term: u64) {
        let mut terms = self.terms.clone();
        terms.extend(vec![term; more]);
        let snapshot = self.snapshot_of(&terms);
        let (index, disk) = (snapshot.state.applied_index, self.disk.clone());
        let hard_state = HardState { term, commit: index, ..HardState::default() };
        self.step(vec![outcome(&terms)], vec![(term, 0)]);
        let cipher = self.opened().cipher.clone();
        let identity = self.opened().core.identity;
        let mut receiver = Receiver::begin(Arc::new(disk.clone()), &snap_dir(), identity, cipher);
        Chunks::new(&snapshot).for_each(|chunk| receiver.write(&chunk).unwrap());
        receiver.finish().unwrap();
        let conf_state = snapshot.conf_state.clone();
        let write = LogWrite {
            reset: Some(Box::new(Reset { index, term, conf_state })),
            hard_state: Some(hard_state.clone()),
            ..LogWrite::default()
        };
        self.opened().wal.append(&write).unwrap();
        (self.terms, self.hard_state) = (terms, hard_state);
        self.step(vec![], vec![]);
        snapshot::remove_older(&disk, &snap_dir(), index).unwrap();
        self.opened().wal.cut(index).unwrap();
    }

    fn close_and_open(&mut self) {
        self.opened.take().unwrap().wal.close().unwrap();
        self.opened = Some(open(&self.disk).unwrap());
    }

    /// The process dies before a sync and comes back: what it wrote and finds counts now.
    fn crash(&mut self) {
        let next = self.terms.len() as u64 + 2;
        self.disk.fail_at(self.disk.operations() + 2, Fault::Crash);
        self.append(next, 2, self.hard_state.term).unwrap_err();
        self.disk.restart();
        self.opened = Some(open(&self.disk).unwrap());
        let found = settle(self.opened.as_ref().unwrap()).index;
        assert!(found + 1 >= next, "{found}");
        self.terms.resize(found as usize - 1, self.hard_state.term);
        self.hard_state.commit = next - 1;
        self.step(vec![], vec![]);
    }
}

fn recorded_run() -> Run {
    let mut run = Run::begin();
    run.append_many(9, 1);
    run.snapshot();
    run.append_many(16, 2);
    // A new leader replaces the end, then more than that.
    let last = run.terms.len() as u64 + 1;
    run.append(last, 1, 3).unwrap();
    run.append(last - 1, 3, 4).unwrap();
    run.crash();
    run.snapshot();
    run.append_many(5, 4);
    run.install(12, 5);
    run.append_many(3, 5);
    run.install(4, 5);
    run.append_many(14, 6);
    run.close_and_open();
    run.append_many(2, 6);
    run.snapshot();
    run.append_many(9, 7);
    run.install(1, 8);
    run.append_many(20, 9);
    run.close_and_open();
    run.snapshot();
    run.append_many(2, 9);
    run
}

/// Opens what is left and checks it.
fn check(image: &SimDisk, step: &Step, thorough: bool, what: &str) {
    let mut opened = open(image).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = settle(&opened);
    assert!(step.allowed.contains(&found), "{what}: {found:?}, allowed {:?}", step.allowed);
    let hard = opened.core.hard_state.clone();
    let term_and_vote = (hard.term, hard.vote);
    assert!(step.hard_states.contains(&term_and_vote), "{what}: {hard:?} {:?}", step.hard_states);
    assert!(hard.commit <= found.index, "{what}: {hard:?}");
    if thorough {
        // It goes on, and what it adds is found again.
        let next = entry(found.index + 1, hard.term + 1);
        opened.wal.append(&LogWrite { entries: vec![next], ..LogWrite::default() }).unwrap();
        drop(opened);
        let again = open(&image.after_loss(|_| false)).unwrap();
        assert_eq!(settle(&again).index, found.index + 1, "{what}");
    }
}

fn settle(opened: &Opened) -> Outcome {
    let mut state = opened.core.state.clone();
    opened.core.entries.iter().for_each(|entry| apply(&mut state, entry));
    Outcome { index: state.applied_index, hash: state.hash }
}

#[test]
fn every_image_of_a_power_loss_opens_with_what_was_acknowledged() {
    let run = recorded_run();
    let mut recorded = run.disk.recorded();
    recorded.push(run.disk.copy());
    let mut random = StdRng::seed_from_u64(3);
    let (mut images, mut sampled, mut most) = (0_u64, 0, 0);
    for (number, disk) in recorded.iter().enumerate() {
        let step = run.steps.iter().rfind(|step| step.from_image <= number).unwrap();
        let parts = disk.unsynced();
        most = most.max(parts);
        let subsets = match parts <= ALL_UP_TO {
            true => 1 << parts,
            false => SAMPLE,
        };
        sampled += usize::from(parts > ALL_UP_TO);
        for subset in 0..subsets {
            let what = format!("sync {number}, {parts} parts, subset {subset}");
            // A sample has nothing, everything, and what chance gives.
            let density = [0.0, 1.0, 0.1, 0.5, 0.9][(subset as usize).min(2 + subset as usize % 3)];
            let image = disk.after_loss(|part| match parts <= ALL_UP_TO {
                true => subset >> part & 1 == 1,
                false => random.random_bool(density),
            });
            check(&image, step, images % 61 == 0, &what);
            images += 1;
        }
    }
    println!(
        "{images} images of {} syncs; {sampled} syncs with up to {most} parts were sampled",
        recorded.len()
    );
    assert!(images > 5_000 && recorded.len() > 75, "{images} of {}", recorded.len());
    assert!(run.disk.list(&snap_dir()).unwrap().len() == 1);
}
