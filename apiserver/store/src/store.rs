//! The store's handle.

use crate::admin::{self, SnapshotInfo, SnapshotStream};
use crate::archive::{Archive, ArchiveReader};
use crate::cipher::{Cipher, KeySource};
use crate::codec::write_command;
use crate::command::{Command, Outcome};
use crate::config::StoreConfig;
use crate::core::{Core, Outgoing};
use crate::disk::{Disk, RealDisk};
use crate::driver::{Caller, Driver, Input, Proposer};
use crate::error::{StoreError, ViewError, WatchError};
use crate::files::{self, Dirs, OpenConfig, Opened};
use crate::history::History;
use crate::lock::DirLock;
use crate::log_thread::LogThread;
use crate::member::{Identity, Leadership, Member, MemberChange, Transport};
use crate::metrics::{Metrics, add};
use crate::object::Scope;
use crate::past::Past;
use crate::receive_thread::{Place, ReceiveThread};
use crate::replica::{Effect, Replica, ReplicaConfig};
use crate::shared::Shared;
use crate::snapshot::Snapshot;
use crate::snapshot::stream::Chunks;
use crate::ticker::Ticker;
use crate::upkeep::{LogBytes, written_bytes};
use crate::view::View;
use crate::wal::Wal;
use crate::watch::Watch;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, oneshot, watch};

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
    /// One for each byte of frames from other members.
    frame_permits: Arc<Semaphore>,
    /// Makes request ids: which member and start, and how many so far.
    nonce: u64,
    requests: AtomicU64,
    identity: Identity,
    pending_bytes: usize,
    command_bytes: usize,
    past: Arc<Past>,
    archive: Option<ArchiveReader>,
}

/// Most bytes of frames from other members under way.
const FRAME_BYTES: usize = 64 << 20;

impl Handle {
    fn request_id(&self) -> u128 {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        (u128::from(self.nonce) << 64) | u128::from(number)
    }
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
    /// Index of the last log entry here, committed or not.
    pub last_index: u64,
    /// Revision of the last change.
    pub revision: u64,
    /// Bytes of log behind the last snapshot, about.
    pub log_bytes: u64,
    /// Index of the last entry that a snapshot contains, 0 without one.
    pub snapshot_index: u64,
    /// Running hash of the state at `applied_index`, the same on all members.
    pub state_hash: u64,
    /// How long ago this member last heard from a leader of its term; zero on the leader itself.
    pub leader_contact: Duration,
}

