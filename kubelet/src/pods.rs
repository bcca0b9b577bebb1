//! All pods of this node: one worker each, and the news that reach them.
//!
//! The API's list says which pods there are; the runtime says what runs. A worker is made for every
//! pod of the list, with what runs of it already, and for what runs without a pod, to end it. The
//! latter only on a complete list of the same cluster that is not older than what this node has
//! seen before: a lost or restored API must not cost anybody their containers.

use crate::context::Context;
use crate::objects::Key;
use crate::pod::state::{CLUSTER, CONTAINER_NAME, GRACE, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::pod::worker::{self, Begin, Handle, News};
use crate::watch::{Change, Selection, list_watch};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta};
use parking_lot::RwLock;
use rkube_cri::{Container, Event, Sandbox};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Lists and changes wait here while workers are told of earlier ones.
const CHANGES: usize = 64;
/// Ends of workers; they have nothing else to do then.
const ENDED: usize = 64;
/// How often the runtime is asked for all that it has, in case an event was lost.
const RELIST: Duration = Duration::from_secs(60);
/// How often the last seen revision is written down.
const NOTE: Duration = Duration::from_secs(30);
/// Looks at containers during a relist that go on side by side.
const LOOKS: usize = 8;

/// The pods that this node knows of, for its server.
#[derive(Default)]
pub struct Known {
    pods: RwLock<BTreeMap<String, Arc<Pod>>>,
    is_complete: AtomicBool,
}

impl Known {
    /// A pod by name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.pods.read();
        let mut named = pods
            .values()
            .filter(|pod| pod.namespace().as_deref() == Some(namespace) && pod.name_any() == name);
        named.next_back().cloned()
    }

    /// All pods.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.pods.read().values().cloned().collect()
    }

    /// Whether a complete and current list has come in: what is missing since then is gone.
    pub fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }

    /// Whether a pod of this uid is known.
    pub fn has(&self, uid: &str) -> bool {
        self.pods.read().contains_key(uid)
    }
}

/// What this node has seen of its cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    cluster_id: String,
    revision: u64,
}

impl Seen {
    fn read(path: &Path) -> Self {
        let text = fs::read(path).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Whether a list of `cluster_id` at `revision` may be trusted to be complete and current.
    fn allows(&self, cluster_id: &str, revision: &str) -> bool {
        match revision.parse::<u64>() {
            Ok(revision) => self.cluster_id != cluster_id || revision >= self.revision,
            Err(_) => false,
        }
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let new = path.with_extension("tmp");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }
}

/// Everything that the runtime has of one pod.
type Leftovers = BTreeMap<String, (Vec<Sandbox>, Vec<Container>)>;

/// Runs all workers until `shutdown`; containers stay.
pub async fn run(
    context: Arc<Context>,
    known: Arc<Known>,
    mut changed: mpsc::Receiver<Key>,
    shutdown: CancellationToken,
) {
    let (ended, mut ends) = mpsc::channel(ENDED);
    let (sender, mut changes) = mpsc::channel(CHANGES);
    let selection = Selection::fields(format!("spec.nodeName={}", context.config.node_name));
    let api: Api<Pod> = Api::all(context.client.clone());
    let watching = tokio::spawn(list_watch(api, selection, sender));
    let (events_sender, mut events) = mpsc::channel(CHANGES);
    let listening = tokio::spawn(listen(context.clone(), events_sender));
    let leftovers = look_around(&context).await;
    let mut pods = Pods::new(context, known, ended, leftovers);
    let (mut relist, mut note) = (tokio::time::interval(RELIST), tokio::time::interval(NOTE));
    relist.tick().await;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(change) = changes.recv() => pods.on_change(change).await,
            Some(event) = events.recv() => pods.on_event(event).await,
            Some(uid) = ends.recv() => pods.on_ended(&uid),
            Some(key) = changed.recv() => pods.on_object(&key).await,
            _ = relist.tick() => pods.relist().await,
            _ = note.tick() => pods.note(),
        }
    }
    pods.note();
    watching.abort();
    listening.abort();
}

/// What the runtime says, or that it was lost and is back.
enum Heard {
    Event(Event),
    Again,
}

