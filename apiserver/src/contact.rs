//! Whether this member hears of a leader: one timer for all watches, which end when it has heard
//! of none for [`CONTACT_MOST`], so that their clients go on elsewhere.

use rkube_store::CONTACT_MOST;
use std::time::Duration;
use tokio::sync::watch;

/// Tells everybody whether this member is in touch with a leader.
pub struct Contact {
    lost: watch::Sender<bool>,
    /// The longest silence that counts as being in touch.
    most: Duration,
}

impl Default for Contact {
    /// In touch until [`Contact::keep`] finds otherwise.
    fn default() -> Self {
        Contact::within(CONTACT_MOST)
    }
}

impl Contact {
    fn within(most: Duration) -> Self {
        Contact { lost: watch::Sender::new(false), most }
    }

    /// Whether no leader was heard of for too long.
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// To wait with ([`lost`]).
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.lost.subscribe()
    }

    /// Says that contact is lost or regained, whatever was heard.
    #[cfg(test)]
    pub fn set_lost(&self, lost: bool) {
        self.lost.send_replace(lost);
    }

    /// Keeps it true. `silence` says how long ago a leader was heard of.
    pub async fn keep(&self, silence: impl Fn() -> Duration) {
        // The shortest and, while out of touch, the only pause between two looks.
        let least = self.most / 40;
        loop {
            let silence = silence();
            let lost = silence >= self.most;
            let changed = self.lost.send_if_modified(|was| std::mem::replace(was, lost) != lost);
            if changed {
                tracing::warn!(lost, ?silence, "contact with a leader");
            }
            // Whatever is heard until then moves the end further away, so this is no polling.
            let pause = if lost { least } else { self.most.saturating_sub(silence).max(least) };
            tokio::time::sleep(pause).await;
        }
    }
}

/// Waits until no leader was heard of for too long.
pub async fn lost(contact: &mut watch::Receiver<bool>) {
    if contact.wait_for(|lost| *lost).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::time::Instant;

    #[tokio::test]
    async fn contact_is_lost_in_time_and_comes_back() {
        let most = Duration::from_millis(400);
        let heard = Arc::new(Mutex::new(Instant::now()));
        let contact = Arc::new(Contact::within(most));
        let (kept, last) = (Arc::clone(&contact), Arc::clone(&heard));
        let keeper = tokio::spawn(async move { kept.keep(move || last.lock().elapsed()).await });
        let start = Instant::now();
        lost(&mut contact.subscribe()).await;
        assert!(start.elapsed() >= most);
        *heard.lock() = Instant::now();
        contact.subscribe().wait_for(|lost| !lost).await.unwrap();
        assert!(!contact.is_lost());
        keeper.abort();
    }
}
