//! The thread that writes and syncs the log, one write after the other.
//!
//! Proposals are refused before they come here if the disk is full; what another member leads
//! can't be refused. It waits until there is room, and nothing is acknowledged meanwhile; who
//! closes need not wait for it, since nobody counts on it yet. The queue has no bound of its own,
//! or a full disk would block the driver: the core takes in no more than so much that is not
//! durable, see [`crate::core::Core::step`].

use crate::driver::Input;
use crate::error::StoreError;
use crate::metrics::add;
use crate::shared::Shared;
use crate::wal::{LogWrite, Wal};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::WeakUnboundedSender;

/// How often a disk that is full is tried again: nobody tells when there is room.
const AGAIN: Duration = Duration::from_millis(500);

/// What the log thread is asked to do.
pub(crate) enum LogTask {
    Append(Box<LogWrite>),
    /// Make the next file.
    Prepare,
    /// Remove files that a snapshot at this index makes superfluous.
    Cut(u64),
    Close,
}

/// The driver's end.
pub(crate) struct LogThread {
    tasks: Sender<LogTask>,
    thread: Option<JoinHandle<Result<(), StoreError>>>,
}

impl LogThread {
    pub(crate) fn start(
        wal: Wal,
        shared: Arc<Shared>,
        inputs: WeakUnboundedSender<Input>,
    ) -> Result<Self, StoreError> {
        let (tasks, received) = channel();
        let worker = Worker { wal, shared, inputs, waiting: VecDeque::new(), full: false };
        let thread = std::thread::Builder::new()
            .name("store-log".into())
            .spawn(move || worker.run(received))
            .map_err(|source| StoreError::io("start thread", "store-log", source))?;
        Ok(Self { tasks, thread: Some(thread) })
    }

    pub(crate) fn send(&self, task: LogTask) {
        // A thread that has ended has reported why: the driver learns it from its inputs.
        let _ = self.tasks.send(task);
    }

    /// Ends the thread and the log cleanly.
    pub(crate) fn close(&mut self) -> Result<(), StoreError> {
        self.send(LogTask::Close);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(closed)) => closed,
            Some(Err(_)) => {
                let reason = "the log thread panicked".into();
                Err(StoreError::Raft { operation: "close", reason })
            }
            None => Ok(()),
        }
    }
}

struct Worker {
    wal: Wal,
    shared: Arc<Shared>,
    inputs: WeakUnboundedSender<Input>,
    waiting: VecDeque<LogWrite>,
    /// There is no room for the first that waits, and the driver was told.
    full: bool,
}

impl Worker {
    fn run(mut self, tasks: Receiver<LogTask>) -> Result<(), StoreError> {
        loop {
            let task = match self.waiting.is_empty() {
                true => tasks.recv().map_err(RecvTimeoutError::from),
                false => tasks.recv_timeout(AGAIN),
            };
            let mut done = Ok(());
            match task {
                Ok(LogTask::Append(write)) => self.waiting.push_back(*write),
                Ok(LogTask::Prepare) => done = self.prepare(),
                Ok(LogTask::Cut(index)) => self.cut(index),
                Ok(LogTask::Close) => return self.wal.close(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if let Err(error) = done.and_then(|()| self.append_all()) {
                self.report(Input::LogFailed(error));
                // An error of a sync is never followed by another try.
                return Ok(());
            }
        }
    }

    /// Appends what waits, as far as there is room.
    fn append_all(&mut self) -> Result<(), StoreError> {
        while let Some(write) = self.waiting.pop_front() {
            match self.append(&write) {
                Err(error @ StoreError::DiskFull { .. }) => {
                    self.waiting.push_front(write);
                    if !std::mem::replace(&mut self.full, true) {
                        tracing::warn!(%error, "the log waits for room");
                        self.report(Input::LogFull);
                    }
                    return Ok(());
                }
                done => done?,
            }
            self.full = false;
        }
        Ok(())
    }

    fn append(&mut self, write: &LogWrite) -> Result<(), StoreError> {
        let begun = Instant::now();
        let bytes = self.wal.append(write)?;
        add(&self.shared.metrics.log_bytes, bytes);
        self.shared.metrics.synced(begun.elapsed());
        self.report(Input::Persisted { number: write.number, room: self.wal.room() });
        if self.wal.wants_spare() {
            return self.prepare();
        }
        Ok(())
    }

    fn prepare(&mut self) -> Result<(), StoreError> {
        let prepared = self.wal.prepare().map(|()| self.wal.room());
        let fatal = prepared.as_ref().err().filter(|error| !error.is_disk_full()).cloned();
        self.report(Input::Prepared(prepared));
        fatal.map_or(Ok(()), Err)
    }

    fn cut(&mut self, index: u64) {
        if let Err(error) = self.wal.cut(index) {
            // Old files take room and do no other harm; the next cut tries again.
            tracing::warn!(%error, "cut log");
        }
    }

    fn report(&self, input: Input) {
        if let Some(inputs) = self.inputs.upgrade() {
            let _ = inputs.send(input);
        }
    }
}
