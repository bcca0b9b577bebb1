//! A member as a whole, still sans-IO: who waits for what, what is proposed together, what goes to
//! the leader, which snapshot goes where.
//!
//! Any member takes requests. A write that is not the leader's own travels to the leader as an item
//! with its request id and is answered here, when this member has applied it, so that its caller
//! reads its own writes; it is sent again, with the same id, while nothing is heard of it, and the
//! state machine applies it once. A read asks the leader (ReadIndex) together with all reads that
//! came meanwhile, under a context that is never used again.
//!
//! The shell feeds inputs, and after them carries out what [`Replica::step`] says until it says
//! nothing. `T` names a caller: the shell puts a reply channel there, a simulation a number. Time
//! is counted in ticks.

mod reads;
mod transfers;

use crate::codec::{Names, Reader, change_item, change_of, put_item, request_id, stamp_since};
use crate::command::Outcome;
use crate::core::{Answer, Core, ELECTION_TICKS, Output};
use crate::error::StoreError;
use crate::event::Event;
use crate::frame::Frame;
use crate::member::{Identity, Leadership, Member, MemberChange, MemberInfo, Role, TICK};
use crate::state::State;
use crate::transfer::{Incoming, Outbound, Received};
use crate::wal::{LogWrite, Room};
use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use reads::Reads;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

/// How long a caller waits for a leader, and for an answer at all.
pub(crate) const LEADERLESS_TICKS: u64 = 60;
const ANSWER_TICKS: u64 = 140;
/// A member that has not been heard of for this long is said to be missing.
const SILENT_TICKS: u64 = 40;
/// A learner with no more than this many entries to go becomes a voter.
const CAUGHT_UP: u64 = 64;
/// How often a leader looks whether a learner can vote, and a member whether it is known as it is.
const TEND_TICKS: u64 = 4;

/// What a replica is told at its begin.
pub(crate) struct ReplicaConfig {
    pub(crate) identity: Identity,
    pub(crate) nonce: u64,
    /// What this member says of itself.
    pub(crate) info: MemberInfo,
    /// Most bytes of an entry.
    pub(crate) entry_bytes: usize,
    /// Most bytes of a snapshot sent to one member in a tick.
    pub(crate) snapshot_bytes_per_tick: usize,
    /// What the log can take now.
    pub(crate) room: Room,
}

/// See the module.
pub(crate) struct Replica<T> {
    core: Core,
    config: ReplicaConfig,
    now: u64,
    requests: u64,
    /// Callers of writes, by request id and order.
    callers: BTreeMap<(u128, u64), Caller<T>>,
    queue: Queue,
    /// Items for the leader.
    forward: Vec<Bytes>,
    reads: Reads<T>,
    /// When each other member was last heard of.
    heard: BTreeMap<u64, u64>,
    names: Names,
    /// Frames that wait for a write, by its number.
    held: VecDeque<(u64, Vec<(u64, Bytes)>)>,
    preparing: bool,
    sending: BTreeMap<u64, Outbound>,
    receiving: Option<Incoming>,
    /// When a leader was last heard of.
    contact: u64,
    /// Whom the callers' items were sent to last, and in which term.
    sent_to: (u64, u64),
    leaving: bool,
    effects: VecDeque<Effect<T>>,
}

struct Caller<T> {
    caller: T,
    item: Bytes,
    asked: u64,
    /// When it was last sent or queued; None if never.
    sent: Option<u64>,
    /// How often it was.
    times: u32,
    /// Ticks after which it is sent again.
    again: u64,
}

/// What waits here to become an entry, and what is on its way.
#[derive(Default)]
struct Queue {
    items: VecDeque<Bytes>,
    /// With the tick at which each came.
    changes: VecDeque<(Bytes, MemberChange, u64)>,
    /// Requests in the queue or proposed in this term and not yet applied.
    known: HashSet<u128>,
    term: u64,
}

/// What came of a write.
#[derive(Debug)]
pub(crate) enum Done {
    Command(Outcome),
    Changed,
}

