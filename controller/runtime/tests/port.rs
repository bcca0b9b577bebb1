//! Caches and client against an API server that a closure plays.

use http::{Method, Request, Response};
use k8s_openapi::api::core::v1::Node;
use kube::{api::Patch, client::Body};
use parking_lot::Mutex;
use rkube_runtime::{
    Caches, Client, LeaderScope, LeaseScope, Metrics, ObjectKey,
    client::{LEADER_TERM, instrument},
    leader::LeaseTimes,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

type Requests = Arc<Mutex<Vec<(Method, String, Option<String>)>>>;

/// A client whose requests are logged and answered by `answer`; no answer keeps the request waiting.
fn client(
    log: Requests,
    answer: impl Fn(&Method, &str, &Requests) -> Option<(u16, String)> + Send + Sync + 'static,
) -> kube::Client {
    let answer = Arc::new(answer);
    let serve = move |request: Request<Body>| {
        let (log, answer) = (log.clone(), answer.clone());
        async move {
            let uri = request.uri().to_string();
            let term = request.headers().get(LEADER_TERM);
            let term = term.and_then(|t| t.to_str().ok()).map(str::to_owned);
            log.lock().push((request.method().clone(), uri.clone(), term));
            let Some((code, body)) = answer(request.method(), &uri, &log) else {
                return std::future::pending().await;
            };
            let response = Response::builder().status(code).body(Body::from(body.into_bytes()));
            Ok::<_, std::convert::Infallible>(response.unwrap())
        }
    };
    kube::Client::new(tower::service_fn(serve), "default")
}

fn node(name: &str, version: u64, label: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": name, "resourceVersion": version.to_string(),
            "labels": {"l": label}, "managedFields": [{"manager": "x"}]},
    })
}

/// Two nodes; the first watch changes one, deletes the other and ends, the second waits.
fn nodes(method: &Method, uri: &str, log: &Requests) -> Option<(u16, String)> {
    if *method == Method::PATCH {
        return Some((200, node("a", 20, "patched").to_string()));
    }
    if !uri.contains("watch=true") {
        let list = json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "10"},
            "items": [node("a", 5, "old"), node("b", 6, "old")]});
        return Some((200, list.to_string()));
    }
    let watches = log.lock().iter().filter(|(_, uri, _)| uri.contains("watch=true")).count();
    let event = |kind: &str, object: Value| json!({"type": kind, "object": object}).to_string();
    let events = [event("MODIFIED", node("a", 11, "new")), event("DELETED", node("b", 12, "old"))];
    (watches == 1).then(|| (200, events.join("\n") + "\n"))
}

fn label(caches: &Caches, name: &str) -> Option<String> {
    let node = caches.store::<Node>().named("", name)?;
    node.metadata.labels.as_ref()?.get("l").cloned()
}

async fn until(mut test: impl FnMut() -> bool) {
    let wait = async {
        while !test() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the condition holds in time");
}

#[tokio::test]
async fn a_kind_is_listed_once_and_watched_from_there() {
    let log = Requests::default();
    let caches = Caches::new(client(log.clone(), nodes));
    let (first, second) = (caches.store::<Node>(), caches.store::<Node>());
    first.wait_synced().await;
    until(|| label(&caches, "a").as_deref() == Some("new") && second.len() == 1).await;
    until(|| log.lock().len() == 3).await;
    let uris: Vec<String> = log.lock().iter().map(|(_, uri, _)| uri.clone()).collect();
    assert!(uris[1].contains("resourceVersion=10") && uris[1].contains("allowWatchBookmarks=true"));
    assert!(uris[2].contains("resourceVersion=12"), "{uris:?}");
    assert_eq!(first.named("", "a").unwrap().metadata.managed_fields, None);
}

#[tokio::test]
async fn a_write_carries_the_term_and_is_seen_at_once() {
    let (log, lost) = (Requests::default(), CancellationToken::new());
    let kube = client(log.clone(), nodes);
    let caches = Caches::new(kube.clone());
    until(|| label(&caches, "a").as_deref() == Some("new")).await;
    let writer = instrument(kube, Metrics::default(), Some(7), lost.clone());
    let writer = Client::new(writer, caches.clone(), "me");
    let patch = || Patch::Merge(json!({"metadata": {"labels": {"l": "patched"}}}));
    writer.patch::<Node>(&ObjectKey::cluster("a"), patch()).await.unwrap();
    assert_eq!(label(&caches, "a").as_deref(), Some("patched"));
    let sent = log.lock().iter().find(|(method, ..)| *method == Method::PATCH).cloned().unwrap();
    assert!(sent.1.contains("fieldManager=me"), "{}", sent.1);
    assert_eq!(sent.2.as_deref(), Some("7"));
    lost.cancel();
    let refused = writer.patch::<Node>(&ObjectKey::cluster("a"), patch()).await.unwrap_err();
    assert!(refused.to_string().starts_with("patch Node a: "), "{refused}");
    assert_eq!(log.lock().iter().filter(|(method, ..)| *method == Method::PATCH).count(), 1);
}

#[tokio::test]
async fn a_lease_is_created_kept_and_released() {
    let lease = |holder: &str, version: usize| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "l", "namespace": "kube-system", "resourceVersion": version.to_string()},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 1, "leaseTransitions": 3}})
    };
    let answer = move |method: &Method, _uri: &str, log: &Requests| match *method {
        // Held by another, who never renews it, until the first write.
        Method::GET => {
            let writes = log.lock().iter().filter(|(m, ..)| *m != Method::GET).count();
            let holder = if writes == 0 { "other" } else { "me" };
            Some((200, lease(holder, 100 + writes).to_string()))
        }
        _ => Some((200, lease("me", 200).to_string())),
    };
    let log = Requests::default();
    let kube = client(log.clone(), answer);
    let writer = Client::new(kube.clone(), Caches::offline(), "me");
    let times = LeaseTimes {
        duration: Duration::from_secs(1),
        renew_deadline: Duration::from_millis(500),
        retry_period: Duration::from_millis(50),
    };
    let key = ObjectKey::new("kube-system", "l");
    let scope = LeaseScope::new(writer, key, "me", times);
    let start = tokio::time::Instant::now();
    let term = scope.acquire().await;
    assert!(start.elapsed() >= Duration::from_secs(1), "the other's time must have passed");
    assert_eq!(term.number, 4);
    let writes = || log.lock().iter().filter(|(m, ..)| *m == Method::PATCH).count();
    until(|| writes() >= 3).await;
    assert!(!term.lost.is_cancelled());
    let before = writes();
    term.give_up().await;
    assert!(writes() > before, "the lease is released before the term is given up");
}
