//! Pods on a real node beside the same pods by plain CRI calls, and what a quiet cluster takes.

use crate::connection::{Connection, Credentials, Lines};
use crate::cri::{IMAGE, Plain};
use crate::process::{cpu_us, load, median, resident_mb};
use crate::up::Up;
use crate::{Figure, Target};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const ROUNDS: usize = 20;
const REPLICAS: usize = 20;
const DEPLOYMENT_ROUNDS: usize = 5;
/// The agent looks around this long after it was made to stand still.
const CATCH_UP: Duration = Duration::from_millis(200);
/// A cluster is given this long to come to rest before it is called idle.
const SETTLE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(30);

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// Pods up and down, one by one and twenty together, each beside the same by plain CRI calls a
/// moment before, so that a noisy machine disturbs both alike.
pub fn pods() -> Vec<Figure> {
    let up = Up::start();
    let figures = block_on(async {
        let plain = Plain::new(&up.containerd(), up.cgroup()).await;
        let mut user = User::new(&up).await;
        let agent = up.agent();
        // Once for the first time of everything.
        plain_round(&plain, agent, "warm").await;
        user.round("warm").await;
        let (mut floors, mut rounds) = (Vec::new(), Vec::new());
        for n in 0..ROUNDS {
            floors.push(plain_round(&plain, agent, &n.to_string()).await);
            rounds.push(user.round(&format!("one-{n}")).await);
        }
        let (mut floor, mut together) = (Vec::new(), Vec::new());
        for _ in 0..DEPLOYMENT_ROUNDS {
            signal(agent, "-STOP");
            floor.push(plain.many(REPLICAS, 4).await.min(plain.many(REPLICAS, REPLICAS).await));
            signal(agent, "-CONT");
            tokio::time::sleep(CATCH_UP).await;
            together.push(user.deployment().await);
        }
        figures(up.ready_seconds, &floors, &rounds, (median(floor), median(together)))
    });
    up.stop();
    figures
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(status.expect("kill").success());
}

/// Seconds of a pod's start and end by plain CRI calls. The agent stands still meanwhile: it would
/// remove what it does not know.
async fn plain_round(plain: &Plain, agent: u32, name: &str) -> (f64, f64) {
    signal(agent, "-STOP");
    let began = Instant::now();
    let pod = plain.up(&format!("plain-{name}")).await;
    let up = began.elapsed().as_secs_f64();
    let began = Instant::now();
    plain.down(pod).await;
    let down = began.elapsed().as_secs_f64();
    signal(agent, "-CONT");
    tokio::time::sleep(CATCH_UP).await;
    (up, down)
}

fn figures(
    ready: f64,
    floors: &[(f64, f64)],
    rounds: &[(f64, f64)],
    (floor, together): (f64, f64),
) -> Vec<Figure> {
    let milliseconds = |name, value: f64, floor: f64, limit: f64| Figure {
        name,
        value: value * 1000.0,
        unit: "ms",
        target: Target::Below(limit * 1000.0),
        note: format!("by plain CRI calls {:.0} ms", floor * 1000.0),
    };
    let ups = |times: &[(f64, f64)]| median(times.iter().map(|t| t.0).collect());
    let downs = |times: &[(f64, f64)]| median(times.iter().map(|t| t.1).collect());
    let (up, down) = (ups(floors), downs(floors));
    vec![
        Figure {
            name: "start of the agent to its node Ready",
            value: ready * 1000.0,
            unit: "ms",
            target: Target::Below(1000.0),
            note: "fresh data directory, containerd's start included".into(),
        },
        milliseconds("a pod from create to Running (p50 of 20)", ups(rounds), up, up + 0.06),
        milliseconds("a pod from delete to gone (p50 of 20)", downs(rounds), down, down + 0.06),
        milliseconds("a Deployment of 20, all Running (p50 of 5)", together, floor, floor * 1.3),
    ]
}

/// Somebody who writes with one connection and watches pods with another.
struct User {
    connection: Connection,
    pods: Lines,
    _watch: Connection,
}

