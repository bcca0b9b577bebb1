//! A member over a simulated disk: seeded schedules of proposals, snapshots, crashes and faults.
//!
//! The reference is the state machine itself, fed with the same commands in the same order. What
//! a restarted member has must be the reference after some whole batch, none of it before the
//! last acknowledged one.

use crate::cipher::Cipher;
use crate::cipher::tests::source;
use crate::codec::{ENTRY_VERSION, write_command};
use crate::command::{Command, Precondition, Write};
use crate::core::{Core, Outgoing};
use crate::disk::Disk;
use crate::disk::sim::{Fault, SimDisk};
use crate::error::StoreError;
use crate::files::{self, Begin, Dirs, OpenConfig, Opened};
use crate::member::{MemberChange, MemberInfo};
use crate::mix;
use crate::object::{Header, Key, NewObject};
use crate::replica::{Done, Effect, Replica, ReplicaConfig};
use crate::snapshot::{self, Snapshot};
use crate::state::{Answer, State};
use crate::wal::Wal;
use crate::wal::record::make_newer;
use raft::eraftpb::ConfState;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIR: &str = "/store";
const SEGMENT: u64 = 40 << 10;
const NONCE: u64 = 7;
/// Most starts in a row that a test cuts short, and the one behind them.
const STARTS: usize = 13;

/// A member's synchronous shell.
struct Member {
    replica: Replica<usize>,
    wal: Wal,
    disk: SimDisk,
    cipher: Arc<Cipher>,
}

type Answered = Vec<(usize, Result<Done, StoreError>)>;

impl Member {
    fn open(disk: &SimDisk) -> Result<Self, StoreError> {
        let config = OpenConfig {
            dir: Path::new(DIR),
            begin: Begin::Found,
            nonce: NONCE,
            segment_bytes: SEGMENT,
            remember: 1 << 40,
            key: source(7),
        };
        let Opened { wal, core, cipher, .. } = files::open(Arc::new(disk.clone()), config)?;
        let config = ReplicaConfig {
            identity: core.identity,
            nonce: NONCE,
            info: MemberInfo::default(),
            entry_bytes: SEGMENT as usize / 2,
            snapshot_bytes_per_tick: usize::MAX,
            room: wal.room(),
        };
        let replica = Replica::new(Core::new(core)?, config);
        let mut member = Self { replica, wal, disk: disk.clone(), cipher };
        member.settle()?;
        member.replica.core_mut().campaign()?;
        member.settle()?;
        assert!(member.replica.core().leads_its_term());
        Ok(member)
    }

    /// Carries out all that the member wants; answers with what its callers were told.
    fn settle(&mut self) -> Result<Answered, StoreError> {
        let mut answered = Vec::new();
        while let Some(effect) = self.replica.step()? {
            match effect {
                Effect::Write(write) => {
                    self.wal.append(&write)?;
                    self.replica.persisted(write.number, self.wal.room());
                }
                Effect::Prepare => match self.wal.prepare() {
                    Err(error) if !error.is_disk_full() => return Err(error),
                    prepared => self.replica.prepared(prepared.map(|()| self.wal.room())),
                },
                Effect::Written(caller, result) => answered.push((caller, result)),
                Effect::Publish { .. } | Effect::Members => {}
                _ => panic!("nobody else is there, and nobody reads"),
            }
        }
        Ok(answered)
    }

    /// Proposes a batch; false if there was no room for it and it was refused.
    fn propose(&mut self, commands: &[Command]) -> Result<bool, StoreError> {
        let before = self.replica.core().last_index();
        for (caller, command) in commands.iter().enumerate() {
            let mut item = Vec::new();
            write_command(&mut item, command);
            self.replica.propose(item, caller);
        }
        let answered = self.settle()?;
        let callers: Vec<_> = answered.iter().map(|(caller, _)| *caller).collect();
        assert_eq!(callers, in_order(commands), "all answered, in order");
        let full = |result: &Result<Done, StoreError>| match result {
            Ok(Done::Command(_)) => false,
            Err(StoreError::DiskFull { .. }) => true,
            other => panic!("{other:?}"),
        };
        let refused = answered.iter().filter(|(_, result)| full(result)).count();
        assert!(refused == 0 || refused == commands.len(), "{refused} of one entry");
        let entries = self.replica.core().last_index() - before;
        assert_eq!(entries, u64::from(refused == 0), "a batch is one entry");
        assert_eq!(self.replica.backlog(), 0, "nothing is left");
        Ok(refused == 0)
    }

