//! The thread that owns Raft and the state machine. It waits for inputs, never for the disk:
//! writing and syncing is the log thread's, snapshots are written by a thread of their own.
//!
//! Proposals gather while a write is on its way and become one entry when it has come back, so
//! the batch grows with the load and one sync serves all of it. States: running; closing (what
//! was accepted is finished, new calls are refused); then the thread ends. After a fatal error it
//! ends at once, and every call says why.

use crate::archive::Archive;
use crate::codec::COMMANDS_VERSION;
use crate::command::Outcome;
use crate::config::StoreConfig;
use crate::core::{Core, Progress};
use crate::disk::Disk;
use crate::error::StoreError;
use crate::files::Dirs;
use crate::lock::DirLock;
use crate::log_thread::{LogTask, LogThread};
use crate::metrics::add;
use crate::shared::Shared;
use crate::snapshot::{self, Snapshot};
use crate::store::Status;
use crate::view::View;
use crate::wal::{LogWrite, Room};
use raft::eraftpb::{Entry, Message};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, WeakUnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Inputs taken from the channel at once.
const INPUTS: usize = 1024;

/// Who waits for an answer.
pub(crate) enum Caller {
    Propose(Proposer),
    Read(oneshot::Sender<Result<u64, StoreError>>),
}

/// A waiting proposal; the permit bounds the bytes of all of them.
pub(crate) struct Proposer {
    pub(crate) reply: oneshot::Sender<Result<Outcome, StoreError>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// What the driver waits for. The channel is unbounded; what users send is bounded by the
/// permits, the rest by the driver itself.
pub(crate) enum Input {
    Propose { command: Vec<u8>, proposer: Proposer },
    Read(oneshot::Sender<Result<u64, StoreError>>),
    Persisted { number: u64, room: Room },
    Prepared(Result<Room, StoreError>),
    LogFailed(StoreError),
    Snapshot(Result<u64, StoreError>),
    Shutdown(Option<oneshot::Sender<()>>),
}

/// Where messages to other members go.
pub(crate) trait Transport: Send {
    /// Sends in order, each message once, or loses it. Never blocks.
    fn send(&mut self, messages: Vec<Message>);
}

/// The only member has nobody to write to.
pub(crate) struct NoPeers;

impl Transport for NoPeers {
    fn send(&mut self, _messages: Vec<Message>) {}
}

/// See the module.
pub(crate) struct Driver {
    pub(crate) config: StoreConfig,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) core: Core<Caller>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) log: LogThread,
    pub(crate) room: Room,
    pub(crate) own_inputs: WeakUnboundedSender<Input>,
    pub(crate) archive: Option<Archive>,
    pub(crate) log_bytes: LogBytes,
    pub(crate) queue: Queue,
    /// Messages that wait for a write, by its number.
    pub(crate) held: VecDeque<(u64, Vec<Message>)>,
    pub(crate) preparing: bool,
    pub(crate) snapshot: Option<JoinHandle<()>>,
    pub(crate) closing: Option<Vec<oneshot::Sender<()>>>,
    /// The directory is this process's until the driver is gone.
    pub(crate) _lock: DirLock,
    /// The last to go: who sees it closed finds the directory free.
    pub(crate) inputs: UnboundedReceiver<Input>,
}

/// How much log there is behind the last snapshot.
#[derive(Default)]
pub(crate) struct LogBytes {
    pub(crate) since_snapshot: u64,
    /// What `since_snapshot` was when the snapshot in work was begun.
    pub(crate) at_snapshot: u64,
    pub(crate) snapshot_index: u64,
}

/// Proposals that wait to become an entry.
#[derive(Default)]
pub(crate) struct Queue(VecDeque<(Vec<u8>, Proposer)>);

impl Queue {
    /// How many of them one entry takes, and with how many bytes.
    fn batch(&self, most_bytes: usize) -> (usize, usize) {
        let mut bytes = 1;
        let fits = |(command, _): &&(Vec<u8>, Proposer)| {
            bytes += command.len();
            bytes <= most_bytes
        };
        let count = self.0.iter().take_while(fits).count().max(1);
        let bytes = 1 + self.0.iter().take(count).map(|(command, _)| command.len()).sum::<usize>();
        (count, bytes)
    }

    fn take(&mut self, count: usize, bytes: usize) -> (Vec<u8>, Vec<Caller>) {
        let mut data = Vec::with_capacity(bytes);
        data.push(COMMANDS_VERSION);
        let mut callers = Vec::with_capacity(count);
        for (command, proposer) in self.0.drain(..count) {
            data.extend_from_slice(&command);
            callers.push(Caller::Propose(proposer));
        }
        (data, callers)
    }

