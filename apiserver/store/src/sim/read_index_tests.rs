//! Raft may answer an older read when a context comes back (etcd 20418; raft-rs 0.7 has it as
//! well). Plain Raft is shown to do it; a member, to whom the same happens, is not.

use crate::core::{Core, CoreConfig};
use crate::frame::Frame;
use crate::member::{Identity, MemberInfo};
use crate::replica::{Effect, Replica, ReplicaConfig};
use crate::state::State;
use crate::wal::Room;
use bytes::Bytes;
use raft::eraftpb::{ConfState, HardState, Message, MessageType};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const VOTERS: [u64; 3] = [1, 2, 3];

/// What passes between members, and what a test does with it.
trait Node {
    /// Takes a message, and carries out what follows.
    fn take(&mut self, message: Message) -> Vec<Message>;
}

/// Delivers messages until none is left, but those that `lose` wants.
fn settle<N: Node>(
    nodes: &mut BTreeMap<u64, N>,
    sent: Vec<Message>,
    lose: &mut dyn FnMut(&Message) -> bool,
) {
    let mut wire = VecDeque::from(sent);
    while let Some(message) = wire.pop_front() {
        if lose(&message) {
            continue;
        }
        if let Some(node) = nodes.get_mut(&message.to) {
            wire.extend(node.take(message));
        }
    }
}

/// Raft as it comes.
struct Plain {
    raw: RawNode<MemStorage>,
    reads: Vec<(Vec<u8>, u64)>,
}

impl Plain {
    fn new(id: u64) -> Self {
        let config = Config {
            id,
            election_tick: 10,
            heartbeat_tick: 2,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let storage = MemStorage::new_with_conf_state((VOTERS.to_vec(), vec![]));
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        Self { raw: RawNode::new(&config, storage, &logger).unwrap(), reads: Vec::new() }
    }

    fn drain(&mut self) -> Vec<Message> {
        let mut sent = Vec::new();
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            sent.extend(ready.take_messages());
            let reads = ready.take_read_states().into_iter();
            self.reads.extend(reads.map(|read| (read.request_ctx, read.index)));
            self.raw.mut_store().wl().append(ready.entries()).unwrap();
            if let Some(hard_state) = ready.hs() {
                self.raw.mut_store().wl().set_hardstate(hard_state.clone());
            }
            sent.extend(ready.take_persisted_messages());
            sent.extend(self.raw.advance(ready).take_messages());
            self.raw.advance_apply();
        }
        sent
    }
}

impl Node for Plain {
    fn take(&mut self, message: Message) -> Vec<Message> {
        let _ = self.raw.step(message);
        self.drain()
    }
}

fn is(message: &Message, kind: MessageType) -> bool {
    message.get_msg_type() == kind
}

/// True if the message goes to or from the member.
fn touches(message: &Message, id: u64) -> bool {
    message.from == id || message.to == id
}

#[test]
fn raft_answers_an_older_read_when_a_context_comes_back() {
    let mut nodes: BTreeMap<_, _> = VOTERS.map(|id| (id, Plain::new(id))).into();
    let first = nodes.get_mut(&1).unwrap();
    first.raw.campaign().unwrap();
    let sent = first.drain();
    settle(&mut nodes, sent, &mut |_| false);
    assert_eq!(nodes[&1].raw.raft.state, StateRole::Leader);

    // Member 2 asks under context "a"; member 3's part of the answer is delayed.
    let second = nodes.get_mut(&2).unwrap();
    second.raw.read_index(b"a".to_vec());
    let sent = second.drain();
    let (mut question, mut delayed) = (None, None);
    settle(&mut nodes, sent, &mut |message| {
        if is(message, MessageType::MsgReadIndex) {
            question = Some(message.clone());
        }
        let late = is(message, MessageType::MsgHeartbeatResponse) && message.from == 3;
        if late {
            delayed = Some(message.clone());
        }
        late
    });
    assert_eq!(nodes[&2].reads.len(), 1, "the two others are enough");

    // The leader is cut off; the others elect another, which commits more.
    let mut tries = 0;
    while nodes[&3].raw.raft.state != StateRole::Leader {
        for id in [2, 3] {
            let node = nodes.get_mut(&id).unwrap();
            node.raw.tick();
            let mut sent = node.drain();
            sent.retain(|message| id == 3 || !is(message, MessageType::MsgRequestPreVote));
            settle(&mut nodes, sent, &mut |message| touches(message, 1));
        }
        tries += 1;
        assert!(tries < 1000, "nobody is elected");
    }
    let third = nodes.get_mut(&3).unwrap();
    third.raw.propose(vec![], b"new".to_vec()).unwrap();
    let sent = third.drain();
    settle(&mut nodes, sent, &mut |message| touches(message, 1));
    let committed = nodes[&3].raw.raft.raft_log.committed;

    // The old leader is asked for a read, and then the old question and the old answer come.
    let first = nodes.get_mut(&1).unwrap();
    first.raw.read_index(b"b".to_vec());
    let sent = first.drain();
    settle(&mut nodes, sent, &mut |message| touches(message, 1));
    let old = [question.unwrap(), delayed.unwrap()];
    settle(&mut nodes, old.into(), &mut |message| message.from == 1);
    let read = nodes[&1].reads.iter().find(|(context, _)| context == b"b");
    let (_, index) = read.expect("raft-rs no longer releases another read: its fix has come");
    assert!(*index < committed, "the read at {index} misses entry {committed}");
}