    fn snapshot(&mut self) -> Result<(), StoreError> {
        let dir = Dirs::of(Path::new(DIR)).snap;
        let Outgoing { state, conf_state } = self.replica.core().export();
        let snapshot = Snapshot { state, conf_state, identity: self.replica.identity() };
        let index = snapshot.state.applied_index;
        snapshot::save(&self.disk, &dir, &self.cipher, &snapshot)?;
        snapshot::remove_older(&self.disk, &dir, index)?;
        self.wal.cut(index)
    }
}

/// What must be found again.
struct Reference {
    state: State,
    /// The state after each batch proposed since `acknowledged`, and that one itself.
    batches: Vec<State>,
}

impl Reference {
    /// A founder that has told the log how it is found, as it does before anything else.
    fn new() -> Self {
        let state = tell(State::default());
        Self { batches: vec![state.clone()], state }
    }

    fn propose(&mut self, commands: &[Command]) {
        for command in commands {
            // Nothing is forgotten here, so it does not matter what the sender knew.
            self.state.apply(command.clone(), 0);
        }
        self.batches.push(self.state.clone());
    }

    fn acknowledge(&mut self) {
        self.batches = vec![self.state.clone()];
    }

    fn refuse(&mut self) {
        self.batches.pop();
        self.state = self.batches[self.batches.len() - 1].clone();
    }

    /// Finds the recovered state among those allowed, and goes on from there.
    fn recover(&mut self, found: &State, what: &str) {
        let same = |state: &State| {
            (state.hash, state.root.revision) == (found.hash, found.root.revision)
                && objects(state) == objects(found)
                // Commands that change nothing are remembered all the same.
                && answers(state) == answers(found)
        };
        // Who stands for election before it knows that its log is committed tells it once more how
        // it is found; so may each start that a crash cut short.
        let told_again = |state: &State| {
            std::iter::successors(Some(state.clone()), |told| Some(tell(told.clone()))).take(STARTS)
        };
        let Some(state) = self.batches.iter().flat_map(told_again).find(same) else {
            let allowed: Vec<_> = self.batches.iter().map(|s| s.root.revision).collect();
            panic!("{what}: found revision {}, allowed {allowed:?}", found.root.revision);
        };
        self.state = state;
        self.acknowledge();
    }
}

/// The founder tells the log how it is found.
fn tell(mut state: State) -> State {
    let id = mix::draw(NONCE, 2);
    let told = MemberChange::Update {
        id,
        info: MemberInfo { level: ENTRY_VERSION, ..MemberInfo::default() },
    };
    state.change_members(&told, &ConfState::from((vec![id], vec![]))).unwrap();
    state
}

fn answers(state: &State) -> Vec<(u128, Answer)> {
    state.remembered.iter().map(|(_, id, answer)| (id, answer)).collect()
}

fn objects(state: &State) -> Vec<(Key, u64, u64, bytes::Bytes, Header)> {
    let object = |o: Arc<crate::object::Object>| {
        (o.key.clone(), o.revision, o.created_revision, o.json.clone(), o.header.clone())
    };
    state.root.iter().map(object).collect()
}

/// The callers in the order in which they are answered: a request that stands in the batch twice is
/// answered where it stands first.
fn in_order(commands: &[Command]) -> Vec<usize> {
    let first = |caller: usize| {
        let id = commands[caller].request_id;
        commands.iter().position(|command| command.request_id == id)
    };
    let mut callers: Vec<_> = (0..commands.len()).collect();
    callers.sort_by_key(|caller| first(*caller));
    callers
}

