//! The leader killed, paused and cut off, again and again, under load from real clients.

use crate::Test;
use crate::checks::{Objects, judge};
use crate::cluster::Cluster;
use crate::load::{COUNTERS, Load, MAPS, revision_of, value_of};
use crate::run::eventually;
use serde_json::Value;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("the checks find what they should", crate::checks::find_what_they_should),
    ("nothing is lost and writes go on", nothing_is_lost_and_writes_go_on),
    ("a clean stop of the leader hands over", a_clean_stop_hands_over),
];

/// The longest time after which a follower stands for election.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a pause or a cut lasts, and how long is measured after a kill.
const LASTS: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Pause,
    Cut,
}

const FAULTS: [Fault; 3] = [Fault::Kill, Fault::Pause, Fault::Cut];

impl Fault {
    /// Hurts the leader and lets it come back; the time at which it was hurt.
    fn inflict(self, cluster: &Cluster, leader: usize) -> Instant {
        let wait_until = |end: Instant| {
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
        };
        match self {
            Fault::Kill => cluster.kill(leader),
            Fault::Pause => cluster.signal(leader, "STOP"),
            Fault::Cut => cluster.net.cut(leader),
        }
        let done = Instant::now();
        match self {
            Fault::Kill => {
                wait_until(done + LASTS / 3);
                cluster.spawn(leader, &[]);
                wait_until(done + LASTS);
            }
            Fault::Pause => {
                wait_until(done + LASTS);
                cluster.signal(leader, "CONT");
            }
            Fault::Cut => {
                wait_until(done + LASTS);
                cluster.net.mend(leader);
            }
        }
        done
    }
}

/// A fault that was inflicted.
struct Done {
    fault: Fault,
    leader: usize,
    /// When, on this machine's clock, to find it in the logs.
    clock: jiff::Timestamp,
    at: Instant,
}

/// How many faults of each kind.
fn rounds() -> usize {
    let told = std::env::var("RKUBE_FAULTS").ok();
    told.map_or(2, |n| n.parse().expect("RKUBE_FAULTS is a number"))
}

fn nothing_is_lost_and_writes_go_on() {
    let cluster = Cluster::start(3);
    let load = Load::start(&cluster);
    let start = objects(&cluster, 0);
    let start: Objects =
        start.into_iter().filter(|(name, _)| name.starts_with("counter")).map(zeroed).collect();
    assert_eq!(start.len(), COUNTERS);
    eventually("the load is under way", 10, || (load.acknowledged_at().len() > 100).then_some(()));
    let mut done: Vec<Done> = Vec::new();
    for _ in 0..rounds() {
        for fault in FAULTS {
            let leader = cluster.await_health(3);
            let clock = jiff::Timestamp::now();
            done.push(Done { fault, leader, clock, at: fault.inflict(&cluster, leader) });
        }
    }
    cluster.await_health(3);
    let end = Instant::now();
    let acknowledged = load.acknowledged_at();
    let late = load.late();
    let records = load.finish(&cluster);
    let told = cluster.await_voters(3);
    eprintln!(
        "{} writes acknowledged, {} of unknown outcome, {} refused; m{} leads; the machine was late \
         by {late:.0?} at worst",
        acknowledged.len(),
        records.unknown.len(),
        records.refused.len(),
        told + 1
    );
    let members: Vec<Objects> = (0..3).map(|member| objects(&cluster, member)).collect();
    let wrong = judge(&records, &start, &members);
    let report = measure(&done, end, &acknowledged);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_one_state(&cluster);
    assert!(report.is_empty(), "{}", report.join("\n"));
}

/// A counter as it was made; its revision counts for nothing, since it was changed at once.
fn zeroed((name, _): (String, (u64, u64))) -> (String, (u64, u64)) {
    (name, (0, 0))
}

