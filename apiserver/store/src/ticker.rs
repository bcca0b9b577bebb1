//! The clock of a member that has others to hear from.
//!
//! A tick is sent only when the one before was taken: after a pause of the process there is one,
//! not a burst that would make it believe that everybody has been silent for long.

use crate::driver::Input;
use crate::member::TICK;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc::WeakUnboundedSender;

/// Ticks while it is told to run.
pub(crate) struct Ticker {
    inputs: WeakUnboundedSender<Input>,
    shared: Option<Arc<Flags>>,
}

#[derive(Default)]
struct Flags {
    stop: AtomicBool,
    /// A tick was sent and not yet taken.
    sent: AtomicBool,
}

impl Ticker {
    pub(crate) fn new(inputs: WeakUnboundedSender<Input>) -> Self {
        Self { inputs, shared: None }
    }

    /// Starts or stops the clock. A member that is alone needs none.
    pub(crate) fn run(&mut self, run: bool) {
        match (run, &self.shared) {
            (true, None) => self.start(),
            (false, Some(flags)) => {
                flags.stop.store(true, Ordering::Relaxed);
                self.shared = None;
            }
            _ => {}
        }
    }

    /// The last tick was taken.
    pub(crate) fn took(&self) {
        if let Some(flags) = &self.shared {
            flags.sent.store(false, Ordering::Relaxed);
        }
    }

    fn start(&mut self) {
        let flags = Arc::<Flags>::default();
        let (inputs, shared) = (self.inputs.clone(), flags.clone());
        let tick = move || {
            while !shared.stop.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                if shared.sent.swap(true, Ordering::Relaxed) {
                    continue;
                }
                let Some(inputs) = inputs.upgrade() else { return };
                if inputs.send(Input::Tick).is_err() {
                    return;
                }
            }
        };
        match std::thread::Builder::new().name("store-tick".into()).spawn(tick) {
            Ok(_) => self.shared = Some(flags),
            // Tried again with the next input.
            Err(error) => tracing::error!(%error, "start the clock's thread"),
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.run(false);
    }
}
