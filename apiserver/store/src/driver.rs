//! The thread that owns a member: takes inputs, hands the log its writes, sends and answers.
//!
//! It never syncs itself: while the log thread syncs one write, the next proposals gather and
//! become one entry. States: running; closing (no new proposals; a leader hands over, what was
//! proposed is finished); finished. After a fatal error it ends at once, and every call says why.

use crate::archive::Archive;
use crate::cipher::Cipher;
use crate::command::Outcome;
use crate::config::StoreConfig;
use crate::core::Outgoing;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::files::Dirs;
use crate::lock::DirLock;
use crate::log_thread::{LogTask, LogThread};
use crate::member::{Identity, MemberChange, TICK, Transport};
use crate::metrics::add;
use crate::receive_thread::ReceiveThread;
use crate::replica::{Done, Effect, Replica};
use crate::shared::Shared;
use crate::snapshot::{self, Snapshot};
use crate::state::State;
use crate::store::Status;
use crate::ticker::Ticker;
use crate::upkeep::{LogBytes, may_end};
use crate::view::View;
use crate::wal::{LogWrite, Room};
use bytes::Bytes;
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
    Change(oneshot::Sender<Result<(), StoreError>>),
    Read(oneshot::Sender<Result<u64, StoreError>>),
}

/// A waiting proposal; the permit bounds the bytes of all of them.
pub(crate) struct Proposer {
    pub(crate) reply: oneshot::Sender<Result<Outcome, StoreError>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// What the driver waits for. The channel is unbounded; what users and other members send is
/// bounded by permits, the rest by the driver itself.
pub(crate) enum Input {
    Propose {
        item: Vec<u8>,
        proposer: Proposer,
    },
    Change {
        change: MemberChange,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    Read(oneshot::Sender<Result<u64, StoreError>>),
    Frame {
        from: u64,
        frame: Bytes,
        permit: OwnedSemaphorePermit,
    },
    LinkLost(u64),
    Connect(Box<dyn Transport>),
    Tick,
    Persisted {
        number: u64,
        room: Room,
    },
    Prepared(Result<Room, StoreError>),
    /// A write waits until the disk has room.
    LogFull,
    LogFailed(StoreError),
    Snapshot(Result<u64, StoreError>),
    Received {
        transfer: u64,
        number: u64,
        result: Result<Option<State>, StoreError>,
    },
    /// Asks for everything as it is now.
    Export(oneshot::Sender<Outgoing>),
    Removed,
    Shutdown(Option<oneshot::Sender<()>>),
}

/// See the module.
pub(crate) struct Driver {
    pub(crate) config: StoreConfig,
    pub(crate) identity: Identity,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) cipher: Arc<Cipher>,
    pub(crate) replica: Replica<Caller>,
    pub(crate) shared: Arc<Shared>,
    /// None until [`crate::Store::connect`].
    pub(crate) transport: Option<Box<dyn Transport>>,
    pub(crate) log: LogThread,
    /// The write that is on its way waits until the disk has room.
    pub(crate) log_full: bool,
    pub(crate) receive: ReceiveThread,
    pub(crate) ticker: Ticker,
    pub(crate) own_inputs: WeakUnboundedSender<Input>,
    pub(crate) archive: Option<Archive>,
    pub(crate) log_bytes: LogBytes,
    pub(crate) snapshot: Option<JoinHandle<()>>,
    pub(crate) closing: Option<Closing>,
    /// The directory is this process's until the driver is gone.
    pub(crate) _lock: DirLock,
    /// The last to go: who sees it closed finds the directory free.
    pub(crate) inputs: UnboundedReceiver<Input>,
}

/// Who waits for the end, and for how many ticks it has been coming.
#[derive(Default)]
pub(crate) struct Closing {
    replies: Vec<oneshot::Sender<()>>,
    ticks: u32,
}

impl Driver {
    /// Shows what was recovered.
    pub(crate) fn begin(&mut self) {
        self.publish_view();
        self.tell_members();
        self.update_status();
        self.ticker.run(!self.replica.core().is_alone());
    }

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
        for input in inputs.drain(..) {
            self.input(input)?;
        }
        self.drive()?;
        self.update_status();
        self.ticker.run(!self.replica.core().is_alone());
        self.begin_snapshot();
        Ok(())
    }

