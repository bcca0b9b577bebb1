//! A simulated machine and the process on it: what `store.rs`, `driver.rs` and the threads are to
//! a member in earnest. All that touches the files is here.

use super::plan::Plan;
use crate::cipher::{Cipher, KeySource};
use crate::codec::ENTRY_VERSION;
use crate::core::{Core, Outgoing};
use crate::disk::Disk as _;
use crate::disk::sim::{Fault, SimDisk};
use crate::error::StoreError;
use crate::files::{self, Begin, Dirs, OpenConfig, Opened};
use crate::history::History;
use crate::log_thread::LogTask;
use crate::member::{Identity, MemberInfo};
use crate::receive_thread::{Place, Receiving};
use crate::replica::{Replica, ReplicaConfig};
use crate::snapshot::{self, Snapshot};
use crate::state::State;
use crate::transfer::Received;
use crate::upkeep::{LogBytes, may_end, written_bytes};
use crate::wal::{LogWrite, Room, Wal};
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const DIR: &str = "/store";

/// A machine with its disk; the process comes and goes.
pub(super) struct Machine {
    pub(super) id: u64,
    pub(super) begin: Begin,
    pub(super) disk: SimDisk,
    pub(super) process: Option<Process>,
    /// Of the last process.
    pub(super) boot: u64,
    /// Inputs that wait while the process is paused.
    pub(super) paused: Option<VecDeque<super::Input>>,
    /// It was removed and has noticed.
    pub(super) gone: bool,
    /// Its files are damaged, it can't come back.
    pub(super) damaged: bool,
    /// A bit was flipped, so it may refuse to open.
    pub(super) flipped: bool,
    /// The last process closed its log.
    pub(super) closed: bool,
    /// What the last process had applied and so had on disk.
    pub(super) applied: u64,
    pub(super) tick: u64,
    pub(super) slow_until: u64,
}

impl Machine {
    pub(super) fn new(id: u64, begin: Begin) -> Self {
        Self {
            id,
            begin,
            disk: SimDisk::default(),
            process: None,
            boot: 0,
            paused: None,
            gone: false,
            damaged: false,
            flipped: false,
            closed: false,
            applied: 0,
            tick: 50_000,
            slow_until: 0,
        }
    }

    /// A process runs and is not paused.
    pub(super) fn works(&self) -> bool {
        self.process.is_some() && self.paused.is_none()
    }

    /// The log's and the snapshots' files.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let dirs = Dirs::of(Path::new(DIR));
        let mut files = Vec::new();
        for dir in [dirs.wal, dirs.snap] {
            let names = self.disk.list(&dir).unwrap_or_default();
            files.extend(names.into_iter().map(|name| dir.join(name)));
        }
        files.sort();
        files
    }
}

/// One process of the store.
pub(super) struct Process {
    pub(super) boot: u64,
    /// When it was restarted, 0 for a member's first.
    pub(super) begun: u64,
    pub(super) replica: Replica<u64>,
    identity: Identity,
    cipher: Arc<Cipher>,
    pub(super) history: Arc<History>,
    pub(super) log: Log,
    pub(super) receiving: Receiving,
    pub(super) chunks: VecDeque<Received>,
    pub(super) log_bytes: LogBytes,
    /// The last entry that its disk has for sure, and those of writes on their way, by number.
    pub(super) durable: u64,
    pub(super) writing: VecDeque<(u64, u64)>,
    /// The snapshot in work.
    pub(super) snapshot: Option<Snapshot>,
    /// Of the last revision published.
    pub(super) revision: u64,
    /// For how many ticks it has been closing.
    pub(super) closing: Option<u32>,
    /// Who sent something: they can be answered.
    pub(super) known: BTreeSet<u64>,
}

/// A log with the tasks of its thread.
pub(super) struct Log {
    wal: Option<Wal>,
    disk: SimDisk,
    pub(super) tasks: VecDeque<LogTask>,
}

/// What the log's thread says.
pub(super) enum Said {
    Persisted { number: u64, room: Room },
    Prepared(Result<Room, StoreError>),
}

fn open_files(machine: &Machine, seed: u64, plan: &Plan) -> Result<Opened, StoreError> {
    let mut state = seed;
    let config = OpenConfig {
        dir: Path::new(DIR),
        begin: machine.begin,
        nonce: seed,
        segment_bytes: plan.segment_bytes,
        remember: plan.remember,
        key: KeySource {
            file: None,
            random: std::array::from_fn(|_| crate::mix::next(&mut state) as u8),
        },
    };
    files::open(Arc::new(machine.disk.clone()), config)
}

/// Makes the first member on an empty disk; answers with its identity.
pub(super) fn found(disk: &SimDisk, seed: u64, plan: &Plan) -> Result<Identity, StoreError> {
    let mut machine = Machine::new(0, Begin::Found);
    machine.disk = disk.clone();
    Ok(open_files(&machine, seed, plan)?.core.identity)
}

