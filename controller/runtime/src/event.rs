//! Events as users see them in `kubectl describe`: recorded off the caller's path, the same event
//! counted rather than repeated, similar ones combined, and each object's share limited.
//!
//! [`Correlator`] decides without I/O; a [`Recorder`] hands occurrences to one task that writes.

use crate::{Cached, Client, Metrics, ObjectKey};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::api::Patch;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use tokio::sync::mpsc;

/// How many occurrences may wait to be written: a burst of a thousand pods' events; what comes on
/// top is dropped and counted, since events are a courtesy and must not slow their source.
const WAITING: usize = 1024;
/// Similar events within this time are combined.
const WINDOW: SignedDuration = SignedDuration::from_mins(10);
/// So many different messages of one kind are told apart within the window.
const SIMILAR: usize = 10;
/// An object may have this many events at once …
const BURST: f64 = 25.0;
/// … and gains one more every five minutes.
const REFILL_SECONDS: f64 = 300.0;
/// How many event sources are remembered.
const REMEMBERED: usize = 4096;

/// How grave an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// For information.
    Normal,
    /// Something is wrong.
    Warning,
}

impl EventType {
    /// As in an Event's `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Occurrence {
    /// To what.
    pub involved: ObjectReference,
    /// How grave.
    pub kind: EventType,
    /// In one word: `ScalingReplicaSet`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// Records events; clones share the writer.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Occurrence>,
    metrics: Metrics,
}

impl Recorder {
    /// Records as `component` (on `host`, empty for components of the cluster) through `client`,
    /// with a task of its own that ends with the last clone.
    pub fn new(client: Client, component: &str, host: &str, metrics: Metrics) -> Self {
        let (recorder, receiver) = Self::channel(metrics.clone());
        let correlator = Correlator::new(component, host);
        tokio::spawn(write_all(client, correlator, receiver, metrics));
        recorder
    }

    /// A recorder whose occurrences the caller reads.
    pub fn channel(metrics: Metrics) -> (Self, mpsc::Receiver<Occurrence>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Recorder { sender, metrics }, receiver)
    }

    /// Records that something happened to `object` now.
    pub fn event<K: Cached>(&self, object: &K, kind: EventType, reason: &str, message: &str) {
        self.event_about(reference(object), kind, reason, message);
    }

    /// Records that something happened to what `involved` names.
    pub fn event_about(
        &self,
        involved: ObjectReference,
        kind: EventType,
        reason: &str,
        message: &str,
    ) {
        let occurrence = Occurrence {
            involved,
            kind,
            reason: reason.into(),
            message: message.into(),
            at: Timestamp::now(),
        };
        if self.sender.try_send(occurrence).is_err() {
            self.metrics.event_dropped();
        }
    }
}

/// A reference to an object, as events carry it.
pub fn reference<K: Cached>(object: &K) -> ObjectReference {
    let meta = object.object_meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

async fn write_all(
    client: Client,
    mut correlator: Correlator,
    mut receiver: mpsc::Receiver<Occurrence>,
    metrics: Metrics,
) {
    while let Some(occurrence) = receiver.recv().await {
        let written = match correlator.record(occurrence) {
            Record::Drop => {
                metrics.event_dropped();
                Ok(())
            }
            Record::Create(event) => client.create(event.as_ref()).await.map(drop),
            Record::Count { event, key } => count(&client, &key, &event).await,
        };
        if let Err(error) = written {
            tracing::debug!(%error, "event not recorded");
        }
    }
}

/// Counts a recorded event on; if it has expired it is recorded anew.
async fn count(client: &Client, key: &ObjectKey, event: &Event) -> Result<(), crate::ClientError> {
    let patch = json!({
        "count": event.count,
        "lastTimestamp": event.last_timestamp,
        "message": event.message,
    });
    match client.patch::<Event>(key, Patch::Merge(patch)).await {
        Err(error) if error.is_not_found() => client.create(event).await.map(drop),
        other => other.map(drop),
    }
}

/// What to do about an occurrence.
#[derive(Debug, PartialEq)]
pub enum Record {
    /// The object has used up its share.
    Drop,
    /// Write this event.
    Create(Box<Event>),
    /// The event `key` has happened again; `event` is how it reads now.
    Count {
        /// The recorded event.
        key: ObjectKey,
        /// As it reads now.
        event: Box<Event>,
    },
}

/// Tells new events from repeated and similar ones, and limits each object's share.
pub struct Correlator {
    component: String,
    host: String,
    similar: HashMap<Kind, Similar>,
    known: HashMap<(Kind, String), Known>,
    shares: HashMap<String, Share>,
}

/// What similar events have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    object: String,
    field: String,
    kind: EventType,
    reason: String,
}

