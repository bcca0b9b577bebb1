//! The sans-IO core of a member: Raft and the state machine, with inputs and outputs as values.
//!
//! After any input the shell calls [`Core::ready`], hands on what it says (send messages; write to
//! the log and report that with [`Core::persisted`]), and then [`Core::apply`], until both have
//! nothing left. No clock, disk, network, thread or random source is used here, so the same inputs
//! give the same outputs.

use crate::codec::{ENTRY_VERSION, Item, Names, read_entry};
use crate::command::Outcome;
use crate::error::StoreError;
use crate::event::Event;
use crate::member::{Identity, Member, MemberChange};
use crate::memlog::MemLog;
use crate::state::State;
use crate::wal::{LogWrite, Reset};
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
    HardState, Message, MessageType, SnapshotMetadata,
};
use raft::{Config, RawNode, SnapshotStatus, StateRole};
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes of entries kept in memory for followers that are a little behind, and for one that is
/// being sent a snapshot.
const KEEP_BYTES: usize = 8 << 20;
const KEEP_BYTES_SENDING: usize = 128 << 20;
/// Most writes, and bytes of entries in them, that a member takes in before they are durable. A
/// healthy disk is never that far behind.
const WRITING_MOST: usize = 4096;
const WRITING_BYTES_MOST: usize = 64 << 20;
/// Ticks between a leader's heartbeats and the least ticks without one before an election.
pub(crate) const HEARTBEAT_TICKS: usize = 2;
pub(crate) const ELECTION_TICKS: usize = 10;

/// What a core begins with.
pub(crate) struct CoreConfig {
    pub(crate) identity: Identity,
    /// Different at each start of the process: makes read contexts unique, and draws election
    /// timeouts.
    pub(crate) nonce: u64,
    /// For how many entries request ids are remembered; the same on all members.
    pub(crate) remember: u64,
    pub(crate) state: State,
    pub(crate) conf_state: ConfState,
    pub(crate) hard_state: HardState,
    /// The log behind the state's index.
    pub(crate) entries: VecDeque<Entry>,
}

/// One member.
pub(crate) struct Core {
    raw: RawNode<MemLog>,
    state: State,
    names: Names,
    id: u64,
    remember: u64,
    conf_state: ConfState,
    /// Committed, to be applied next.
    committed: VecDeque<Entry>,
    /// A commit index that went to no log write of its own.
    unsaved: Option<HardState>,
    /// Writes handed out, until they are reported persisted.
    writing: VecDeque<Writing>,
    writing_bytes: usize,
    persisted_index: u64,
    /// The term that a restart would know.
    persisted_term: u64,
    timeout: ElectionTimeout,
    /// The newest form of log entries that is read here.
    newest: u8,
    /// The state that snapshots are sent from.
    outgoing: Option<Arc<Outgoing>>,
    /// A snapshot that was received and is durable, until Raft takes or leaves it.
    incoming: Option<Box<State>>,
    /// Bytes of applied entries that stay in memory.
    keep_bytes: usize,
}

struct Writing {
    number: u64,
    last_index: u64,
    term: u64,
    /// Of the entries' data.
    bytes: usize,
}

/// Everything at one index, to be sent to a member that lacks the log's begin.
pub(crate) struct Outgoing {
    pub(crate) state: State,
    pub(crate) conf_state: ConfState,
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
    /// Reads that were confirmed: their context, and the index that they need.
    pub(crate) reads: Vec<(Vec<u8>, u64)>,
    /// A snapshot has replaced the state.
    pub(crate) installed: bool,
}

/// What came of one item.
pub(crate) enum Answer {
    /// None if the request was too old to tell.
    Command(Option<Outcome>),
    Change(Result<(), String>),
}

/// What came of applying.
#[derive(Default)]
pub(crate) struct Progress {
    /// The events of each revision, ascending.
    pub(crate) revisions: Vec<Vec<Arc<Event>>>,
    /// Entries applied that carried items, and the items.
    pub(crate) batches: u64,
    pub(crate) items: u64,
    /// The members are others than before, or are found elsewhere.
    pub(crate) members_changed: bool,
}

