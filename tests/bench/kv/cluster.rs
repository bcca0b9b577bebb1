//! Clusters on the loopback, of etcd or of our own store, whose members are killed with kill -9 and
//! started again. Nothing of them is left behind.

use super::Fault;
use super::client::Client;
use super::tls::Certificates;
use crate::process::{cpu_all_us, memory_mb};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::{join_all, try_join_all};
use futures::stream::FuturesUnordered;
use rkube_etcd_api::StatusResponse;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// How long a cluster may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a request is sent anew while nobody answers; the resolution of what is measured so.
const EVERY: Duration = Duration::from_millis(5);
/// How often a port is tried on which nobody listens yet.
const RETRY: Duration = Duration::from_millis(1);

/// Whose members.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Etcd,
    Rkube,
}

/// What a member's process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Its place in `addresses`.
    pub index: usize,
    /// For its data; absent before the first start.
    pub dir: PathBuf,
    pub certificates: Certificates,
    /// Of all members.
    pub addresses: Vec<Address>,
}

/// Ports of a member on 127.0.0.1.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Address {
    pub client: u16,
    pub peer: u16,
}

struct Member {
    spec: Spec,
    child: Option<Child>,
    kind: Kind,
}

/// A cluster.
pub struct Cluster {
    members: Vec<Member>,
    tls: Arc<ClientConfig>,
    // After the members: they end before their folder goes.
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts a new one and returns once all members serve.
    pub async fn start(kind: Kind) -> Result<Self, Fault> {
        let count = match kind {
            Kind::Etcd => 3,
            Kind::Rkube => super::server::MEMBERS,
        };
        let dir = tempfile::Builder::new().prefix("rkube-bench-kv-").tempdir()?;
        let certificates = Certificates::make(dir.path().join("tls"), count)?;
        let ports = free_ports(2 * count);
        let addresses: Vec<Address> =
            ports.chunks(2).map(|pair| Address { client: pair[0], peer: pair[1] }).collect();
        let member = |index: usize| Member {
            spec: Spec {
                index,
                dir: dir.path().join(format!("member-{index}")),
                certificates: certificates.clone(),
                addresses: addresses.clone(),
            },
            child: None,
            kind,
        };
        let members = (0..count).map(member).collect();
        let mut cluster = Cluster { members, tls: certificates.client()?, dir };
        (0..count).for_each(|index| cluster.spawn(index));
        // No such key, which is an answer too.
        cluster.all_serve(&Bytes::from_static(b"none"), false).await;
        Ok(cluster)
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Starts a member on the data that it has.
    pub fn spawn(&mut self, index: usize) {
        let member = &mut self.members[index];
        let log = self.dir.path().join(format!("member-{index}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log).expect("a log");
        let child = member
            .command()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("setpriv");
        member.child = Some(child);
    }

    /// Ends a member by kill -9 and returns once it is gone.
    pub fn kill(&mut self, index: usize) {
        self.members[index].kill();
    }

    pub async fn connect(&self, index: usize) -> Result<Client, Fault> {
        Client::connect(self.members[index].spec.addresses[index].client, &self.tls).await
    }

    /// Returns once the member answers a linearizable read of this key; if `there`, with a value.
    pub async fn serves(&self, index: usize, key: &Bytes, there: bool) {
        let answer = async {
            let client = loop {
                match self.connect(index).await {
                    Ok(client) => break client,
                    Err(_) => sleep(RETRY).await,
                }
            };
            let read = |_| {
                let (mut client, key) = (client.clone(), key.clone());
                async move { client.get(key).await.ok().filter(|kv| kv.is_some() || !there) }
            };
            first_success(read).await;
        };
        let answer = timeout(PATIENCE, answer).await;
        assert!(answer.is_ok(), "member {index} does not serve: {}", self.log(index));
    }

    /// The same for all members.
    pub async fn all_serve(&self, key: &Bytes, there: bool) {
        join_all((0..self.len()).map(|index| self.serves(index, key, there))).await;
    }

    /// The member that leads, once all that run agree on it.
    pub async fn leader(&self) -> usize {
        let agreed = async {
            loop {
                if let Some(leader) = self.statuses().await.ok().as_deref().and_then(leader_of) {
                    return leader;
                }
                sleep(EVERY).await;
            }
        };
        timeout(PATIENCE, agreed).await.expect("a leader")
    }

    async fn statuses(&self) -> Result<Vec<StatusResponse>, Fault> {
        let ask = async |index| Ok(self.connect(index).await?.status().await?);
        try_join_all((0..self.len()).map(ask)).await
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.iter().filter_map(|member| member.child.as_ref()).map(Child::id)
    }

    /// CPU that all members have used since their start, in microseconds.
    pub fn cpu_us(&self) -> f64 {
        self.pids().map(cpu_all_us).sum()
    }

    /// Memory of all members in MB: resident, and how much of it is anonymous.
    pub fn memory_mb(&self) -> (f64, f64) {
        let sum = |what| self.pids().map(|pid| memory_mb(pid, what)).sum();
        (sum("VmRSS:"), sum("RssAnon:"))
    }

    /// The end of what a member said.
    fn log(&self, index: usize) -> String {
        let log = self.dir.path().join(format!("member-{index}.log"));
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// The place of the member that all of them name.
fn leader_of(statuses: &[StatusResponse]) -> Option<usize> {
    let leader = statuses.first()?.leader;
    let agree = statuses.iter().all(|status| status.leader == leader);
    let is_it = |status: &StatusResponse| {
        status.header.as_ref().is_some_and(|header| header.member_id == leader)
    };
    statuses.iter().position(is_it).filter(|_| agree)
}

impl Member {
    /// It ends with this process, whatever ends that.
    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        match self.kind {
            Kind::Etcd => etcd(&mut command, &self.spec),
            Kind::Rkube => {
                let own = std::env::current_exe().expect("a path of this program");
                let spec = serde_json::to_string(&self.spec).expect("JSON");
                command.arg(own).args(["kv-server", &spec]);
            }
        }
        command
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// As it comes, but for the names, the ports and TLS on all of them.
fn etcd(command: &mut Command, spec: &Spec) {
    let url = |port: u16| format!("https://127.0.0.1:{port}");
    let name = |index: usize| format!("member-{index}");
    let own = spec.addresses[spec.index];
    let all = spec.addresses.iter().enumerate();
    let cluster: Vec<String> =
        all.map(|(index, a)| format!("{}={}", name(index), url(a.peer))).collect();
    let (ca, certificates) = (spec.certificates.ca(), &spec.certificates);
    command.args(["etcd", "--logger=zap", "--log-level=warn", "--name", &name(spec.index)]);
    command.arg("--data-dir").arg(&spec.dir);
    command.args(["--listen-client-urls", &url(own.client)]);
    command.args(["--advertise-client-urls", &url(own.client)]);
    command.args(["--listen-peer-urls", &url(own.peer)]);
    command.args(["--initial-advertise-peer-urls", &url(own.peer)]);
    command.args(["--initial-cluster", &cluster.join(",")]);
    for prefix in ["--", "--peer-"] {
        command.arg(format!("{prefix}client-cert-auth"));
        command.arg(format!("{prefix}trusted-ca-file")).arg(&ca);
        command.arg(format!("{prefix}cert-file"));
        command.arg(certificates.member_certificate(spec.index));
        command.arg(format!("{prefix}key-file")).arg(certificates.member_key(spec.index));
    }
}

/// etcd's version.
///
/// # Panics
/// If it is not there; says how it comes.
pub fn etcd_version() -> String {
    let output = Command::new("etcd").arg("--version").output();
    let output = output.unwrap_or_else(|e| panic!("etcd: {e}; apt-get install etcd-server"));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or_default().replace("Version: ", "")
}

/// Ports nobody listens on, below those that the kernel gives to clients: who tries such a one
/// until somebody listens may be given it himself and be connected to himself.
fn free_ports(count: usize) -> Vec<u16> {
    let first = 15_000 + rand::random::<u16>() % 10_000;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let ports: Vec<u16> = (first..first + 5_000).filter(free).take(count).collect();
    assert_eq!(ports.len(), count, "free ports behind {first}");
    ports
}

/// The first success of attempts that are begun every few milliseconds, whatever becomes of those
/// before: one that a member took while it knew no leader may hang for seconds.
pub async fn first_success<T, F: Future<Output = Option<T>>>(attempt: impl Fn(usize) -> F) -> T {
    let mut begun = FuturesUnordered::new();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => begun.push(attempt(begun.len())),
            Some(Some(success)) = begun.next() => return success,
        }
    }
}