    fn input(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Propose { item, proposer } => {
                self.replica.propose(item, Caller::Propose(proposer));
            }
            Input::Change { change, reply } => self.replica.change(&change, Caller::Change(reply)),
            Input::Read(reply) => self.replica.read(Caller::Read(reply)),
            Input::Frame { from, frame, permit } => {
                self.replica.frame(from, &frame);
                drop(permit);
            }
            Input::LinkLost(peer) => self.replica.link_lost(peer),
            Input::Connect(transport) => {
                self.transport = Some(transport);
                self.tell_members();
            }
            Input::Tick => self.tick(),
            Input::Persisted { number, room } => {
                self.log_full = false;
                self.replica.persisted(number, room);
            }
            Input::Prepared(prepared) => self.prepared(prepared)?,
            Input::LogFull => self.log_full = true,
            Input::LogFailed(error) => return Err(error),
            Input::Snapshot(taken) => self.snapshot_taken(taken)?,
            Input::Received { transfer, number, result } => {
                self.replica.received(transfer, number, result);
            }
            Input::Export(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(self.replica.core().export());
            }
            Input::Removed => return Err(StoreError::Removed),
            Input::Shutdown(reply) => {
                self.shared.alone.store(false, Ordering::SeqCst);
                self.closing.get_or_insert_default().replies.extend(reply);
                self.replica.leave();
            }
        }
        Ok(())
    }

    fn tick(&mut self) {
        self.ticker.took();
        self.replica.tick();
        if let Some(closing) = &mut self.closing {
            closing.ticks += 1;
        }
    }

    /// The log thread also prepares on its own; its finding the disk full then harms nobody yet.
    fn prepared(&mut self, prepared: Result<Room, StoreError>) -> Result<(), StoreError> {
        match prepared {
            Err(error) if !error.is_disk_full() => Err(error),
            prepared => {
                self.replica.prepared(prepared);
                Ok(())
            }
        }
    }

    /// Carries out what the replica says, until it says nothing. The next write is on its way
    /// before the last one is applied.
    fn drive(&mut self) -> Result<(), StoreError> {
        while let Some(effect) = self.replica.step()? {
            match effect {
                Effect::Send(to, frame) => {
                    if let Some(transport) = &mut self.transport {
                        transport.send(to, frame);
                    }
                }
                Effect::Write(write) => self.append(write),
                Effect::Prepare => self.log.send(LogTask::Prepare),
                Effect::Installed => self.installed(),
                Effect::Publish { revisions, batches, items } => {
                    if !revisions.is_empty() {
                        self.publish_view();
                        if let Some(archive) = &mut self.archive {
                            archive.keep(&revisions, &self.shared.metrics);
                        }
                        self.shared.history.publish(revisions, Instant::now());
                    }
                    add(&self.shared.metrics.batches, batches);
                    add(&self.shared.metrics.applied, items);
                    // Whoever has its answer finds the status at least as new.
                    self.update_status();
                }
                Effect::Members => self.tell_members(),
                Effect::Written(caller, result) => self.written(caller, result),
                Effect::Read(caller, result) => {
                    if let Caller::Read(reply) = caller {
                        let revision = self.replica.state().root.revision;
                        let _ = reply.send(result.map(|()| revision));
                    }
                }
                Effect::Receive(received) => self.receive.send(received),
                Effect::Removed => return Err(StoreError::Removed),
            }
        }
        Ok(())
    }

    fn written(&self, caller: Caller, result: Result<Done, StoreError>) {
        // A caller that has gone needs no answer.
        match (caller, result) {
            (Caller::Propose(Proposer { reply, permit }), result) => {
                let result = result.and_then(|done| match done {
                    Done::Command(outcome) => Ok(outcome),
                    Done::Changed => Err(StoreError::Unknown),
                });
                if !matches!(result, Ok(Outcome::Applied { .. })) {
                    add(&self.shared.metrics.refused, 1);
                }
                let _ = reply.send(result);
                drop(permit);
            }
            (Caller::Change(reply), result) => drop(reply.send(result.map(drop))),
            (Caller::Read(reply), Err(error)) => drop(reply.send(Err(error))),
            (Caller::Read(_), Ok(_)) => {}
        }
    }

    fn append(&mut self, write: LogWrite) {
        self.log_bytes.grow(&write.entries);
        self.log.send(LogTask::Append(Box::new(write)));
    }

    fn publish_view(&self) {
        let root = self.replica.state().root.clone();
        let revision = root.revision;
        *self.shared.view.write() = View(Arc::new(root));
        self.shared.revision.send_replace(revision);
    }

    /// What lies between the old state and the snapshot's nobody here has seen: watches end.
    fn installed(&mut self) {
        self.publish_view();
        let state = self.replica.state();
        self.shared.history.restart(state.root.revision);
        self.log_bytes = LogBytes::new(state.applied_index, 0);
        self.update_status();
    }

    fn tell_members(&mut self) {
        let mut members = self.replica.core().members();
        self.shared.removed.write().clone_from(self.replica.state().roster.removed());
        if members.is_empty() {
            members.clone_from(&self.config.seeds);
        }
        if let Some(transport) = &mut self.transport {
            transport.set_members(&members);
        }
        self.shared.members.send_replace(members);
    }

    fn begin_snapshot(&mut self) {
        let due = self.log_bytes.is_due(self.config.snapshot_every_bytes);
        if !due || self.snapshot.is_some() || self.closing.is_some() {
            return;
        }
        self.log_bytes.begin();
        let Outgoing { state, conf_state } = self.replica.core().export();
        let snapshot = Snapshot { state, conf_state, identity: self.identity };
        let (disk, cipher) = (self.disk.clone(), self.cipher.clone());
        let dir = Dirs::of(&self.config.dir).snap;
        let inputs = self.own_inputs.clone();
        let work = move || {
            let index = snapshot.state.applied_index;
            let taken = snapshot::save(&*disk, &dir, &cipher, &snapshot)
                .and_then(|_| snapshot::remove_older(&*disk, &dir, index));
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
        self.log_bytes.end(&taken);
        match taken {
            Ok(index) => {
                add(&self.shared.metrics.snapshots, 1);
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
        let (core, shared) = (self.replica.core(), &self.shared);
        let state = core.state();
        let alone = core.is_only_voter() && core.leads_its_term();
        // A store that closes refuses reads as it refuses writes.
        shared.alone.store(alone && self.closing.is_none(), Ordering::SeqCst);
        *shared.status.lock() = Status {
            node_id: self.identity.member_id,
            term: core.term(),
            leader: core.leader(),
            commit: core.commit(),
            applied_index: state.applied_index,
            last_index: core.last_index(),
            revision: state.root.revision,
            log_bytes: self.log_bytes.since_snapshot,
            snapshot_index: self.log_bytes.snapshot_index,
            state_hash: state.hash,
            leader_contact: TICK * self.replica.contact_ticks().try_into().unwrap_or(u32::MAX),
        };
        let leadership = self.replica.leadership();
        shared
            .leadership
            .send_if_modified(|known| std::mem::replace(known, leadership) != leadership);
        if core.is_leader() {
            *shared.progress.lock() = core.progress();
        } else if !shared.progress.lock().is_empty() {
            shared.progress.lock().clear();
        }
    }

    fn is_finished(&self) -> bool {
        let Some(closing) = &self.closing else { return false };
        may_end(&self.replica, closing.ticks, self.log_full) && self.snapshot.is_none()
    }

    /// The clean end.
    fn finish(mut self) {
        let abandoned: Vec<_> = self.replica.abandon().collect();
        abandoned.into_iter().for_each(|(caller, error)| self.written(caller, Err(error)));
        let log_closed = self.log.close();
        drop(self.archive.take());
        if let Err(error) = log_closed {
            self.shared.fail(error);
        }
        let replies = self.closing.take().unwrap_or_default().replies;
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