impl User {
    async fn new(up: &Up) -> Self {
        let credentials = Credentials::read(&up.kubeconfig()).expect("a kubeconfig");
        let mut watch = credentials.connect().await;
        let path = format!("{PODS}?watch=true&timeoutSeconds=600");
        let answer = watch.send("GET", &path, &[], Bytes::new()).await.expect("a watch");
        assert_eq!(answer.status(), 200);
        let pods = Lines::new(answer.into_body());
        User { connection: credentials.connect().await, pods, _watch: watch }
    }

    /// The next event: its type and the pod.
    async fn event(&mut self) -> (String, Value) {
        let line = self.pods.next().await.expect("the watch goes on");
        let mut event: Value = serde_json::from_slice(line).expect("JSON");
        (event["type"].as_str().unwrap_or_default().into(), event["object"].take())
    }

    /// One pod up and down; gives the seconds of both.
    async fn round(&mut self, name: &str) -> (f64, f64) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "web", "image": IMAGE}]},
        });
        let began = Instant::now();
        self.connection.create(PODS, pod.to_string().into()).await;
        self.wait_for(1, is_running).await;
        let up = began.elapsed().as_secs_f64();
        let began = Instant::now();
        self.connection.delete(&format!("{PODS}/{name}")).await;
        self.wait_for(1, |kind, _| kind == "DELETED").await;
        (up, began.elapsed().as_secs_f64())
    }

    /// Seconds from the creation of a Deployment until all its pods run.
    async fn deployment(&mut self) -> f64 {
        let labels = json!({"app": "many"});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many"},
            "spec": {"replicas": REPLICAS, "selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "web", "image": IMAGE}]},
            }},
        });
        let began = Instant::now();
        self.connection.create(DEPLOYMENTS, deployment.to_string().into()).await;
        self.wait_for(REPLICAS, is_running).await;
        let took = began.elapsed().as_secs_f64();
        self.connection.delete(&format!("{DEPLOYMENTS}/many?propagationPolicy=Background")).await;
        self.wait_for(REPLICAS, |kind, _| kind == "DELETED").await;
        took
    }

    /// Returns once so many different pods were seen so.
    async fn wait_for(&mut self, count: usize, is_so: impl Fn(&str, &Value) -> bool) {
        let mut seen = BTreeSet::new();
        let all = async {
            while seen.len() < count {
                let (kind, pod) = self.event().await;
                if is_so(&kind, &pod) {
                    seen.insert(pod["metadata"]["uid"].to_string());
                }
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(60), all).await;
        assert!(done.is_ok(), "{} of {count} pods within 60 s", seen.len());
    }
}

fn is_running(kind: &str, pod: &Value) -> bool {
    kind != "DELETED" && pod["status"]["phase"] == "Running"
}

/// Memory and CPU of control plane and agent when nothing happens.
pub fn idle() -> Vec<Figure> {
    let up = Up::start();
    let mut figures = quiet(&up, ["memory of an idle cluster", "its CPU"], 60.0);
    load(&up.kubeconfig(), &["pods", "1000"]);
    figures.extend(quiet(&up, ["the same with 1,000 pod objects", "its CPU then"], 120.0));
    up.stop();
    figures
}

fn quiet(up: &Up, names: [&'static str; 2], limit: f64) -> Vec<Figure> {
    std::thread::sleep(SETTLE);
    let (server, agent) = (up.server(), up.agent());
    let cpu = || cpu_us(server) + cpu_us(agent);
    let before = cpu();
    std::thread::sleep(IDLE);
    let percent = (cpu() - before) / (IDLE.as_secs_f64() * 1e6) * 100.0;
    let memory = (resident_mb(server), resident_mb(agent));
    vec![
        Figure {
            name: names[0],
            value: memory.0 + memory.1,
            unit: "MB",
            target: Target::Below(limit),
            note: format!("control plane {:.1}, agent {:.1}", memory.0, memory.1),
        },
        Figure {
            name: names[1],
            value: percent,
            unit: "% core",
            target: Target::Below(1.0),
            note: "over 30 s".into(),
        },
    ]
}
