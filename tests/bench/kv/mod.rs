//! The replicated store beside etcd, at the key-value layer: three members each on the loopback of
//! this machine, etcd's API over gRPC, TLS with certificates of both sides between all of them,
//! one cipher suite. Both clusters are up during a run and take turns with the floor, so that a
//! noisy machine disturbs all alike.
//!
//! Every client has a connection of its own, as those of `etcdctl check perf` have. One client
//! speaks to the leader; many are spread over the members, and 64 are tried at the leader too.
//! Each puts values of 1 KiB under keys that were not there. CPU is that of all members together.
//!
//! Creates through three API servers are not measured here but belong here: another group, with
//! the servers in the place of [`server`] and [`crate::load`] in that of [`load`].

mod client;
mod cluster;
mod floor;
mod load;
pub mod server;
mod table;
mod tls;

use crate::Target;
use crate::process::median;
use bytes::Bytes;
use cluster::{Cluster, Kind, etcd_version, first_success};
use floor::Floor;
use load::{At, Puts, put};
use std::ops::Range;
use std::time::{Duration, Instant};
use table::Row;

type Fault = Box<dyn std::error::Error + Send + Sync>;

const VALUE_BYTES: usize = 1024;
const PREFIX: &str = "/registry/configmaps/default/key-";
const KINDS: [Kind; 2] = [Kind::Etcd, Kind::Rkube];

/// How often the loads take turns.
const ROUNDS: usize = 4;
const WARM: usize = 2000;
const FLOOR_TIME: Duration = Duration::from_millis(500);
/// How many keys there are when memory and restarts are measured.
const KEYS: usize = 100_000;
/// For what is freed after the last put to be given back.
const SETTLE: Duration = Duration::from_secs(2);
const RESTARTS: usize = 3;
const FAILOVERS: usize = 5;

/// How often as many puts as etcd, and for what part of its CPU each.
const TIMES: f64 = 3.0;
const RESTART_MS: f64 = 500.0;
const GAP_MS: f64 = 300.0;

/// A load: so many puts in one round.
struct Load {
    clients: usize,
    at: At,
    puts: usize,
}

const LOADS: [Load; 4] = [
    Load { clients: 1, at: At::Leader, puts: 500 },
    Load { clients: 64, at: At::Leader, puts: 8000 },
    Load { clients: 64, at: At::All, puts: 8000 },
    Load { clients: 256, at: At::All, puts: 8000 },
];

fn key(index: usize) -> Bytes {
    format!("{PREFIX}{index:08}").into()
}

/// Differs from key to key.
fn value(index: usize) -> Bytes {
    let mut value = format!("{index:08}").into_bytes();
    value.resize(VALUE_BYTES, b'x');
    value.into()
}

