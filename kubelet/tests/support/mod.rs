//! An API server in memory, behind `kube::Client`: enough of list, watch, get, create, patch and
//! delete for a kubelet. It records every write, so that tests can count them.

#![allow(dead_code, reason = "each test uses its part")]

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// A watch event: the collection's path, its type, the object.
type Event = (String, &'static str, Value);
type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

#[derive(Default)]
struct State {
    /// By path, such as `/api/v1/namespaces/default/pods/web`.
    objects: BTreeMap<String, Value>,
    revision: u64,
    writes: Vec<(Method, String, Value)>,
}

/// The server; clones share it.
#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Event>,
}

impl Api {
    pub fn new() -> Self {
        Self { state: Arc::default(), events: broadcast::channel(4096).0 }
    }

    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    /// Writes to paths that contain `part`.
    pub fn writes(&self, part: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.writes.iter().filter(|w| w.1.contains(part)).map(|w| w.2.clone()).collect()
    }

    /// Reasons of all events so far.
    pub fn reasons(&self) -> Vec<String> {
        let writes = self.writes("/events");
        writes.iter().filter_map(|w| Some(w["reason"].as_str()?.to_owned())).collect()
    }

    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let is_new = !state.objects.contains_key(path);
        let meta = &mut object["metadata"];
        meta["name"] = path.rsplit('/').next().unwrap().into();
        meta["resourceVersion"] = state.revision.to_string().into();
        if meta.get("uid").is_none() {
            meta["uid"] = format!("uid-{}", state.revision).into();
        }
        if let Some(namespace) = path.split("/namespaces/").nth(1).and_then(|p| p.split_once('/')) {
            meta["namespace"] = namespace.0.into();
        }
        state.objects.insert(path.to_owned(), object.clone());
        let _ = self.events.send((path.into(), if is_new { "ADDED" } else { "MODIFIED" }, object));
    }

    /// Deletes as the API does: a pod gets its grace period first.
    pub fn delete(&self, path: &str, grace: i64) {
        let Some(mut object) = self.get(path) else { return };
        if grace > 0 {
            let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
            object["metadata"]["deletionTimestamp"] =
                at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
            object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
            return self.put(path, object);
        }
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        state.objects.remove(path);
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        let _ = self.events.send((path.into(), "DELETED", object));
    }

    /// Waits until the object at `path` satisfies `condition`; panics with its last version.
    pub async fn until(
        &self,
        path: &str,
        what: &str,
        condition: impl Fn(Option<&Value>) -> bool,
    ) -> Value {
        let mut events = self.events.subscribe();
        let wait = async {
            loop {
                let object = self.get(path);
                if condition(object.as_ref()) {
                    return object.unwrap_or_default();
                }
                let _ = events.recv().await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(20), wait).await {
            Ok(object) => object,
            Err(_) => panic!("{path} is not {what}: {:#}", self.get(path).unwrap_or_default()),
        }
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        if parts.method != Method::GET {
            let mut state = self.state.lock().unwrap();
            state.writes.push((parts.method.clone(), path.clone(), body.clone()));
        }
        match parts.method {
            Method::GET if query.contains("watch=true") => self.watch(&path, &query),
            Method::GET => match self.get(&path) {
                Some(object) => answer(StatusCode::OK, &object),
                None if is_collection(&path) => self.list(&path, &query),
                None => failure(StatusCode::NOT_FOUND, &path),
            },
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let path = format!("{path}/{name}");
                if self.get(&path).is_some() {
                    return failure(StatusCode::CONFLICT, &path);
                }
                self.put(&path, body);
                answer(StatusCode::CREATED, &self.get(&path).unwrap())
            }
            Method::PATCH => {
                let path = path.trim_end_matches("/status");
                let Some(mut object) = self.get(path) else {
                    return failure(StatusCode::NOT_FOUND, path);
                };
                merge(&mut object, &body);
                self.put(path, object);
                answer(StatusCode::OK, &self.get(path).unwrap())
            }
            Method::DELETE => {
                let Some(object) = self.get(&path) else {
                    return failure(StatusCode::NOT_FOUND, &path);
                };
                self.delete(&path, body["gracePeriodSeconds"].as_i64().unwrap_or(30));
                answer(StatusCode::OK, &object)
            }
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, &path),
        }
    }

    fn list(&self, path: &str, query: &str) -> Answer {
        let state = self.state.lock().unwrap();
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(at, object)| is_in(path, at) && selects(query, object))
            .map(|(_, object)| object)
            .collect();
        let revision = state.revision.to_string();
        answer(
            StatusCode::OK,
            &json!({"kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": revision}, "items": items}),
        )
    }

    fn watch(&self, path: &str, query: &str) -> Answer {
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let from: u64 = from.and_then(|from| from.parse().ok()).unwrap_or(0);
        let (path, query) = (path.to_owned(), query.to_owned());
        // What was written between the list and this call.
        let state = self.state.lock().unwrap();
        let revision = |object: &Value| -> u64 {
            object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
        };
        let missed: Vec<Event> = state
            .objects
            .iter()
            .filter(|(_, object)| revision(object) > from)
            .map(|(at, object)| (at.clone(), "MODIFIED", object.clone()))
            .collect();
        let live = BroadcastStream::new(self.events.subscribe()).filter_map(|e| async { e.ok() });
        let events =
            futures::stream::iter(missed).chain(live).filter_map(move |(at, kind, object)| {
                let wanted = is_in(&path, &at) && selects(&query, &object);
                let line = format!("{}\n", json!({"type": kind, "object": object}));
                async move { wanted.then(|| Ok::<_, Infallible>(Frame::data(Bytes::from(line)))) }
            });
        Response::new(StreamBody::new(events).boxed_unsync())
    }
}

