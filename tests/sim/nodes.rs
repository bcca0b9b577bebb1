//! Simulated nodes with a life of their own: they register, renew leases, run pods and end them,
//! late at times; they die, come back, and are deleted while dead.

use crate::history::{History, Name};
use crate::rest::{condition, is_ready, is_terminal};
use crate::wire::Wire;
use http::Request;
use jiff::Timestamp;
use kube::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rkube_apiserver::Identity;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

const COUNT: usize = 4;
/// Small, so that room is scarce.
pub const MILLI_CPU: u64 = 2000;
pub const MEBIBYTES: u64 = 2048;
pub const PODS: usize = 12;
const RENEW_EVERY: Duration = Duration::from_millis(400);
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// The nodes; those without a task are dead.
pub struct Nodes {
    wire: Arc<Wire>,
    history: Arc<History>,
    rng: StdRng,
    alive: Vec<Option<JoinHandle<()>>>,
    addresses: Arc<AtomicU32>,
    /// Whether statuses are written late.
    slow: Arc<AtomicBool>,
}

impl Nodes {
    pub fn new(wire: Arc<Wire>, history: Arc<History>, seed: u64) -> Self {
        let alive = (0..COUNT).map(|_| None).collect();
        let (addresses, slow) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        let rng = StdRng::seed_from_u64(seed);
        let mut nodes = Nodes { wire, history, rng, alive, addresses, slow };
        (0..COUNT).for_each(|index| nodes.boot(index));
        nodes
    }

    fn boot(&mut self, index: usize) {
        let name = format!("n{index}");
        let tracker = TaskTracker::new();
        let node = Node {
            client: self.wire.link(Identity::node(&name), true, &tracker),
            name,
            history: self.history.clone(),
            rng: StdRng::seed_from_u64(self.rng.random()),
            addresses: self.addresses.clone(),
            slow: self.slow.clone(),
            due: HashMap::new(),
        };
        self.alive[index] = Some(tokio::spawn(node.live()));
    }

    /// Kills a node, with or without its object, or brings a dead one back.
    pub async fn disturb(&mut self, rng: &mut StdRng) {
        let index = rng.random_range(0..COUNT);
        let Some(task) = self.alive[index].take() else { return self.boot(index) };
        task.abort();
        if rng.random_bool(0.3) {
            let path = format!("/api/v1/nodes/n{index}");
            let request = Request::delete(path).body(Vec::new()).expect("a request");
            // A lost deletion is no worse than none.
            let _ = self.wire.client("sim-user").request::<Value>(request).await;
        }
    }

    /// All nodes live and are swift.
    pub async fn heal(&mut self) {
        self.slow.store(false, Ordering::SeqCst);
        for index in 0..COUNT {
            // One whose object was deleted has to register again.
            if let Some(task) = self.alive[index].take() {
                task.abort();
            }
            self.boot(index);
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.alive.iter().flatten().for_each(JoinHandle::abort);
    }
}

struct Node {
    name: String,
    client: Client,
    history: Arc<History>,
    rng: StdRng,
    addresses: Arc<AtomicU32>,
    slow: Arc<AtomicBool>,
    /// When a pod's next step is due, by its uid and step.
    due: HashMap<(String, &'static str), Instant>,
}

impl Node {
    async fn live(mut self) {
        let mut renewed = None::<Instant>;
        while self.register().await.is_err() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        loop {
            if renewed.is_none_or(|at| at.elapsed() > RENEW_EVERY) && self.renew().await.is_ok() {
                renewed = Some(Instant::now());
            }
            for (name, pod) in self.history.objects("Pod") {
                if pod["spec"]["nodeName"] == *self.name {
                    self.step(&name, &pod).await;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> kube::Result<Value> {
        let media = match method {
            "PATCH" => "application/strategic-merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder().method(method).uri(path).header("content-type", media);
        let request =
            request.body(body.to_string().into_bytes()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    async fn register(&self) -> kube::Result<()> {
        let resources = json!({
            "cpu": format!("{MILLI_CPU}m"), "memory": format!("{MEBIBYTES}Mi"),
            "pods": PODS.to_string(),
        });
        let mut node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}},
        });
        let status = json!({"status": {
            "capacity": resources, "allocatable": resources, "conditions": [ready(true)],
        }});
        node["status"] = status["status"].clone();
        match self.send("POST", "/api/v1/nodes", node).await {
            Err(kube::Error::Api(refusal)) if refusal.code == 409 => {}
            other => return other.map(drop),
        }
        self.send("PATCH", &format!("/api/v1/nodes/{}/status", self.name), status).await.map(drop)
    }

    async fn renew(&self) -> kube::Result<()> {
        const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let nodes = self.history.objects("Node");
        let Some(node) = nodes.get(&(String::new(), self.name.clone())) else { return Ok(()) };
        if condition(node, "Ready") != Some("True") {
            let path = format!("/api/v1/nodes/{}/status", self.name);
            self.send("PATCH", &path, json!({"status": {"conditions": [ready(true)]}})).await?;
        }
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let spec = json!({
            "holderIdentity": self.name, "leaseDurationSeconds": 4, "renewTime": now,
        });
        let path = format!("{LEASES}/{}", self.name);
        match self.send("PATCH", &path, json!({"spec": spec})).await {
            Err(kube::Error::Api(refusal)) if refusal.code == 404 => {}
            other => return other.map(drop),
        }
        let owner = json!({
            "apiVersion": "v1", "kind": "Node", "name": self.name,
            "uid": node["metadata"]["uid"],
        });
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
            "metadata": {"name": self.name, "ownerReferences": [owner]},
        });
        self.send("POST", LEASES, lease).await.map(drop)
    }

    /// What a kubelet does next about a pod, when it is time; what fails is tried again.
    async fn step(&mut self, (namespace, name): &Name, pod: &Value) {
        let going = !pod["metadata"]["deletionTimestamp"].is_null();
        let step = match going {
            true => "end",
            false if is_terminal(pod) || is_ready(pod) => return,
            false => "run",
        };
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let late = if self.slow.load(Ordering::SeqCst) { 600 } else { 80 };
        let delay = Duration::from_millis(self.rng.random_range(0..late));
        let due = self.due.entry((uid.into(), step)).or_insert(Instant::now() + delay);
        if *due > Instant::now() {
            return;
        }
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let done = match step {
            "end" => {
                let options = json!({
                    "kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0,
                    "preconditions": {"uid": uid},
                });
                self.send("DELETE", &path, options).await
            }
            _ => {
                let status = self.outcome(pod);
                let patch = json!({"metadata": {"uid": uid}, "status": status});
                self.send("PATCH", &format!("{path}/status"), patch).await
            }
        };
        if done.is_ok() {
            self.due.remove(&(uid.to_owned(), step));
        }
    }

    /// Most pods run; a few fail while things go wrong.
    fn outcome(&mut self, pod: &Value) -> Value {
        if self.slow.load(Ordering::SeqCst) && self.rng.random_bool(0.05) {
            let mut unready = ready(false);
            unready["reason"] = "PodFailed".into();
            return json!({"phase": "Failed", "reason": "Evicted", "conditions": [unready]});
        }
        let address = match pod["status"]["podIP"].as_str() {
            Some(known) => known.to_owned(),
            None => {
                let n = self.addresses.fetch_add(1, Ordering::SeqCst);
                std::net::Ipv4Addr::from(0x6440_0000 + n).to_string()
            }
        };
        json!({
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [ready(true)],
        })
    }
}

fn ready(is: bool) -> Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({
        "type": "Ready", "status": if is { "True" } else { "False" }, "reason": "Simulated",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    })
}
