//! A follower whose disk is full: what it is sent waits and is bounded, the others go on, and it
//! can be closed.

use crate::command::{Command, Outcome, Write};
use crate::config::StoreConfig;
use crate::core::{Core, CoreConfig, Output};
use crate::disk::sim::SimDisk;
use crate::error::StoreError;
use crate::files::Begin;
use crate::frame::Frame;
use crate::member::{Identity, Member, MemberChange, MemberInfo, Role, Transport};
use crate::object::{Header, Key, NewObject};
use crate::replica::{Effect, Replica, ReplicaConfig};
use crate::state::State;
use crate::store::{Status, Store};
use crate::wal::Room;
use bytes::Bytes;
use parking_lot::Mutex;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const FOLLOWER: u64 = 2;
const LEADER: u64 = 1;
const MIB: usize = 1 << 20;

/// A follower at entry 1 of term 1.
fn follower() -> Core {
    let config = CoreConfig {
        identity: Identity { cluster_id: 1, member_id: FOLLOWER },
        nonce: 1,
        remember: 10,
        state: State { applied_index: 1, applied_term: 1, ..State::default() },
        conf_state: ConfState::from((vec![LEADER, FOLLOWER, 3], vec![])),
        hard_state: HardState { term: 1, commit: 1, ..HardState::default() },
        entries: VecDeque::new(),
    };
    Core::new(config).unwrap()
}

fn message(kind: MessageType, term: u64) -> Message {
    let mut message = Message { from: LEADER, to: FOLLOWER, term, commit: 1, ..Message::default() };
    message.set_msg_type(kind);
    message
}

/// An append behind the entry at `index`, with one entry of this many bytes or none.
fn append(index: u64, bytes: usize) -> Message {
    let mut message = message(MessageType::MsgAppend, 1);
    (message.index, message.log_term) = (index, 1);
    let data = vec![7; bytes].into();
    let entry = Entry { index: index + 1, term: 1, data, ..Entry::default() };
    message.set_entries(Some(entry).filter(|_| bytes > 0).into_iter().collect());
    message
}

fn outputs(core: &mut Core) -> Vec<Output> {
    std::iter::from_fn(|| core.ready().unwrap()).collect()
}

/// Nothing but an answer comes of a heartbeat.
fn answers_heartbeats(core: &mut Core) {
    core.step(message(MessageType::MsgHeartbeat, 1));
    let output = outputs(core);
    assert!(output.len() == 1 && output[0].write.is_none() && output[0].messages_after.is_empty());
    assert_eq!(output[0].messages[0].get_msg_type(), MessageType::MsgHeartbeatResponse);
}

/// Nothing at all comes of whatever else happens.
fn is_deaf(core: &mut Core, last: u64) {
    for kind in [MessageType::MsgHeartbeat, MessageType::MsgRequestVote, MessageType::MsgAppend] {
        core.step(message(kind, 2));
    }
    core.step(append(last, MIB));
    core.read(vec![1]);
    (0..100).for_each(|_| core.tick());
    assert!(outputs(core).is_empty());
    assert_eq!((core.last_index(), core.term()), (last, 1));
}

#[test]
fn what_waits_for_a_full_disk_is_bounded_by_its_bytes() {
    let mut core = follower();
    let mut last_write = 0;
    for index in 1..=200 {
        core.step(append(index, MIB));
        last_write = outputs(&mut core).pop().map_or(last_write, |o| o.write.unwrap().number);
        answers_heartbeats(&mut core);
    }
    assert_eq!(core.last_index(), 1 + 64, "as many as make 64 MiB");
    is_deaf(&mut core, 65);
    // With room it hears again, and says what it lacks.
    core.persisted(last_write);
    core.step(append(200, MIB));
    let rejection = &outputs(&mut core)[0].messages_after[0];
    assert!(rejection.reject && rejection.reject_hint == 65, "{rejection:?}");
    core.step(append(65, MIB));
    assert_eq!(outputs(&mut core)[0].write.as_ref().unwrap().entries[0].index, 66);
}

