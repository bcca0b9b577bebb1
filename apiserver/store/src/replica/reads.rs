//! Linearizable reads: many at once ask the leader one question (ReadIndex).
//!
//! Every question has a context that is never used again, nor heard again: Raft may answer an older
//! question when a context comes back (etcd 20418, and raft-rs as of 0.7).

use super::{Effect, Replica};
use crate::core::HEARTBEAT_TICKS;
use raft::eraftpb::Message;
use std::collections::BTreeMap;

/// When a read's question is taken for lost.
const READ_TICKS: u64 = 2 * HEARTBEAT_TICKS as u64;

/// Who wants to read, with the tick at which each asked.
pub(super) struct Reads<T> {
    nonce: u64,
    begun: u64,
    waiting: Vec<(T, u64)>,
    /// Asked and not yet answered.
    asked: Option<Asked<T>>,
    /// Answered: the index that must be applied.
    confirmed: Vec<(u64, Vec<(T, u64)>)>,
    heard: Heard,
}

struct Asked<T> {
    context: Vec<u8>,
    at: u64,
    callers: Vec<(T, u64)>,
}

/// The last question of each member in this term: its start and number.
#[derive(Default)]
struct Heard {
    term: u64,
    last: BTreeMap<u64, (u64, u64)>,
}

impl<T> Reads<T> {
    pub(super) fn new(nonce: u64) -> Self {
        let (waiting, confirmed) = (Vec::new(), Vec::new());
        Self { nonce, begun: 0, waiting, asked: None, confirmed, heard: Heard::default() }
    }

    pub(super) fn wait(&mut self, caller: T, now: u64) {
        self.waiting.push((caller, now));
    }

    /// What was asked may never be answered: it is asked again, under a new context. The old
    /// answer may still come, and counts for nobody.
    pub(super) fn ask_again(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.waiting.extend(asked.callers);
        }
    }

    /// The leader has answered: these callers may read once `index` is applied.
    pub(super) fn answered(&mut self, context: &[u8], index: u64) {
        if let Some(asked) = self.asked.take_if(|asked| asked.context == context) {
            self.confirmed.push((index, asked.callers));
        }
    }

    /// Callers who may read now.
    pub(super) fn served(&mut self, applied: u64) -> impl Iterator<Item = T> + '_ {
        let served = self.confirmed.extract_if(.., move |(index, _)| *index <= applied);
        served.flat_map(|(_, callers)| callers).map(|(caller, _)| caller)
    }

    /// Callers who have been answered and have yet waited for more than `most` ticks for their
    /// index.
    pub(super) fn overdue(&mut self, now: u64, most: u64) -> Vec<T> {
        let late = move |(_, asked): &mut (T, u64)| now - *asked > most;
        let confirmed = self.confirmed.iter_mut();
        let over = confirmed.flat_map(|(_, callers)| callers.extract_if(.., late));
        let over = over.map(|(caller, _)| caller).collect();
        self.confirmed.retain(|(_, callers)| !callers.is_empty());
        over
    }

    /// Callers who have waited for more than `most` ticks for an answer.
    pub(super) fn expire(&mut self, now: u64, most: u64) -> Vec<T> {
        let late = move |(_, asked): &mut (T, u64)| now - *asked > most;
        let mut over: Vec<_> = self.waiting.extract_if(.., late).collect();
        if let Some(asked) = &mut self.asked {
            over.extend(asked.callers.extract_if(.., late));
        }
        over.into_iter().map(|(caller, _)| caller).collect()
    }

    #[cfg(any(test, feature = "sim"))]
    pub(super) fn backlog(&self) -> usize {
        let asked = self.asked.as_ref().map_or(0, |asked| asked.callers.len());
        asked + self.waiting.len() + self.confirmed.len()
    }

    fn context(&mut self, member: u64) -> Vec<u8> {
        self.begun += 1;
        [member, self.nonce, self.begun].iter().flat_map(|part| part.to_le_bytes()).collect()
    }
}

impl Heard {
    /// False if a question came before, or one that its member asked later.
    fn is_new(&mut self, term: u64, message: &Message) -> bool {
        let context = message.get_entries().first().map_or(&[][..], |entry| &entry.data);
        let (parts, rest) = context.as_chunks();
        let (&[member, nonce, number], []) = (parts, rest) else { return false };
        let (member, nonce, number) =
            (u64::from_le_bytes(member), u64::from_le_bytes(nonce), u64::from_le_bytes(number));
        if self.term != term {
            *self = Self { term, last: BTreeMap::new() };
        }
        let last = self.last.entry(member).or_default();
        if last.0 == nonce && number <= last.1 {
            return false;
        }
        *last = (nonce, number);
        true
    }
}

impl<T> Replica<T> {
    /// Asks the leader on behalf of all reads that wait, unless an answer is due.
    pub(super) fn ask_reads(&mut self) {
        let due = self.reads.asked.as_ref().map(|asked| asked.at + READ_TICKS);
        if due.is_some_and(|due| self.now >= due) {
            self.reads.ask_again();
        }
        let able = match self.core.is_leader() {
            true => self.core.leads_its_term(),
            false => self.core.leader() != 0,
        };
        if !able || self.reads.asked.is_some() || self.reads.waiting.is_empty() {
            return;
        }
        let context = self.reads.context(self.config.identity.member_id);
        self.core.read(context.clone());
        let callers = std::mem::take(&mut self.reads.waiting);
        self.reads.asked = Some(Asked { context, at: self.now, callers });
    }

    /// Another member's question; one that comes twice is lost.
    pub(super) fn question(&mut self, message: Message) {
        if self.reads.heard.is_new(self.core.term(), &message) {
            self.core.step(message);
        }
    }

    pub(super) fn reads_served(&mut self, applied: u64) {
        self.effects.extend(self.reads.served(applied).map(|caller| Effect::Read(caller, Ok(()))));
    }
}
