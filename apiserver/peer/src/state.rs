//! What is known of each peer, for both directions.

use crate::queue::{Amount, Queue};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

/// Links that break within this time of each other, with none made between, break for one reason:
/// when a process dies the links from it and to it go together, when it falls silent as far apart
/// as its keep-alives.
const ONE_BREAK: Duration = Duration::from_secs(2);

/// What went over the links with one peer since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerMetrics {
    /// Frames handed to the link to it.
    pub frames_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Frames taken from it.
    pub frames_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Frames for it that were dropped: no link, or too many waiting.
    pub frames_dropped: u64,
    /// Their bytes.
    pub bytes_dropped: u64,
    /// Links to it that were made.
    pub links_made: u64,
    /// Links from it that were accepted.
    pub links_accepted: u64,
    /// Times that links with it broke.
    pub breaks: u64,
    /// There is a link to it now.
    pub sending: bool,
    /// There is a link from it now.
    pub receiving: bool,
}

/// Frames and bytes.
#[derive(Default)]
pub(crate) struct Count {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    pub(crate) fn add(&self, amount: Amount) {
        self.frames.fetch_add(amount.frames, Ordering::Relaxed);
        self.bytes.fetch_add(amount.bytes, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.frames.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// Which link of a peer one is: the epoch of its process, and the link's number in that.
pub(crate) type LinkId = (u64, u64);

/// The links with a peer, as far as they are up, and the last break.
#[derive(Default)]
struct Up {
    sending: bool,
    receiving: bool,
    made: u64,
    accepted: u64,
    breaks: u64,
    /// When links broke, unless one was made since.
    broke: Option<Instant>,
}

/// The newest link from a peer.
#[derive(Default)]
struct Incoming {
    newest: Option<LinkId>,
    /// Ends it.
    end: CancellationToken,
}

/// How the link came to its end that a new one takes the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Newcomer {
    /// It is not newer than the newest one so far.
    Stale,
    /// It is the first one, or the next one of the same process.
    Next,
    /// The peer's process is another one: the one before is dead.
    Restarted,
}

/// What a link is to the newest one before it.
fn newcomer(newest: Option<LinkId>, new: LinkId) -> Newcomer {
    match newest {
        Some((epoch, number)) if epoch == new.0 && number >= new.1 => Newcomer::Stale,
        Some((epoch, _)) if epoch != new.0 => Newcomer::Restarted,
        _ => Newcomer::Next,
    }
}

/// One peer.
pub(crate) struct PeerState {
    pub(crate) id: u64,
    pub(crate) queue: Arc<Queue>,
    pub(crate) sent: Count,
    pub(crate) received: Count,
    pub(crate) dropped: Count,
    up: Mutex<Up>,
    incoming: Mutex<Incoming>,
    /// Held by the link whose frames are taken.
    pub(crate) turn: Arc<Semaphore>,
    /// Told when a link from the peer is accepted: now is the time to dial it.
    pub(crate) alive: Notify,
}

impl PeerState {
    pub(crate) fn new(id: u64, queue: Queue) -> Self {
        PeerState {
            id,
            queue: Arc::new(queue),
            sent: Count::default(),
            received: Count::default(),
            dropped: Count::default(),
            up: Mutex::default(),
            incoming: Mutex::default(),
            turn: Arc::new(Semaphore::new(1)),
            alive: Notify::new(),
        }
    }

    /// Ends the link from this peer, if there is one, in favour of a newer one, whose end the
    /// token means.
    pub(crate) fn replace_incoming(&self, new: LinkId) -> (Newcomer, CancellationToken) {
        let mut incoming = self.incoming.lock();
        let newcomer = newcomer(incoming.newest, new);
        if newcomer != Newcomer::Stale {
            incoming.newest = Some(new);
            std::mem::take(&mut incoming.end).cancel();
        }
        (newcomer, incoming.end.clone())
    }

    /// Ends the link from this peer, if there is one.
    pub(crate) fn end_incoming(&self) {
        std::mem::take(&mut self.incoming.lock().end).cancel();
    }

    pub(crate) fn sending(&self) {
        let mut up = self.up.lock();
        (up.sending, up.broke) = (true, None);
        up.made += 1;
    }

    pub(crate) fn receiving(&self) {
        let mut up = self.up.lock();
        (up.receiving, up.broke) = (true, None);
        up.accepted += 1;
        drop(up);
        self.alive.notify_one();
    }

    pub(crate) fn not_sending(&self) {
        self.up.lock().sending = false;
    }

    pub(crate) fn not_receiving(&self) {
        self.up.lock().receiving = false;
    }

    /// A link broke at this time; whether that is news.
    pub(crate) fn broke(&self, now: Instant) -> bool {
        let mut up = self.up.lock();
        let known = up.broke.is_some_and(|before| now.duration_since(before) < ONE_BREAK);
        if !known {
            up.broke = Some(now);
            up.breaks += 1;
        }
        !known
    }

    pub(crate) fn metrics(&self) -> PeerMetrics {
        let (frames_sent, bytes_sent) = self.sent.get();
        let (frames_received, bytes_received) = self.received.get();
        let (frames_dropped, bytes_dropped) = self.dropped.get();
        let up = self.up.lock();
        PeerMetrics {
            frames_sent,
            bytes_sent,
            frames_received,
            bytes_received,
            frames_dropped,
            bytes_dropped,
            links_made: up.made,
            links_accepted: up.accepted,
            breaks: up.breaks,
            sending: up.sending,
            receiving: up.receiving,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> PeerState {
        PeerState::new(1, Queue::new(1, 1))
    }

    #[test]
    fn links_that_break_together_break_once() {
        let (peer, start) = (peer(), Instant::now());
        peer.sending();
        peer.receiving();
        assert!(peer.broke(start));
        assert!(!peer.broke(start + ONE_BREAK / 2));
        assert!(peer.broke(start + ONE_BREAK), "so much later is another break");
    }

    #[test]
    fn a_link_made_since_breaks_anew() {
        let (peer, start) = (peer(), Instant::now());
        assert!(peer.broke(start));
        peer.receiving();
        assert!(peer.broke(start));
        peer.sending();
        assert!(peer.broke(start));
        assert_eq!(peer.metrics().breaks, 3);
    }

    #[test]
    fn only_newer_links_replace() {
        assert_eq!(newcomer(None, (1, 1)), Newcomer::Next);
        assert_eq!(newcomer(Some((1, 1)), (1, 2)), Newcomer::Next);
        assert_eq!(newcomer(Some((1, 2)), (1, 2)), Newcomer::Stale);
        assert_eq!(newcomer(Some((1, 3)), (1, 2)), Newcomer::Stale);
        assert_eq!(newcomer(Some((1, 3)), (2, 1)), Newcomer::Restarted);
    }

    #[test]
    fn a_stale_link_leaves_the_newer_one_alone() {
        let peer = peer();
        let (_, newer) = peer.replace_incoming((1, 2));
        assert_eq!(peer.replace_incoming((1, 1)).0, Newcomer::Stale);
        assert!(!newer.is_cancelled());
        let (_, newest) = peer.replace_incoming((1, 3));
        assert!(newer.is_cancelled() && !newest.is_cancelled());
        peer.end_incoming();
        assert!(newest.is_cancelled());
    }
}