/// What a member has of the load's objects.
fn objects(cluster: &Cluster, member: usize) -> Objects {
    let client = cluster.client(0, &[member]);
    let list = cluster.get(&client, MAPS, Duration::from_secs(10)).expect("a list");
    assert_eq!(list.code, 200, "{list:?}");
    let items = list.body["items"].as_array().cloned().unwrap_or_default();
    let name = |item: &Value| item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let own = items.iter().filter(|item| name(item) != "kube-root-ca.crt");
    own.map(|item| (name(item), (revision_of(item), value_of(item)))).collect()
}

/// All members, at one index, have one hash of all that they hold.
fn assert_one_state(cluster: &Cluster) {
    let client = cluster.client(0, &[0]);
    eventually("all members at one index and one state", 10, || {
        let members = cluster.members_by(&client);
        let column = |field: &str| -> Vec<Value> {
            members.iter().map(|m| m["status"][field].clone()).collect()
        };
        let (indices, hashes) = (column("appliedIndex"), column("stateHash"));
        let same = |values: &[Value]| values.len() == 3 && values.iter().all(|v| *v == values[0]);
        if same(&indices) {
            assert!(same(&hashes) && hashes[0].is_string(), "states differ: {members:?}");
            return Some(());
        }
        None
    });
}

/// The longest time without an acknowledgement after a fault, until the next one.
fn gap(from: Instant, to: Instant, acknowledged: &[Instant]) -> Duration {
    let inside = acknowledged.iter().copied().filter(|at| (from..to).contains(at));
    let mut last = from;
    let mut longest = Duration::ZERO;
    for at in inside.chain([to]) {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

/// Prints the gaps; says which are too long, and when that was.
fn measure(done: &[Done], end: Instant, acknowledged: &[Instant]) -> Vec<String> {
    let ends = done.iter().skip(1).map(|next| next.at).chain([end]);
    let gaps: Vec<Duration> =
        done.iter().zip(ends).map(|(fault, to)| gap(fault.at, to, acknowledged)).collect();
    let mut too_long = Vec::new();
    for fault in FAULTS {
        let own = || done.iter().zip(&gaps).filter(|(done, _)| done.fault == fault);
        let mut sorted: Vec<Duration> = own().map(|(_, gap)| *gap).collect();
        sorted.sort();
        let (p50, p99, max) = (rank(&sorted, 50), rank(&sorted, 99), rank(&sorted, 100));
        let milliseconds = [p50, p99, max].map(|gap| gap.as_millis());
        eprintln!(
            "write gap after {fault:?}, ms: p50, p99, max of {}: {milliseconds:?}",
            sorted.len()
        );
        let (worst, bound) = match fault {
            Fault::Kill => (p99, Duration::from_millis(500)),
            Fault::Pause | Fault::Cut => (max, 2 * ELECTION_TIMEOUT),
        };
        if worst > bound {
            let late = own().filter(|(_, gap)| **gap > bound);
            too_long.extend(late.map(|(done, gap)| {
                format!(
                    "{fault:?} of m{} at {}: {gap:?}, {bound:?} are allowed",
                    done.leader + 1,
                    done.clock
                )
            }));
        }
    }
    too_long
}

/// A percentile by nearest rank.
fn rank(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

/// The leader hands over before it ends, so nobody waits for an election's timeout.
fn a_clean_stop_hands_over() {
    let cluster = Cluster::start(3);
    let load = Load::start(&cluster);
    eventually("the load is under way", 10, || (load.acknowledged_at().len() > 100).then_some(()));
    let mut gaps = Vec::new();
    for _ in 0..2 {
        let leader = cluster.await_health(3);
        let from = Instant::now();
        cluster.stop(leader);
        std::thread::sleep(Duration::from_secs(1));
        gaps.push(gap(from, Instant::now(), &load.acknowledged_at()));
        cluster.spawn(leader, &[]);
        cluster.await_ready(leader);
    }
    cluster.await_health(3);
    let records = load.finish(&cluster);
    eprintln!("write gap at a clean stop of the leader: {gaps:.0?}");
    assert!(records.broken.is_empty(), "{}", records.broken.join("\n"));
    let most = gaps.iter().max().copied().unwrap_or_default();
    assert!(most < ELECTION_TIMEOUT / 2, "a clean stop took {gaps:?}");
}
