//! Tests of the shell against an API server of a few lines.

use super::*;
use crate::snapshot::tests::{node, pod};
use http::{Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use rkube_runtime::event::Occurrence;
use rkube_runtime::{ObjectKey, Store};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::mpsc;

/// Binds pods in the store; the first `conflicts` bindings are refused.
struct Fake {
    pods: Store<Pod>,
    conflicts: Mutex<usize>,
    versions: Mutex<u64>,
    patches: Mutex<Vec<Value>>,
}

impl Fake {
    fn answer(&self, path: &str, body: &[u8]) -> (u16, Value) {
        let parts: Vec<&str> = path.split('/').collect();
        let sent: Value = serde_json::from_slice(body).unwrap();
        let key = ObjectKey::new(parts[4], parts[6]);
        let Some(live) = self.pods.get(&key) else { return (404, status("NotFound", 404)) };
        let mut live = (*live).clone();
        match parts[7] {
            "binding" => {
                let mut conflicts = self.conflicts.lock();
                if *conflicts > 0 {
                    *conflicts -= 1;
                    return (409, status("Conflict", 409));
                }
                assert_eq!(sent["metadata"]["uid"], Value::from(live.metadata.uid.clone()));
                live.spec.as_mut().unwrap().node_name =
                    sent["target"]["name"].as_str().map(String::from);
                self.pods.apply(self.next(live));
                (
                    201,
                    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
                )
            }
            "status" => {
                live.status = serde_json::from_value(sent["status"].clone()).unwrap();
                self.patches.lock().push(sent);
                (200, serde_json::to_value(self.next(live)).unwrap())
            }
            other => panic!("unexpected subresource {other}"),
        }
    }

    fn next(&self, mut pod: Pod) -> Pod {
        let mut version = self.versions.lock();
        *version += 1;
        pod.metadata.resource_version = Some(version.to_string());
        pod
    }
}

fn status(reason: &str, code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "message": reason, "code": code})
}

struct Running {
    fake: Arc<Fake>,
    nodes: Store<Node>,
    events: mpsc::Receiver<Occurrence>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn start(conflicts: usize) -> Running {
    let caches = Caches::offline();
    let (pods, nodes) = (caches.store::<Pod>(), caches.store::<Node>());
    let fake = Arc::new(Fake {
        pods,
        conflicts: Mutex::new(conflicts),
        versions: Mutex::new(1000),
        patches: Mutex::default(),
    });
    let server = fake.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let path = request.uri().path().to_string();
            let body = request.into_body().collect_bytes().await?;
            let (code, answer) = server.answer(&path, &body);
            let response = Response::builder()
                .status(code)
                .body(Body::from(answer.to_string().into_bytes()))
                .unwrap();
            Ok::<_, kube::Error>(response)
        }
    });
    let client =
        Client::new(kube::Client::new(service, "default"), caches.clone(), "kube-scheduler");
    let (recorder, events) = Recorder::channel(rkube_runtime::Metrics::default());
    let stop = CancellationToken::new();
    let scheduler = Scheduler {
        caches,
        client,
        recorder,
        metrics: Metrics::default(),
        config: SchedulerConfig::default(),
    };
    let task = tokio::spawn(scheduler.run(stop.clone()));
    Running { fake, nodes, events, stop, task }
}

impl Running {
    fn add_node(&self, name: &str, cpu: &str) {
        self.nodes.apply(serde_json::from_value(node(name, cpu)).unwrap());
    }

    fn add_pod(&self, value: Value) {
        let pod = serde_json::from_value(value).unwrap();
        self.fake.pods.apply(self.fake.next(pod));
    }

    async fn bound_to(&self, name: &str) -> String {
        loop {
            let pod = self.fake.pods.named("default", name);
            if let Some(node) = pod.and_then(|p| p.spec.as_ref()?.node_name.clone()) {
                return node;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn pods_are_bound_and_told_so() {
    let mut r = start(0);
    r.add_node("n", "4");
    r.add_pod(pod("a", "1"));
    assert_eq!(r.bound_to("a").await, "n");
    let event = r.events.recv().await.unwrap();
    assert_eq!(
        (event.reason.as_str(), event.message.as_str()),
        ("Scheduled", "Successfully assigned default/a to n")
    );
    let mut other = pod("b", "1");
    other["spec"]["schedulerName"] = "another".into();
    r.add_pod(other);
    r.add_pod(pod("c", "1"));
    r.bound_to("c").await;
    assert!(r.fake.pods.named("default", "b").unwrap().spec.as_ref().unwrap().node_name.is_none());
    r.end().await;
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_is_told_why_and_placed_when_it_fits() {
    let mut r = start(0);
    r.add_node("n", "1");
    r.add_pod(pod("a", "1250m"));
    let event = r.events.recv().await.unwrap();
    assert_eq!(event.reason, "FailedScheduling");
    assert_eq!(event.message, "0/1 nodes are available: 1 Insufficient cpu. n: cpu short by 250m");
    while r.fake.patches.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let condition = r.fake.patches.lock()[0]["status"]["conditions"][0].clone();
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("Unschedulable"))
    );
    assert_eq!(condition["message"], event.message);
    r.add_node("m", "2");
    assert_eq!(r.bound_to("a").await, "m");
    r.end().await;
}

#[tokio::test]
async fn a_failed_binding_takes_back_that_pod_alone() {
    let r = start(1);
    r.add_node("n", "2");
    r.add_pod(pod("a", "1"));
    r.add_pod(pod("b", "1"));
    assert_eq!((r.bound_to("a").await, r.bound_to("b").await), ("n".into(), "n".into()));
    r.end().await;
}

#[tokio::test]
async fn gated_pods_are_told_that_they_are() {
    let r = start(0);
    r.add_node("n", "2");
    let mut gated = pod("a", "1");
    gated["spec"]["schedulingGates"] = json!([{"name": "g"}]);
    r.add_pod(gated);
    while r.fake.patches.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(r.fake.patches.lock()[0]["status"]["conditions"][0]["reason"], "SchedulingGated");
    r.add_pod(pod("a", "1"));
    assert_eq!(r.bound_to("a").await, "n");
    r.end().await;
}

#[tokio::test]
async fn a_deleted_pod_makes_room() {
    let r = start(0);
    r.add_node("n", "1");
    r.add_pod(pod("a", "1"));
    r.bound_to("a").await;
    r.add_pod(pod("b", "1"));
    while r.fake.patches.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let a = r.fake.pods.named("default", "a").unwrap();
    r.fake.pods.delete(&a);
    assert_eq!(r.bound_to("b").await, "n");
    r.end().await;
}