impl Core {
    /// A member that goes on where its files end.
    pub(crate) fn new(config: CoreConfig) -> Result<Self, StoreError> {
        let state = config.state;
        let last = config.entries.back().map_or(state.applied_index, |entry| entry.index);
        let mut hard_state = config.hard_state;
        // A snapshot is taken of committed entries only, while the commit index is written with
        // the next entries, so it may lie behind.
        hard_state.commit = hard_state.commit.max(state.applied_index);
        if hard_state.term < state.applied_term {
            (hard_state.term, hard_state.vote) = (state.applied_term, 0);
        }
        let persisted_term = hard_state.term;
        let log = MemLog::new(
            (state.applied_index, state.applied_term),
            config.entries,
            hard_state,
            config.conf_state.clone(),
        );
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let id = config.identity.member_id;
        let raw = RawNode::new(&raft_config(id, state.applied_index), log, &logger);
        Ok(Self {
            raw: raw.map_err(raft_error("start"))?,
            state,
            names: Names::default(),
            id,
            remember: config.remember,
            conf_state: config.conf_state,
            committed: VecDeque::new(),
            unsaved: None,
            writing: VecDeque::new(),
            writing_bytes: 0,
            persisted_index: last,
            persisted_term,
            timeout: ElectionTimeout::new(config.nonce),
            newest: ENTRY_VERSION,
            outgoing: None,
            incoming: None,
            keep_bytes: KEEP_BYTES,
        })
    }