/// What the shell has to do, in this order.
pub(crate) enum Effect<T> {
    Send(u64, Bytes),
    Write(LogWrite),
    /// Make room in the log, then say so with [`Replica::prepared`].
    Prepare,
    /// The state was replaced by a snapshot; watchers and readers begin anew.
    Installed,
    /// Events of new revisions; the state has them.
    Publish {
        revisions: Vec<Vec<Arc<Event>>>,
        batches: u64,
        items: u64,
    },
    Members,
    Written(T, Result<Done, StoreError>),
    /// Served by the state as it is now, or not.
    Read(T, Result<(), StoreError>),
    /// A part of a snapshot to be written; then [`Replica::received`].
    Receive(Received),
    /// This member is no member any more.
    Removed,
}

impl<T> Replica<T> {
    pub(crate) fn new(core: Core, mut config: ReplicaConfig) -> Self {
        config.info.level = core.newest();
        let reads = Reads::new(config.nonce);
        Self {
            core,
            config,
            now: 0,
            requests: 0,
            callers: BTreeMap::new(),
            queue: Queue::default(),
            forward: Vec::new(),
            reads,
            heard: BTreeMap::new(),
            names: Names::default(),
            held: VecDeque::new(),
            preparing: false,
            sending: BTreeMap::new(),
            receiving: None,
            contact: 0,
            sent_to: (0, 0),
            leaving: false,
            effects: VecDeque::new(),
        }
    }

    // Inputs.

    /// A write: an item with a request id of its own.
    pub(crate) fn propose(&mut self, mut item: Vec<u8>, caller: T) {
        if let Some(error) = self.hopeless() {
            return self.effects.push_back(Effect::Written(caller, Err(error)));
        }
        let Some(id) = request_id(&item) else { return };
        stamp_since(&mut item, self.core.state().applied_index);
        self.requests += 1;
        let key = (id, self.requests);
        let (item, again) = (item.into(), ELECTION_TICKS as u64);
        let waiting = Caller { caller, item, asked: self.now, sent: None, times: 0, again };
        self.callers.insert(key, waiting);
        self.send_new(key);
    }

    /// A change of the members.
    pub(crate) fn change(&mut self, change: &MemberChange, caller: T) {
        if let Err(reason) = self.core.check_change(change) {
            let error = StoreError::Members(reason);
            return self.effects.push_back(Effect::Written(caller, Err(error)));
        }
        let id = self.fresh_id();
        self.propose(change_item(id, change), caller);
    }

    /// A linearizable read.
    pub(crate) fn read(&mut self, caller: T) {
        match self.hopeless() {
            Some(error) => self.effects.push_back(Effect::Read(caller, Err(error))),
            None => self.reads.wait(caller, self.now),
        }
    }

