//! The thread that writes and syncs the log, one write after the other.

use crate::driver::Input;
use crate::error::StoreError;
use crate::metrics::add;
use crate::shared::Shared;
use crate::wal::{LogWrite, Wal};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc::WeakUnboundedSender;

/// Tasks under way: the driver has one write of proposals out at a time, so this never fills.
const TASKS: usize = 64;

/// What the log thread is asked to do.
pub(crate) enum LogTask {
    Append(LogWrite),
    /// Make the next file.
    Prepare,
    /// Remove files that a snapshot at this index makes superfluous.
    Cut(u64),
    Close,
}

/// The driver's end.
pub(crate) struct LogThread {
    tasks: SyncSender<LogTask>,
    thread: Option<JoinHandle<Result<(), StoreError>>>,
}

impl LogThread {
    pub(crate) fn start(
        wal: Wal,
        shared: Arc<Shared>,
        inputs: WeakUnboundedSender<Input>,
    ) -> Result<Self, StoreError> {
        let (tasks, received) = sync_channel(TASKS);
        let worker = Worker { wal, shared, inputs };
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
}

impl Worker {
    fn run(mut self, tasks: Receiver<LogTask>) -> Result<(), StoreError> {
        for task in tasks {
            let done = match task {
                LogTask::Append(write) => self.append(&write),
                LogTask::Prepare => self.prepare(),
                LogTask::Cut(index) => {
                    self.cut(index);
                    Ok(())
                }
                LogTask::Close => return self.wal.close(),
            };
            if let Err(error) = done {
                self.report(Input::LogFailed(error));
                // An error of a sync is never followed by another try.
                return Ok(());
            }
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