    fn refuse(&mut self, error: &StoreError) {
        self.0.drain(..).for_each(|(_, proposer)| proposer.refuse(error.clone()));
    }
}

impl Proposer {
    fn refuse(self, error: StoreError) {
        // A caller that has gone needs no answer, here and below.
        let _ = self.reply.send(Err(error));
    }
}

impl Driver {
    /// Runs until the store is shut down or fails.
    pub(crate) fn run(mut self) {
        let _guard = PanicGuard(self.shared.clone());
        let mut inputs = Vec::with_capacity(INPUTS);
        loop {
            self.inputs.blocking_recv_many(&mut inputs, INPUTS);
            if let Err(error) = self.turn(&mut inputs) {
                return self.stop(error);
            }
            if self.is_finished() {
                return self.finish();
            }
        }
    }

    fn turn(&mut self, inputs: &mut Vec<Input>) -> Result<(), StoreError> {
        let mut reads = Vec::new();
        for input in inputs.drain(..) {
            self.input(input, &mut reads)?;
        }
        if !reads.is_empty() {
            self.core.read(reads);
        }
        self.propose();
        self.drive()?;
        self.begin_snapshot();
        Ok(())
    }

    fn input(&mut self, input: Input, reads: &mut Vec<Caller>) -> Result<(), StoreError> {
        match input {
            Input::Propose { proposer, .. } if self.closing.is_some() => {
                proposer.refuse(StoreError::Closed);
            }
            Input::Propose { command, proposer } => self.queue.0.push_back((command, proposer)),
            Input::Read(reply) => reads.push(Caller::Read(reply)),
            Input::Persisted { number, room } => {
                self.room = room;
                self.core.persisted(number);
                self.release(number);
            }
            Input::Prepared(prepared) => self.prepared(prepared)?,
            Input::LogFailed(error) => return Err(error),
            Input::Snapshot(taken) => self.snapshot_taken(taken)?,
            Input::Shutdown(reply) => {
                self.shared.alone.store(false, Ordering::SeqCst);
                self.closing.get_or_insert_default().extend(reply);
            }
        }
        Ok(())
    }

    fn release(&mut self, number: u64) {
        while let Some((_, messages)) = self.held.pop_front_if(|(held, _)| *held <= number) {
            self.transport.send(messages);
        }
    }

