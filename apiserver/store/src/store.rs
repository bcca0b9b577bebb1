//! The store's handle.

use crate::archive::{Archive, ArchiveReader};
use crate::codec::write_command;
use crate::command::{Command, Outcome};
use crate::config::StoreConfig;
use crate::core::Core;
use crate::disk::{Disk, RealDisk};
use crate::driver::{Caller, Driver, Input, LogBytes, NoPeers, Proposer, Queue, written_bytes};
use crate::error::{StoreError, ViewError, WatchError};
use crate::files::{self, OpenConfig, Opened};
use crate::history::History;
use crate::lock::DirLock;
use crate::log_thread::LogThread;
use crate::metrics::{Metrics, add};
use crate::object::Scope;
use crate::past::Past;
use crate::shared::Shared;
use crate::view::View;
use crate::wal::Wal;
use crate::watch::Watch;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, oneshot};

/// A handle to the store; copies are cheap and mean the same store. When the last one goes the
/// store closes on its own, as after [`Store::shutdown`].
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    inputs: UnboundedSender<Input>,
    /// One permit for each byte of proposals under way.
    permits: Arc<Semaphore>,
    pending_bytes: usize,
    command_bytes: usize,
    past: Arc<Past>,
    archive: Option<ArchiveReader>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.inputs.send(Input::Shutdown(None));
    }
}

/// Where the store stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub node_id: u64,
    /// The Raft term.
    pub term: u64,
    /// The leader's id, 0 if unknown.
    pub leader: u64,
    /// Index of the last log entry known to be committed.
    pub commit: u64,
    /// Index of the last log entry applied here.
    pub applied_index: u64,
    /// Revision of the last change.
    pub revision: u64,
    /// Bytes of log behind the last snapshot, about.
    pub log_bytes: u64,
    /// Index of the last entry that a snapshot contains, 0 without one.
    pub snapshot_index: u64,
    /// Running hash of the state at `applied_index`, the same on all members.
    pub state_hash: u64,
}

impl Store {
    /// Opens the store in its directory: locks it, recovers what was acknowledged, and leads at
    /// once as the only member. Blocks for some milliseconds, more with a large log.
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        Self::open_on(config, Arc::new(RealDisk))
    }

    /// Opens the store on some disk; lock and archive are on the real one all the same.
    pub(crate) fn open_on(config: StoreConfig, disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        disk.create_dir(&config.dir)
            .map_err(|source| StoreError::io("create directory", &config.dir, source))?;
        let lock = DirLock::take(&config.dir)?;
        let open = OpenConfig {
            dir: &config.dir,
            node_id: config.node_id,
            nonce: rand::random(),
            segment_bytes: config.segment_bytes,
            remember: config.remember_entries,
            voters: vec![config.node_id],
        };
        let opened = files::open(disk.clone(), open)?;
        start(config, disk, lock, opened)
    }

    /// Proposes a command and waits until it is durable and applied. Dropping the future does not
    /// take the command back.
    pub async fn propose(&self, command: Command) -> Result<Outcome, StoreError> {
        let handle = &*self.handle;
        let mut encoded = Vec::with_capacity(encoded_len(&command));
        write_command(&mut encoded, &command);
        if encoded.len() > handle.command_bytes {
            let (bytes, limit) = (encoded.len(), handle.command_bytes);
            return Err(StoreError::TooLarge { bytes, limit });
        }
        drop(command);
        let bytes = encoded.len().min(handle.pending_bytes) as u32;
        let permit = handle.permits.clone().acquire_many_owned(bytes).await;
        let permit = permit.map_err(|_| StoreError::Closed)?;
        add(&handle.shared.metrics.proposals, 1);
        let (reply, answer) = oneshot::channel();
        let proposer = Proposer { reply, permit };
        self.ask(Input::Propose { command: encoded, proposer }, answer).await
    }

    async fn ask<T>(
        &self,
        input: Input,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let gone = || self.failure().unwrap_or(StoreError::Closed);
        self.handle.inputs.send(input).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Everything as it is now. Nothing is waited for; after [`Store::read_barrier`] it contains
    /// every write that was acknowledged before.
    pub fn view(&self) -> View {
        self.handle.shared.view.read().clone()
    }

    /// Confirms leadership and waits until everything acknowledged before the call is in
    /// [`Store::view`]; answers with its revision.
    pub async fn read_barrier(&self) -> Result<u64, StoreError> {
        let shared = &self.handle.shared;
        if shared.alone.load(Ordering::SeqCst) {
            return Ok(shared.view.read().revision());
        }
        let (reply, answer) = oneshot::channel();
        self.ask(Input::Read(reply), answer).await
    }

    /// Everything in one resource as it was at a revision; other resources are as they are at
    /// some later revision.
    pub async fn view_at(&self, revision: u64, resource: &str) -> Result<View, ViewError> {
        let handle = &*self.handle;
        handle.past.view_at(&handle.shared, handle.archive.as_ref(), revision, resource).await
    }

    /// Watches a scope: all events after `from_revision`, in order, none twice, none left out.
    pub fn watch(&self, scope: Scope, from_revision: u64) -> Result<Watch, WatchError> {
        self.handle.shared.history.watch(scope, from_revision, self.view().revision())
    }

    /// Where the store stands.
    pub fn status(&self) -> Status {
        self.handle.shared.status.lock().clone()
    }

    /// What the store has done since it was opened.
    pub fn metrics(&self) -> &Metrics {
        &self.handle.shared.metrics
    }

    /// Why the store has stopped, if it has: the process should end then.
    pub fn failure(&self) -> Option<StoreError> {
        self.handle.shared.failure()
    }

    /// Waits until the store has stopped after a fatal error and says why; for ever if all goes
    /// well.
    pub async fn failed(&self) -> StoreError {
        self.handle.shared.failed().await
    }

    /// Ends the store cleanly: what was proposed is finished, files are closed, the directory is
    /// free. Later calls say [`StoreError::Closed`].
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        // If the driver has gone already there is nothing left to end but its last steps.
        if self.handle.inputs.send(Input::Shutdown(Some(reply))).is_ok() {
            let _ = done.await;
        }
        self.handle.inputs.closed().await;
        self.failure().map_or(Ok(()), Err)
    }
}