/// A member on a disk that is always quick.
struct Quick {
    replica: Replica<u64>,
    reads: BTreeSet<u64>,
}

impl Quick {
    fn new(id: u64) -> Self {
        let identity = Identity { cluster_id: 7, member_id: id };
        let core = Core::new(CoreConfig {
            identity,
            nonce: id * 1000,
            remember: 1000,
            state: State { applied_index: 1, applied_term: 1, ..State::default() },
            conf_state: ConfState::from((VOTERS.to_vec(), vec![])),
            hard_state: HardState { term: 1, commit: 1, ..HardState::default() },
            entries: VecDeque::new(),
        });
        let config = ReplicaConfig {
            identity,
            nonce: id * 1000,
            info: MemberInfo { name: format!("m{id}"), ..MemberInfo::default() },
            entry_bytes: 1 << 20,
            snapshot_bytes_per_tick: 1 << 20,
            room: room(),
        };
        Self { replica: Replica::new(core.unwrap(), config), reads: BTreeSet::new() }
    }

    fn drain(&mut self) -> Vec<Message> {
        let mut sent = Vec::new();
        while let Some(effect) = self.replica.step().unwrap() {
            match effect {
                Effect::Send(to, frame) => match Frame::decode(&frame) {
                    Ok(Frame::Raft(message)) => sent.push(message),
                    // Nothing else matters here; but that it is for somebody.
                    _ => assert_ne!(to, 0),
                },
                Effect::Write(write) => self.replica.persisted(write.number, room()),
                Effect::Read(caller, Ok(())) => drop(self.reads.insert(caller)),
                _ => {}
            }
        }
        sent
    }
}

fn room() -> Room {
    Room { current: 1 << 30, spare: true }
}

impl Node for Quick {
    fn take(&mut self, message: Message) -> Vec<Message> {
        let frame: Bytes = Frame::Raft(message.clone()).encode();
        self.replica.frame(message.from, &frame);
        self.drain()
    }
}

#[test]
fn a_member_does_not() {
    let mut nodes: BTreeMap<_, _> = VOTERS.map(|id| (id, Quick::new(id))).into();
    let first = nodes.get_mut(&1).unwrap();
    first.replica.core_mut().campaign().unwrap();
    let sent = first.drain();
    settle(&mut nodes, sent, &mut |_| false);
    assert!(nodes[&1].replica.core().leads_its_term());

    // As above; and member 2, whose answer is lost, asks anew under another context.
    let second = nodes.get_mut(&2).unwrap();
    second.replica.read(20);
    let mut sent = second.drain();
    let (mut questions, mut delayed) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        settle(&mut nodes, sent, &mut |message| {
            if is(message, MessageType::MsgReadIndex) {
                questions.push(message.clone());
            }
            let late = is(message, MessageType::MsgHeartbeatResponse) && message.from == 3;
            if late {
                delayed.push(message.clone());
            }
            late || is(message, MessageType::MsgReadIndexResp)
        });
        let second = nodes.get_mut(&2).unwrap();
        second.replica.tick();
        sent = second.drain();
    }
    assert!(questions.len() > 1 && !delayed.is_empty());
    let contexts: BTreeSet<_> = questions.iter().map(|q| q.entries[0].data.to_vec()).collect();
    assert_eq!(contexts.len(), questions.len(), "no context comes twice");

    // Members 2 and 3 elect another leader; then all that is old comes to the first one.
    for _ in 0..200 {
        for id in [2, 3] {
            let node = nodes.get_mut(&id).unwrap();
            node.replica.tick();
            let sent = node.drain();
            settle(&mut nodes, sent, &mut |message| touches(message, 1));
        }
    }
    assert!([2, 3].iter().any(|id| nodes[id].replica.core().leads_its_term()));
    let first = nodes.get_mut(&1).unwrap();
    assert!(first.replica.core().is_leader(), "it was paused");
    first.replica.read(10);
    let sent = first.drain();
    settle(&mut nodes, sent, &mut |message| touches(message, 1));
    let old = questions.into_iter().chain(delayed).collect();
    settle(&mut nodes, old, &mut |message| message.from == 1);
    assert!(nodes[&1].reads.is_empty(), "the old leader has answered a read");
    assert!(nodes[&2].reads.contains(&20), "under the new leader the read was answered");
}