    /// A frame from another member. One that can't be read is lost.
    pub(crate) fn frame(&mut self, from: u64, frame: &Bytes) {
        self.heard.insert(from, self.now);
        match Frame::decode(frame) {
            Ok(Frame::Raft(message)) if message.from == from => self.message(message),
            Ok(Frame::Propose(items)) if self.core.is_leader() => {
                items.into_iter().for_each(|item| self.enqueue(item));
            }
            Ok(Frame::Refuse { ids, reason: None }) => self.refused(&ids),
            Ok(Frame::Refuse { ids, reason: Some(reason) }) => {
                self.refused_with(&ids, &StoreError::Members(reason));
            }
            Ok(Frame::Snapshot { transfer, message }) if message.from == from => {
                self.begin_receiving(from, transfer, message);
            }
            Ok(Frame::Chunk { transfer, number, last, bytes }) => {
                self.chunk(from, transfer, number, last, bytes);
            }
            Ok(Frame::Ack { transfer, number, failed }) => {
                self.acknowledged(from, transfer, number, failed);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(from, %error, "a frame was dropped"),
        }
    }

    /// The write with this number, and all before it, are durable.
    pub(crate) fn persisted(&mut self, number: u64, room: Room) {
        self.config.room = room;
        self.core.persisted(number);
        while let Some((_, frames)) = self.held.pop_front_if(|(held, _)| *held <= number) {
            self.effects.extend(frames.into_iter().map(|(to, frame)| Effect::Send(to, frame)));
        }
    }

    /// What came of preparing room, asked for or not.
    pub(crate) fn prepared(&mut self, prepared: Result<Room, StoreError>) {
        let asked = std::mem::take(&mut self.preparing);
        match prepared {
            Ok(room) => self.config.room = room,
            Err(error) if asked => self.refuse_queue(&error),
            Err(_) => {}
        }
    }

    /// A tick of time has passed.
    pub(crate) fn tick(&mut self) {
        self.now += 1;
        self.core.tick();
        if self.core.is_leader() {
            self.contact = self.now;
        }
        self.expire();
        self.tick_transfers();
        if self.now.is_multiple_of(TEND_TICKS) {
            self.tend();
        }
    }

    /// The connection to a member broke. If it led it is probably dead.
    pub(crate) fn link_lost(&mut self, peer: u64) {
        self.stop_sending(peer);
        if self.core.is_leader() {
            self.core.report_unreachable(peer);
        } else if self.core.leader() == peer {
            self.core.hasten_election();
        }
    }

    /// Hands the leadership to the voter that is furthest, if there is one.
    pub(crate) fn leave(&mut self) {
        self.leaving = true;
        self.hand_over();
    }

    /// Whose writes this member leaves unanswered at its end, and what they are to be told.
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = (T, StoreError)> {
        std::mem::take(&mut self.callers).into_values().map(|waiting| {
            let nowhere = waiting.sent.is_none();
            (waiting.caller, if nowhere { StoreError::Closed } else { StoreError::Unknown })
        })
    }

    /// True while this member should wait before it ends: it leads and another could.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.leaving && self.core.is_leader() && self.successor().is_some()
    }

