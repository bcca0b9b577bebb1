//! A whole cluster in one thread, from one seed: members as they run in earnest but for their
//! threads, over simulated disks, links and clocks, with clients, watchers and controllers, and
//! with faults of all kinds. The same seed gives the same run, bit by bit.
//!
//! [`World`] holds everything and an agenda of what happens when, ordered by time and number. A
//! member's inputs go through [`shell`], which mirrors the driver and its threads; [`check`] says
//! all along what must hold. A run has two parts: in the first anything may fail, then all is
//! healed and the cluster must serve again within ten seconds, with everything acknowledged.

mod check;
mod clients;
mod faults;
mod finale;
mod member;
mod net;
mod operator;
mod plan;
mod random;
#[cfg(test)]
mod read_index_tests;
mod shell;
#[cfg(test)]
mod tests;
mod trace;
mod watchers;

use crate::disk::sim::SimDisk;
use crate::files::Begin;
use check::Checker;
use clients::{Answer, Call, Client, Controllers, Request};
use faults::Repair;
use member::Machine;
use net::Net;
use operator::Operator;
use plan::{MS, Plan, SECOND};
use random::Random;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use trace::Trace;
use watchers::Watcher;

/// What a run is like beside what its seed says.
#[derive(Clone, Debug)]
pub struct Options {
    /// Members that vote: 3 or 5.
    pub members: usize,
    /// Simulated seconds in which things go wrong.
    pub seconds: u64,
    /// Clients that read and write, one operation at a time each.
    pub clients: usize,
    /// Print everything that happens.
    pub log: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { members: 3, seconds: 20, clients: 4, log: false }
    }
}

/// What a run has seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Which run it was.
    pub seed: u64,
    /// The time that passed in it.
    pub simulated: Duration,
    /// What happened, as a number: the same for the same seed.
    pub trace: u64,
    /// Things that happened.
    pub events: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Reads checked.
    pub reads: u64,
    /// Terms with a leader.
    pub terms: u64,
    /// Faults.
    pub faults: u64,
    /// How often each fault, and each event that a set of runs should see, has happened.
    pub counts: BTreeMap<&'static str, u64>,
}

/// Runs one seed to its end.
///
/// # Panics
/// If anything does not hold that must: with the seed, the time and what happened last.
pub fn run(seed: u64, options: &Options) -> Report {
    let mut world = World::new(seed, options.clone());
    world.run();
    let faults = plan::FAULTS.iter().filter_map(|(_, name, _)| world.trace.counts.get(name));
    let faults = faults.sum();
    Report {
        faults,
        seed,
        simulated: Duration::from_micros(world.now),
        trace: world.trace.hash,
        events: world.trace.events,
        acknowledged: world.check.acknowledged,
        reads: world.check.reads,
        terms: world.check.terms() as u64,
        counts: std::mem::take(&mut world.trace.counts),
    }
}

/// What happens to a member.
enum Input {
    Frame {
        from: u64,
        frame: bytes::Bytes,
    },
    Tick,
    LinkLost(u64),
    Call {
        token: u64,
        request: Request,
    },
    Log,
    Snapshot,
    Chunk,
    Control,
    /// Another member says that it was removed.
    Removed,
    Stop,
}

/// What is on the agenda.
enum Happening {
    /// For this process alone, unless the boot is 0.
    Input {
        to: u64,
        boot: u64,
        input: Input,
    },
    Frame {
        from: u64,
        to: u64,
        epoch: u64,
        frame: bytes::Bytes,
    },
    Boot(u64),
    Die {
        id: u64,
        boot: u64,
        power: bool,
    },
    Resume(u64),
    Ask {
        to: u64,
        token: u64,
        request: Request,
    },
    Answer {
        token: u64,
        answer: Answer,
    },
    Timeout {
        token: u64,
    },
    Act(usize),
    Retry(usize),
    Watch(usize),
    Operate,
    Trouble,
    Repair(Repair),
    Heal,
    Quiet,
    End,
}

