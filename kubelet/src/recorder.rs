//! Events about this node and its pods.
//!
//! Events are news for people, not state: they are sent in the background in order, and dropped
//! when the queue is full. Repeats of one event within its life are counted on one object.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// A busy node says less than this before the API has taken it in.
const QUEUE: usize = 256;
/// Repeats are recognized among this many events.
const REMEMBERED: usize = 512;
/// The API refuses longer messages.
const MAX_MESSAGE: usize = 1024;

/// Says what happens.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Entry>,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Normal,
    /// Somebody may have to act.
    Warning,
}

#[derive(Debug, Clone)]
struct Entry {
    object: ObjectReference,
    level: Level,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// A recorder for the node named `host`, with a task of its own that ends with the last handle.
    pub fn start(client: Client, host: String) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(send(client, host, entries));
        Self { queue }
    }

    /// Says something about a pod, or about one of its containers.
    pub fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        level: Level,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let is_init = |name: &str| {
            let spec = pod.spec.as_ref();
            spec.is_some_and(|s| s.init_containers.iter().flatten().any(|c| c.name == name))
        };
        let field = |name: &str| match is_init(name) {
            true => format!("spec.initContainers{{{name}}}"),
            false => format!("spec.containers{{{name}}}"),
        };
        let object = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.namespace(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(field),
        };
        self.push(object, level, reason, message.into());
    }

    /// Says something about the node.
    pub fn node(&self, name: &str, level: Level, reason: &'static str, message: impl Into<String>) {
        let object = ObjectReference {
            kind: Some("Node".into()),
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.push(object, level, reason, message.into());
    }

    fn push(
        &self,
        object: ObjectReference,
        level: Level,
        reason: &'static str,
        mut message: String,
    ) {
        let end =
            (0..=MAX_MESSAGE.min(message.len())).rev().find(|at| message.is_char_boundary(*at));
        message.truncate(end.unwrap_or(0));
        let entry = Entry { object, level, reason, message, at: Timestamp::now() };
        if let Err(error) = self.queue.try_send(entry) {
            tracing::debug!(%error, reason, "event dropped");
        }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Same {
    uid: Option<String>,
    field: Option<String>,
    reason: &'static str,
    message: String,
}

struct Known {
    name: String,
    count: i32,
    last: Timestamp,
}

async fn send(client: Client, host: String, mut entries: mpsc::Receiver<Entry>) {
    let mut known: BTreeMap<Same, Known> = BTreeMap::new();
    while let Some(entry) = entries.recv().await {
        let same = Same {
            uid: entry.object.uid.clone(),
            field: entry.object.field_path.clone(),
            reason: entry.reason,
            message: entry.message.clone(),
        };
        let namespace = entry.object.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let sent = match known.get_mut(&same) {
            Some(before) => repeat(&api, before, entry.at).await,
            None => Ok(false),
        };
        let sent = match sent {
            Ok(true) => continue,
            Ok(false) => create(&api, &entry, &host).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(name) => {
                if known.len() >= REMEMBERED {
                    let oldest = known.iter().min_by_key(|(_, k)| k.last).map(|(s, _)| s.clone());
                    oldest.and_then(|same| known.remove(&same));
                }
                known.insert(same, Known { name, count: 1, last: entry.at });
            }
            Err(error) => tracing::debug!(%error, reason = entry.reason, "event not recorded"),
        }
    }
}

/// Counts one more; false if the first one is gone.
async fn repeat(api: &Api<Event>, known: &mut Known, at: Timestamp) -> kube::Result<bool> {
    let patch = json!({"count": known.count + 1, "lastTimestamp": Time(at)});
    match api.patch(&known.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => {
            known.count += 1;
            known.last = at;
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

async fn create(api: &Api<Event>, entry: &Entry, host: &str) -> kube::Result<String> {
    let object = entry.object.name.as_deref().unwrap_or_default();
    let name = format!("{object}.{:x}", entry.at.as_nanosecond());
    let namespace = entry.object.namespace.clone().unwrap_or_else(|| "default".into());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: entry.object.clone(),
        type_: Some(if entry.level == Level::Normal { "Normal" } else { "Warning" }.into()),
        reason: Some(entry.reason.into()),
        message: Some(entry.message.clone()),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(host.into()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(host.into()),
        first_timestamp: Some(Time(entry.at)),
        last_timestamp: Some(Time(entry.at)),
        count: Some(1),
        ..Event::default()
    };
    api.create(&PostParams::default(), &event).await?;
    Ok(name)
}