fn encoded_len(command: &Command) -> usize {
    let writes = command.writes.iter().map(|write| match write {
        crate::command::Write::Put(_, new) => new.json.len() + 512,
        crate::command::Write::Delete(_) => 128,
    });
    writes.sum::<usize>() + 128
}

/// Recovers in this thread, then starts the others.
fn start(
    mut config: StoreConfig,
    disk: Arc<dyn Disk>,
    lock: DirLock,
    opened: Opened,
) -> Result<Store, StoreError> {
    let base = opened.core.state.root.revision;
    let history = Arc::new(History::new(config.history_bytes, config.history_age, base));
    let shared = Arc::new(Shared::new(View::default(), history, Status::default()));
    let log_bytes = LogBytes {
        since_snapshot: written_bytes(&opened.core.entries),
        at_snapshot: 0,
        snapshot_index: opened.snapshot_index,
    };
    let past = Arc::new(Past::default());
    let (mut archive, reader) = start_archive(&config, &shared, &past)?;
    let mut core = Core::new(opened.core)?;
    let mut wal = opened.wal;
    lead(&mut core, &mut wal, &shared, archive.as_mut())?;
    *shared.view.write() = View(Arc::new(core.state().root.clone()));

    // An entry must find room in one file beside a file's head.
    let command_bytes = (config.segment_bytes / 2) as usize;
    config.entry_bytes = config.entry_bytes.min(command_bytes / 2);
    let permits = Arc::new(Semaphore::new(config.pending_bytes));
    let pending_bytes = config.pending_bytes;
    let (inputs, received) = unbounded_channel();
    let room = wal.room();
    let log = LogThread::start(wal, shared.clone(), inputs.downgrade())?;
    let driver = Driver {
        config,
        disk,
        core,
        shared: shared.clone(),
        transport: Box::new(NoPeers),
        log,
        room,
        inputs: received,
        own_inputs: inputs.downgrade(),
        archive,
        log_bytes,
        queue: Queue::default(),
        held: VecDeque::new(),
        preparing: false,
        snapshot: None,
        closing: None,
        _lock: lock,
    };
    spawn(driver)?;
    let handle =
        Handle { shared, inputs, permits, pending_bytes, command_bytes, past, archive: reader };
    Ok(Store { handle: Arc::new(handle) })
}

fn spawn(driver: Driver) -> Result<(), StoreError> {
    driver.update_status();
    let thread = std::thread::Builder::new().name("store-raft".into());
    let spawned = thread.spawn(move || driver.run());
    spawned.map(drop).map_err(|source| StoreError::io("start thread", "store-raft", source))
}

type StartedArchive = (Option<Archive>, Option<ArchiveReader>);

fn start_archive(
    config: &StoreConfig,
    shared: &Arc<Shared>,
    past: &Arc<Past>,
) -> Result<StartedArchive, StoreError> {
    if !config.archive {
        return Ok((None, None));
    }
    let (shared, past) = (shared.clone(), past.clone());
    let tidy = move || {
        shared.history.trim(Instant::now());
        past.expire();
    };
    let (archive, reader) = Archive::start(config, tidy)?;
    Ok((Some(archive), Some(reader)))
}

/// Applies what the log has and, as the only voter, becomes leader at once: writes go to the log
/// directly since its thread does not run yet.
fn lead(
    core: &mut Core<Caller>,
    wal: &mut Wal,
    shared: &Shared,
    mut archive: Option<&mut Archive>,
) -> Result<(), StoreError> {
    let mut settle = |core: &mut Core<Caller>| -> Result<(), StoreError> {
        loop {
            let mut idle = true;
            while let Some(output) = core.ready() {
                idle = false;
                if let Some(write) = output.write {
                    wal.append(&write)?;
                    core.persisted(write.number);
                }
            }
            let progress = core.apply()?;
            if let Some(archive) = &mut archive {
                archive.keep(&progress.revisions, &shared.metrics);
            }
            shared.history.publish(progress.revisions, Instant::now());
            if idle {
                return Ok(());
            }
        }
    };
    settle(core)?;
    if core.is_only_voter() {
        core.campaign()?;
        settle(core)?;
        if !core.leads_its_term() {
            let reason = "the only voter did not become leader".into();
            return Err(StoreError::Raft { operation: "campaign", reason });
        }
    }
    Ok(())
}
