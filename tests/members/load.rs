//! Clients of a cluster that is hurt while they work: writers, readers, watchers. Each knows all
//! members and goes on to the next when one does not answer. What they saw is judged afterwards
//! ([`crate::checks`]); what can be judged at once is noted as broken.

use crate::checks::{Acked, Event, Kind, Records};
use crate::cluster::Cluster;
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use rand::Rng;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const MAPS: &str = "/api/v1/namespaces/load/configmaps";
/// Where the readers look for the cluster's revision; few objects are there.
const SMALL: &str = "/api/v1/namespaces/default/configmaps";
pub const COUNTERS: usize = 2;
const WRITERS: usize = 6;
/// One for each member to begin with; the last one goes on to the next member all the time.
const WATCHERS: usize = 4;
/// After how many events the restless one leaves its member.
const RESTLESS: usize = 25;
/// How long a client waits for an answer before it asks another member.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two requests of a client: the two cores are for the members too.
const PACE: Duration = Duration::from_millis(20);
/// A writer removes what it made so many writes ago; a multiple of the kinds of writes.
const KEPT: u64 = 99;
/// The name of the last write.
const LAST: &str = "last";

/// What all clients saw.
#[derive(Default)]
struct Seen {
    records: Mutex<Records>,
    acknowledged_at: Mutex<Vec<Instant>>,
    /// The newest revision that was acknowledged to anybody.
    newest: AtomicU64,
    /// The create that was acknowledged last.
    made_last: Mutex<Option<String>>,
    /// By how much this busy machine woke a sleeper too late, in microseconds, at worst.
    late: AtomicU64,
}

impl Seen {
    fn acknowledge(&self, kind: Kind, name: &str, revision: u64, value: u64) {
        self.acknowledged_at.lock().unwrap().push(Instant::now());
        self.newest.fetch_max(revision, Ordering::SeqCst);
        let acked = Acked { kind, name: name.into(), revision, value };
        self.records.lock().unwrap().acknowledged.push(acked);
    }

    fn unknown(&self, name: &str) {
        self.records.lock().unwrap().unknown.push(name.into());
    }

    fn refused(&self, name: &str) {
        self.records.lock().unwrap().refused.push(name.into());
    }

    fn broken(&self, what: String) {
        eprintln!("BROKEN: {what}");
        self.records.lock().unwrap().broken.push(what);
    }
}

/// What came of a request.
enum Sent {
    Answer(u16, Value),
    /// It may have arrived.
    Unknown,
}

/// The ways to all members, the one in use among them.
#[derive(Clone)]
struct Ways {
    clients: Vec<kube::Client>,
    at: usize,
}

impl Ways {
    async fn send(&mut self, method: Method, path: &str, body: Option<&Value>) -> Sent {
        let text = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path);
        let request = request.header("content-type", "application/json").body(Body::from(text));
        let client = self.clients[self.at].clone();
        let work = async move {
            let answer = client.send(request.expect("a request")).await.ok()?;
            let (head, body) = answer.into_parts();
            let bytes = body.collect().await.ok()?.to_bytes();
            let value = serde_json::from_slice(&bytes).unwrap_or_default();
            Some((head.status.as_u16(), value))
        };
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(Some((code, value))) => {
                if code >= 500 {
                    self.next();
                }
                Sent::Answer(code, value)
            }
            _ => {
                self.next();
                Sent::Unknown
            }
        }
    }

    fn next(&mut self) {
        self.at = (self.at + 1) % self.clients.len();
    }

    fn anywhere(&mut self) {
        self.at = rand::rng().random_range(0..self.clients.len());
    }
}

/// Clients at work.
pub struct Load {
    seen: Arc<Seen>,
    ways: Ways,
    stop: CancellationToken,
    writers: Vec<JoinHandle<()>>,
    readers: Vec<JoinHandle<()>>,
    watchers: Vec<JoinHandle<Vec<Event>>>,
}