fn random_command(random: &mut StdRng) -> Command {
    let key = Key::new(
        "pods",
        ["a", "b"][random.random_range(0..2)],
        ["x", "y", "z"][random.random_range(0..3)],
    );
    let filler = random.random_range(0..3000);
    let json = format!(r#"{{"metadata":{{"n":{filler}}},"f":"{}"}}"#, "f".repeat(filler));
    let index = [format!("t={}", random.random_range(0..3)).into()].into();
    let new = NewObject {
        json: json.into(),
        splice_at: 13,
        header: Header { index, ..Header::default() },
    };
    let write = match random.random_range(0..4) {
        0 => Write::Delete(key.clone()),
        _ => Write::Put(key.clone(), new),
    };
    let preconditions = match random.random_range(0..4) {
        0 => vec![Precondition::Absent(key)],
        1 => vec![Precondition::Live(key)],
        _ => Vec::new(),
    };
    // Few ids, so that some requests are repeated; the store gives nobody the id 0.
    let request_id = random.random_range(1..400);
    Command { request_id, term: None, preconditions, writes: vec![write] }
}

fn random_batch(random: &mut StdRng) -> Vec<Command> {
    (0..random.random_range(1..5)).map(|_| random_command(random)).collect()
}

/// Works until an error or for this many batches.
fn work(
    member: &mut Member,
    reference: &mut Reference,
    random: &mut StdRng,
    batches: usize,
) -> Result<(), StoreError> {
    for _ in 0..batches {
        let commands = random_batch(random);
        reference.propose(&commands);
        match member.propose(&commands)? {
            true => reference.acknowledge(),
            false => reference.refuse(),
        }
        assert_eq!(member.replica.state().hash, reference.state.hash);
        if random.random_range(0..12) == 0 {
            member.snapshot()?;
        }
    }
    Ok(())
}

/// Opens, works and closes a few times; an injected fault may end it anywhere.
fn live(disk: &SimDisk, reference: &mut Reference, seed: u64) -> Result<(), StoreError> {
    let mut random = StdRng::seed_from_u64(seed);
    for life in 0..3 {
        let mut member = Member::open(disk)?;
        reference.recover(member.replica.state(), &format!("life {life}"));
        work(&mut member, reference, &mut random, 14)?;
        if life == 1 {
            member.wal.close()?;
        }
    }
    Ok(())
}

#[test]
fn no_crash_loses_what_was_acknowledged() {
    let mut images = 0;
    for seed in 0..2 {
        let disk = SimDisk::default();
        live(&disk, &mut Reference::new(), seed).unwrap();
        for operation in 1..=disk.operations() {
            for loss in [None, Some(1), Some(2), Some(3)] {
                let disk = SimDisk::default();
                let mut reference = Reference::new();
                disk.fail_at(operation, Fault::Crash);
                live(&disk, &mut reference, seed).unwrap_err();
                match loss {
                    None => disk.restart(),
                    Some(loss) => disk.power_loss(seed * 1000 + operation * 10 + loss),
                }
                let what = format!("seed {seed}, operation {operation}, loss {loss:?}");
                let mut member = Member::open(&disk).unwrap_or_else(|e| panic!("{what}: {e}"));
                reference.recover(member.replica.state(), &what);
                let mut random = StdRng::seed_from_u64(seed);
                work(&mut member, &mut reference, &mut random, 2).unwrap();
                images += 1;
            }
        }
    }
    assert!(images > 800, "{images} images");
}

#[test]
fn an_error_of_the_disk_ends_the_member_and_loses_nothing() {
    let disk = SimDisk::default();
    live(&disk, &mut Reference::new(), 9).unwrap();
    for operation in 1..=disk.operations() {
        let disk = SimDisk::default();
        let mut reference = Reference::new();
        disk.fail_at(operation, Fault::Io);
        let error = live(&disk, &mut reference, 9).unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
        disk.power_loss(operation);
        let member = Member::open(&disk).unwrap_or_else(|e| panic!("operation {operation}: {e}"));
        reference.recover(member.replica.state(), &format!("operation {operation}"));
    }
}

#[test]
fn many_crashes_in_a_row_lose_nothing() {
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = SimDisk::default();
        let mut reference = Reference::new();
        for crash in 0..12 {
            let operation = disk.operations() + random.random_range(1..60);
            disk.fail_at(operation, Fault::Crash);
            let what = format!("seed {seed}, crash {crash}");
            // Opening may crash as well; then the next one tries.
            if let Ok(mut member) = Member::open(&disk) {
                reference.recover(member.replica.state(), &what);
                let _ = work(&mut member, &mut reference, &mut random, 20);
            }
            match random.random_bool(0.5) {
                true => disk.restart(),
                false => disk.power_loss(random.random()),
            }
        }
        let member = Member::open(&disk).unwrap();
        reference.recover(member.replica.state(), &format!("seed {seed}, at the end"));
    }
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let disk = SimDisk::default();
    let mut reference = Reference::new();
    let mut random = StdRng::seed_from_u64(5);
    let mut member = Member::open(&disk).unwrap();
    disk.limit(Some(disk.used() + 1000));
    let mut refused = 0;
    for _ in 0..60 {
        let commands = random_batch(&mut random);
        reference.propose(&commands);
        match member.propose(&commands).unwrap() {
            true => reference.acknowledge(),
            false => {
                reference.refuse();
                refused += 1;
            }
        }
    }
    assert!(refused > 20, "{refused} refused");
    assert_eq!(member.replica.state().hash, reference.state.hash);
    assert!(member.snapshot().is_err(), "there is no room for a snapshot either");
    disk.limit(None);
    work(&mut member, &mut reference, &mut random, 10).unwrap();
    drop(member);
    disk.power_loss(1);
    let member = Member::open(&disk).unwrap();
    reference.recover(member.replica.state(), "after a full disk");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = |seed| {
        let disk = SimDisk::default();
        live(&disk, &mut Reference::new(), seed).unwrap();
        let files = |dir: PathBuf| {
            let mut names = disk.list(&dir).unwrap();
            names.sort();
            let content = |name: String| (disk.content(&dir.join(&name)), name);
            names.into_iter().map(content).collect::<Vec<_>>()
        };
        let dirs = Dirs::of(Path::new(DIR));
        (files(dirs.wal), files(dirs.snap), disk.operations())
    };
    assert!(run(3) == run(3));
    assert!(run(3) != run(4));
}

