//! What the watches tell, from the first revision on: every event of every kind, and the state
//! that follows.

use futures::StreamExt;
use http::Request;
use kube::Client;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The kinds that are watched, and where.
pub const KINDS: [(&str, &str); 8] = [
    ("Namespace", "/api/v1/namespaces"),
    ("Node", "/api/v1/nodes"),
    ("Pod", "/api/v1/pods"),
    ("Service", "/api/v1/services"),
    ("ReplicaSet", "/apis/apps/v1/replicasets"),
    ("Deployment", "/apis/apps/v1/deployments"),
    ("EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices"),
    ("Lease", "/apis/coordination.k8s.io/v1/leases"),
];

/// Namespace and name.
pub type Name = (String, String);
/// The objects of a kind.
pub type Objects = BTreeMap<Name, Arc<Value>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub revision: u64,
    pub kind: &'static str,
    pub change: Change,
    pub object: Arc<Value>,
}

#[derive(Default)]
struct Kind {
    start: u64,
    revision: u64,
    listed: Objects,
    objects: Objects,
    events: Vec<Event>,
}

/// All that was told. Shared with whoever wants to know how things are.
#[derive(Default)]
pub struct History {
    kinds: BTreeMap<&'static str, Mutex<Kind>>,
    faults: Mutex<Vec<String>>,
}

pub fn name_of(object: &Value) -> Name {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

pub fn revision_of(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    text.parse().unwrap_or(0)
}

/// Folds events into objects; says what does not fit.
pub fn fold(objects: &mut Objects, event: &Event) -> Option<String> {
    let name = name_of(&event.object);
    let uid = |o: &Value| o["metadata"]["uid"].clone();
    let old = match event.change {
        Change::Deleted => objects.remove(&name),
        _ => objects.insert(name.clone(), event.object.clone()),
    };
    let fits = match (event.change, &old) {
        (Change::Added, old) => old.is_none(),
        (_, Some(old)) => uid(old) == uid(&event.object) && revision_of(old) < event.revision,
        (_, None) => false,
    };
    (!fits).then(|| format!("{:?} {} {name:?} at {}", event.change, event.kind, event.revision))
}

/// The object as lists and watches both tell it: lists leave out what all items share.
fn bare(mut object: Value) -> Arc<Value> {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    Arc::new(object)
}

async fn list(client: &Client, path: &str) -> kube::Result<(u64, Objects)> {
    let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    let list: Value = client.request(request).await?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let objects = items.into_iter().map(|o| (name_of(&o), bare(o))).collect();
    Ok((revision_of(&list), objects))
}

impl History {
    /// Lists every kind, then watches it until the history is dropped.
    pub async fn follow(client: Client) -> Arc<Self> {
        let mut history = History::default();
        for (kind, path) in KINDS {
            let (revision, objects) = list(&client, path).await.expect("the first list");
            let listed = objects.clone();
            let state = Kind { start: revision, revision, listed, objects, events: Vec::new() };
            history.kinds.insert(kind, Mutex::new(state));
        }
        let history = Arc::new(history);
        for (kind, path) in KINDS {
            tokio::spawn(keep_watching(Arc::downgrade(&history), client.clone(), kind, path));
        }
        history
    }

    pub fn objects(&self, kind: &str) -> Objects {
        self.kinds[kind].lock().objects.clone()
    }

    /// The highest revision told.
    pub fn revision(&self) -> u64 {
        self.kinds.values().map(|k| k.lock().revision).max().unwrap_or(0)
    }

    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().clone()
    }

    /// All events in order of revision; what was there at first comes as added.
    pub fn merged(&self) -> Vec<Event> {
        let mut all = Vec::new();
        for (kind, state) in &self.kinds {
            let state = state.lock();
            all.extend(state.listed.values().map(|object| Event {
                revision: revision_of(object),
                kind,
                change: Change::Added,
                object: object.clone(),
            }));
            all.extend(state.events.iter().cloned());
        }
        all.sort_by_key(|event| event.revision);
        all
    }

    fn take(&self, kind: &'static str, told: &Value) -> Result<(), String> {
        let object = bare(told["object"].clone());
        let revision = revision_of(&object);
        let change = match told["type"].as_str().unwrap_or_default() {
            "ADDED" => Change::Added,
            "MODIFIED" => Change::Modified,
            "DELETED" => Change::Deleted,
            "BOOKMARK" => {
                let mut state = self.kinds[kind].lock();
                state.revision = state.revision.max(revision);
                return Ok(());
            }
            _ => return Err(format!("{kind}: {told}")),
        };
        let mut state = self.kinds[kind].lock();
        if revision <= state.revision {
            let last = state.revision;
            self.faults.lock().push(format!("watch of {kind}: {revision} after {last}"));
        }
        state.revision = revision;
        let event = Event { revision, kind, change, object };
        let fault = fold(&mut state.objects, &event);
        self.faults.lock().extend(fault.map(|f| format!("watch out of step: {f}")));
        state.events.push(event);
        Ok(())
    }

    /// Compares what was watched with lists, and with watches that tell all of it again.
    pub async fn compare(&self, client: &Client) -> Vec<String> {
        let mut faults = Vec::new();
        for (kind, path) in KINDS {
            let (upto, listed) = list(client, path).await.expect("a list");
            let start = self.kinds[kind].lock().start;
            let again = replay(client, kind, path, start, upto).await;
            let reached = || self.kinds[kind].lock().revision >= upto;
            let last = again.last().map_or(0, |e| e.revision);
            let caught_up = || reached() || self.kinds[kind].lock().revision >= last;
            if !wait_until(Duration::from_secs(10), caught_up).await {
                faults.push(format!("the watch of {kind} ends before {last}"));
            }
            let state = self.kinds[kind].lock();
            let mut objects = state.listed.clone();
            let seen: Vec<Event> =
                state.events.iter().filter(|e| e.revision <= upto).cloned().collect();
            drop(state);
            seen.iter().for_each(|event| drop(fold(&mut objects, event)));
            if objects != listed {
                faults.push(format!("{kind}: what was watched is not what is listed at {upto}"));
            }
            if seen != again {
                let at = seen.iter().zip(&again).position(|(a, b)| a != b);
                faults.push(format!("{kind}: a second watch differs, at {at:?} of {}", seen.len()));
            }
        }
        faults
    }
}