    /// As a program of another release would be.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn of_release(mut self, newest: u8) -> Self {
        self.newest = newest;
        self
    }

    /// Keeps so many bytes of applied entries for followers that are behind.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn keep(self, keep_bytes: usize) -> Self {
        Self { keep_bytes, ..self }
    }

    /// Stands for election now: the only member need not wait for anybody.
    pub(crate) fn campaign(&mut self) -> Result<(), StoreError> {
        self.raw.campaign().map_err(raft_error("campaign"))
    }

    /// True if nobody else votes.
    pub(crate) fn is_only_voter(&self) -> bool {
        self.conf_state.voters == [self.id] && self.conf_state.voters_outgoing.is_empty()
    }

    /// True if this member is the whole cluster: there is nobody to hear from.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_only_voter() && self.conf_state.learners.is_empty()
    }

    /// Proposes one entry; gives the data back if this member does not lead or too much is under
    /// way.
    pub(crate) fn propose(&mut self, data: Vec<u8>) -> Result<(), Vec<u8>> {
        // A follower would pass the proposal on, and the leader would take it for Raft's own.
        if !self.is_leader() {
            return Err(data);
        }
        let sent = bytes::Bytes::from(data);
        let mut message = Message { from: self.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![Entry { data: sent.clone(), ..Entry::default() }].into());
        self.raw.raft.step(message).map_err(|_| sent.into())
    }

    /// Proposes a change of the members that vote or learn; false if another one is under way.
    pub(crate) fn propose_change(&mut self, item: Vec<u8>, change: &MemberChange) -> bool {
        let Some(single) = conf_change(change) else { return false };
        if !self.is_leader() || self.raw.raft.has_pending_conf() {
            return false;
        }
        let mut all = ConfChangeV2::default();
        all.set_changes(vec![single].into());
        self.raw.propose_conf_change(item, all).is_ok()
    }

    /// Why the change can't be, as far as this member knows.
    pub(crate) fn check_change(&self, change: &MemberChange) -> Result<(), String> {
        self.state.roster.check(change, &self.conf_state)
    }

    /// Asks for a linearizable read. The context must never have been used before: Raft may answer
    /// an older question when a context comes back (etcd 20418). Nothing comes of it if there is
    /// no leader, too much waits for the disk, or a message is lost.
    pub(crate) fn read(&mut self, context: Vec<u8>) {
        if !self.is_clogged() {
            self.raw.read_index(context);
        }
    }

    /// The write with this number, and all before it, are durable.
    pub(crate) fn persisted(&mut self, number: u64) {
        while let Some(write) = self.writing.pop_front_if(|write| write.number <= number) {
            self.persisted_index = self.persisted_index.max(write.last_index);
            self.persisted_term = self.persisted_term.max(write.term);
            self.writing_bytes -= write.bytes;
        }
        self.raw.on_persist_ready(number);
    }

    /// A message from another member. What Raft has no use for it refuses, and that is as well.
    ///
    /// While too much waits for the disk, what would have to be written too is lost, as on a bad
    /// network. Raft alone sets no bound: each heartbeat that is answered lets its sender send one
    /// more message, however many are unacknowledged. A heartbeat of a term that is durable needs
    /// no write; it is still answered and keeps the leader in office.
    pub(crate) fn step(&mut self, message: Message) {
        let free = message.get_msg_type() == MessageType::MsgHeartbeat
            && message.term == self.persisted_term
            && message.term == self.raw.raft.term;
        if free || !self.is_clogged() {
            let _ = self.raw.step(message);
        }
    }

    /// So much waits for the disk that no more is taken in.
    fn is_clogged(&self) -> bool {
        self.writing.len() >= WRITING_MOST || self.writing_bytes >= WRITING_BYTES_MOST
    }

    /// A snapshot has come whole and is durable: Raft takes it, or leaves it if it has more.
    pub(crate) fn step_snapshot(&mut self, message: Message, state: State) {
        let metadata = message.get_snapshot().get_metadata();
        if (metadata.index, metadata.term) == (state.applied_index, state.applied_term) {
            self.incoming = Some(Box::new(state));
            self.step(message);
            if self.raw.snap().is_none() {
                self.incoming = None;
            }
        }
    }

    /// Lets a tick of time pass. Who can't write can't be elected, so it does not stand.
    pub(crate) fn tick(&mut self) {
        if self.is_clogged() && !self.is_leader() {
            return;
        }
        let now = (self.raw.raft.term, self.raw.raft.state);
        let ticks = self.timeout.ticks(now);
        self.raw.raft.set_randomized_election_timeout(ticks);
        if self.raw.tick() {
            self.timeout.passed();
        }
    }

    /// The leader may be dead: stand for election after a tick or a few, each voter at another
    /// time. If it lives, its next heartbeat ends that.
    pub(crate) fn hasten_election(&mut self) {
        let leader = self.leader();
        let others = self.conf_state.voters.iter().filter(|id| **id != leader && **id < self.id);
        let now = (self.raw.raft.term, self.raw.raft.state);
        self.timeout.hasten(now, ELECTION_TICKS + 1 + 3 * others.count());
        let elapsed = &mut self.raw.raft.election_elapsed;
        *elapsed = (*elapsed).max(ELECTION_TICKS);
    }

    /// A member can't be reached: the leader probes it before it sends more.
    pub(crate) fn report_unreachable(&mut self, id: u64) {
        self.raw.report_unreachable(id);
    }

    /// What came of sending a snapshot.
    pub(crate) fn report_snapshot(&mut self, id: u64, sent: bool) {
        let status = if sent { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(id, status);
    }

    /// Hands the leadership over.
    pub(crate) fn transfer_to(&mut self, id: u64) {
        self.raw.transfer_leader(id);
    }

    /// What is to be sent and written now; None if nothing is. Call it again until it says so.
    pub(crate) fn ready(&mut self) -> Result<Option<Output>, StoreError> {
        if self.raw.store().take_wanted() {
            self.prepare_snapshot();
        }
        if !self.raw.has_ready() {
            return Ok(None);
        }
        let mut ready = self.raw.ready();
        let reads = ready.take_read_states().into_iter();
        let reads = reads.map(|read| (read.request_ctx, read.index)).collect();
        let reset = match ready.snapshot().is_empty() {
            true => None,
            false => Some(self.install(ready.snapshot().get_metadata())?),
        };
        self.committed.extend(ready.take_committed_entries());
        if let Some(hard_state) = ready.hs() {
            self.unsaved = Some(hard_state.clone());
        }
        let mut messages = ready.take_messages();
        let mut messages_after = ready.take_persisted_messages();
        // A heartbeat's answer and a question promise nothing that is not on disk already, and must
        // not wait for a slow one.
        let idle = [MessageType::MsgHeartbeatResponse, MessageType::MsgReadIndex];
        let harmless = |message: &mut Message| {
            idle.contains(&message.get_msg_type()) && message.term <= self.persisted_term
        };
        messages.extend(messages_after.extract_if(.., harmless));
        let entries = ready.take_entries();
        self.raw.mut_store().append(&entries);
        let installed = reset.is_some();
        let writes = ready.must_sync() || !entries.is_empty() || !messages_after.is_empty();
        let write = (writes || installed).then(|| self.write(ready.number(), entries, reset));
        self.raw.advance_append_async(ready);
        Ok(Some(Output { messages, write, messages_after, reads, installed }))
    }

    fn write(&mut self, number: u64, entries: Vec<Entry>, reset: Option<Reset>) -> LogWrite {
        let start = reset.as_ref().map_or(self.persisted_index, |reset| reset.index);
        let last_index = entries.last().map_or(start, |entry| entry.index);
        let term = self.unsaved.as_ref().map_or(0, |hard_state| hard_state.term);
        let bytes = entries.iter().map(|entry| entry.data.len()).sum();
        self.writing_bytes += bytes;
        self.writing.push_back(Writing { number, last_index, term, bytes });
        LogWrite { number, entries, hard_state: self.unsaved.take(), reset: reset.map(Box::new) }
    }

    /// The snapshot's state takes the place of the old one, and the log begins behind it.
    fn install(&mut self, metadata: &SnapshotMetadata) -> Result<Reset, StoreError> {
        let (index, term) = (metadata.index, metadata.term);
        let state = self.incoming.take().filter(|state| state.applied_index == index);
        let lost = || StoreError::Entry { index, reason: "its snapshot is not there".into() };
        self.state = *state.ok_or_else(lost)?;
        self.conf_state = metadata.get_conf_state().clone();
        self.committed.clear();
        self.outgoing = None;
        self.persisted_index = self.persisted_index.min(index);
        self.raw.mut_store().reset(index, term);
        // Raft would learn it with the next entry applied, and before an election looks at all
        // entries that it believes are not.
        self.raw.raft.raft_log.applied = index;
        Ok(Reset { index, term, conf_state: self.conf_state.clone() })
    }

    /// Makes a snapshot of what is applied for those who lack the log's begin.
    fn prepare_snapshot(&mut self) {
        if self.state.applied_index == 0 {
            return;
        }
        let metadata = SnapshotMetadata {
            index: self.state.applied_index,
            term: self.state.applied_term,
            conf_state: Some(self.conf_state.clone()).into(),
            ..SnapshotMetadata::default()
        };
        self.outgoing = Some(Arc::new(self.export()));
        self.raw.mut_store().prepare(Some(metadata));
    }

    /// Everything as it is now.
    pub(crate) fn export(&self) -> Outgoing {
        Outgoing { state: self.state.clone(), conf_state: self.conf_state.clone() }
    }

    /// The state that goes with a snapshot message.
    pub(crate) fn outgoing(&self, index: u64) -> Option<Arc<Outgoing>> {
        self.outgoing.clone().filter(|outgoing| outgoing.state.applied_index == index)
    }

    /// Nobody is sent a snapshot any more.
    pub(crate) fn release_outgoing(&mut self) {
        if self.outgoing.take().is_some() {
            self.raw.mut_store().prepare(None);
        }
    }

    /// Applies what is committed, and tells `answer` what came of each request. An error is final:
    /// going on would diverge from the others.
    pub(crate) fn apply(
        &mut self,
        answer: &mut dyn FnMut(u128, Answer),
    ) -> Result<Progress, StoreError> {
        let mut progress = Progress::default();
        while let Some(entry) = self.committed.pop_front() {
            self.apply_entry(&entry, &mut progress, answer)?;
            self.raw.advance_apply_to(entry.index);
        }
        self.truncate();
        Ok(progress)
    }

    fn apply_entry(
        &mut self,
        entry: &Entry,
        progress: &mut Progress,
        answer: &mut dyn FnMut(u128, Answer),
    ) -> Result<(), StoreError> {
        self.state.begin_entry(entry.index, entry.term, self.remember);
        let fail = |reason: String| StoreError::Entry { index: entry.index, reason };
        match entry.get_entry_type() {
            EntryType::EntryNormal => {}
            EntryType::EntryConfChangeV2 if !entry.context.is_empty() => {
                return self.apply_change(entry, progress, answer);
            }
            _ => return self.apply_conf_change(entry).map_err(fail),
        }
        let items = read_entry(&entry.data, &mut self.names, self.newest);
        let items = items.map_err(|e| fail(e.to_string()))?;
        progress.batches += u64::from(!items.is_empty());
        progress.items += items.len() as u64;
        for item in items {
            match item {
                Item::Command { since, command } => {
                    let id = command.request_id;
                    let applied = self.state.apply(command, since);
                    if !applied.events.is_empty() {
                        progress.revisions.push(applied.events);
                    }
                    answer(id, Answer::Command(applied.outcome));
                }
                Item::Change { request_id, change } => {
                    if conf_change(&change).is_some() {
                        return Err(fail(format!("{change:?} is no normal entry")));
                    }
                    let changed = self.state.change_members(&change, &self.conf_state);
                    progress.members_changed |= changed.is_ok();
                    answer(request_id, Answer::Change(changed));
                }
            }
        }
        Ok(())
    }

    fn apply_change(
        &mut self,
        entry: &Entry,
        progress: &mut Progress,
        answer: &mut dyn FnMut(u128, Answer),
    ) -> Result<(), StoreError> {
        let fail = |reason: String| StoreError::Entry { index: entry.index, reason };
        let item = crate::codec::Reader::new(&entry.context).item(&mut self.names);
        let Item::Change { request_id, change } = item.map_err(|e| fail(e.to_string()))? else {
            return Err(fail("a conf change without its change of members".into()));
        };
        let changed = self.state.change_members(&change, &self.conf_state);
        if changed.is_ok() {
            self.apply_conf_change(entry).map_err(fail)?;
            progress.members_changed = true;
        }
        answer(request_id, Answer::Change(changed));
        Ok(())
    }

    fn apply_conf_change(&mut self, entry: &Entry) -> Result<(), String> {
        let read = |error: protobuf::ProtobufError| error.to_string();
        let applied = match entry.get_entry_type() {
            EntryType::EntryConfChange => self
                .raw
                .apply_conf_change(&ConfChange::parse_from_bytes(&entry.data).map_err(read)?),
            _ => self
                .raw
                .apply_conf_change(&ConfChangeV2::parse_from_bytes(&entry.data).map_err(read)?),
        };
        self.conf_state = applied.map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Lets go of entries in memory that nobody needs.
    fn truncate(&mut self) {
        let keep = match self.outgoing {
            Some(_) => KEEP_BYTES_SENDING,
            None if self.is_alone() => 0,
            None => self.keep_bytes,
        };
        let done = self.state.applied_index.min(self.persisted_index);
        self.raw.mut_store().truncate(done, keep);
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

    /// The form in which entries are written now: no member is sent what it can't read.
    pub(crate) fn entry_version(&self) -> u8 {
        self.state.roster.entry_version(&self.conf_state).min(self.newest)
    }

    /// The newest form of log entries that is read here.
    pub(crate) fn newest(&self) -> u8 {
        self.newest
    }

    pub(crate) fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        self.state.roster.members(&self.conf_state)
    }

    /// What is left of Raft's knowledge of the others: id, last index acknowledged, heard of
    /// lately. Empty unless this member leads.
    pub(crate) fn progress(&self) -> Vec<crate::store::Progress> {
        if !self.is_leader() {
            return Vec::new();
        }
        let progress = |(id, progress): (&u64, &raft::Progress)| crate::store::Progress {
            id: *id,
            matched: progress.matched,
            active: *id == self.id || progress.recent_active,
        };
        let mut all: Vec<_> = self.raw.raft.prs().iter().map(progress).collect();
        all.sort_by_key(|progress| progress.id);
        all
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

    pub(crate) fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }
}

/// Raft's form of a change; None for one that does not touch who votes.
fn conf_change(change: &MemberChange) -> Option<ConfChangeSingle> {
    let (kind, id) = match change {
        MemberChange::Add { id, .. } => (ConfChangeType::AddLearnerNode, *id),
        MemberChange::Promote(id) => (ConfChangeType::AddNode, *id),
        MemberChange::Remove(id) => (ConfChangeType::RemoveNode, *id),
        MemberChange::Update { .. } => return None,
    };
    let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
    single.set_change_type(kind);
    Some(single)
}

/// How long to wait for a leader. Raft draws it from a random source of its own; here it follows
/// from the nonce, and is drawn anew for each term, role and try.
struct ElectionTimeout {
    random: u64,
    ticks: usize,
    drawn_for: Option<(u64, StateRole)>,
}

impl ElectionTimeout {
    fn new(nonce: u64) -> Self {
        Self { random: nonce, ticks: 0, drawn_for: None }
    }

    fn ticks(&mut self, now: (u64, StateRole)) -> usize {
        if self.drawn_for != Some(now) {
            self.drawn_for = Some(now);
            let drawn = crate::mix::next(&mut self.random) % ELECTION_TICKS as u64;
            self.ticks = ELECTION_TICKS + 1 + drawn as usize;
        }
        self.ticks
    }

    fn hasten(&mut self, now: (u64, StateRole), ticks: usize) {
        self.ticks = self.ticks(now).min(ticks);
    }

    fn passed(&mut self) {
        self.drawn_for = None;
    }
}

/// Raft's defaults are neither safe nor fast; all that matters is set.
fn raft_config(id: u64, applied: u64) -> Config {
    Config {
        id,
        applied,
        election_tick: ELECTION_TICKS,
        heartbeat_tick: HEARTBEAT_TICKS,
        min_election_tick: ELECTION_TICKS,
        // Not itself an election timeout, see `ElectionTimeout`.
        max_election_tick: 2 * ELECTION_TICKS + 1,
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