/// Starts a process.
pub(super) fn open(
    machine: &Machine,
    boot: u64,
    nonce: u64,
    plan: &Plan,
) -> Result<Process, StoreError> {
    let opened = open_files(machine, nonce, plan)?;
    let identity = opened.core.identity;
    let revision = opened.core.state.root.revision;
    let written = written_bytes(&opened.core.entries);
    let log_bytes = LogBytes::new(opened.snapshot_index, written);
    let config = ReplicaConfig {
        identity,
        nonce,
        info: info(machine.id),
        entry_bytes: plan.entry_bytes,
        snapshot_bytes_per_tick: plan.bytes_per_tick,
        room: opened.wal.room(),
    };
    // From some start on each process is one of the next release: a rolling upgrade.
    let release = ENTRY_VERSION + u8::from(boot >= plan.upgrade);
    let core = Core::new(opened.core)?.keep(plan.keep_bytes).of_release(release);
    let durable = core.last_index();
    let mut replica = Replica::new(core, config);
    if replica.core().is_only_voter() {
        replica.core_mut().campaign()?;
    }
    let history = History::new(plan.history_bytes, Duration::from_secs(20), revision);
    let place = Place {
        disk: Arc::new(machine.disk.clone()),
        dir: Dirs::of(Path::new(DIR)).snap,
        identity,
        cipher: opened.cipher.clone(),
    };
    let tasks = VecDeque::new();
    Ok(Process {
        boot,
        begun: 0,
        replica,
        identity,
        cipher: opened.cipher,
        history: Arc::new(history),
        log: Log { wal: Some(opened.wal), disk: machine.disk.clone(), tasks },
        receiving: Receiving { place, receiver: None },
        chunks: VecDeque::new(),
        log_bytes,
        durable,
        writing: VecDeque::new(),
        snapshot: None,
        revision,
        closing: None,
        known: BTreeSet::new(),
    })
}

pub(super) fn info(id: u64) -> MemberInfo {
    MemberInfo { name: format!("m{id:x}"), ..MemberInfo::default() }
}

impl Process {
    /// Takes the state for a snapshot if one is due; true if so.
    pub(super) fn begin_snapshot(&mut self, every: u64) -> bool {
        if !self.log_bytes.is_due(every) || self.snapshot.is_some() || self.closing.is_some() {
            return false;
        }
        self.log_bytes.begin();
        let Outgoing { state, conf_state } = self.replica.core().export();
        self.snapshot = Some(Snapshot { state, conf_state, identity: self.identity });
        true
    }

    /// A write is on its way to the disk; what it replaces does not count any more.
    pub(super) fn writes(&mut self, write: &LogWrite) {
        if let Some(reset) = &write.reset {
            (self.durable, self.writing) = (reset.index, VecDeque::new());
        }
        if let [first, ..] = write.entries.as_slice() {
            self.durable = self.durable.min(first.index - 1);
            self.writing.extend(write.entries.last().map(|last| (write.number, last.index)));
        }
    }

    /// Writes the snapshot in work and removes those before it.
    pub(super) fn save_snapshot(&mut self, disk: &SimDisk) -> Option<Result<u64, StoreError>> {
        let snapshot = self.snapshot.take()?;
        let dir = Dirs::of(Path::new(DIR)).snap;
        let index = snapshot.state.applied_index;
        let taken = snapshot::save(disk, &dir, &self.cipher, &snapshot)
            .and_then(|_| snapshot::remove_older(disk, &dir, index));
        Some(taken.map(|()| index))
    }

    /// The log may go up to there; or it failed and is tried again later.
    pub(super) fn snapshot_taken(&mut self, taken: Result<u64, StoreError>) {
        self.log_bytes.end(&taken);
        if let Ok(index) = taken {
            self.log.tasks.push_back(LogTask::Cut(index));
        }
    }

    /// Writes the next chunk of a snapshot that comes in.
    pub(super) fn receive(&mut self) -> Option<(u64, u64, Result<Option<State>, StoreError>)> {
        let chunk = self.chunks.pop_front()?;
        let (transfer, number) = (chunk.transfer, chunk.number);
        Some((transfer, number, self.receiving.take(chunk)))
    }

    /// As the driver decides it.
    pub(super) fn is_finished(&self) -> bool {
        let over = self.closing.is_some_and(|ticks| may_end(&self.replica, ticks, false));
        over && self.snapshot.is_none()
    }
}

impl Log {
    /// Carries out the next task, as the log's thread does. An error is the end.
    pub(super) fn work(&mut self) -> Result<Vec<Said>, StoreError> {
        let Some(task) = self.tasks.pop_front() else { return Ok(Vec::new()) };
        let Some(wal) = &mut self.wal else { return Ok(Vec::new()) };
        match task {
            LogTask::Append(write) => {
                wal.append(&write)?;
                let mut said = vec![Said::Persisted { number: write.number, room: wal.room() }];
                if wal.wants_spare() {
                    said.extend(prepare(wal)?);
                }
                Ok(said)
            }
            LogTask::Prepare => prepare(wal).map(|said| said.into_iter().collect()),
            LogTask::Cut(index) => {
                // A failed cut is tried again with the next one.
                let _ = wal.cut(index);
                Ok(Vec::new())
            }
            LogTask::Close => Ok(Vec::new()),
        }
    }

    /// The process dies while the log thread is at work: after so many operations of the disk.
    pub(super) fn die_within(&mut self, operations: u64) {
        self.disk.fail_at(self.disk.operations() + 1 + operations, Fault::Crash);
        let _ = self.work();
    }

    /// Marks the end.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        while !self.tasks.is_empty() {
            self.work()?;
        }
        self.wal.take().map_or(Ok(()), Wal::close)
    }
}

fn prepare(wal: &mut Wal) -> Result<Option<Said>, StoreError> {
    let prepared = wal.prepare().map(|()| wal.room());
    match prepared {
        Err(error) if !error.is_disk_full() => Err(error),
        prepared => Ok(Some(Said::Prepared(prepared))),
    }
}