    fn prepared(&mut self, prepared: Result<Room, StoreError>) -> Result<(), StoreError> {
        // The log thread also prepares on its own; its failing then harms nobody yet.
        let asked = std::mem::take(&mut self.preparing);
        match prepared {
            Ok(room) => self.room = room,
            Err(error @ StoreError::DiskFull { .. }) if asked => self.queue.refuse(&error),
            Err(StoreError::DiskFull { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Makes one entry of what has gathered, unless a write is on its way.
    fn propose(&mut self) {
        if self.queue.0.is_empty() || self.core.is_writing() || self.preparing {
            return;
        }
        let (count, bytes) = self.queue.batch(self.config.entry_bytes);
        if !self.room.fits(bytes) {
            self.preparing = true;
            return self.log.send(LogTask::Prepare);
        }
        let (data, callers) = self.queue.take(count, bytes);
        if let Err(callers) = self.core.propose(data, callers) {
            self.refuse(callers);
        }
    }

    fn refuse(&self, callers: Vec<Caller>) {
        let error = StoreError::NotLeader { leader: self.core.leader() };
        for caller in callers {
            match caller {
                Caller::Propose(proposer) => proposer.refuse(error.clone()),
                Caller::Read(reply) => {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Hands on what Raft wants, applies what is committed, until nothing is left to do now. The
    /// next write is on its way before the last one is applied.
    fn drive(&mut self) -> Result<(), StoreError> {
        loop {
            let mut idle = true;
            while let Some(output) = self.core.ready() {
                idle = false;
                self.transport.send(output.messages);
                if let Some(write) = output.write {
                    self.hold(write.number, output.messages_after);
                    self.append(write);
                }
            }
            let progress = self.core.apply()?;
            self.publish(progress);
            if idle {
                return Ok(());
            }
        }
    }

    fn hold(&mut self, number: u64, messages: Vec<Message>) {
        if !messages.is_empty() {
            self.held.push_back((number, messages));
        }
    }

    fn append(&mut self, write: LogWrite) {
        self.log_bytes.since_snapshot += written_bytes(&write.entries);
        self.log.send(LogTask::Append(write));
    }

    fn publish(&mut self, progress: Progress<Caller>) {
        self.refuse(progress.dropped);
        if !progress.revisions.is_empty() {
            *self.shared.view.write() = View(Arc::new(self.core.state().root.clone()));
            if let Some(archive) = &mut self.archive {
                archive.keep(&progress.revisions, &self.shared.metrics);
            }
            self.shared.history.publish(progress.revisions, Instant::now());
        }
        // Whoever has its answer finds the status at least as new.
        self.update_status();
        let metrics = &self.shared.metrics;
        add(&metrics.batches, progress.batches);
        add(&metrics.applied, progress.answers.len() as u64);
        for (caller, outcome) in progress.answers {
            if !matches!(outcome, Outcome::Applied { .. }) {
                add(&metrics.refused, 1);
            }
            if let Caller::Propose(Proposer { reply, permit }) = caller {
                let _ = reply.send(Ok(outcome));
                drop(permit);
            }
        }
        let revision = self.core.state().root.revision;
        for caller in progress.reads {
            if let Caller::Read(reply) = caller {
                let _ = reply.send(Ok(revision));
            }
        }
    }

    fn begin_snapshot(&mut self) {
        let due = self.log_bytes.since_snapshot >= self.config.snapshot_every_bytes;
        if !due || self.snapshot.is_some() || self.closing.is_some() {
            return;
        }
        self.log_bytes.at_snapshot = self.log_bytes.since_snapshot;
        let snapshot = Snapshot {
            state: self.core.state().clone(),
            conf_state: self.core.conf_state().clone(),
            node_id: self.config.node_id,
        };
        let disk = self.disk.clone();
        let dir = Dirs::of(&self.config.dir).snap;
        let inputs = self.own_inputs.clone();
        let work = move || {
            let index = snapshot.state.applied_index;
            let taken = snapshot::save(&*disk, &dir, &snapshot)
                .and_then(|_| snapshot::remove_others(&*disk, &dir, index));
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.send(Input::Snapshot(taken.map(|()| index)));
            }
        };
        let thread = std::thread::Builder::new().name("store-snapshot".into()).spawn(work);
        match thread {
            Ok(thread) => self.snapshot = Some(thread),
            Err(error) => tracing::warn!(%error, "start snapshot thread"),
        }
    }

    /// A snapshot is there, so the log before it may go. A failed one is tried again once the log
    /// has grown by as much again.
    fn snapshot_taken(&mut self, taken: Result<u64, StoreError>) -> Result<(), StoreError> {
        if let Some(thread) = self.snapshot.take() {
            // The thread has sent its result as its last act.
            let _ = thread.join();
        }
        self.log_bytes.since_snapshot -= self.log_bytes.at_snapshot;
        match taken {
            Ok(index) => {
                add(&self.shared.metrics.snapshots, 1);
                self.log_bytes.snapshot_index = index;
                self.log.send(LogTask::Cut(index));
            }
            Err(error) => {
                add(&self.shared.metrics.snapshot_failures, 1);
                tracing::warn!(%error, "snapshot failed");
            }
        }
        Ok(())
    }

    pub(crate) fn update_status(&self) {
        let state = self.core.state();
        let alone = self.core.is_only_voter() && self.core.leads_its_term();
        // A store that closes refuses reads as it refuses writes.
        self.shared.alone.store(alone && self.closing.is_none(), Ordering::SeqCst);
        *self.shared.status.lock() = Status {
            node_id: self.config.node_id,
            term: self.core.term(),
            leader: self.core.leader(),
            commit: self.core.commit(),
            applied_index: state.applied_index,
            revision: state.root.revision,
            log_bytes: self.log_bytes.since_snapshot,
            snapshot_index: self.log_bytes.snapshot_index,
            state_hash: state.hash,
        };
    }

    fn is_finished(&self) -> bool {
        self.closing.is_some()
            && self.queue.0.is_empty()
            && !self.core.is_writing()
            && !self.preparing
            && self.snapshot.is_none()
    }

    /// The clean end.
    fn finish(mut self) {
        let log_closed = self.log.close();
        drop(self.archive.take());
        if let Err(error) = log_closed {
            self.shared.fail(error);
        }
        let replies = self.closing.take().unwrap_or_default();
        // Everything that belongs to the directory is let go before anybody is told.
        drop(self);
        for reply in replies {
            let _ = reply.send(());
        }
    }

    /// The end after a fatal error: whoever waits finds the failure when the channels close.
    fn stop(mut self, error: StoreError) {
        self.shared.fail(error);
        let _ = self.log.close();
    }
}

/// About how many bytes of log the entries take.
pub(crate) fn written_bytes<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> u64 {
    entries.into_iter().map(|entry| entry.data.len() as u64 + 64).sum()
}

/// Lets nobody wait for a thread that panicked.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(StoreError::Raft {
                operation: "drive",
                reason: "the thread panicked".into(),
            });
        }
    }
}
