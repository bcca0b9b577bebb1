//! The sans-IO core of a member: Raft and the state machine, with inputs and outputs as values.
//!
//! Inputs: [`Core::propose`], [`Core::read`], [`Core::persisted`], [`Core::step`],
//! [`Core::tick`]. After any of them the shell calls [`Core::ready`], hands on what it says (send
//! messages; write to the log and report that with [`Core::persisted`]), and then
//! [`Core::apply`], until both have nothing left. No clock, disk, network, thread or random
//! source is used here, so the same inputs give the same outputs. `T` names a caller: the shell
//! puts a reply channel there, a simulation a number.

use crate::codec::{Names, read_commands};
use crate::command::Outcome;
use crate::error::StoreError;
use crate::event::Event;
use crate::memlog::MemLog;
use crate::state::State;
use crate::wal::LogWrite;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message};
use raft::{Config, RawNode, StateRole};
use std::collections::VecDeque;
use std::sync::Arc;

/// Entries kept in memory for followers that are a little behind.
const KEEP_FOR_FOLLOWERS: u64 = 4096;
/// Ticks between a leader's heartbeats and the least ticks without one before an election.
const HEARTBEAT_TICKS: usize = 2;
const ELECTION_TICKS: usize = 10;

/// What a core begins with.
pub(crate) struct CoreConfig {
    pub(crate) node_id: u64,
    /// Different at each start of the process: makes read contexts unique, and draws the
    /// election timeout.
    pub(crate) nonce: u64,
    /// For how many entries request ids are remembered.
    pub(crate) remember: u64,
    pub(crate) state: State,
    pub(crate) conf_state: ConfState,
    pub(crate) hard_state: HardState,
    /// The log behind the state's index.
    pub(crate) entries: VecDeque<Entry>,
}

/// One member.
pub(crate) struct Core<T> {
    raw: RawNode<MemLog>,
    state: State,
    names: Names,
    node_id: u64,
    nonce: u64,
    reads_begun: u64,
    remember: u64,
    conf_state: ConfState,
    /// Proposed here and not yet applied, by index.
    proposed: VecDeque<Proposed<T>>,
    reads: VecDeque<Reading<T>>,
    /// Committed, to be applied next.
    committed: VecDeque<Entry>,
    /// A commit index that went to no log write of its own.
    unsaved: Option<HardState>,
    /// Writes handed out: number and last index, until they are reported persisted.
    writing: VecDeque<(u64, u64)>,
    persisted_index: u64,
    /// Callers whose leader is gone.
    dropped: Vec<T>,
}

struct Proposed<T> {
    index: u64,
    term: u64,
    callers: Vec<T>,
}

struct Reading<T> {
    context: Vec<u8>,
    /// Known once leadership is confirmed.
    index: Option<u64>,
    callers: Vec<T>,
}

/// What the shell has to hand on, in this order.
#[derive(Default)]
pub(crate) struct Output {
    /// May go at once.
    pub(crate) messages: Vec<Message>,
    /// To be made durable and then reported.
    pub(crate) write: Option<LogWrite>,
    /// May go once the write is durable.
    pub(crate) messages_after: Vec<Message>,
}

/// What came of applying.
pub(crate) struct Progress<T> {
    /// The events of each revision, ascending.
    pub(crate) revisions: Vec<Vec<Arc<Event>>>,
    pub(crate) answers: Vec<(T, Outcome)>,
    /// Reads that are served by the state as it is now.
    pub(crate) reads: Vec<T>,
    /// Callers that must ask the leader again.
    pub(crate) dropped: Vec<T>,
    /// Entries applied that carried commands.
    pub(crate) batches: u64,
}

impl<T> Core<T> {
    /// A member that goes on where its files end.
    pub(crate) fn new(config: CoreConfig) -> Result<Self, StoreError> {
        let state = config.state;
        let last = config.entries.back().map_or(state.applied_index, |entry| entry.index);
        let mut hard_state = config.hard_state;
        // A snapshot is taken of committed entries only, while the commit index is written with
        // the next entries, so it may lie behind.
        hard_state.commit = hard_state.commit.max(state.applied_index);
        hard_state.term = hard_state.term.max(state.applied_term);
        let log = MemLog::new(
            (state.applied_index, state.applied_term),
            config.entries,
            hard_state,
            config.conf_state.clone(),
        );
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft_config = raft_config(config.node_id, config.nonce, state.applied_index);
        let raw = RawNode::new(&raft_config, log, &logger).map_err(raft_error("start"))?;
        Ok(Self {
            raw,
            state,
            names: Names::default(),
            node_id: config.node_id,
            nonce: config.nonce,
            reads_begun: 0,
            remember: config.remember,
            conf_state: config.conf_state,
            proposed: VecDeque::new(),
            reads: VecDeque::new(),
            committed: VecDeque::new(),
            unsaved: None,
            writing: VecDeque::new(),
            persisted_index: last,
            dropped: Vec::new(),
        })
    }