#[test]
fn what_waits_for_a_full_disk_is_bounded_by_its_number() {
    let mut core = follower();
    let writes = (0..5000).map(|_| {
        core.step(append(1, 0));
        outputs(&mut core).len()
    });
    assert_eq!(writes.sum::<usize>(), 4096);
    answers_heartbeats(&mut core);
    is_deaf(&mut core, 1);
}

fn hear(replica: &mut Replica<u8>, message: Message) {
    replica.frame(LEADER, &Frame::Raft(message).encode());
}

/// What came of the reads; nothing is ever written.
fn reads(replica: &mut Replica<u8>) -> Vec<(u8, Result<(), StoreError>)> {
    let effects = std::iter::from_fn(|| replica.step().unwrap());
    let read = |effect| match effect {
        Effect::Read(caller, result) => Some((caller, result)),
        _ => None,
    };
    effects.filter_map(read).collect()
}

#[test]
fn a_read_does_not_wait_for_a_full_disk_for_ever() {
    let core = follower();
    let config = ReplicaConfig {
        identity: Identity { cluster_id: 1, member_id: FOLLOWER },
        nonce: 1,
        info: MemberInfo::default(),
        entry_bytes: MIB,
        snapshot_bytes_per_tick: MIB,
        room: Room { current: 0, spare: false },
    };
    let mut replica = Replica::new(core, config);
    hear(&mut replica, append(1, MIB));
    assert!(reads(&mut replica).is_empty());
    replica.read(9);
    // The leader says that entry 2 has to be there, which waits for room.
    let asked = std::iter::from_fn(|| replica.step().unwrap()).find_map(|effect| match effect {
        Effect::Send(LEADER, frame) => match Frame::decode(&frame).unwrap() {
            Frame::Raft(asked) if asked.get_msg_type() == MessageType::MsgReadIndex => Some(asked),
            _ => None,
        },
        _ => None,
    });
    let mut confirmed = message(MessageType::MsgReadIndexResp, 1);
    (confirmed.index, confirmed.entries) = (2, asked.unwrap().entries);
    hear(&mut replica, confirmed);
    let answered = (1..1000).find_map(|tick| {
        hear(&mut replica, message(MessageType::MsgHeartbeat, 1));
        replica.tick();
        let (caller, result) = reads(&mut replica).pop()?;
        Some((tick, caller, result.unwrap_err().to_string()))
    });
    let (tick, caller, error) = answered.unwrap();
    assert!((caller, tick) == (9, 141) && error.contains("timed out"), "{tick}: {error}");
    assert!(replica.core().is_writing());
}

type Inboxes = HashMap<u64, UnboundedSender<(u64, Bytes)>>;

/// Who can be reached.
#[derive(Clone, Default)]
struct Net(Arc<Mutex<Inboxes>>);

struct Link {
    net: Net,
    from: u64,
}

impl Transport for Link {
    fn send(&mut self, to: u64, frame: Bytes) {
        if let Some(inbox) = self.net.0.lock().get(&to) {
            let _ = inbox.send((self.from, frame));
        }
    }

    fn set_members(&mut self, _members: &[Member]) {}
}

impl Net {
    fn open(&self, dir: &Path, disk: &SimDisk, begin: Begin) -> Result<Store, StoreError> {
        std::fs::create_dir_all(dir).unwrap();
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let config = StoreConfig {
            begin,
            info: MemberInfo { name, ..MemberInfo::default() },
            segment_bytes: 128 << 10,
            archive: false,
            ..StoreConfig::new(dir)
        };
        let store = Store::open_on(config, Arc::new(disk.clone()))?;
        let from = store.identity().member_id;
        let (inbox, mut frames) = unbounded_channel();
        self.0.lock().insert(from, inbox);
        // The handle goes with the inbox, when another takes its place.
        let receiver = store.clone();
        tokio::spawn(async move {
            while let Some((from, frame)) = frames.recv().await {
                receiver.receive(from, frame).await;
            }
        });
        store.connect(Box::new(Link { net: self.clone(), from }));
        Ok(store)
    }
}