/// A small image with several log files and a snapshot, cleanly closed, and its state.
fn image() -> (SimDisk, State) {
    let disk = SimDisk::default();
    let mut reference = Reference::new();
    let mut random = StdRng::seed_from_u64(11);
    let mut member = Member::open(&disk).unwrap();
    work(&mut member, &mut reference, &mut random, 4).unwrap();
    member.snapshot().unwrap();
    work(&mut member, &mut reference, &mut random, 8).unwrap();
    let state = member.replica.state().clone();
    member.wal.close().unwrap();
    (disk, state)
}

#[test]
fn a_flipped_bit_is_refused_or_harmless() {
    let (disk, state) = image();
    let dirs = Dirs::of(Path::new(DIR));
    let mut refused = 0;
    for dir in [dirs.wal, dirs.snap] {
        for name in disk.list(&dir).unwrap() {
            let path = dir.join(name);
            let used = disk.content(&path).iter().rposition(|byte| *byte != 0).unwrap_or(0);
            for byte in (0..used + 40).step_by(13).filter(|at| *at <= used) {
                let flipped = disk.copy();
                flipped.flip(&path, byte * 8 + byte % 8);
                match Member::open(&flipped) {
                    Ok(member) => assert_eq!(
                        (member.replica.state().hash, objects(member.replica.state())),
                        (state.hash, objects(&state)),
                        "{path:?} byte {byte}"
                    ),
                    Err(StoreError::Corrupt { .. } | StoreError::NewerFormat { .. }) => {
                        refused += 1;
                    }
                    Err(other) => panic!("{path:?} byte {byte}: {other}"),
                }
            }
        }
    }
    assert!(refused > 100, "{refused} refused");
}

#[test]
fn a_missing_file_is_refused() {
    let (disk, _) = image();
    let dirs = Dirs::of(Path::new(DIR));
    for dir in [dirs.wal, dirs.snap] {
        let files = disk.list(&dir).unwrap();
        assert!(!files.is_empty());
        for name in files {
            let without = disk.copy();
            without.remove(&dir.join(&name)).unwrap();
            let opened = Member::open(&without).err();
            assert!(matches!(opened, Some(StoreError::Corrupt { .. })), "{name}: {opened:?}");
        }
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let (disk, _) = image();
    let dirs = Dirs::of(Path::new(DIR));
    for dir in [dirs.wal, dirs.snap] {
        for name in disk.list(&dir).unwrap() {
            let (newer, path) = (disk.copy(), dir.join(name));
            let mut bytes = disk.content(&path);
            make_newer(&mut bytes);
            newer.open(&path).unwrap().write(&bytes, 0).unwrap();
            let opened = Member::open(&newer).err();
            assert!(matches!(opened, Some(StoreError::NewerFormat { .. })), "{path:?}: {opened:?}");
            assert!(newer.content(&path) == bytes, "nothing was changed");
        }
    }
}