    /// Stands for election now: the only member need not wait for anybody.
    pub(crate) fn campaign(&mut self) -> Result<(), StoreError> {
        self.raw.campaign().map_err(raft_error("campaign"))
    }

    /// True if nobody else votes.
    pub(crate) fn is_only_voter(&self) -> bool {
        let state = &self.conf_state;
        state.voters == [self.node_id] && state.voters_outgoing.is_empty()
    }

    /// Proposes one entry: the commands of these callers, in order. Fails if this member does
    /// not lead; then nothing was proposed and the callers come back.
    pub(crate) fn propose(&mut self, data: Vec<u8>, callers: Vec<T>) -> Result<(), Vec<T>> {
        // A follower would pass the proposal on, and nobody would know its index.
        if !self.is_leader() || self.raw.propose(Vec::new(), data).is_err() {
            return Err(callers);
        }
        let index = self.raw.raft.raft_log.last_index();
        self.proposed.push_back(Proposed { index, term: self.raw.raft.term, callers });
        Ok(())
    }

    /// Asks for a linearizable read on behalf of the callers. Every call uses a context of its
    /// own: Raft may answer an older question when a context comes back.
    pub(crate) fn read(&mut self, callers: Vec<T>) {
        if !self.is_leader() {
            return self.dropped.extend(callers);
        }
        self.reads_begun += 1;
        let mut context = Vec::with_capacity(24);
        for part in [self.node_id, self.nonce, self.reads_begun] {
            context.extend_from_slice(&part.to_le_bytes());
        }
        self.raw.read_index(context.clone());
        self.reads.push_back(Reading { context, index: None, callers });
    }

    /// The write with this number, and all before it, are durable.
    pub(crate) fn persisted(&mut self, number: u64) {
        while let Some((_, last)) = self.writing.pop_front_if(|(write, _)| *write <= number) {
            self.persisted_index = self.persisted_index.max(last);
        }
        self.raw.on_persist_ready(number);
    }

    /// A message from another member.
    #[cfg_attr(not(test), expect(dead_code, reason = "a single member has nobody to hear from"))]
    pub(crate) fn step(&mut self, message: Message) -> Result<(), StoreError> {
        self.raw.step(message).map_err(raft_error("step"))
    }

    /// Lets a tick of time pass.
    #[cfg_attr(not(test), expect(dead_code, reason = "a single member has nobody to hear from"))]
    pub(crate) fn tick(&mut self) {
        self.raw.tick();
    }