async fn listen(context: Arc<Context>, to: mpsc::Sender<Heard>) {
    loop {
        match context.runtime.events().await {
            Ok(mut events) => {
                if to.send(Heard::Again).await.is_err() {
                    return;
                }
                while let Some(event) = events.next().await {
                    if to.send(Heard::Event(event)).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "runtime events"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Everything that the runtime has, by uid of the pod; asked for until there is an answer.
async fn look_around(context: &Context) -> Leftovers {
    loop {
        match try_look_around(context).await {
            Ok(found) => return found,
            Err(error) => tracing::warn!(%error, "list containers"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn try_look_around(context: &Context) -> rkube_cri::Result<Leftovers> {
    let sandboxes = context.runtime.list_sandboxes().await?;
    let containers = context.runtime.list_containers().await?;
    let mut found = Leftovers::new();
    let looks = sandboxes.into_iter().map(|listed| async move {
        match listed.ready {
            true => context.runtime.sandbox_status(&listed.id).await.unwrap_or(listed),
            false => listed,
        }
    });
    for sandbox in futures::stream::iter(looks).buffer_unordered(LOOKS).collect::<Vec<_>>().await {
        if !sandbox.uid.is_empty() {
            found.entry(sandbox.uid.clone()).or_default().0.push(sandbox);
        }
    }
    let looks = containers.into_iter().map(|listed| async move {
        let full = context.runtime.container_status(&listed.id).await;
        let sandbox = listed.sandbox.clone();
        full.map_or(listed, |full| Container { sandbox, ..full })
    });
    for container in futures::stream::iter(looks).buffer_unordered(LOOKS).collect::<Vec<_>>().await
    {
        if let Some(uid) = container.labels.get(POD_UID).cloned() {
            found.entry(uid).or_default().1.push(container);
        }
    }
    for (sandboxes, containers) in found.values_mut() {
        sandboxes.sort_by_key(|sandbox| sandbox.attempt);
        containers.sort_by_key(|container| (container.attempt, container.created_at));
    }
    Ok(found)
}

struct Pods {
    context: Arc<Context>,
    known: Arc<Known>,
    workers: HashMap<String, Handle>,
    ended: mpsc::Sender<String>,
    leftovers: Leftovers,
    seen: Seen,
    noted: Seen,
}

impl Pods {
    fn new(
        context: Arc<Context>,
        known: Arc<Known>,
        ended: mpsc::Sender<String>,
        leftovers: Leftovers,
    ) -> Self {
        let seen = Seen::read(&context.config.data_dir.join("seen.json"));
        let noted = seen.clone();
        Self { context, known, workers: HashMap::new(), ended, leftovers, seen, noted }
    }

    async fn on_change(&mut self, change: Change<Pod>) {
        match change {
            Change::Listed { items, revision } => self.on_list(items, &revision).await,
            Change::Applied(pod) => {
                self.see(pod.resource_version().as_deref().unwrap_or_default());
                self.on_pod(Arc::new(pod)).await;
            }
            Change::Deleted(pod) => {
                let uid = pod.uid().unwrap_or_default();
                self.known.pods.write().remove(&uid);
                if let Some(worker) = self.workers.get(&uid) {
                    worker.tell(News::Gone(Some(Arc::new(pod)))).await;
                }
            }
            Change::Failed(error) => tracing::warn!(%error, "list pods"),
        }
    }

    async fn on_list(&mut self, items: Vec<Pod>, revision: &str) {
        let is_current = self.seen.allows(&self.context.config.cluster_id, revision);
        let uids: BTreeSet<String> = items.iter().filter_map(ResourceExt::uid).collect();
        for pod in items {
            self.on_pod(Arc::new(pod)).await;
        }
        if !is_current {
            tracing::warn!(
                revision,
                seen = self.seen.revision,
                "an older list: nothing is removed by it"
            );
            return;
        }
        self.see(revision);
        self.note();
        let gone: Vec<_> =
            self.workers.keys().filter(|uid| !uids.contains(*uid)).cloned().collect();
        for uid in gone {
            self.known.pods.write().remove(&uid);
            if let Some(worker) = self.workers.get(&uid) {
                worker.tell(News::Gone(None)).await;
            }
        }
        self.adopt_orphans();
        self.known.is_complete.store(true, Ordering::Release);
    }

    async fn on_pod(&mut self, pod: Arc<Pod>) {
        let uid = pod.uid().unwrap_or_default();
        self.known.pods.write().insert(uid.clone(), pod.clone());
        match self.workers.get(&uid) {
            Some(worker) => worker.tell(News::Pod(pod)).await,
            None => {
                let (sandboxes, containers) = self.leftovers.remove(&uid).unwrap_or_default();
                self.spawn(uid, Begin { pod, is_orphan: false, sandboxes, containers });
            }
        }
    }

    fn spawn(&mut self, uid: String, begin: Begin) {
        let worker = worker::spawn(self.context.clone(), begin, self.ended.clone());
        self.workers.insert(uid, worker);
    }

    /// Ends what runs without a pod, if it is of this cluster.
    fn adopt_orphans(&mut self) {
        let cluster = self.context.config.cluster_id.clone();
        let ours = |(sandboxes, _): &(Vec<Sandbox>, Vec<Container>)| {
            let mut ids = sandboxes.iter().map(|sandbox| sandbox.labels.get(CLUSTER));
            ids.any(|id| id.is_some_and(|id| *id == cluster))
        };
        let (orphans, others): (Leftovers, Leftovers) =
            std::mem::take(&mut self.leftovers).into_iter().partition(|(_, found)| ours(found));
        self.leftovers = others;
        for (uid, (sandboxes, containers)) in orphans {
            tracing::info!(uid, "ending containers of a pod that is gone");
            let pod = Arc::new(ghost(&uid, &sandboxes, &containers));
            self.spawn(uid, Begin { pod, is_orphan: true, sandboxes, containers });
        }
    }

    async fn on_event(&mut self, heard: Heard) {
        match heard {
            Heard::Again => self.relist().await,
            Heard::Event(Event::Exited { id }) => {
                let owner = self.context.owners.lock().get(&id).cloned();
                if let Some(worker) = owner.and_then(|uid| self.workers.get(&uid)) {
                    worker.tell(News::Exited(id)).await;
                }
            }
            Heard::Event(Event::OutOfMemory { id }) => {
                tracing::warn!(container = id, "a process was killed for memory");
            }
        }
    }

    async fn on_object(&self, key: &Key) {
        for uid in self.context.objects.users(key) {
            if let Some(worker) = self.workers.get(&uid) {
                worker.tell(News::VolumesChanged).await;
            }
        }
    }

    fn on_ended(&mut self, uid: &str) {
        self.workers.remove(uid);
    }

    async fn relist(&mut self) {
        let lists = async {
            let sandboxes = self.context.runtime.list_sandboxes().await?;
            Ok::<_, rkube_cri::CriError>((sandboxes, self.context.runtime.list_containers().await?))
        };
        let (sandboxes, containers) = match lists.await {
            Ok(lists) => lists,
            Err(error) => return tracing::warn!(%error, "relist"),
        };
        for (uid, worker) in &self.workers {
            let own = sandboxes.iter().filter(|s| s.uid == *uid).cloned().collect();
            let of_pod = |c: &&Container| c.labels.get(POD_UID) == Some(uid);
            worker.tell(News::Seen(own, containers.iter().filter(of_pod).cloned().collect())).await;
        }
    }

    fn see(&mut self, revision: &str) {
        let cluster = &self.context.config.cluster_id;
        let Ok(revision) = revision.parse::<u64>() else { return };
        if self.seen.cluster_id != *cluster {
            self.seen = Seen { cluster_id: cluster.clone(), revision };
        }
        self.seen.revision = self.seen.revision.max(revision);
    }

    fn note(&mut self) {
        if self.noted == self.seen {
            return;
        }
        match self.seen.write(&self.context.config.data_dir.join("seen.json")) {
            Ok(()) => self.noted = self.seen.clone(),
            Err(error) => tracing::warn!(%error, "write down the last seen revision"),
        }
    }
}

/// A stand-in for a pod of which only containers are left.
fn ghost(uid: &str, sandboxes: &[Sandbox], containers: &[Container]) -> Pod {
    let labels = sandboxes.iter().map(|s| &s.labels).chain(containers.iter().map(|c| &c.labels));
    let label = |key: &str| labels.clone().find_map(|map| map.get(key)).cloned();
    let grace = containers.iter().find_map(|c| c.annotations.get(GRACE)?.parse().ok());
    debug_assert!(containers.iter().all(|c| c.labels.contains_key(CONTAINER_NAME)));
    Pod {
        metadata: ObjectMeta {
            name: label(POD_NAME),
            namespace: label(POD_NAMESPACE),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { termination_grace_period_seconds: grace, ..PodSpec::default() }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_current_lists_of_the_same_cluster_count() {
        let seen = Seen { cluster_id: "a".into(), revision: 100 };
        assert!(seen.allows("a", "100"));
        assert!(!seen.allows("a", "99"));
        assert!(!seen.allows("a", ""));
        assert!(seen.allows("b", "1"), "another cluster counts from its own start");
    }

    #[test]
    fn a_note_survives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seen.json");
        let seen = Seen { cluster_id: "a".into(), revision: 7 };
        seen.write(&path).unwrap();
        assert_eq!(Seen::read(&path), seen);
        assert_eq!(Seen::read(&dir.path().join("none")), Seen::default());
    }
}
