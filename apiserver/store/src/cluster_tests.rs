//! Three members over simulated disks and a simulated network, from one seed: messages are lost
//! and delayed, members crash and lose power. The core is the one that runs in the store.
//!
//! Checked all along: members that have applied the same entry have the same hash; a term has one
//! leader; a read sees everything acknowledged before it was asked; and in the end, when all is
//! healed, every member has every acknowledged write.

use crate::codec::{COMMANDS_VERSION, write_command};
use crate::command::{Command, Outcome, Write};
use crate::core::Core;
use crate::disk::sim::SimDisk;
use crate::files::{self, OpenConfig, Opened};
use crate::object::{Header, Key, NewObject};
use crate::wal::Wal;
use raft::eraftpb::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
enum Caller {
    Write(u64),
    /// With the highest revision acknowledged when it was asked.
    Read(u64),
}

struct Member {
    core: Core<Caller>,
    wal: Wal,
    disk: SimDisk,
}

struct Cluster {
    random: StdRng,
    /// None while a member is down.
    members: BTreeMap<u64, Option<Member>>,
    disks: BTreeMap<u64, SimDisk>,
    network: Vec<Message>,
    cut_off: Option<u64>,
    boots: u64,
    hashes: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
    proposed: u64,
    acknowledged: BTreeSet<u64>,
    highest: u64,
    reads: u64,
    /// Everything that happened, to compare two runs.
    trace: u64,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut cluster = Self {
            random: StdRng::seed_from_u64(seed),
            members: BTreeMap::new(),
            disks: (1..=3).map(|id| (id, SimDisk::default())).collect(),
            network: Vec::new(),
            cut_off: None,
            boots: 0,
            hashes: BTreeMap::new(),
            leaders: BTreeMap::new(),
            proposed: 0,
            acknowledged: BTreeSet::new(),
            highest: 0,
            reads: 0,
            trace: 0,
        };
        (1..=3).for_each(|id| cluster.boot(id));
        cluster
    }

    fn boot(&mut self, id: u64) {
        self.boots += 1;
        let disk = self.disks[&id].clone();
        let config = OpenConfig {
            dir: Path::new("/store"),
            node_id: id,
            nonce: self.boots * 7 + id,
            segment_bytes: 64 << 10,
            remember: 1 << 40,
            voters: vec![1, 2, 3],
        };
        let Opened { wal, core, .. } = files::open(Arc::new(disk.clone()), config).unwrap();
        let core = Core::new(core).unwrap();
        self.members.insert(id, Some(Member { core, wal, disk }));
        self.settle(id);
    }

    fn settle(&mut self, id: u64) {
        let Some(Some(member)) = self.members.get_mut(&id) else { return };
        let mut done = Vec::new();
        loop {
            let mut idle = true;
            while let Some(output) = member.core.ready() {
                idle = false;
                self.network.extend(output.messages);
                if let Some(write) = output.write {
                    member.wal.append(&write).unwrap();
                    member.core.persisted(write.number);
                    self.network.extend(output.messages_after);
                }
            }
            let progress = member.core.apply().unwrap();
            let revision = member.core.state().root.revision;
            done.extend(
                progress.answers.into_iter().map(|(caller, outcome)| (caller, Some(outcome))),
            );
            for caller in progress.reads {
                let Caller::Read(floor) = caller else { panic!("{caller:?} is no read") };
                assert!(revision >= floor, "a read at {revision} missed revision {floor}");
                self.reads += 1;
            }
            if idle {
                break;
            }
        }
        let state = member.core.state();
        let hash = *self.hashes.entry(state.applied_index).or_insert(state.hash);
        assert_eq!(hash, state.hash, "member {id} differs at entry {}", state.applied_index);
        if member.core.is_leader() {
            let leader = *self.leaders.entry(member.core.term()).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {}", member.core.term());
        }
        self.trace = self.trace.rotate_left(5) ^ hash ^ state.applied_index ^ id;
        for (caller, outcome) in done {
            if let (Caller::Write(number), Some(Outcome::Applied { revision, .. })) =
                (caller, outcome)
            {
                self.acknowledged.insert(number);
                self.highest = self.highest.max(revision);
            }
        }
    }

    fn leaders(&self) -> Vec<u64> {
        let leads = |(id, member): (&u64, &Option<Member>)| {
            member.as_ref().is_some_and(|member| member.core.is_leader()).then_some(*id)
        };
        self.members.iter().filter_map(leads).collect()
    }

    fn tick(&mut self) {
        for id in 1..=3 {
            if let Some(Some(member)) = self.members.get_mut(&id) {
                member.core.tick();
            }
            self.settle(id);
        }
    }

    fn deliver(&mut self, lose: f64) {
        if self.network.is_empty() {
            return;
        }
        // The oldest messages first, by and large.
        let most = self.network.len().min(4);
        let message = self.network.remove(self.random.random_range(0..most));
        let cut = self.cut_off.is_some_and(|id| message.from == id || message.to == id);
        if cut || self.random.random_bool(lose) {
            return;
        }
        let to = message.to;
        if let Some(Some(member)) = self.members.get_mut(&to) {
            // A stale message is refused, and that is as well.
            let _ = member.core.step(message);
        }
        self.settle(to);
    }

    fn write(&mut self, id: u64) {
        self.proposed += 1;
        let number = self.proposed;
        let json = format!(r#"{{"metadata":{{"n":{number}}}}}"#).into();
        let new = NewObject { json, splice_at: 13, header: Header::default() };
        let write = Write::Put(Key::new("pods", "x", &number.to_string()), new);
        let mut data = vec![COMMANDS_VERSION];
        write_command(&mut data, &Command::unconditional(u128::from(number), vec![write]));
        if let Some(Some(member)) = self.members.get_mut(&id) {
            let _ = member.core.propose(data, vec![Caller::Write(number)]);
        }
        self.settle(id);
    }

    fn read(&mut self, id: u64) {
        let floor = self.highest;
        if let Some(Some(member)) = self.members.get_mut(&id) {
            member.core.read(vec![Caller::Read(floor)]);
        }
        self.settle(id);
    }

    fn crash(&mut self, id: u64) {
        let Some(member) = self.members.insert(id, None).flatten() else { return };
        match self.random.random_bool(0.5) {
            true => member.disk.restart(),
            false => member.disk.power_loss(self.random.random()),
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..12 => self.tick(),
            12..25 => self.on_leaders(Self::write),
            25..32 => self.on_leaders(Self::read),
            32 => {
                let id = self.random.random_range(1..=3);
                self.crash(id);
            }
            33 => {
                let id = self.random.random_range(1..=3);
                self.cut_off = Some(id).filter(|_| self.random.random_bool(0.6));
            }
            34..36 => {
                let down = self.members.iter().find(|(_, member)| member.is_none());
                if let Some(id) = down.map(|(id, _)| *id) {
                    self.boot(id);
                }
            }
            _ => self.deliver(0.05),
        }
    }

    fn on_leaders(&mut self, act: fn(&mut Self, u64)) {
        // An old leader may still take itself for one.
        self.leaders().into_iter().for_each(|id| act(self, id));
    }

    /// Everything works again: all must come to the same, with all that was acknowledged.
    fn heal(&mut self) {
        self.cut_off = None;
        for id in 1..=3 {
            if self.members[&id].is_none() {
                self.boot(id);
            }
        }
        let settled = self.acknowledged.len();
        for _ in 0..400 {
            self.tick();
            for _ in 0..20 {
                self.deliver(0.0);
            }
            if self.acknowledged.len() < settled + 3 {
                self.on_leaders(Self::write);
            }
        }
        assert!(self.acknowledged.len() >= settled + 3, "the healed cluster takes writes");
        let state = |id| self.members[&id].as_ref().unwrap().core.state();
        for id in 1..=3 {
            assert_eq!(state(id).applied_index, state(1).applied_index, "member {id} caught up");
            for number in &self.acknowledged {
                let key = Key::new("pods", "x", &number.to_string());
                assert!(state(id).root.get(&key).is_some(), "member {id} lacks write {number}");
            }
        }
    }
}

fn run(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(seed);
    (0..3000).for_each(|_| cluster.step());
    cluster.heal();
    cluster
}

#[test]
fn three_members_agree_and_lose_nothing() {
    let (mut writes, mut reads, mut terms) = (0, 0, 0);
    for seed in 0..12 {
        let cluster = run(seed);
        writes += cluster.acknowledged.len();
        reads += cluster.reads;
        terms += cluster.leaders.len();
    }
    assert!(writes > 500 && reads > 200 && terms > 24, "{writes} {reads} {terms}");
}

#[test]
fn a_cluster_replays_from_its_seed() {
    assert_eq!(run(77).trace, run(77).trace);
    assert_ne!(run(77).trace, run(78).trace);
}