    /// What is to be sent and written now; None if nothing is. Call it again until it says so.
    pub(crate) fn ready(&mut self) -> Option<Output> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        if ready.ss().is_some_and(|soft| soft.raft_state != StateRole::Leader) {
            self.drop_callers();
        }
        self.confirm_reads(ready.take_read_states());
        self.committed.extend(ready.take_committed_entries());
        if let Some(hard_state) = ready.hs() {
            self.unsaved = Some(hard_state.clone());
        }
        let messages = ready.take_messages();
        let messages_after = ready.take_persisted_messages();
        let entries = ready.take_entries();
        self.raw.mut_store().append(&entries);
        let write = (ready.must_sync() || !entries.is_empty() || !messages_after.is_empty())
            .then(|| self.write(ready.number(), entries));
        self.raw.advance_append_async(ready);
        Some(Output { messages, write, messages_after })
    }

    fn write(&mut self, number: u64, entries: Vec<Entry>) -> LogWrite {
        let last = entries.last().map_or(self.persisted_index, |entry| entry.index);
        self.writing.push_back((number, last));
        LogWrite { number, entries, hard_state: self.unsaved.take() }
    }

    fn confirm_reads(&mut self, confirmed: Vec<raft::ReadState>) {
        for confirmed in confirmed {
            let reading = self.reads.iter_mut().find(|r| r.context == confirmed.request_ctx);
            if let Some(reading) = reading {
                reading.index = Some(confirmed.index);
            }
        }
    }

    fn drop_callers(&mut self) {
        let proposed = self.proposed.drain(..).flat_map(|proposed| proposed.callers);
        self.dropped.extend(proposed);
        self.dropped.extend(self.reads.drain(..).flat_map(|reading| reading.callers));
    }

    /// Applies what is committed. An error is final: going on would diverge from the others.
    pub(crate) fn apply(&mut self) -> Result<Progress<T>, StoreError> {
        let mut progress = Progress {
            revisions: Vec::new(),
            answers: Vec::new(),
            reads: Vec::new(),
            dropped: std::mem::take(&mut self.dropped),
            batches: 0,
        };
        while let Some(entry) = self.committed.pop_front() {
            self.apply_entry(&entry, &mut progress)?;
            self.raw.advance_apply_to(entry.index);
        }
        self.serve_reads(&mut progress);
        self.truncate();
        Ok(progress)
    }

    fn apply_entry(&mut self, entry: &Entry, progress: &mut Progress<T>) -> Result<(), StoreError> {
        self.state.begin_entry(entry.index, entry.term, self.remember);
        if entry.get_entry_type() != EntryType::EntryNormal {
            return self.apply_conf_change(entry);
        }
        let fail = |reason: String| StoreError::Entry { index: entry.index, reason };
        let commands =
            read_commands(&entry.data, &mut self.names).map_err(|e| fail(e.to_string()))?;
        progress.batches += u64::from(!commands.is_empty());
        let mut callers = self.callers_of(entry, progress);
        for command in commands {
            let applied = self.state.apply(command);
            if !applied.events.is_empty() {
                progress.revisions.push(applied.events);
            }
            if let Some(caller) = callers.next() {
                progress.answers.push((caller, applied.outcome));
            }
        }
        Ok(())
    }

    /// Who waits here for the entry. An entry of another leader at the index means that ours is
    /// lost.
    fn callers_of(&mut self, entry: &Entry, progress: &mut Progress<T>) -> std::vec::IntoIter<T> {
        while let Some(proposed) = self.proposed.pop_front_if(|p| p.index <= entry.index) {
            if (proposed.index, proposed.term) == (entry.index, entry.term) {
                return proposed.callers.into_iter();
            }
            progress.dropped.extend(proposed.callers);
        }
        Vec::new().into_iter()
    }

    fn apply_conf_change(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let fail = |reason: String| StoreError::Entry { index: entry.index, reason };
        let applied = match entry.get_entry_type() {
            EntryType::EntryConfChange => {
                let change = ConfChange::parse_from_bytes(&entry.data);
                self.raw.apply_conf_change(&change.map_err(|error| fail(error.to_string()))?)
            }
            _ => {
                let change = ConfChangeV2::parse_from_bytes(&entry.data);
                self.raw.apply_conf_change(&change.map_err(|error| fail(error.to_string()))?)
            }
        };
        self.conf_state = applied.map_err(|error| fail(error.to_string()))?;
        Ok(())
    }

    fn serve_reads(&mut self, progress: &mut Progress<T>) {
        let applied = self.state.applied_index;
        let mut waiting = VecDeque::new();
        for reading in self.reads.drain(..) {
            match reading.index {
                Some(index) if index <= applied => progress.reads.extend(reading.callers),
                _ => waiting.push_back(reading),
            }
        }
        self.reads = waiting;
    }

    /// Lets go of entries in memory that nobody needs.
    fn truncate(&mut self) {
        let keep = if self.is_only_voter() { 0 } else { KEEP_FOR_FOLLOWERS };
        let done = self.state.applied_index.min(self.persisted_index);
        self.raw.mut_store().truncate(done.saturating_sub(keep));
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// True once the leader has committed an entry of its own term: only then can it answer
    /// reads.
    pub(crate) fn leads_its_term(&self) -> bool {
        self.is_leader() && self.state.applied_term == self.raw.raft.term
    }

    /// True while a write is on its way to the disk.
    pub(crate) fn is_writing(&self) -> bool {
        !self.writing.is_empty()
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    pub(crate) fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub(crate) fn leader(&self) -> u64 {
        self.raw.raft.leader_id
    }

    pub(crate) fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }
}

/// Raft's defaults are neither safe nor fast; all that matters is set.
fn raft_config(id: u64, nonce: u64, applied: u64) -> Config {
    // Raft would draw from a random source of its own; one value between the bounds is ours.
    let timeout = ELECTION_TICKS + (nonce % ELECTION_TICKS as u64) as usize;
    Config {
        id,
        applied,
        election_tick: ELECTION_TICKS,
        heartbeat_tick: HEARTBEAT_TICKS,
        min_election_tick: timeout,
        max_election_tick: timeout + 1,
        check_quorum: true,
        pre_vote: true,
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 256,
        max_uncommitted_size: 64 << 20,
        max_committed_size_per_ready: 4 << 20,
        ..Config::default()
    }
}

fn raft_error(operation: &'static str) -> impl Fn(raft::Error) -> StoreError {
    move |error| StoreError::Raft { operation, reason: error.to_string() }
}