struct Similar {
    messages: HashSet<String>,
    last: Timestamp,
}

struct Known {
    name: String,
    count: i32,
    first: Timestamp,
    last: Timestamp,
}

struct Share {
    tokens: f64,
    last: Timestamp,
}

impl Correlator {
    /// Events of `component` on `host`.
    pub fn new(component: &str, host: &str) -> Self {
        Correlator {
            component: component.into(),
            host: host.into(),
            similar: HashMap::new(),
            known: HashMap::new(),
            shares: HashMap::new(),
        }
    }

    /// What to do about an occurrence.
    pub fn record(&mut self, occurrence: Occurrence) -> Record {
        self.forget_old(occurrence.at);
        let kind = kind_of(&occurrence);
        if !self.spend(&kind.object, occurrence.at) {
            return Record::Drop;
        }
        let (message, discriminator) = self.combine(&kind, &occurrence);
        let at = occurrence.at;
        let known = self.known.entry((kind, discriminator));
        let again = matches!(known, std::collections::hash_map::Entry::Occupied(_));
        let known = known.or_insert_with(|| Known {
            name: name_of(&occurrence),
            count: 0,
            first: at,
            last: at,
        });
        known.count = known.count.saturating_add(1);
        known.last = at;
        let event = Box::new(event(&self.component, &self.host, &occurrence, known, message));
        match again {
            true => Record::Count { key: ObjectKey::of(&event.metadata), event },
            false => Record::Create(event),
        }
    }

    /// Takes a token from the object's bucket.
    fn spend(&mut self, object: &str, at: Timestamp) -> bool {
        let full = Share { tokens: BURST, last: at };
        let share = self.shares.entry(object.to_owned()).or_insert(full);
        let gained = at.duration_since(share.last).as_secs_f64().max(0.0) / REFILL_SECONDS;
        share.tokens = (share.tokens + gained).min(BURST);
        share.last = at;
        let enough = share.tokens >= 1.0;
        share.tokens -= f64::from(enough);
        enough
    }

    /// The message to write and what tells this event from its like.
    fn combine(&mut self, kind: &Kind, occurrence: &Occurrence) -> (String, String) {
        let at = occurrence.at;
        let new = || Similar { messages: HashSet::new(), last: at };
        let similar = self.similar.entry(kind.clone()).or_insert_with(new);
        if at.duration_since(similar.last) > WINDOW {
            similar.messages.clear();
        }
        similar.last = at;
        let message = &occurrence.message;
        if similar.messages.contains(message) || similar.messages.len() < SIMILAR {
            similar.messages.insert(message.clone());
            return (message.clone(), message.clone());
        }
        (format!("(combined from similar events): {message}"), String::new())
    }

    /// Keeps the memory bounded: what is older than the window goes first, then everything.
    fn forget_old(&mut self, now: Timestamp) {
        let fresh = |last: Timestamp| now.duration_since(last) <= WINDOW;
        if self.known.len() >= REMEMBERED {
            self.known.retain(|_, k| fresh(k.last));
        }
        if self.similar.len() >= REMEMBERED {
            self.similar.retain(|_, s| fresh(s.last));
        }
        if self.shares.len() >= REMEMBERED {
            self.shares.retain(|_, s| fresh(s.last));
        }
        if self.known.len().max(self.similar.len()).max(self.shares.len()) >= 2 * REMEMBERED {
            self.known.clear();
            self.similar.clear();
            self.shares.clear();
        }
    }
}