fn is_collection(path: &str) -> bool {
    let kinds = ["pods", "nodes", "services", "configmaps", "secrets", "events", "leases"];
    kinds.contains(&path.rsplit('/').next().unwrap_or_default())
}

/// Whether an object's path belongs to a collection, or to one of all namespaces.
fn is_in(collection: &str, path: &str) -> bool {
    let kind = collection.rsplit('/').next().unwrap_or_default();
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    parent == collection
        || (!collection.contains("/namespaces/") && parent.ends_with(&format!("/{kind}")))
}

fn selects(query: &str, object: &Value) -> bool {
    let query = query.replace("%3D", "=");
    let field = |name: &str| {
        query
            .split('&')
            .find_map(|p| p.strip_prefix("fieldSelector=")?.strip_prefix(name))
            .map(str::to_owned)
    };
    field("spec.nodeName=").is_none_or(|node| object["spec"]["nodeName"] == node.as_str())
        && field("metadata.name=").is_none_or(|name| object["metadata"]["name"] == name.as_str())
}

/// A merge patch, with conditions merged by type as a strategic merge does.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else if key == "conditions" && target[key].is_array() {
            let own = |list: &Value, one: &Value| {
                list.as_array().unwrap().iter().any(|c| c["type"] == one["type"])
            };
            let mut kept: Vec<Value> = target[key]
                .as_array()
                .unwrap()
                .iter()
                .filter(|c| !own(value, c))
                .cloned()
                .collect();
            kept.extend(value.as_array().unwrap().iter().cloned());
            target[key] = kept.into();
        } else if value.is_object() && target[key].is_object() {
            merge(&mut target[key], value);
        } else {
            target[key] = value.clone();
        }
    }
}

fn answer(status: StatusCode, value: &Value) -> Answer {
    let body = http_body_util::Full::new(Bytes::from(value.to_string())).boxed_unsync();
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

fn failure(status: StatusCode, path: &str) -> Answer {
    answer(
        status,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": status.as_u16(), "reason": status.canonical_reason(), "message": path}),
    )
}