/// Waits for a condition.
pub async fn wait_until(within: Duration, condition: impl Fn() -> bool) -> bool {
    let polling = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(within, polling).await.is_ok()
}

fn watch_request(path: &str, from: u64) -> Request<Vec<u8>> {
    let query = format!("watch=true&allowWatchBookmarks=true&resourceVersion={from}");
    Request::get(format!("{path}?{query}")).body(Vec::new()).expect("a request")
}

async fn keep_watching(
    history: std::sync::Weak<History>,
    client: Client,
    kind: &'static str,
    path: &'static str,
) {
    while let Some(from) = history.upgrade().map(|h| h.kinds[kind].lock().revision) {
        let events = client.request_events_raw(watch_request(path, from)).await;
        let Ok(mut events) = events else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        while let Some(Ok(told)) = events.next().await {
            let Some(history) = history.upgrade() else { return };
            if let Err(fault) = history.take(kind, &told) {
                history.faults.lock().push(fault);
                return;
            }
        }
    }
}

/// Tells the events of a kind again, up to a revision; where nothing comes any more it ends.
async fn replay(
    client: &Client,
    kind: &'static str,
    path: &str,
    from: u64,
    upto: u64,
) -> Vec<Event> {
    let mut again = History::default();
    again.kinds.insert(kind, Mutex::new(Kind { start: from, ..Kind::default() }));
    let Ok(mut events) = client.request_events_raw(watch_request(path, from)).await else {
        return Vec::new();
    };
    // Old events come at once; what has not come for this long is not going to.
    while let Ok(Some(Ok(told))) = tokio::time::timeout(Duration::from_secs(2), events.next()).await
    {
        if again.take(kind, &told).is_err() || again.kinds[kind].lock().revision >= upto {
            break;
        }
    }
    let state = again.kinds.remove(kind).map(Mutex::into_inner).unwrap_or_default();
    state.events.into_iter().filter(|e| e.revision <= upto).collect()
}

/// Raw events of a watch.
trait RawEvents {
    async fn request_events_raw(
        &self,
        request: Request<Vec<u8>>,
    ) -> kube::Result<std::pin::Pin<Box<dyn futures::Stream<Item = std::io::Result<Value>> + Send>>>;
}

impl RawEvents for Client {
    async fn request_events_raw(
        &self,
        request: Request<Vec<u8>>,
    ) -> kube::Result<std::pin::Pin<Box<dyn futures::Stream<Item = std::io::Result<Value>> + Send>>>
    {
        use futures::AsyncBufReadExt;
        let lines = self.request_stream(request).await?.lines();
        let values = lines.map(|line| Ok(serde_json::from_str(&line?)?));
        Ok(Box::pin(values))
    }
}
