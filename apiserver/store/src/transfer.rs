//! A snapshot on its way from one member to another, in numbered chunks.
//!
//! The sender keeps a few chunks under way and goes on as they are acknowledged, within a rate; the
//! receiver writes them as they come, and hands the state over once all of it is durable. What
//! stops is given up; Raft asks for a snapshot again.

use crate::core::{ELECTION_TICKS, Outgoing};
use crate::frame::Frame;
use crate::member::Identity;
use crate::snapshot::Snapshot;
use crate::snapshot::stream::Chunks;
use bytes::Bytes;
use raft::eraftpb::Message;
use std::iter::Peekable;

/// Chunks under way at once.
const WINDOW: u64 = 4;
/// A transfer in which nothing happens for this long is given up. Making a large snapshot durable
/// takes its time.
const STUCK_TICKS: u64 = 20 * ELECTION_TICKS as u64;

/// The sender's end.
pub(crate) struct Outbound {
    pub(crate) transfer: u64,
    /// Sent first.
    message: Option<Message>,
    chunks: Peekable<Chunks>,
    sent: u64,
    acknowledged: u64,
    /// The number of the last chunk, once it was sent.
    last: Option<u64>,
    /// Bytes that may go in this tick.
    allowance: usize,
    heard: u64,
}

impl Outbound {
    pub(crate) fn new(
        transfer: u64,
        message: Message,
        outgoing: &Outgoing,
        identity: Identity,
        now: u64,
    ) -> Self {
        let (state, conf_state) = (outgoing.state.clone(), outgoing.conf_state.clone());
        let chunks = Chunks::new(&Snapshot { state, conf_state, identity });
        Self {
            transfer,
            message: Some(message),
            chunks: chunks.peekable(),
            sent: 0,
            acknowledged: 0,
            last: None,
            allowance: usize::MAX,
            heard: now,
        }
    }

    /// What may be sent now.
    pub(crate) fn next_frames(&mut self, bytes_per_tick: usize) -> Vec<Frame> {
        self.allowance = self.allowance.min(bytes_per_tick);
        let transfer = self.transfer;
        let begin = self.message.take().map(|message| Frame::Snapshot { transfer, message });
        let mut frames: Vec<_> = begin.into_iter().collect();
        while self.allowance > 0 && self.sent < self.acknowledged + WINDOW {
            let Some(bytes) = self.chunks.next() else { break };
            self.allowance = self.allowance.saturating_sub(bytes.len());
            self.sent += 1;
            let last = self.chunks.peek().is_none();
            if last {
                self.last = Some(self.sent);
            }
            frames.push(Frame::Chunk { transfer, number: self.sent, last, bytes });
        }
        frames
    }

    /// Chunks up to `number` are written; true once all are.
    pub(crate) fn acknowledged(&mut self, number: u64, now: u64) -> bool {
        self.acknowledged = self.acknowledged.max(number.min(self.sent));
        self.heard = now;
        self.last == Some(self.acknowledged)
    }

    pub(crate) fn tick(&mut self) {
        self.allowance = usize::MAX;
    }

    pub(crate) fn is_stuck(&self, now: u64) -> bool {
        now - self.heard > STUCK_TICKS
    }
}

/// The receiver's end.
pub(crate) struct Incoming {
    pub(crate) from: u64,
    pub(crate) transfer: u64,
    /// For Raft, at the end.
    pub(crate) message: Message,
    received: u64,
    heard: u64,
}

/// A chunk to be written.
pub(crate) struct Received {
    pub(crate) transfer: u64,
    /// From 1 on; the first begins the file anew.
    pub(crate) number: u64,
    /// With this one the file is whole and must be made durable.
    pub(crate) last: bool,
    pub(crate) bytes: Bytes,
}

impl Incoming {
    pub(crate) fn new(from: u64, transfer: u64, message: Message, now: u64) -> Self {
        Self { from, transfer, message, received: 0, heard: now }
    }

    pub(crate) fn is(&self, from: u64, transfer: u64) -> bool {
        (self.from, self.transfer) == (from, transfer)
    }

    /// The next chunk; None if one before it is missing.
    pub(crate) fn chunk(
        &mut self,
        number: u64,
        last: bool,
        bytes: Bytes,
        now: u64,
    ) -> Option<Received> {
        self.heard = now;
        if number != self.received + 1 {
            return None;
        }
        self.received = number;
        Some(Received { transfer: self.transfer, number, last, bytes })
    }

    pub(crate) fn written(&mut self, now: u64) {
        self.heard = now;
    }

    pub(crate) fn is_stuck(&self, now: u64) -> bool {
        now - self.heard > STUCK_TICKS
    }
}
