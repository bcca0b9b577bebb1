//! The load: clients that put one value after the other.

use super::client::Client;
use super::cluster::Cluster;
use super::{Fault, key, value};
use crate::process::cpu_all_us;
use futures::future::try_join_all;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::task::JoinSet;

/// Which members the clients speak to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// All to the leader.
    Leader,
    /// To each member as many, so that two of three puts are forwarded.
    All,
}

/// What came of puts; times in microseconds.
#[derive(Default)]
pub struct Puts {
    pub seconds: f64,
    /// Of all members.
    pub cpu: f64,
    /// Of this process: the clients'.
    pub own_cpu: f64,
    pub latencies: Vec<f64>,
}

impl Puts {
    pub fn add(&mut self, other: Puts) {
        self.seconds += other.seconds;
        self.cpu += other.cpu;
        self.own_cpu += other.own_cpu;
        self.latencies.extend(other.latencies);
    }

    fn count(&self) -> f64 {
        self.latencies.len() as f64
    }

    /// Puts per second.
    pub fn rate(&self) -> f64 {
        self.count() / self.seconds
    }

    pub fn cpu_each(&self) -> f64 {
        self.cpu / self.count()
    }

    pub fn own_cpu_each(&self) -> f64 {
        self.own_cpu / self.count()
    }
}

/// Puts the values of these keys, each once, with so many clients that have one put under way
/// each and a connection of their own, made before.
pub async fn put(
    cluster: &Cluster,
    clients: usize,
    at: At,
    keys: Range<usize>,
) -> Result<Puts, Fault> {
    let leader = cluster.leader().await;
    let member = |client: usize| match at {
        At::Leader => leader,
        At::All => client % cluster.len(),
    };
    let clients = try_join_all((0..clients).map(|client| cluster.connect(member(client)))).await?;
    let next = Arc::new(AtomicUsize::new(keys.start));
    let (cpu, own_cpu, began) = (cluster.cpu_us(), own_cpu(), Instant::now());
    let mut running = JoinSet::new();
    for client in clients {
        running.spawn(put_each(client, next.clone(), keys.end));
    }
    let mut latencies = Vec::with_capacity(keys.len());
    while let Some(result) = running.join_next().await {
        latencies.extend(result??);
    }
    Ok(Puts {
        seconds: began.elapsed().as_secs_f64(),
        cpu: cluster.cpu_us() - cpu,
        own_cpu: self::own_cpu() - own_cpu,
        latencies,
    })
}

async fn put_each(
    mut client: Client,
    next: Arc<AtomicUsize>,
    end: usize,
) -> Result<Vec<f64>, tonic::Status> {
    let mut latencies = Vec::new();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= end {
            return Ok(latencies);
        }
        let (key, value) = (key(index), value(index));
        let began = Instant::now();
        client.put(key, value).await?;
        latencies.push(began.elapsed().as_secs_f64() * 1e6);
    }
}

fn own_cpu() -> f64 {
    cpu_all_us(std::process::id())
}
