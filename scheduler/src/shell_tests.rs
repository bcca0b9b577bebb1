//! Tests of the shell against an API server of a few lines.

use super::*;
use crate::snapshot::tests::{node, pod};
use http::{Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use rkube_runtime::event::Occurrence;
use rkube_runtime::{ObjectKey, Store};
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;

/// What becomes of a binding.
#[derive(Clone, Copy)]
enum Fate {
    /// 409, and nothing has changed.
    Conflict,
    /// 403
    Forbidden,
    /// 503, nothing has changed.
    Lost,
    /// The pod is bound; no answer, and the watch does not show it.
    Unanswered,
    /// No answer; the pod is bound after the next live read, and the watch does not show it.
    Late,
    /// 409: somebody else has bound it to that node, and the watch does not show it.
    Elsewhere(&'static str),
    /// No answer; the pod has been deleted, and the watch does not show it.
    Removed,
}

/// An API server whose watch shows what is in the store. It binds pods, some as it is told.
struct Fake {
    /// What the watch has shown.
    pods: Store<Pod>,
    /// Pods as they are, None for deleted ones, where the watch has not shown that.
    ahead: Mutex<HashMap<ObjectKey, Option<Pod>>>,
    /// Of the next bindings of pods.
    fates: Mutex<Vec<(&'static str, Fate)>>,
    late: Mutex<Option<(ObjectKey, String)>>,
    /// Live reads that fail.
    unreadable: Mutex<usize>,
    /// Live reads that were answered or not.
    reads: Mutex<usize>,
    /// The bindings asked for: pod and node.
    bindings: Mutex<Vec<(String, String)>>,
    versions: Mutex<u64>,
    patches: Mutex<Vec<Value>>,
}

/// Status code and body; None if the connection broke.
type Answer = Option<(u16, Value)>;

impl Fake {
    fn answer(&self, path: &str, body: &[u8]) -> Answer {
        let parts: Vec<&str> = path.split('/').collect();
        let key = ObjectKey::new(parts[4], parts[6]);
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match parts.get(7).copied() {
            None => self.read(&key),
            Some("binding") => self.bind(&key, &sent),
            Some("status") => {
                let Some(mut live) = self.live(&key) else { return not_found() };
                live.status = serde_json::from_value(sent["status"].clone()).unwrap();
                self.patches.lock().push(sent);
                Some((200, serde_json::to_value(self.next(live)).unwrap()))
            }
            Some(other) => panic!("unexpected subresource {other}"),
        }
    }

    fn live(&self, key: &ObjectKey) -> Option<Pod> {
        let ahead = self.ahead.lock().get(key).cloned();
        ahead.unwrap_or_else(|| self.pods.get(key).map(|pod| (*pod).clone()))
    }

    fn read(&self, key: &ObjectKey) -> Answer {
        *self.reads.lock() += 1;
        let mut unreadable = self.unreadable.lock();
        if *unreadable > 0 {
            *unreadable -= 1;
            return (*unreadable > 0).then(|| (500, status("InternalError", 500)));
        }
        let live = self.live(key);
        if let Some((key, node)) = self.late.lock().take() {
            self.bind_ahead(&key, &node);
        }
        live.map_or_else(not_found, |live| Some((200, serde_json::to_value(live).unwrap())))
    }

    fn bind(&self, key: &ObjectKey, sent: &Value) -> Answer {
        let node = sent["target"]["name"].as_str().unwrap();
        self.bindings.lock().push((key.name.clone(), node.into()));
        let Some(mut live) = self.live(key) else { return not_found() };
        assert_eq!(sent["metadata"]["uid"], Value::from(live.metadata.uid.clone()));
        if live.spec.as_ref().unwrap().node_name.is_some() {
            return Some((409, status("Conflict", 409)));
        }
        match self.fate(&key.name) {
            Some(Fate::Conflict) => Some((409, status("Conflict", 409))),
            Some(Fate::Forbidden) => Some((403, status("Forbidden", 403))),
            Some(Fate::Lost) => Some((503, status("ServiceUnavailable", 503))),
            Some(Fate::Unanswered) => {
                self.bind_ahead(key, node);
                None
            }
            Some(Fate::Late) => {
                *self.late.lock() = Some((key.clone(), node.into()));
                None
            }
            Some(Fate::Elsewhere(other)) => {
                self.bind_ahead(key, other);
                Some((409, status("Conflict", 409)))
            }
            Some(Fate::Removed) => {
                self.ahead.lock().insert(key.clone(), None);
                None
            }
            None => {
                live.spec.as_mut().unwrap().node_name = Some(node.into());
                self.pods.apply(self.next(live));
                let bound = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
                Some((201, bound))
            }
        }
    }

    fn fate(&self, pod: &str) -> Option<Fate> {
        let mut fates = self.fates.lock();
        let next = fates.iter().position(|(name, _)| *name == pod)?;
        Some(fates.remove(next).1)
    }

    fn bind_ahead(&self, key: &ObjectKey, node: &str) {
        let mut live = self.live(key).unwrap();
        live.spec.as_mut().unwrap().node_name = Some(node.into());
        let live = self.next(live);
        self.ahead.lock().insert(key.clone(), Some(live));
    }

    /// The watch shows all that has happened.
    fn catch_up(&self) {
        for (key, live) in self.ahead.lock().drain() {
            match live {
                Some(live) => self.pods.apply(live),
                None => self.pods.delete(&self.pods.get(&key).unwrap()),
            }
        }
    }

    fn next(&self, mut pod: Pod) -> Pod {
        let mut version = self.versions.lock();
        *version += 10;
        pod.metadata.resource_version = Some(version.to_string());
        pod
    }
}

fn status(reason: &str, code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "message": reason, "code": code})
}

fn not_found() -> Answer {
    Some((404, status("NotFound", 404)))
}

struct Running {
    fake: Arc<Fake>,
    nodes: Store<Node>,
    events: mpsc::Receiver<Occurrence>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn start(fates: &[(&'static str, Fate)]) -> Running {
    let caches = Caches::offline();
    let (pods, nodes) = (caches.store::<Pod>(), caches.store::<Node>());
    let fake = Arc::new(Fake {
        pods,
        ahead: Mutex::default(),
        fates: Mutex::new(fates.to_vec()),
        late: Mutex::default(),
        unreadable: Mutex::default(),
        reads: Mutex::default(),
        bindings: Mutex::default(),
        versions: Mutex::new(1000),
        patches: Mutex::default(),
    });
    let server = fake.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let path = request.uri().path().to_string();
            let body = request.into_body().collect_bytes().await?;
            let Some((code, answer)) = server.answer(&path, &body) else {
                return Err(kube::Error::Service("connection reset".into()));
            };
            let response = Response::builder()
                .status(code)
                .body(Body::from(answer.to_string().into_bytes()))
                .unwrap();
            Ok(response)
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

/// With a node that `a` would fill, when what became of its binding is about to be read.
async fn start_unclear(fates: &[(&'static str, Fate)]) -> Running {
    let r = start(fates);
    r.add_node("n", "1");
    r.add_pod(pod("a", "1"));
    r.reads(1).await;
    r
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

    /// Waits until so many live reads were asked for.
    async fn reads(&self, count: usize) {
        while *self.fake.reads.lock() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The next events, sorted: reason and pod.
    async fn events(&mut self, count: usize) -> Vec<(String, String)> {
        let mut events = Vec::new();
        for _ in 0..count {
            let event = self.events.recv().await.unwrap();
            events.push((event.reason, event.involved.name.unwrap()));
        }
        events.sort();
        events
    }

    fn bindings(&self) -> Vec<(String, String)> {
        self.fake.bindings.lock().clone()
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn pods_are_bound_and_told_so() {
    let mut r = start(&[]);
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
    let mut r = start(&[]);
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
    let r = start(&[("a", Fate::Conflict)]);
    r.add_node("n", "2");
    r.add_pod(pod("a", "1"));
    r.add_pod(pod("b", "1"));
    assert_eq!((r.bound_to("a").await, r.bound_to("b").await), ("n".into(), "n".into()));
    r.end().await;
}

#[tokio::test]
async fn gated_pods_are_told_that_they_are() {
    let r = start(&[]);
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
    let r = start(&[]);
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

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
}

#[tokio::test]
async fn an_answer_was_lost_but_the_pod_is_bound() {
    let mut r = start(&[("a", Fate::Unanswered)]);
    r.add_node("n", "1");
    r.add_pod(pod("a", "1"));
    assert_eq!(r.events(1).await, pairs(&[("Scheduled", "a")]));
    r.add_pod(pod("b", "1"));
    assert_eq!(r.events(1).await, pairs(&[("FailedScheduling", "b")]));
    // The watch shows an older change first.
    let mut older = pod("a", "1");
    let bound = r.fake.live(&ObjectKey::new("default", "a")).unwrap();
    let version: u64 = bound.metadata.resource_version.unwrap().parse().unwrap();
    older["metadata"]["labels"] = json!({"k": "v"});
    older["metadata"]["resourceVersion"] = (version - 1).to_string().into();
    r.fake.pods.apply(serde_json::from_value(older).unwrap());
    r.add_pod(pod("c", "2"));
    assert_eq!(r.events(1).await, pairs(&[("FailedScheduling", "c")]));
    r.fake.catch_up();
    let a = r.fake.pods.named("default", "a").unwrap();
    r.fake.pods.delete(&a);
    assert_eq!(r.bound_to("b").await, "n");
    assert_eq!(r.bindings(), pairs(&[("a", "n"), ("b", "n")]));
    r.end().await;
}

#[tokio::test]
async fn a_lost_binding_is_sent_again_to_the_node_that_kept_its_room() {
    let r = start_unclear(&[("a", Fate::Lost)]).await;
    r.add_node("m", "1");
    r.add_pod(pod("b", "1"));
    assert_eq!((r.bound_to("b").await, r.bound_to("a").await), ("m".into(), "n".into()));
    let asked = r.bindings().into_iter().filter(|(pod, _)| pod == "a");
    assert_eq!(asked.collect::<Vec<_>>(), pairs(&[("a", "n"), ("a", "n")]));
    r.end().await;
}

#[tokio::test]
async fn a_copy_that_comes_late_finds_its_room() {
    let mut r = start_unclear(&[("a", Fate::Late)]).await;
    r.add_pod(pod("b", "1"));
    // The second copy is refused, and what that means is read.
    assert_eq!(r.events(2).await, pairs(&[("FailedScheduling", "b"), ("Scheduled", "a")]));
    assert_eq!(r.bindings(), pairs(&[("a", "n"), ("a", "n")]));
    assert_eq!(*r.fake.reads.lock(), 2);
    r.end().await;
}

#[tokio::test]
async fn a_conflict_does_not_tell_of_the_copy_that_was_lost() {
    let mut r = start(&[("a", Fate::Lost), ("a", Fate::Conflict)]);
    r.add_node("n", "1");
    r.add_pod(pod("a", "1"));
    r.reads(2).await;
    r.add_pod(pod("b", "1"));
    assert_eq!(r.events(2).await, pairs(&[("FailedScheduling", "b"), ("Scheduled", "a")]));
    assert_eq!(r.bindings(), pairs(&[("a", "n"), ("a", "n"), ("a", "n")]));
    r.end().await;
}

#[tokio::test]
async fn room_is_kept_while_the_pod_cannot_be_read() {
    let mut r = start(&[("a", Fate::Unanswered)]);
    *r.fake.unreadable.lock() = 3;
    r.add_node("n", "1");
    r.add_pod(pod("a", "1"));
    r.reads(1).await;
    r.add_pod(pod("b", "1"));
    assert_eq!(r.events(2).await, pairs(&[("FailedScheduling", "b"), ("Scheduled", "a")]));
    assert_eq!(*r.fake.reads.lock(), 4);
    assert_eq!(r.bindings(), pairs(&[("a", "n")]));
    r.end().await;
}

#[tokio::test]
async fn a_pod_that_somebody_else_bound_is_where_it_is() {
    let mut r = start(&[("a", Fate::Elsewhere("m"))]);
    // So that `b` is refused first, and must be told of the room.
    *r.fake.unreadable.lock() = 2;
    r.add_node("n", "1");
    r.add_pod(pod("a", "1"));
    r.reads(1).await;
    r.add_pod(pod("b", "1"));
    assert_eq!(r.bound_to("b").await, "n");
    r.add_node("m", "1");
    r.add_pod(pod("c", "1"));
    let mut events = r.events(1).await;
    while !events.iter().any(|(_, pod)| pod == "c") {
        events.extend(r.events(1).await);
    }
    assert_eq!(events.last().unwrap().0, "FailedScheduling");
    assert_eq!(r.bindings(), pairs(&[("a", "n"), ("b", "n")]));
    r.end().await;
}

#[tokio::test]
async fn a_pod_that_is_gone_takes_no_room() {
    let r = start(&[("a", Fate::Removed), ("b", Fate::Conflict)]);
    r.add_node("n", "1");
    r.add_pod(pod("a", "1"));
    r.add_pod(pod("b", "1"));
    // Before `b` is tried again `a` would have been.
    assert_eq!(r.bound_to("b").await, "n");
    assert_eq!(r.bindings(), pairs(&[("a", "n"), ("b", "n"), ("b", "n")]));
    r.end().await;
}

#[tokio::test]
async fn a_refused_copy_frees_the_room() {
    let r = start_unclear(&[("a", Fate::Lost), ("a", Fate::Forbidden)]).await;
    r.add_pod(pod("b", "1"));
    assert_eq!(r.bound_to("b").await, "n");
    assert_eq!(r.bindings(), pairs(&[("a", "n"), ("a", "n"), ("b", "n")]));
    r.end().await;
}

#[tokio::test]
async fn a_pod_that_goes_before_it_is_bound_takes_no_room() {
    let r = start_unclear(&[("a", Fate::Lost)]).await;
    let mut leaving = pod("a", "1");
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    leaving["metadata"]["finalizers"] = json!(["example.com/hold"]);
    r.add_pod(leaving);
    r.add_pod(pod("b", "1"));
    assert_eq!(r.bound_to("b").await, "n");
    assert_eq!(r.bindings(), pairs(&[("a", "n"), ("b", "n")]));
    r.end().await;
}

#[tokio::test]
async fn a_lost_binding_is_not_sent_again_to_a_cordoned_node() {
    let r = start_unclear(&[("a", Fate::Lost)]).await;
    let mut cordoned = node("n", "1");
    cordoned["spec"] = json!({"unschedulable": true});
    cordoned["metadata"]["resourceVersion"] = "2".into();
    r.nodes.apply(serde_json::from_value(cordoned).unwrap());
    r.add_node("m", "1");
    assert_eq!(r.bound_to("a").await, "m");
    assert_eq!(r.bindings(), pairs(&[("a", "n"), ("a", "m")]));
    r.end().await;
}
