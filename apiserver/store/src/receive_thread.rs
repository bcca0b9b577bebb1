//! The thread that writes a snapshot as it comes in, so that nothing waits for its sync.

use crate::cipher::Cipher;
use crate::disk::Disk;
use crate::driver::Input;
use crate::error::StoreError;
use crate::member::Identity;
use crate::snapshot::stream::Receiver;
use crate::state::State;
use crate::transfer::Received;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use tokio::sync::mpsc::WeakUnboundedSender;

/// Started with the first snapshot.
pub(crate) struct ReceiveThread {
    place: Place,
    inputs: WeakUnboundedSender<Input>,
    chunks: Option<Sender<Received>>,
}

/// Where the snapshot goes, and whose it is then.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) cipher: Arc<Cipher>,
}

impl ReceiveThread {
    pub(crate) fn new(place: Place, inputs: WeakUnboundedSender<Input>) -> Self {
        Self { place, inputs, chunks: None }
    }

    /// Writes a chunk and reports it. The sender has a few under way at most.
    pub(crate) fn send(&mut self, received: Received) {
        if self.chunks.is_none() {
            self.start();
        }
        if let Some(chunks) = &self.chunks {
            // A thread that has gone reports nothing; the transfer is then given up.
            let _ = chunks.send(received);
        }
    }

    fn start(&mut self) {
        let (sender, received) = channel::<Received>();
        let mut worker = Receiving { place: self.place.clone(), receiver: None };
        let inputs = self.inputs.clone();
        let work = move || {
            for chunk in received {
                let (transfer, number) = (chunk.transfer, chunk.number);
                let result = worker.take(chunk);
                let Some(inputs) = inputs.upgrade() else { return };
                let _ = inputs.send(Input::Received { transfer, number, result });
            }
        };
        match std::thread::Builder::new().name("store-receive".into()).spawn(work) {
            Ok(_) => self.chunks = Some(sender),
            Err(error) => tracing::error!(%error, "start the thread that receives snapshots"),
        }
    }
}

/// Takes chunks in order; the first one begins anew.
pub(crate) struct Receiving {
    pub(crate) place: Place,
    pub(crate) receiver: Option<Receiver>,
}

impl Receiving {
    /// Writes a chunk; answers with the state once all of it is durable.
    pub(crate) fn take(&mut self, chunk: Received) -> Result<Option<State>, StoreError> {
        if chunk.number == 1 {
            let Place { disk, dir, identity, cipher } = self.place.clone();
            // What is left of an earlier one goes first: the new one may have the same name.
            self.receiver = None;
            self.receiver = Some(Receiver::begin(disk, &dir, identity, cipher));
        }
        // Chunks behind a failed one find no receiver.
        let gone = || StoreError::Raft { operation: "receive", reason: "no snapshot".into() };
        let mut receiver = self.receiver.take().ok_or_else(gone)?;
        receiver.write(&chunk.bytes)?;
        if chunk.last {
            return receiver.finish().map(|snapshot| Some(snapshot.state));
        }
        self.receiver = Some(receiver);
        Ok(None)
    }
}
