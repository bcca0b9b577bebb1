//! Frames that wait for a link: bounded in bytes and number, never waited for.
//!
//! A queue belongs to one link at a time. It takes frames from the start of an attempt to connect
//! until that attempt or its link ends, when what is left is dropped: old frames serve nobody. None
//! goes out before the peer has accepted the link, so that behind a hello that comes late there are
//! no frames which could come after newer ones.

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use rkube_proto::peer::{Hello, LinkRequest};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Bytes of frames that go out in one message, unless a single frame is larger.
const BATCH_BYTES: usize = 1 << 20;

/// How many frames, and how many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Door {
    /// No link: frames are dropped.
    #[default]
    Closed,
    /// Frames wait for the link of this number.
    Opening(u64),
    /// They go out over it.
    Open(u64),
}

impl Door {
    fn link(&self) -> Option<u64> {
        match self {
            Door::Closed => None,
            Door::Opening(link) | Door::Open(link) => Some(*link),
        }
    }
}

#[derive(Default)]
struct State {
    door: Door,
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// The link's, while it waits for frames.
    waker: Option<Waker>,
}

/// Frames for one peer.
pub(crate) struct Queue {
    state: Mutex<State>,
    most_bytes: usize,
    most_frames: usize,
}

impl Queue {
    pub(crate) fn new(most_bytes: usize, most_frames: usize) -> Self {
        Queue { state: Mutex::default(), most_bytes, most_frames }
    }

    /// Adds a frame; false if it was dropped.
    pub(crate) fn push(&self, frame: Bytes) -> bool {
        let mut state = self.state.lock();
        let fits = state.frames.len() < self.most_frames
            && state.bytes.saturating_add(frame.len()) <= self.most_bytes;
        if state.door == Door::Closed || !fits {
            return false;
        }
        state.bytes += frame.len();
        state.frames.push_back(frame);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Lets frames in that wait for the link of this number.
    pub(crate) fn prepare(&self, link: u64) {
        self.turn(Door::Opening(link));
    }

    /// Lets them out over it.
    pub(crate) fn open(&self, link: u64) {
        self.turn(Door::Open(link));
    }

    /// Ends the link's stream and drops what waits: that much.
    pub(crate) fn close(&self) -> Amount {
        self.turn(Door::Closed)
    }

    /// What waits is dropped unless it is for the same link.
    fn turn(&self, door: Door) -> Amount {
        let mut state = self.state.lock();
        let mut dropped = Amount::default();
        if door.link() != state.door.link() {
            dropped = Amount { frames: state.frames.len() as u64, bytes: state.bytes as u64 };
            state.frames.clear();
            state.bytes = 0;
        }
        state.door = door;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        dropped
    }

    /// The next frames for a link, as many as go into one message; None once it is over.
    fn poll_batch(&self, link: u64, cx: &mut Context<'_>) -> Poll<Option<Vec<Bytes>>> {
        let mut state = self.state.lock();
        if state.door.link() != Some(link) {
            return Poll::Ready(None);
        }
        let count = batch(state.frames.iter().map(Bytes::len));
        if count == 0 || state.door != Door::Open(link) {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let frames: Vec<Bytes> = state.frames.drain(..count).collect();
        state.bytes -= frames.iter().map(Bytes::len).sum::<usize>();
        Poll::Ready(Some(frames))
    }
}

/// How many of the frames with these lengths go into one message: at least one if there is one.
fn batch(lengths: impl Iterator<Item = usize>) -> usize {
    let mut bytes = 0;
    let fits = |(i, length): &(usize, usize)| {
        bytes += length;
        *i == 0 || bytes <= BATCH_BYTES
    };
    lengths.enumerate().take_while(fits).count()
}

/// What goes out over one link: the hello, then frames as they come.
pub(crate) struct Outbound<C> {
    queue: Arc<Queue>,
    link: u64,
    hello: Option<Hello>,
    /// Told what leaves the queue.
    sent: C,
}

impl<C> Outbound<C> {
    pub(crate) fn new(queue: Arc<Queue>, link: u64, hello: Hello, sent: C) -> Self {
        Outbound { queue, link, hello: Some(hello), sent }
    }
}

impl<C: Fn(Amount) + Unpin> Stream for Outbound<C> {
    type Item = LinkRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LinkRequest>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(LinkRequest { hello: Some(hello), frames: Vec::new() }));
        }
        self.queue.poll_batch(self.link, cx).map(|frames| {
            let frames = frames?;
            (self.sent)(amount(&frames));
            Some(LinkRequest { hello: None, frames })
        })
    }
}