    // What the shell sees.

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// How much waits here: callers, items, frames.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn backlog(&self) -> usize {
        let queue = self.queue.items.len() + self.queue.changes.len() + self.queue.known.len();
        self.callers.len() + queue + self.forward.len() + self.held.len() + self.reads.backlog()
    }

    #[cfg(test)]
    pub(crate) fn identity(&self) -> Identity {
        self.config.identity
    }

    pub(crate) fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    pub(crate) fn state(&self) -> &State {
        self.core.state()
    }

    /// Nothing of this member's own is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.callers.is_empty()
            && self.queue.items.is_empty()
            && !self.core.is_writing()
            && !self.preparing
    }

    pub(crate) fn leadership(&self) -> Leadership {
        let leads = self.core.leads_its_term() && !self.leaving;
        Leadership { term: self.core.term(), leader: self.core.leader(), leads }
    }

    /// Ticks since a leader was heard of.
    pub(crate) fn contact_ticks(&self) -> u64 {
        self.now - self.contact
    }

    // What is to be done.

    /// The next thing to do; None once there is nothing.
    pub(crate) fn step(&mut self) -> Result<Option<Effect<T>>, StoreError> {
        loop {
            if let Some(effect) = self.effects.pop_front() {
                return Ok(Some(effect));
            }
            self.resend_to_new_leader();
            self.forward();
            self.ask_reads();
            self.propose_queue();
            if let Some(output) = self.core.ready()? {
                self.hand_on(output);
                continue;
            }
            if !self.apply()? {
                return Ok(None);
            }
        }
    }

    fn hand_on(&mut self, output: Output) {
        for message in output.messages {
            if let Some((to, frame)) = self.outbound(message) {
                self.effects.push_back(Effect::Send(to, frame));
            }
        }
        if let Some(write) = output.write {
            let after: Vec<_> =
                output.messages_after.into_iter().filter_map(|m| self.outbound(m)).collect();
            if !after.is_empty() {
                self.held.push_back((write.number, after));
            }
            self.effects.push_back(Effect::Write(write));
        }
        if output.installed {
            self.effects.extend([Effect::Installed, Effect::Members]);
        }
        for (context, index) in output.reads {
            self.reads.answered(&context, index);
        }
    }

    /// A message as it travels. A snapshot's content goes beside it, in chunks.
    fn outbound(&mut self, message: Message) -> Option<(u64, Bytes)> {
        if message.get_msg_type() == MessageType::MsgSnapshot {
            self.begin_sending(message);
            return None;
        }
        Some((message.to, Frame::Raft(message).encode()))
    }

    /// Applies what is committed and answers who waits; false if there was nothing.
    fn apply(&mut self) -> Result<bool, StoreError> {
        let mut answers = Vec::new();
        let before = self.core.state().applied_index;
        let progress = self.core.apply(&mut |id, answer| answers.push((id, answer)))?;
        let applied = self.core.state().applied_index;
        if !progress.revisions.is_empty() || progress.items > 0 {
            let (revisions, batches, items) =
                (progress.revisions, progress.batches, progress.items);
            self.effects.push_back(Effect::Publish { revisions, batches, items });
        }
        if progress.members_changed {
            self.effects.push_back(Effect::Members);
        }
        for (id, answer) in answers {
            self.queue.known.remove(&id);
            self.answer(id, answer);
        }
        if self.core.state().roster.is_removed(self.config.identity.member_id) {
            self.effects.push_back(Effect::Removed);
        }
        self.reads_served(applied);
        Ok(applied > before || !self.effects.is_empty())
    }

    fn answer(&mut self, id: u128, answer: Answer) {
        let keys: Vec<_> = self.callers.range((id, 0)..=(id, u64::MAX)).map(|(k, _)| *k).collect();
        let Some((last, others)) = keys.split_last() else { return };
        let answer = match answer {
            Answer::Command(Some(outcome)) => Ok(Done::Command(outcome)),
            Answer::Command(None) => Err(StoreError::Unknown),
            Answer::Change(Ok(())) => Ok(Done::Changed),
            Answer::Change(Err(reason)) => Err(StoreError::Members(reason)),
        };
        for key in others {
            let again = match &answer {
                Ok(Done::Command(outcome)) => Ok(Done::Command(outcome.clone())),
                Ok(Done::Changed) => Ok(Done::Changed),
                Err(error) => Err(error.clone()),
            };
            self.written(*key, again);
        }
        self.written(*last, answer);
    }

    fn written(&mut self, key: (u128, u64), answer: Result<Done, StoreError>) {
        if let Some(waiting) = self.callers.remove(&key) {
            self.effects.push_back(Effect::Written(waiting.caller, answer));
        }
    }

    // Writes.

    fn fresh_id(&mut self) -> u128 {
        self.requests += 1;
        let nonce = u128::from(self.config.nonce ^ self.config.identity.member_id.rotate_left(32));
        (nonce << 64) | u128::from(self.requests)
    }

    /// Why asking makes no sense now.
    fn hopeless(&self) -> Option<StoreError> {
        if self.leaving {
            return Some(StoreError::Closed);
        }
        let leaderless = !self.has_leader() && self.contact_ticks() > LEADERLESS_TICKS;
        leaderless.then(|| self.no_quorum())
    }

    /// A learner never stands for election, so it goes on naming a leader that is long silent.
    fn has_leader(&self) -> bool {
        self.core.leader() != 0 && self.contact_ticks() <= LEADERLESS_TICKS
    }

    fn no_quorum(&self) -> StoreError {
        let own = self.config.identity.member_id;
        let seconds = self.contact_ticks() * TICK.as_millis() as u64 / 1000;
        let voters = self.core.conf_state().voters.len();
        let silent = |id| self.heard.get(&id).is_none_or(|at| self.now - at > SILENT_TICKS);
        let away =
            |member: &Member| member.id != own && member.role == Role::Voter && silent(member.id);
        let away: Vec<_> =
            self.core.members().into_iter().filter(away).map(|m| m.to_string()).collect();
        let away = if away.is_empty() { "nobody".into() } else { away.join(", ") };
        let reason = format!(
            "no leader for {seconds} s; {} of {voters} voting members must reach each other, and \
             nothing is heard of: {away}",
            voters / 2 + 1
        );
        StoreError::NoQuorum { reason }
    }

    /// Sends an item for the first time in its leader's term: into the own queue, or to the
    /// leader.
    fn send_new(&mut self, key: (u128, u64)) {
        let leader = self.core.leader();
        let leads = self.core.is_leader();
        let Some(waiting) = self.callers.get_mut(&key) else { return };
        if leader == 0 {
            return;
        }
        waiting.sent = Some(self.now);
        waiting.times += 1;
        let item = waiting.item.clone();
        if leads {
            self.enqueue_own(item);
        } else {
            self.forward.push(item);
        }
    }

    /// What has gathered for the leader goes in one frame.
    fn forward(&mut self) {
        if !self.forward.is_empty() {
            let frame = Frame::Propose(std::mem::take(&mut self.forward)).encode();
            self.effects.push_back(Effect::Send(self.core.leader(), frame));
        }
    }

    /// All that waits goes to a leader that is new.
    fn resend_to_new_leader(&mut self) {
        let now = (self.core.term(), self.core.leader());
        if now.1 == 0 || now == self.sent_to {
            return;
        }
        self.sent_to = now;
        self.forward.clear();
        // What was asked of the one before may never be answered.
        self.reads.ask_again();
        let keys: Vec<_> = self.callers.keys().copied().collect();
        keys.into_iter().for_each(|key| self.send_new(key));
        // One that is alone has no ticks by which it would.
        self.introduce();
    }

    /// An item from another member: read once, so that nothing unreadable gets into the log, where
    /// it would stop every member.
    fn enqueue(&mut self, item: Bytes) {
        match Reader::new(&item).item(&mut self.names) {
            Ok(_) => self.enqueue_own(item),
            Err(error) => tracing::warn!(%error, "a forwarded request was dropped"),
        }
    }

    fn enqueue_own(&mut self, item: Bytes) {
        let (Some(id), term) = (request_id(&item), self.core.term()) else { return };
        if self.queue.term != term {
            self.queue = Queue { term, ..Queue::default() };
        }
        if !self.queue.known.insert(id) {
            return;
        }
        match change_of(&item) {
            Some(change) if !matches!(change, MemberChange::Update { .. }) => {
                self.queue.changes.push_back((item, change, self.now));
            }
            _ => {
                self.queue.items.push_back(item);
            }
        }
    }

    /// Makes one entry of what has gathered, unless a write is on its way.
    fn propose_queue(&mut self) {
        if !self.core.is_leader() || self.queue.term != self.core.term() {
            // What an earlier term gathered may be lost; whoever waits for it sends it again.
            self.queue = Queue::default();
            return;
        }
        if self.core.is_writing() || self.preparing {
            return;
        }
        self.propose_changes();
        if self.queue.items.is_empty() {
            return;
        }
        let (count, bytes) = self.queue.batch(self.config.entry_bytes);
        if !self.config.room.fits(bytes) {
            self.preparing = true;
            return self.effects.push_back(Effect::Prepare);
        }
        let mut data = Vec::with_capacity(bytes);
        let version = self.core.entry_version();
        self.queue.items.iter().take(count).for_each(|item| put_item(&mut data, version, item));
        // Refused if too much is uncommitted or the leadership is being handed over: it stays.
        if self.core.propose(data).is_ok() {
            self.queue.items.drain(..count);
        }
    }

    fn propose_changes(&mut self) {
        while let Some((item, change, came)) = self.queue.changes.pop_front() {
            if change == MemberChange::Remove(self.config.identity.member_id) {
                // The new leader will be asked again, and removes this member.
                self.queue.known.remove(&request_id(&item).unwrap_or_default());
                return self.hand_over();
            }
            if let Err(reason) = self.core.check_change(&change) {
                self.refuse_change(&item, reason);
                continue;
            }
            if let Err(reason) = self.endangers_quorum(&change) {
                // A leader that is new has not heard of everybody yet.
                if self.now - came < ELECTION_TICKS as u64 {
                    return self.queue.changes.push_front((item, change, came));
                }
                self.refuse_change(&item, reason);
                continue;
            }
            if !self.core.propose_change(item.to_vec(), &change) {
                // Another change is under way.
                return self.queue.changes.push_front((item, change, came));
            }
        }
    }

    /// Removing a voter while others are away could leave too few.
    fn endangers_quorum(&self, change: &MemberChange) -> Result<(), String> {
        let MemberChange::Remove(removed) = change else { return Ok(()) };
        let voters = &self.core.conf_state().voters;
        let left: Vec<_> = voters.iter().filter(|id| *id != removed).collect();
        let heard = |id: &u64| {
            let lately = |at: &u64| self.now - at < ELECTION_TICKS as u64;
            *id == self.config.identity.member_id || self.heard.get(id).is_some_and(lately)
        };
        let active = left.iter().filter(|id| heard(id)).count();
        if !voters.contains(removed) || active > left.len() / 2 {
            return Ok(());
        }
        Err(format!(
            "without member {removed:x} only {active} of {} voters could be reached, too few for a \
             quorum: bring back or remove those that are away first",
            left.len()
        ))
    }

    /// Tells whoever asked for a change why it is not made.
    fn refuse_change(&mut self, item: &[u8], reason: String) {
        let id = request_id(item).unwrap_or_default();
        self.queue.known.remove(&id);
        self.tell_others(Frame::Refuse { ids: vec![id], reason: Some(reason.clone()) });
        self.answer(id, Answer::Change(Err(reason)));
    }

    /// Sends a frame to all: who has not asked for it has no caller to tell.
    fn tell_others(&mut self, frame: Frame) {
        let own = self.config.identity.member_id;
        let others = self.core.members().into_iter().filter(|member| member.id != own);
        let frame = frame.encode();
        self.effects.extend(others.map(|member| Effect::Send(member.id, frame.clone())));
    }

    fn refuse_queue(&mut self, error: &StoreError) {
        let items = std::mem::take(&mut self.queue.items);
        let ids: Vec<_> = items.iter().filter_map(|item| request_id(item)).collect();
        self.queue.known.retain(|id| !ids.contains(id));
        self.refused_with(&ids, error);
        self.tell_others(Frame::Refuse { ids, reason: None });
    }

    /// The leader's disk is full.
    fn refused(&mut self, ids: &[u128]) {
        let dir = PathBuf::from("the leader's data directory");
        self.refused_with(ids, &StoreError::DiskFull { dir });
    }

    fn refused_with(&mut self, ids: &[u128], error: &StoreError) {
        for id in ids {
            let range = (*id, 0)..=(*id, u64::MAX);
            let keys: Vec<_> = self.callers.range(range).map(|(key, _)| *key).collect();
            for key in keys {
                // Sent before to another leader it may yet be applied.
                let once = self.callers[&key].times == 1;
                let error = if once { error.clone() } else { StoreError::Unknown };
                self.written(key, Err(error));
            }
        }
    }

    /// Whoever waits too long is told; what was not heard of for a while is sent again.
    fn expire(&mut self) {
        let leaderless = !self.has_leader();
        let (mut over, mut again) = (Vec::new(), Vec::new());
        for (key, waiting) in &mut self.callers {
            let age = self.now - waiting.asked;
            match waiting.sent {
                None if leaderless && age > LEADERLESS_TICKS => over.push((*key, true)),
                _ if age > ANSWER_TICKS => over.push((*key, waiting.sent.is_none())),
                Some(sent) if self.now - sent >= waiting.again => {
                    waiting.again *= 2;
                    again.push(*key);
                }
                _ => {}
            }
        }
        again.into_iter().for_each(|key| self.send_new(key));
        for (key, never_sent) in over {
            let error = if never_sent { self.no_quorum() } else { StoreError::Unknown };
            self.written(key, Err(error));
        }
        let most = if leaderless { LEADERLESS_TICKS } else { ANSWER_TICKS };
        for caller in self.reads.expire(self.now, most) {
            self.effects.push_back(Effect::Read(caller, Err(self.no_quorum())));
        }
        // There is a leader, but what it has does not become durable here: the disk may be full.
        for caller in self.reads.overdue(self.now, ANSWER_TICKS) {
            self.effects.push_back(Effect::Read(caller, Err(StoreError::Unknown)));
        }
    }

    fn message(&mut self, message: Message) {
        let leads = [MessageType::MsgAppend, MessageType::MsgHeartbeat, MessageType::MsgSnapshot];
        if leads.contains(&message.get_msg_type()) && message.term >= self.core.term() {
            self.contact = self.now;
        }
        match message.get_msg_type() {
            MessageType::MsgReadIndex => self.question(message),
            _ => self.core.step(message),
        }
    }

    // Members.

    /// Tells the log how this member is found, if it says something else.
    fn introduce(&mut self) {
        let own = self.config.identity.member_id;
        let known = self.core.state().roster.info(own);
        let listed = self.core.members().iter().any(|member| member.id == own);
        if listed && known != Some(&self.config.info) && self.core.leader() != 0 {
            let info = self.config.info.clone();
            self.tell(&MemberChange::Update { id: own, info });
        }
    }

    /// What nobody asks for and yet must happen: a learner that has caught up gets its vote.
    fn tend(&mut self) {
        if self.core.is_leader() && self.leaving {
            return self.hand_over();
        }
        self.introduce();
        let ready = self.core.progress().into_iter().find(|progress| {
            self.core.conf_state().learners.contains(&progress.id)
                && progress.active
                // Raft takes a new member for active before it has heard of it.
                && progress.matched > 0
                && progress.matched + CAUGHT_UP >= self.core.last_index()
        });
        if let Some(ready) = ready {
            self.tell(&MemberChange::Promote(ready.id));
        }
    }

    /// Proposes a change on this member's own behalf; lost, it is tried again later.
    fn tell(&mut self, change: &MemberChange) {
        if self.core.check_change(change).is_err() {
            return;
        }
        let id = self.fresh_id();
        let item = Bytes::from(change_item(id, change));
        if self.core.is_leader() {
            let under_way = self.queue.changes.iter().any(|(_, queued, _)| queued == change);
            if !under_way && self.queue.items.is_empty() {
                self.enqueue_own(item);
            }
        } else {
            self.forward.push(item);
        }
    }

    fn successor(&self) -> Option<u64> {
        let own = self.config.identity.member_id;
        let voters = &self.core.conf_state().voters;
        let others = self.core.progress().into_iter();
        others
            .filter(|p| p.id != own && p.active && voters.contains(&p.id))
            .max_by_key(|progress| progress.matched)
            .map(|progress| progress.id)
    }

    fn hand_over(&mut self) {
        if let Some(successor) = self.successor().filter(|_| self.core.is_leader()) {
            self.core.transfer_to(successor);
        }
    }
}

impl Queue {
    /// How many of the items one entry takes, and how many bytes it then has.
    fn batch(&self, most_bytes: usize) -> (usize, usize) {
        // An item's length takes up to five bytes.
        let length = |item: &Bytes| item.len() + 5;
        let mut bytes = 1;
        let fits = |item: &&Bytes| {
            bytes += length(item);
            bytes <= most_bytes
        };
        let count = self.items.iter().take_while(fits).count().max(1);
        (count, 1 + self.items.iter().take(count).map(length).sum::<usize>())
    }
}