async fn put(store: &Store, n: usize) -> u64 {
    let json = format!(r#"{{"metadata":{{"n":{n}}},"f":"{}"}}"#, "f".repeat(4000));
    let new = NewObject { json: json.into(), splice_at: 13, header: Header::default() };
    let write = Write::Put(Key::new("pods", "x", &format!("p{}", n % 7)), new);
    match store.propose(Command::unconditional(0, vec![write])).await.unwrap() {
        Outcome::Applied { revision, .. } => revision,
        other => panic!("{other:?}"),
    }
}

/// A leader, a member that follows, and one that follows with a full disk and lacks the last
/// writes.
struct Cluster {
    net: Net,
    leader: Store,
    healthy: Store,
    starved: Store,
    disk: SimDisk,
    dir: tempfile::TempDir,
    revision: u64,
}

const STARVED: u64 = 3;

async fn cluster() -> Cluster {
    let (net, dir) = (Net::default(), tempfile::tempdir().unwrap());
    let leader = net.open(&dir.path().join("1"), &SimDisk::default(), Begin::Found).unwrap();
    let cluster_id = leader.identity().cluster_id;
    let mut joined = Vec::new();
    for member_id in [2, STARVED] {
        let info = MemberInfo { name: member_id.to_string(), ..MemberInfo::default() };
        leader.change_members(MemberChange::Add { id: member_id, info }).await.unwrap();
        let disk = SimDisk::default();
        let begin = Begin::Join(Identity { cluster_id, member_id });
        let store = net.open(&dir.path().join(member_id.to_string()), &disk, begin).unwrap();
        let votes = |m: &Member| m.id == member_id && m.role == Role::Voter;
        let voter = |members: &Vec<Member>| members.iter().any(votes);
        store.watch_members().wait_for(voter).await.unwrap();
        joined.push((store, disk));
    }
    let [(healthy, _), (starved, disk)] = <[_; 2]>::try_from(joined).ok().unwrap();
    disk.limit(Some(disk.used()));
    let mut revision = 0;
    // Two files of its log hold some sixty of them.
    for n in 0..300 {
        revision = put(&leader, n).await;
    }
    in_time("many entries", many_wait(&starved)).await;
    Cluster { net, leader, healthy, starved, disk, dir, revision }
}

/// Many entries have come that wait for room. A leader that does not know yet where the log ends
/// sends one message of them, so it may not be all.
async fn many_wait(starved: &Store) {
    let waiting = |status: Status| status.last_index - status.applied_index;
    while waiting(starved.status()) < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(starved.status().revision < 100, "{:?}", starved.status());
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = tokio::time::timeout(Duration::from_secs(30), future);
    limit.await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// It has what the leader has.
async fn catches_up(store: &Store, leader: &Store, revision: u64) {
    in_time("the rest of the log", store.wait_revision(revision)).await;
    let (own, leaders) = (store.snapshot().await.unwrap(), leader.snapshot().await.unwrap());
    assert_eq!((own.info.revision, own.info.state_hash), (revision, leaders.info.state_hash));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_on_a_full_disk_waits_and_the_others_go_on() {
    let cluster = cluster().await;
    let Cluster { leader, healthy, starved, revision, .. } = &cluster;
    catches_up(healthy, leader, *revision).await;
    // Its driver still takes questions.
    let has = in_time("an answer", starved.snapshot()).await.unwrap().info.revision;
    assert!(has < 100, "{has}");
    assert!(starved.failure().is_none());
    let term = leader.leadership().borrow().term;
    cluster.disk.limit(None);
    catches_up(starved, leader, *revision).await;
    assert_eq!(put(starved, 1000).await, revision + 1);
    assert_eq!(leader.leadership().borrow().term, term, "nobody had to be elected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_closes_while_a_write_waits_for_room() {
    let Cluster { net, leader, healthy, starved, disk, dir, revision } = cluster().await;
    in_time("the end", starved.shutdown()).await.unwrap();
    drop(starved);
    // It comes back to a disk that is as full, and waits again.
    let dir = dir.path().join(STARVED.to_string());
    let starved = net.open(&dir, &disk, Begin::Existing).unwrap();
    in_time("many entries", many_wait(&starved)).await;
    in_time("the end", starved.shutdown()).await.unwrap();
    drop(starved);
    disk.limit(None);
    let starved = net.open(&dir, &disk, Begin::Existing).unwrap();
    catches_up(&starved, &leader, revision).await;
    for store in [starved, healthy, leader] {
        in_time("the end", store.shutdown()).await.unwrap();
    }
}