fn kind_of(occurrence: &Occurrence) -> Kind {
    let o = &occurrence.involved;
    let part = |field: &Option<String>| field.clone().unwrap_or_default();
    Kind {
        object: [part(&o.kind), part(&o.namespace), part(&o.name), part(&o.uid)].join("/"),
        field: part(&o.field_path),
        kind: occurrence.kind,
        reason: occurrence.reason.clone(),
    }
}

/// `<object>.<time in hexadecimal nanoseconds>`; the field and message keep apart what happens at
/// the same nanosecond.
fn name_of(occurrence: &Occurrence) -> String {
    let name = occurrence.involved.name.as_deref().unwrap_or_default();
    format!("{name}.{:x}", occurrence.at.as_nanosecond())
}

fn event(component: &str, host: &str, o: &Occurrence, known: &Known, message: String) -> Event {
    let involved = o.involved.clone();
    let namespace = involved.namespace.clone().filter(|n| !n.is_empty());
    Event {
        metadata: ObjectMeta {
            name: Some(known.name.clone()),
            namespace: Some(namespace.unwrap_or_else(|| "default".into())),
            ..Default::default()
        },
        involved_object: involved,
        type_: Some(o.kind.as_str().into()),
        reason: Some(o.reason.clone()),
        message: Some(message),
        count: Some(known.count),
        first_timestamp: Some(Time(seconds(known.first))),
        last_timestamp: Some(Time(seconds(known.last))),
        source: Some(EventSource {
            component: Some(component.into()),
            host: (!host.is_empty()).then(|| host.into()),
        }),
        reporting_component: Some(component.into()),
        reporting_instance: Some(host.into()),
        ..Default::default()
    }
}

/// Times of the API are whole seconds.
pub(crate) fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(message: &str, second: i64) -> Occurrence {
        Occurrence {
            involved: ObjectReference {
                kind: Some("Pod".into()),
                name: Some("web".into()),
                namespace: Some("shop".into()),
                ..Default::default()
            },
            kind: EventType::Warning,
            reason: "BackOff".into(),
            message: message.into(),
            at: Timestamp::from_second(second).unwrap(),
        }
    }

    #[test]
    fn a_repeated_event_is_counted() {
        let mut correlator = Correlator::new("kubelet", "n1");
        let Record::Create(first) = correlator.record(occurrence("x", 1)) else { panic!() };
        let Record::Count { key, event } = correlator.record(occurrence("x", 9)) else { panic!() };
        assert_eq!(key, ObjectKey::of(&first.metadata));
        assert_eq!(key.namespace, "shop");
        assert_eq!((first.count, event.count), (Some(1), Some(2)));
        assert_eq!(event.first_timestamp, first.first_timestamp);
        assert_eq!(event.last_timestamp, Some(Time(Timestamp::from_second(9).unwrap())));
    }

    #[test]
    fn many_similar_events_are_combined() {
        let mut correlator = Correlator::new("kubelet", "n1");
        for n in 0..10 {
            let record = correlator.record(occurrence(&format!("m{n}"), n));
            assert!(matches!(record, Record::Create(_)), "{n}");
        }
        let Record::Create(event) = correlator.record(occurrence("m10", 10)) else { panic!() };
        assert_eq!(event.message.as_deref(), Some("(combined from similar events): m10"));
        let Record::Count { event, .. } = correlator.record(occurrence("m11", 11)) else {
            panic!()
        };
        assert_eq!(event.message.as_deref(), Some("(combined from similar events): m11"));
        assert_eq!(event.count, Some(2));
    }

    #[test]
    fn an_objects_share_is_used_up_and_refills() {
        let mut correlator = Correlator::new("kubelet", "n1");
        let mut dropped = |second| correlator.record(occurrence("x", second)) == Record::Drop;
        assert!((0..25).all(|_| !dropped(0)));
        assert!(dropped(1));
        assert!(!dropped(301));
        assert!(dropped(302));
    }
}