impl Load {
    /// Makes what the clients need, and starts them.
    pub fn start(cluster: &Cluster) -> Self {
        cluster.rkubectl(0, &["create", "namespace", "load"]).ok();
        let clients = || (0..cluster.count()).map(|m| cluster.client(0, &[m])).collect();
        let ways = |at: usize| Ways { clients: clients(), at: at % cluster.count() };
        let mut setting_up = ways(0);
        let revision = cluster.block_on(async {
            let ways = &mut setting_up;
            for counter in 0..COUNTERS {
                let made =
                    ways.send(Method::POST, MAPS, Some(&map(&counter_name(counter), 0))).await;
                assert!(matches!(made, Sent::Answer(201, _)), "a counter");
            }
            match ways.send(Method::GET, MAPS, None).await {
                Sent::Answer(200, list) => revision_of(&list),
                _ => panic!("no list"),
            }
        });
        let (seen, stop) = (Arc::new(Seen::default()), CancellationToken::new());
        let runtime = cluster.runtime();
        let writer = |n| runtime.spawn(write(n, ways(n), seen.clone(), stop.clone()));
        let watcher = |n| runtime.spawn(watch(n, ways(n), revision, seen.clone()));
        let readers = vec![
            runtime.spawn(read_fresh(ways(1), seen.clone(), stop.clone())),
            runtime.spawn(read_any(ways(2), seen.clone(), stop.clone())),
            runtime.spawn(note_lateness(seen.clone(), stop.clone())),
        ];
        Load {
            writers: (0..WRITERS).map(writer).collect(),
            watchers: (0..WATCHERS).map(watcher).collect(),
            readers,
            ways: setting_up,
            seen,
            stop,
        }
    }

    /// When writes were acknowledged, in order.
    pub fn acknowledged_at(&self) -> Vec<Instant> {
        self.seen.acknowledged_at.lock().unwrap().clone()
    }

    /// How late this machine was at worst: no figure can be better than that.
    pub fn late(&self) -> Duration {
        Duration::from_micros(self.seen.late.load(Ordering::Relaxed))
    }

    /// Ends the clients and gives what they saw: the watchers all up to the last write.
    pub fn finish(mut self, cluster: &Cluster) -> Records {
        self.stop.cancel();
        cluster.block_on(async {
            for task in self.writers.drain(..).chain(self.readers.drain(..)) {
                task.await.expect("a client");
            }
            let last = self.ways.send(Method::POST, MAPS, Some(&map(LAST, 0))).await;
            assert!(matches!(last, Sent::Answer(201, _)), "the last write");
            for (n, watcher) in self.watchers.drain(..).enumerate() {
                let end = tokio::time::timeout(Duration::from_secs(20), watcher).await;
                let events = end.unwrap_or_else(|_| panic!("watcher {n} does not come to the end"));
                self.seen.records.lock().unwrap().watched.push(events.expect("a watcher"));
            }
        });
        std::mem::take(&mut *self.seen.records.lock().unwrap())
    }
}

fn counter_name(counter: usize) -> String {
    format!("counter-{counter}")
}

fn map(name: &str, value: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"value": value.to_string()}})
}

/// The revision of an object or a list; 0 without one.
pub fn revision_of(value: &Value) -> u64 {
    let text = value["metadata"]["resourceVersion"].as_str();
    text.and_then(|t| t.parse().ok()).unwrap_or(0)
}

pub fn value_of(object: &Value) -> u64 {
    object["data"]["value"].as_str().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX)
}

/// Creates objects under names of its own, now and then adds to a counter that it shares, and
/// removes what is old.
async fn write(own: usize, mut ways: Ways, seen: Arc<Seen>, stop: CancellationToken) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for n in 0u64.. {
        pace.tick().await;
        if stop.is_cancelled() {
            return;
        }
        match n % 3 {
            0 => count_up(&mut ways, own % COUNTERS, &seen).await,
            1 if n > KEPT => remove(&mut ways, &format!("w{own}-{}", n + 1 - KEPT), &seen).await,
            1 => {}
            _ => create(&mut ways, &format!("w{own}-{n}"), n, &seen).await,
        }
    }
}

async fn create(ways: &mut Ways, name: &str, value: u64, seen: &Seen) {
    match ways.send(Method::POST, MAPS, Some(&map(name, value))).await {
        Sent::Answer(201, object) => {
            seen.acknowledge(Kind::Added, name, revision_of(&object), value);
            *seen.made_last.lock().unwrap() = Some(name.into());
        }
        // Not done, says the server.
        Sent::Answer(503, _) => seen.refused(name),
        Sent::Answer(500.., _) | Sent::Unknown => seen.unknown(name),
        Sent::Answer(code, why) => seen.broken(format!("creating {name}: {code} {why}")),
    }
}

async fn count_up(ways: &mut Ways, counter: usize, seen: &Seen) {
    let name = counter_name(counter);
    let path = format!("{MAPS}/{name}");
    let Sent::Answer(200, mut object) = ways.send(Method::GET, &path, None).await else { return };
    let value = value_of(&object) + 1;
    object["data"]["value"] = value.to_string().into();
    match ways.send(Method::PUT, &path, Some(&object)).await {
        Sent::Answer(200, object) => {
            seen.acknowledge(Kind::Modified, &name, revision_of(&object), value);
        }
        // Another writer was faster, or nobody knows: the next read tells.
        Sent::Answer(409 | 500.., _) | Sent::Unknown => {}
        Sent::Answer(code, why) => seen.broken(format!("counting {name} up: {code} {why}")),
    }
}

