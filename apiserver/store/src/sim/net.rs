//! The network: for each direction between two members one link that delivers in order, or loses.

use super::plan::MS;
use super::random::Random;
use std::collections::BTreeMap;

/// All links, by sender and receiver.
#[derive(Default)]
pub(super) struct Net {
    links: BTreeMap<(u64, u64), Link>,
}

#[derive(Clone, Default)]
struct Link {
    /// Nothing passes, and nobody is told.
    cut: bool,
    /// Of the connection; what an earlier one had under way is lost.
    epoch: u64,
    /// The connection is made anew then.
    down_until: u64,
    /// Until then everything takes `extra` longer.
    slow_until: u64,
    extra: u64,
    /// When the last frame arrives.
    last: u64,
}

impl Net {
    fn link(&mut self, from: u64, to: u64) -> &mut Link {
        self.links.entry((from, to)).or_default()
    }

    /// When a frame sent now arrives, and on which connection; None if it is lost.
    pub(super) fn send(
        &mut self,
        (from, to): (u64, u64),
        now: u64,
        mean: u64,
        overtakes: bool,
        random: &mut Random,
    ) -> Option<(u64, u64)> {
        let link = self.link(from, to);
        if link.cut || now < link.down_until {
            return None;
        }
        let extra =
            if now < link.slow_until { link.extra / 2 + random.below(link.extra) } else { 0 };
        let mut at = now + random.around(mean) + extra;
        if !overtakes {
            at = at.max(link.last);
            link.last = at;
        }
        Some((at, link.epoch))
    }

    /// True if a frame that was sent on this connection arrives.
    pub(super) fn arrives(&mut self, from: u64, to: u64, epoch: u64) -> bool {
        let link = self.link(from, to);
        !link.cut && link.epoch == epoch
    }

    pub(super) fn passes(&mut self, from: u64, to: u64) -> bool {
        !self.link(from, to).cut
    }

    /// The connection between two breaks, in both directions.
    pub(super) fn break_link(&mut self, a: u64, b: u64, until: u64) {
        for (from, to) in [(a, b), (b, a)] {
            let link = self.link(from, to);
            link.epoch += 1;
            link.down_until = until;
            link.last = 0;
        }
    }

    pub(super) fn cut(&mut self, from: u64, to: u64, cut: bool) {
        self.link(from, to).cut = cut;
    }

    pub(super) fn delay(&mut self, from: u64, to: u64, extra: u64, until: u64) {
        let link = self.link(from, to);
        (link.extra, link.slow_until) = (extra.max(MS), until);
    }

    /// Everything passes again. Connections that something was delayed on are made anew.
    pub(super) fn heal(&mut self, now: u64) {
        for link in self.links.values_mut() {
            link.epoch += u64::from(link.slow_until > now);
            *link = Link { epoch: link.epoch, ..Link::default() };
        }
    }
}