/// See the module.
struct World {
    seed: u64,
    options: Options,
    random: Random,
    plan: Plan,
    /// Its id.
    cluster: u64,
    now: u64,
    sequence: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    trace: Trace,
    check: Checker,
    machines: BTreeMap<u64, Machine>,
    boots: u64,
    net: Net,
    clients: Vec<Client>,
    controllers: Controllers,
    /// Under way: by token.
    calls: BTreeMap<u64, Call>,
    tokens: u64,
    watchers: Vec<Watcher>,
    operator: Operator,
    /// Contexts of reads that were sent, none of which may come twice.
    contexts: BTreeSet<Vec<u8>>,
    base: Instant,
    /// It is being stopped to have a bit flipped.
    flip_next: Option<u64>,
    /// Who dies in its next write, with the power or without.
    dying: BTreeMap<u64, bool>,
    healed: Option<u64>,
    quiet: bool,
    ended: bool,
    /// A failure was reported.
    told: Cell<bool>,
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random, seed);
        let trace = Trace::new(options.log);
        let check = Checker::new(plan.children);
        let mut world = Self {
            seed,
            options,
            random,
            plan,
            cluster: 0,
            now: 0,
            sequence: 0,
            agenda: BTreeMap::new(),
            trace,
            check,
            machines: BTreeMap::new(),
            boots: 0,
            net: Net::default(),
            clients: Vec::new(),
            controllers: Controllers::default(),
            calls: BTreeMap::new(),
            tokens: 0,
            watchers: Vec::new(),
            operator: Operator::default(),
            contexts: BTreeSet::new(),
            base: Instant::now(),
            flip_next: None,
            dying: BTreeMap::new(),
            healed: None,
            quiet: false,
            ended: false,
            told: Cell::new(false),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let (disk, seed) = (SimDisk::default(), self.random.next());
        match member::found(&disk, seed, &self.plan) {
            Ok(identity) => {
                let id = identity.member_id;
                self.cluster = identity.cluster_id;
                self.machines.insert(id, Machine { disk, ..Machine::new(id, Begin::Existing) });
                self.at(0, Happening::Boot(id));
            }
            Err(error) => self.fail(0, &format!("a cluster can't be made: {error}")),
        }
        self.operator.grow = self.options.members - 1;
        self.at(10 * MS, Happening::Operate);
        for _ in 0..self.options.clients {
            self.add_client(None);
        }
        for _ in 0..3 {
            self.add_watcher();
        }
        let heal = self.options.seconds * SECOND;
        let trouble = self.random.between(0, 3 * SECOND);
        self.at(trouble, Happening::Trouble);
        self.at(heal, Happening::Heal);
    }

    fn run(&mut self) {
        while !self.ended {
            let Some(((at, _), happening)) = self.agenda.pop_first() else { break };
            self.now = at;
            self.happen(happening);
        }
    }

    /// Puts something on the agenda, so long from now.
    fn at(&mut self, after: u64, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((self.now + after, self.sequence), happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Input { to, boot, input } => self.input(to, boot, input),
            Happening::Frame { from, to, epoch, frame } => self.arrived(from, to, epoch, frame),
            Happening::Boot(id) => self.boot(id),
            Happening::Die { id, boot, power } => self.die(id, boot, power),
            Happening::Resume(id) => self.resume(id),
            Happening::Ask { to, token, request } => self.asked(to, token, request),
            Happening::Answer { token, answer } => self.answered(token, answer),
            Happening::Timeout { token } => self.timed_out(token),
            Happening::Act(client) => self.act(client),
            Happening::Retry(client) => self.try_at(client),
            Happening::Watch(watcher) => self.look(watcher),
            Happening::Operate => self.operate(),
            Happening::Trouble => self.trouble(),
            Happening::Repair(repair) => self.repair(repair),
            Happening::Heal => self.heal(),
            Happening::Quiet => self.quieten(),
            Happening::End => self.end(),
        }
    }

    fn note(&mut self, who: u64, what: &'static str, a: u64, b: u64) {
        self.trace.note(self.now, who, what, a, b);
    }

    fn count(&mut self, what: &'static str) {
        self.trace.count(what);
    }

    /// The run ends here if something does not hold.
    fn must(&self, who: u64, checked: Result<(), String>) {
        if let Err(reason) = checked {
            self.fail(who, &reason);
        }
    }

    fn fail(&self, who: u64, reason: &str) -> ! {
        self.told.set(true);
        let seconds = Duration::from_micros(self.now).as_secs_f64();
        let last = self.trace.last(if who == 0 { &[] } else { std::slice::from_ref(&who) });
        panic!(
            "seed {} with {} members, after {seconds:.6} s, member {who:x}: {reason}\n\
             RKUBE_SIM_SEED={} RKUBE_SIM_MEMBERS={} runs it again, with a log; the last of it:\n{last}",
            self.seed, self.options.members, self.seed, self.options.members
        );
    }

    /// Members whose processes run and are not paused.
    fn working(&self) -> Vec<u64> {
        self.machines.values().filter(|m| m.works()).map(|m| m.id).collect()
    }

    /// The leader of the newest term, as far as anybody is one.
    fn leader(&self) -> Option<u64> {
        let cores = self.machines.values().filter_map(|m| Some((m.id, m.process.as_ref()?)));
        let cores = cores.map(|(id, process)| (id, process.replica.core()));
        let leaders = cores.filter(|(_, core)| core.is_leader());
        leaders.max_by_key(|(_, core)| core.term()).map(|(id, _)| id)
    }
}

impl Drop for World {
    /// What panics below the simulation does not know the seed.
    fn drop(&mut self) {
        if std::thread::panicking() && !self.told.get() {
            let seconds = Duration::from_micros(self.now).as_secs_f64();
            let (seed, members, last) = (self.seed, self.options.members, self.trace.last(&[]));
            eprintln!("seed {seed} with {members} members, after {seconds:.6} s; the last of it:");
            eprintln!("{last}");
        }
    }
}
