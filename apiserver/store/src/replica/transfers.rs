//! Snapshots that a member sends and receives: which goes where, and what comes of it.

use super::{Effect, Replica};
use crate::core::ELECTION_TICKS;
use crate::error::StoreError;
use crate::frame::Frame;
use crate::state::State;
use crate::transfer::{Incoming, Outbound};
use bytes::Bytes;
use raft::eraftpb::Message;

impl<T> Replica<T> {
    pub(super) fn begin_sending(&mut self, message: Message) {
        let to = message.to;
        let index = message.get_snapshot().get_metadata().index;
        match self.core.outgoing(index) {
            Some(outgoing) => {
                self.requests += 1;
                let identity = self.config.identity;
                let outbound = Outbound::new(self.requests, message, &outgoing, identity, self.now);
                self.sending.insert(to, outbound);
                self.pump(to);
            }
            None => self.core.report_snapshot(to, false),
        }
    }

    /// Sends as many chunks as the receiver and the rate allow.
    fn pump(&mut self, to: u64) {
        let Some(outbound) = self.sending.get_mut(&to) else { return };
        let frames = outbound.next_frames(self.config.snapshot_bytes_per_tick);
        self.effects.extend(frames.into_iter().map(|frame| Effect::Send(to, frame.encode())));
    }

    pub(super) fn acknowledged(&mut self, from: u64, transfer: u64, number: u64, failed: bool) {
        let Some(outbound) = self.sending.get_mut(&from).filter(|o| o.transfer == transfer) else {
            return;
        };
        if failed {
            return self.stop_sending(from);
        }
        if outbound.acknowledged(number, self.now) {
            self.sending.remove(&from);
            self.core.report_snapshot(from, true);
        } else {
            self.pump(from);
        }
    }

    pub(super) fn stop_sending(&mut self, to: u64) {
        if self.sending.remove(&to).is_some() {
            self.core.report_snapshot(to, false);
        }
    }

    pub(super) fn tick_transfers(&mut self) {
        let leads = self.core.is_leader();
        let ids: Vec<_> = self.sending.keys().copied().collect();
        for id in ids {
            let stuck = self.sending[&id].is_stuck(self.now);
            if stuck || !leads {
                self.stop_sending(id);
                continue;
            }
            if let Some(outbound) = self.sending.get_mut(&id) {
                outbound.tick();
            }
            self.pump(id);
        }
        if self.sending.is_empty() && self.now.is_multiple_of(ELECTION_TICKS as u64) {
            self.core.release_outgoing();
        }
        let now = self.now;
        self.receiving.take_if(|incoming| incoming.is_stuck(now));
    }

    pub(super) fn begin_receiving(&mut self, from: u64, transfer: u64, message: Message) {
        if message.term >= self.core.term() {
            self.contact = self.now;
        }
        self.receiving = Some(Incoming::new(from, transfer, message, self.now));
    }

    pub(super) fn chunk(
        &mut self,
        from: u64,
        transfer: u64,
        number: u64,
        last: bool,
        bytes: Bytes,
    ) {
        let mine = |incoming: &&mut Incoming| incoming.is(from, transfer);
        let Some(incoming) = self.receiving.as_mut().filter(mine) else {
            let frame = Frame::Ack { transfer, number, failed: true };
            return self.effects.push_back(Effect::Send(from, frame.encode()));
        };
        match incoming.chunk(number, last, bytes, self.now) {
            Some(received) => self.effects.push_back(Effect::Receive(received)),
            None => self.fail_receiving(),
        }
    }

    /// A chunk was written; with the last one comes the state that they hold.
    pub(crate) fn received(
        &mut self,
        transfer: u64,
        number: u64,
        result: Result<Option<State>, StoreError>,
    ) {
        let Some(incoming) = self.receiving.as_mut().filter(|i| i.transfer == transfer) else {
            return;
        };
        incoming.written(self.now);
        let from = incoming.from;
        match result {
            Ok(state) => {
                let frame = Frame::Ack { transfer, number, failed: false };
                self.effects.push_back(Effect::Send(from, frame.encode()));
                if let Some(state) = state
                    && let Some(incoming) = self.receiving.take()
                {
                    self.core.step_snapshot(incoming.message, state);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a snapshot could not be received");
                self.fail_receiving();
            }
        }
    }

    fn fail_receiving(&mut self) {
        if let Some(incoming) = self.receiving.take() {
            let frame = Frame::Ack { transfer: incoming.transfer, number: 0, failed: true };
            self.effects.push_back(Effect::Send(incoming.from, frame.encode()));
        }
    }
}