async fn remove(ways: &mut Ways, name: &str, seen: &Seen) {
    match ways.send(Method::DELETE, &format!("{MAPS}/{name}"), None).await {
        Sent::Answer(200, _) => seen.acknowledge(Kind::Deleted, name, 0, 0),
        // It may never have been made.
        Sent::Answer(404 | 500.., _) | Sent::Unknown => {}
        Sent::Answer(code, why) => seen.broken(format!("removing {name}: {code} {why}")),
    }
}

/// Reads from whichever member: whatever was acknowledged before must be there.
async fn read_fresh(mut ways: Ways, seen: Arc<Seen>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        ways.anywhere();
        let newest = seen.newest.load(Ordering::SeqCst);
        let name = seen.made_last.lock().unwrap().clone();
        if let Sent::Answer(200, list) = ways.send(Method::GET, SMALL, None).await
            && revision_of(&list) < newest
        {
            let (at, revision) = (ways.at, revision_of(&list));
            seen.broken(format!("member {at} is at {revision}, {newest} was acknowledged"));
        }
        if let Some(name) = name
            && let Sent::Answer(404, _) =
                ways.send(Method::GET, &format!("{MAPS}/{name}"), None).await
        {
            seen.broken(format!("{name} was acknowledged and a member does not know it"));
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Reads whatever a member has: for one client time must not go back.
async fn read_any(mut ways: Ways, seen: Arc<Seen>, stop: CancellationToken) {
    let path = format!("{SMALL}?resourceVersion=0");
    let mut before = 0;
    while !stop.is_cancelled() {
        ways.anywhere();
        if let Sent::Answer(200, list) = ways.send(Method::GET, &path, None).await {
            let now = revision_of(&list);
            if now < before {
                seen.broken(format!("resourceVersion=0 went back from {before} to {now}"));
            }
            before = now;
        }
        tokio::time::sleep(PACE).await;
    }
}

async fn note_lateness(seen: Arc<Seen>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let began = Instant::now();
        tokio::time::sleep(PACE).await;
        let late = began.elapsed().saturating_sub(PACE).as_micros() as u64;
        seen.late.fetch_max(late, Ordering::Relaxed);
    }
}

/// Watches until the last write, over however many streams.
async fn watch(number: usize, mut ways: Ways, mut revision: u64, seen: Arc<Seen>) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let (mut streams, restless) = (0, number + 1 == WATCHERS);
    loop {
        let path = format!("{MAPS}?watch=1&allowWatchBookmarks=true&resourceVersion={revision}");
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let opened = ways.clients[ways.at].send(request);
        if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, opened).await
            && answer.status() == 200
        {
            streams += 1;
            let mut lines = Lines::of(answer.into_body());
            let leaves = if restless { events.len() + RESTLESS } else { usize::MAX };
            while events.len() < leaves
                && let Some(line) = lines.next().await
            {
                let value: Value = serde_json::from_slice(&line).unwrap_or_default();
                if value["type"] == "ERROR" {
                    seen.broken(format!("watcher {number} at {revision}: {}", value["object"]));
                    return events;
                }
                revision = revision_of(&value["object"]);
                let Some(event) = event_of(&value, revision) else { continue };
                let last = event.name == LAST;
                events.push(event);
                if last {
                    eprintln!("watcher {number}: {} events over {streams} streams", events.len());
                    return events;
                }
            }
        }
        ways.next();
        tokio::time::sleep(PACE).await;
    }
}

fn event_of(value: &Value, revision: u64) -> Option<Event> {
    let kind = match value["type"].as_str()? {
        "ADDED" => Kind::Added,
        "MODIFIED" => Kind::Modified,
        "DELETED" => Kind::Deleted,
        _ => return None,
    };
    let name = value["object"]["metadata"]["name"].as_str().unwrap_or_default().into();
    Some(Event { kind, name, revision, value: value_of(&value["object"]) })
}

/// The lines of a body.
struct Lines {
    body: Body,
    buffer: Vec<u8>,
}

impl Lines {
    fn of(body: Body) -> Self {
        Lines { body, buffer: Vec::new() }
    }

    /// The next whole line; None when the stream ends, however it does.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                return Some(std::mem::replace(&mut self.buffer, rest));
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}