/// How much some frames are.
pub(crate) fn amount(frames: &[Bytes]) -> Amount {
    let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
    Amount { frames: frames.len() as u64, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::StreamExt;

    fn frame(length: usize) -> Bytes {
        Bytes::from(vec![0; length])
    }

    fn outbound(queue: &Arc<Queue>, link: u64) -> Outbound<impl Fn(Amount) + Unpin> {
        let mut outbound = Outbound::new(Arc::clone(queue), link, Hello::default(), |_| {});
        assert!(outbound.next().now_or_never().flatten().is_some_and(|r| r.hello.is_some()));
        outbound
    }

    /// The lengths of the frames in the next message, if there is one now.
    fn next(outbound: &mut Outbound<impl Fn(Amount) + Unpin>) -> Option<Option<Vec<usize>>> {
        let request = outbound.next().now_or_never()?;
        Some(request.map(|r| r.frames.iter().map(Bytes::len).collect()))
    }

    #[test]
    fn a_message_holds_what_fits() {
        assert_eq!(batch([].into_iter()), 0);
        assert_eq!(batch([BATCH_BYTES * 3, 1].into_iter()), 1);
        assert_eq!(batch([1, 2, 3].into_iter()), 3);
        assert_eq!(batch([BATCH_BYTES - 1, 1, 1].into_iter()), 2);
        assert_eq!(batch([1, BATCH_BYTES].into_iter()), 1);
    }

    #[test]
    fn what_is_too_much_is_dropped() {
        let queue = Queue::new(100, 3);
        assert!(!queue.push(frame(1)), "no link takes it");
        queue.open(1);
        assert!(queue.push(frame(60)));
        assert!(!queue.push(frame(41)), "too many bytes");
        assert!(queue.push(frame(40)));
        assert!(queue.push(frame(0)));
        assert!(!queue.push(frame(0)), "too many frames");
        assert_eq!(queue.close(), Amount { frames: 3, bytes: 100 });
    }

    #[test]
    fn taken_frames_make_room() {
        let queue = Arc::new(Queue::new(100, 3));
        queue.open(1);
        let mut link = outbound(&queue, 1);
        assert!(queue.push(frame(100)));
        assert_eq!(next(&mut link), Some(Some(vec![100])));
        assert_eq!(next(&mut link), None, "nothing waits");
        assert!(queue.push(frame(99)));
        assert!(queue.push(frame(1)));
        assert_eq!(next(&mut link), Some(Some(vec![99, 1])));
    }

    #[test]
    fn nothing_goes_out_before_the_link_is_accepted() {
        let queue = Arc::new(Queue::new(100, 3));
        queue.prepare(1);
        let mut link = outbound(&queue, 1);
        assert!(queue.push(frame(7)));
        assert_eq!(next(&mut link), None);
        queue.open(1);
        assert_eq!(next(&mut link), Some(Some(vec![7])));
    }

    #[test]
    fn an_old_link_gets_nothing_of_the_next_one() {
        let queue = Arc::new(Queue::new(100, 3));
        queue.open(1);
        let mut old = outbound(&queue, 1);
        assert!(queue.push(frame(7)));
        assert_eq!(queue.close(), Amount { frames: 1, bytes: 7 });
        queue.open(2);
        let mut new = outbound(&queue, 2);
        assert!(queue.push(frame(8)));
        assert_eq!(next(&mut old), Some(None));
        assert_eq!(next(&mut new), Some(Some(vec![8])));
    }
}