fn block_on(work: impl Future<Output = Result<Vec<Row>, Fault>>) {
    let members = server::MEMBERS;
    println!(
        "three members of {}, {members} of rkube; values of 1 KiB; TLS 1.3, AES-128-GCM; \
         a connection a client",
        etcd_version()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let rows = runtime.expect("a runtime").block_on(work).expect("two clusters");
    table::heading();
    rows.iter().for_each(Row::print);
}

/// What came of one load, over all rounds.
#[derive(Default)]
struct Turns {
    /// What each batch took.
    floor: Vec<f64>,
    /// In the order of [`KINDS`].
    puts: [Puts; 2],
}

/// Puts per second, their times and what they cost, with one client and with many.
pub fn puts() {
    block_on(async {
        let dir = tempfile::tempdir()?;
        let mut floor = Floor::new(dir.path())?;
        let clusters = [Cluster::start(KINDS[0]).await?, Cluster::start(KINDS[1]).await?];
        for cluster in &clusters {
            put(cluster, 64, At::All, 0..WARM).await?;
        }
        let mut results: [Turns; 4] = Default::default();
        let mut next = WARM;
        for _ in 0..ROUNDS {
            for (load, result) in LOADS.iter().zip(&mut results) {
                let keys: Range<usize> = next..next + load.puts;
                next = keys.end;
                result.floor.extend(floor.batches(load.clients, FLOOR_TIME)?);
                for (cluster, puts) in clusters.iter().zip(&mut result.puts) {
                    puts.add(put(cluster, load.clients, load.at, keys.clone()).await?);
                }
            }
        }
        for cluster in &clusters {
            all_there(cluster, next).await?;
        }
        Ok(LOADS.iter().zip(results).flat_map(|(load, result)| load_rows(load, result)).collect())
    });
}

/// Every put was acknowledged, so every key has to be there.
async fn all_there(cluster: &Cluster, keys: usize) -> Result<(), Fault> {
    for index in 0..cluster.len() {
        let count = cluster.connect(index).await?.count(PREFIX.as_bytes()).await?;
        assert_eq!(count, keys, "keys on member {index}");
    }
    Ok(())
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn load_rows(load: &Load, mut result: Turns) -> Vec<Row> {
    result.floor.sort_by(f64::total_cmp);
    for puts in &mut result.puts {
        puts.latencies.sort_by(f64::total_cmp);
    }
    let [etcd, rkube] = &result.puts;
    let (one, aimed) = (load.clients == 1, load.clients == 64);
    let batch = result.floor.iter().sum::<f64>() / result.floor.len() as f64;
    let floor = |percent| percentile(&result.floor, percent);
    let row = |name: String, unit, floor, value: &dyn Fn(&Puts) -> f64, goal: Option<Target>| Row {
        name,
        unit,
        floor,
        etcd: Some(value(etcd)),
        rkube: Some(value(rkube)),
        goal,
        note: String::new(),
    };
    let who = match (load.clients, load.at) {
        (1, _) => "1 client".to_owned(),
        (clients, At::Leader) => format!("{clients} clients at the leader"),
        (clients, At::All) => format!("{clients} clients"),
    };
    let rate = load.clients as f64 * 1e6 / batch;
    let more = aimed.then(|| Target::Above(etcd.rate() * TIMES));
    let quick = one.then(|| Target::Below(2.0 * floor(50) + 100.0));
    let cheap = aimed.then(|| Target::Below(etcd.cpu_each() / TIMES));
    let p50 = |puts: &Puts| percentile(&puts.latencies, 50);
    let p99 = |puts: &Puts| percentile(&puts.latencies, 99);
    let mut cpu = row("  CPU a put, all members".into(), "µs", None, &Puts::cpu_each, cheap);
    cpu.note =
        format!("the clients' own: {:.0} and {:.0}", etcd.own_cpu_each(), rkube.own_cpu_each());
    vec![
        row(format!("durable puts, {who}"), "/s", Some(rate), &Puts::rate, more),
        row("  p50".into(), "µs", Some(floor(50)), &p50, quick),
        row("  p99".into(), "µs", Some(floor(99)), &p99, None),
        cpu,
    ]
}

/// Memory with 100,000 keys, and the time until a member, or all, are back with them.
pub fn memory() {
    block_on(async {
        let mut measured = Vec::new();
        for kind in KINDS {
            measured.push(Filled::measure(kind).await?);
        }
        let both =
            |value: fn(&Filled) -> f64| (Some(value(&measured[0])), Some(value(&measured[1])));
        let row = |name: &str, unit, (etcd, rkube), goal, note| Row {
            name: name.into(),
            unit,
            floor: None,
            etcd,
            rkube,
            goal,
            note,
        };
        let note =
            format!("anonymous: {:.0} and {:.0}", measured[0].anonymous, measured[1].anonymous);
        let soon = || Some(Target::Below(RESTART_MS));
        Ok(vec![
            row("memory with 100,000 keys, all members", "MB", both(|f| f.memory), None, note),
            row(
                "a member after kill -9, until it serves",
                "ms",
                both(|f| f.one),
                soon(),
                "from its start to a linearizable read of the last key".into(),
            ),
            row(
                "all members after kill -9, until they serve",
                "ms",
                both(|f| f.all),
                soon(),
                "an election included".into(),
            ),
        ])
    });
}

/// What a cluster with many keys takes: MB, milliseconds.
struct Filled {
    memory: f64,
    anonymous: f64,
    one: f64,
    all: f64,
}

impl Filled {
    async fn measure(kind: Kind) -> Result<Self, Fault> {
        let mut cluster = Cluster::start(kind).await?;
        put(&cluster, 256, At::All, 0..KEYS).await?;
        all_there(&cluster, KEYS).await?;
        tokio::time::sleep(SETTLE).await;
        let (memory, anonymous) = cluster.memory_mb();
        let last = key(KEYS - 1);
        let (mut one, mut all) = (Vec::new(), Vec::new());
        for _ in 0..RESTARTS {
            let follower = (cluster.leader().await + 1) % cluster.len();
            cluster.kill(follower);
            let began = Instant::now();
            cluster.spawn(follower);
            cluster.serves(follower, &last, true).await;
            one.push(began.elapsed().as_secs_f64() * 1e3);
        }
        for _ in 0..RESTARTS {
            (0..cluster.len()).for_each(|index| cluster.kill(index));
            let began = Instant::now();
            (0..cluster.len()).for_each(|index| cluster.spawn(index));
            cluster.all_serve(&last, true).await;
            all.push(began.elapsed().as_secs_f64() * 1e3);
        }
        all_there(&cluster, KEYS).await?;
        Ok(Filled { memory, anonymous, one: median(one), all: median(all) })
    }
}

/// From kill -9 of the leader to the first write that another member acknowledges.
pub fn failover() {
    block_on(async {
        let (etcd, rkube) = (gaps(Kind::Etcd).await?, gaps(Kind::Rkube).await?);
        let row = |name: &str, value: &dyn Fn(&[f64]) -> f64, goal| Row {
            name: name.into(),
            unit: "ms",
            floor: None,
            etcd: etcd.as_deref().map(value),
            rkube: rkube.as_deref().map(value),
            goal,
            note: String::new(),
        };
        let longest = |gaps: &[f64]| gaps.iter().copied().fold(0.0, f64::max);
        Ok(vec![
            row(
                "next write after kill -9 of the leader (p50)",
                &|gaps| median(gaps.to_vec()),
                Some(Target::Below(GAP_MS)),
            ),
            row("  the longest of 5", &longest, None),
        ])
    });
}

/// In milliseconds; none with one member.
async fn gaps(kind: Kind) -> Result<Option<Vec<f64>>, Fault> {
    let mut cluster = Cluster::start(kind).await?;
    if cluster.len() == 1 {
        return Ok(None);
    }
    put(&cluster, 64, At::All, 0..WARM).await?;
    let mut gaps = Vec::new();
    for round in 0..FAILOVERS {
        let leader = cluster.leader().await;
        let others: Vec<usize> = (0..cluster.len()).filter(|index| *index != leader).collect();
        let mut clients = Vec::new();
        for other in others {
            clients.push(cluster.connect(other).await?);
        }
        let began = Instant::now();
        cluster.kill(leader);
        let write = |attempt: usize| {
            let mut client = clients[attempt % clients.len()].clone();
            let key = format!("/gap/{round}/{attempt}").into();
            async move { client.put(key, value(attempt)).await.ok() }
        };
        first_success(write).await;
        gaps.push(began.elapsed().as_secs_f64() * 1e3);
        cluster.spawn(leader);
        cluster.serves(leader, &key(WARM - 1), true).await;
    }
    Ok(Some(gaps))
}