/// How far a member has the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The member.
    pub id: u64,
    /// The last index that it has acknowledged.
    pub matched: u64,
    /// It has answered within the last election timeout.
    pub active: bool,
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
        admin::finish_recovery(&config.dir)?;
        let open = OpenConfig {
            dir: &config.dir,
            begin: config.begin,
            nonce: rand::random(),
            segment_bytes: config.segment_bytes,
            remember: config.remember_entries,
            key: KeySource { file: config.encryption_key.clone(), random: random_bytes() },
        };
        let opened = files::open(disk.clone(), open)?;
        start(config, disk, lock, opened)
    }

    /// Proposes a command and waits until it is durable and applied. Dropping the future does not
    /// take the command back.
    ///
    /// # Errors
    /// [`StoreError::NoQuorum`] and [`StoreError::DiskFull`] if it was not applied,
    /// [`StoreError::Unknown`] if that can't be told.
    pub async fn propose(&self, mut command: Command) -> Result<Outcome, StoreError> {
        let handle = &*self.handle;
        if command.request_id == 0 {
            command.request_id = handle.request_id();
        }
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
        self.ask(Input::Propose { item: encoded, proposer }, answer).await
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

    /// Waits until the view has reached a revision.
    pub async fn wait_revision(&self, revision: u64) {
        let mut seen = self.handle.shared.revision.subscribe();
        if seen.wait_for(|seen| *seen >= revision).await.is_err() {
            // The store is gone, and the revision does not come any more.
            std::future::pending::<()>().await;
        }
    }

    /// Which cluster this is, and which member.
    pub fn identity(&self) -> Identity {
        self.handle.identity
    }

    /// The members as applied here, by id; the seeds while one that joins has heard nothing yet.
    pub fn members(&self) -> Vec<Member> {
        self.handle.shared.members.borrow().clone()
    }

    /// The members now and later.
    pub fn watch_members(&self) -> watch::Receiver<Vec<Member>> {
        self.handle.shared.members.subscribe()
    }

    /// Who leads, now and later.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.handle.shared.leadership.subscribe()
    }

    /// How far each member has the log, as the leader knows it; empty elsewhere.
    pub fn progress(&self) -> Vec<Progress> {
        self.handle.shared.progress.lock().clone()
    }

    /// Changes the members; any member may be asked.
    ///
    /// # Errors
    /// [`StoreError::Members`] if the change makes no sense, [`StoreError::NoQuorum`] if there is
    /// no leader.
    pub async fn change_members(&self, change: MemberChange) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Input::Change { change, reply }, answer).await
    }

    /// How long ago this member last heard from a leader of its term; zero on the leader itself.
    pub fn leader_contact(&self) -> Duration {
        self.handle.shared.status.lock().leader_contact
    }

    /// Frames to other members go this way from now on; until then they are lost.
    pub fn connect(&self, transport: Box<dyn Transport>) {
        // Without a driver there is nothing to send.
        let _ = self.handle.inputs.send(Input::Connect(transport));
    }

    /// Takes a frame from another member, in the order in which that one sent them. Waits while
    /// too many are under way.
    pub async fn receive(&self, from: u64, frame: Bytes) {
        let bytes = frame.len().clamp(1, FRAME_BYTES) as u32;
        let permits = self.handle.frame_permits.clone();
        if let Ok(permit) = permits.acquire_many_owned(bytes).await {
            let _ = self.handle.inputs.send(Input::Frame { from, frame, permit });
        }
    }

    /// The connection to a member broke: if it led, it may be dead.
    pub fn link_lost(&self, peer: u64) {
        let _ = self.handle.inputs.send(Input::LinkLost(peer));
    }

    /// Another member says that this one was removed: the store stops.
    pub fn told_removed(&self) {
        let _ = self.handle.inputs.send(Input::Removed);
    }

    /// True if a member with this id was removed.
    pub fn was_removed(&self, id: u64) -> bool {
        self.handle.shared.removed.read().contains(&id)
    }

    /// Everything as it is now, to be written to a file that [`crate::restore`] takes.
    ///
    /// # Errors
    /// If the store has stopped.
    pub async fn snapshot(&self) -> Result<SnapshotStream, StoreError> {
        let Outgoing { state, conf_state } = self.export().await?;
        let snapshot = Snapshot { state, conf_state, identity: self.handle.identity };
        let info = SnapshotInfo::of(&snapshot);
        Ok(SnapshotStream { info, chunks: Chunks::new(&snapshot) })
    }

    async fn export(&self) -> Result<Outgoing, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || self.failure().unwrap_or(StoreError::Closed);
        self.handle.inputs.send(Input::Export(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
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

pub(crate) fn random_bytes() -> [u8; 48] {
    let mut bytes = [0; 48];
    rand::fill(&mut bytes);
    bytes
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
    let written = written_bytes(&opened.core.entries);
    let log_bytes = LogBytes::new(opened.snapshot_index, written);
    let past = Arc::new(Past::default());
    let (mut archive, reader) = start_archive(&config, &opened.cipher, &shared, &past)?;
    let (identity, nonce) = (opened.core.identity, opened.core.nonce);
    // An entry must find room in one file beside a file's head.
    let command_bytes = (config.segment_bytes / 2) as usize;
    config.entry_bytes = config.entry_bytes.min(command_bytes / 2);
    let mut wal = opened.wal;
    let dirs = Dirs::of(&config.dir);
    let replica_config = ReplicaConfig {
        identity,
        nonce,
        info: config.info.clone(),
        entry_bytes: config.entry_bytes,
        snapshot_bytes_per_tick: config.snapshot_bytes_per_tick(),
        room: wal.room(),
    };
    let mut replica = Replica::new(Core::new(opened.core)?, replica_config);
    lead(&mut replica, &mut wal, &shared, archive.as_mut())?;

    let permits = Arc::new(Semaphore::new(config.pending_bytes));
    let frame_permits = Arc::new(Semaphore::new(FRAME_BYTES));
    let pending_bytes = config.pending_bytes;
    let (inputs, received) = unbounded_channel();
    let log = LogThread::start(wal, shared.clone(), inputs.downgrade())?;
    let own_inputs = inputs.downgrade();
    let place =
        Place { disk: disk.clone(), dir: dirs.snap, identity, cipher: opened.cipher.clone() };
    let mut driver = Driver {
        config,
        identity,
        disk,
        replica,
        shared: shared.clone(),
        transport: None,
        log,
        log_full: false,
        receive: ReceiveThread::new(place, own_inputs.clone()),
        cipher: opened.cipher,
        ticker: Ticker::new(own_inputs.clone()),
        inputs: received,
        own_inputs,
        archive,
        log_bytes,
        snapshot: None,
        closing: None,
        _lock: lock,
    };
    driver.begin();
    let thread = std::thread::Builder::new().name("store-raft".into());
    thread
        .spawn(move || driver.run())
        .map_err(|source| StoreError::io("start thread", "store-raft", source))?;
    let handle = Handle {
        shared,
        inputs,
        permits,
        frame_permits,
        nonce,
        requests: AtomicU64::new(1 << 63),
        identity,
        pending_bytes,
        command_bytes,
        past,
        archive: reader,
    };
    Ok(Store { handle: Arc::new(handle) })
}

type StartedArchive = (Option<Archive>, Option<ArchiveReader>);

fn start_archive(
    config: &StoreConfig,
    cipher: &Arc<Cipher>,
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
    let (archive, reader) = Archive::start(config, cipher.clone(), tidy)?;
    Ok((Some(archive), Some(reader)))
}

/// Applies what the log has and, as the only voter, becomes leader at once: writes go to the log
/// directly since its thread does not run yet.
fn lead(
    replica: &mut Replica<Caller>,
    wal: &mut Wal,
    shared: &Shared,
    mut archive: Option<&mut Archive>,
) -> Result<(), StoreError> {
    let mut settle = |replica: &mut Replica<Caller>| -> Result<(), StoreError> {
        while let Some(effect) = replica.step()? {
            match effect {
                Effect::Write(write) => {
                    wal.append(&write)?;
                    replica.persisted(write.number, wal.room());
                }
                Effect::Prepare => {
                    let prepared = wal.prepare().map(|()| wal.room());
                    replica.prepared(prepared);
                }
                Effect::Publish { revisions, .. } => {
                    if let Some(archive) = &mut archive {
                        archive.keep(&revisions, &shared.metrics);
                    }
                    shared.history.publish(revisions, Instant::now());
                }
                Effect::Removed => return Err(StoreError::Removed),
                // Nobody else is there to be told or to ask.
                _ => {}
            }
        }
        Ok(())
    };
    settle(replica)?;
    if replica.core().is_only_voter() {
        replica.core_mut().campaign()?;
        settle(replica)?;
        if !replica.core().leads_its_term() {
            let reason = "the only voter did not become leader".into();
            return Err(StoreError::Raft { operation: "campaign", reason });
        }
    }
    Ok(())
}
