//! Feeds the rule from the caches and carries out what it says.

use super::plan::{Action, Rule, View, failure};
use crate::{
    claim,
    common::{controlled_by, controller_of, is_active, name, uid},
    context::Context,
};
use async_trait::async_trait;
use futures::future::join_all;
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use kube::api::{DeleteParams, Preconditions};
use rkube_api::selector::LabelSelector;
use rkube_runtime::{
    ActError, Change, ClientError, Controller, EventType, Index, ObjectKey, Recorder, Store,
    WorkQueue,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// The first batch of creates; each that succeeds is followed by one twice its size, so that a set
/// whose pods are refused does not flood the API server.
const FIRST_BATCH: usize = 32;

struct ReplicaSets {
    ctx: Context,
    sets: Store<ReplicaSet>,
    pods: Store<Pod>,
    events: Recorder,
}

/// Runs the controller until the future is dropped.
pub(crate) async fn start(ctx: Context) {
    let queue = WorkQueue::new("replicaset", &ctx.metrics);
    let (sets, pods) = (ctx.caches.store::<ReplicaSet>(), ctx.caches.store::<Pod>());
    sets.wait_synced().await;
    pods.wait_synced().await;
    queue.feed(&sets, |change: &Change<ReplicaSet>| vec![change.key.clone()]);
    let all = sets.clone();
    queue.feed(&pods, move |change: &Change<Pod>| {
        change.both().flat_map(|pod| sets_of(&all, pod)).collect()
    });
    let events = ctx.recorder("replicaset-controller");
    let controller = ReplicaSets { ctx: ctx.clone(), sets, pods, events };
    ctx.run(controller, queue, 4).await;
}

/// The sets that a pod may concern: its own, or, for a pod that nobody controls, those that match.
fn sets_of(sets: &Store<ReplicaSet>, pod: &Pod) -> Vec<ObjectKey> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    if let Some(owner) = controller_of(&pod.metadata) {
        let ours = owner.kind == "ReplicaSet";
        return ours.then(|| ObjectKey::new(namespace, &owner.name)).into_iter().collect();
    }
    let matches = |set: &&Arc<ReplicaSet>| {
        let selector = set.spec.as_ref().map(|s| LabelSelector::from_typed(&s.selector));
        matches!(selector, Some(Ok(s)) if s.matches(&pod.metadata.labels))
    };
    let nearby = sets.in_namespace(namespace);
    nearby.iter().filter(matches).map(|set| ObjectKey::of(&set.metadata)).collect()
}

impl ReplicaSets {
    /// Active pods per node of the set and of the sets with the same owner.
    fn pods_on_nodes(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let siblings = match controller_of(&set.metadata) {
            Some(owner) => self.sets.by_index(Index::Owner, &owner.uid),
            None => vec![Arc::new(set.clone())],
        };
        let mut on_node = HashMap::new();
        for sibling in siblings {
            for pod in self.pods.by_index(Index::Owner, uid(&sibling.metadata)) {
                let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
                if let Some(node) = node.filter(|_| is_active(&pod)) {
                    *on_node.entry(node).or_insert(0) += 1;
                }
            }
        }
        on_node
    }

    /// Every pod is tried once, batch by batch; the first failure after that counts.
    async fn create(&self, view: &View, pods: Vec<Pod>) -> Result<(), ClientError> {
        let (mut rest, mut batch) = (pods.as_slice(), FIRST_BATCH);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(batch.min(rest.len()));
            let done = join_all(now.iter().map(|pod| self.create_one(&view.set, pod))).await;
            let failed = done.into_iter().find_map(Result::err);
            if let Some(error) = failed {
                self.report(&view.set, "FailedCreate", &error).await;
                return Err(error);
            }
            (rest, batch) = (later, batch * 2);
        }
        Ok(())
    }

    async fn create_one(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), ClientError> {
        match self.ctx.client.create(pod).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", name(&pod.metadata));
                self.events.event(set, EventType::Normal, "SuccessfulCreate", &message);
                Ok(())
            }
            // Created by an earlier attempt; the cache is about to show it.
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) if error.is_namespace_terminating() => Err(error),
            Err(error) => {
                let message = format!("Error creating: {}", error.message());
                self.events.event(set, EventType::Warning, "FailedCreate", &message);
                Err(error)
            }
        }
    }

    async fn delete(&self, view: &View, pods: Vec<Arc<Pod>>) -> Result<(), ClientError> {
        let done = join_all(pods.iter().map(|pod| self.delete_one(&view.set, pod))).await;
        match done.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some(error) => {
                self.report(&view.set, "FailedDelete", &error).await;
                Err(error)
            }
        }
    }

    async fn delete_one(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), ClientError> {
        let of_this_uid =
            Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() };
        let params = DeleteParams::default().preconditions(of_this_uid);
        let key = ObjectKey::of(&pod.metadata);
        match self.ctx.client.delete::<Pod>(&key, &params).await {
            Ok(()) => {
                let message = format!("Deleted pod: {}", key.name);
                self.events.event(set, EventType::Normal, "SuccessfulDelete", &message);
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                let message = format!("Error deleting: {}", error.message());
                self.events.event(set, EventType::Warning, "FailedDelete", &message);
                Err(error)
            }
        }
    }

    /// A failure to report the failure is not worth more than the failure itself.
    async fn report(&self, set: &ReplicaSet, reason: &str, error: &ClientError) {
        let Some(patch) = failure(set, reason, &error.message(), self.ctx.clock.now()) else {
            return;
        };
        let key = ObjectKey::of(&set.metadata);
        let patch = claim::of_seen(&set.metadata, serde_json::json!({ "status": patch }));
        if let Err(error) = self.ctx.client.patch_status::<ReplicaSet>(&key, patch).await {
            tracing::debug!(%error, "replica failure not reported");
        }
    }

    /// A set adopts only while the API server says that it still is and stays.
    async fn may_adopt(&self, set: &ReplicaSet) -> Result<bool, ClientError> {
        let live = self.ctx.client.get_live::<ReplicaSet>(&ObjectKey::of(&set.metadata)).await?;
        Ok(live.is_some_and(|live| {
            live.metadata.uid == set.metadata.uid && live.metadata.deletion_timestamp.is_none()
        }))
    }
}

#[async_trait]
impl Controller for ReplicaSets {
    type Key = ObjectKey;
    type Rule = Rule;

    fn name(&self) -> &'static str {
        "replicaset"
    }

    fn rule(&self) -> &Rule {
        &Rule
    }

    fn view(&self, key: &ObjectKey) -> Option<View> {
        let set = self.sets.get(key)?;
        let mut pods = self.pods.by_index(Index::Owner, uid(&set.metadata));
        let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap_or(0);
        let active = pods.iter().filter(|pod| is_active(pod)).count();
        let on_node = if active > wanted { self.pods_on_nodes(&set) } else { HashMap::new() };
        let taken: HashSet<String> = match active < wanted {
            true => {
                let nearby = self.pods.in_namespace(&key.namespace);
                nearby.iter().filter_map(|pod| pod.metadata.name.clone()).collect()
            }
            false => HashSet::new(),
        };
        pods.extend(self.pods.by_index(Index::Uncontrolled, &key.namespace));
        Some(View { set, pods, on_node, taken })
    }

    async fn act(&self, key: &ObjectKey, view: &View, action: Action) -> Result<(), ActError> {
        let client = &self.ctx.client;
        match action {
            Action::Adopt(pod) if self.may_adopt(&view.set).await? => {
                let owner = controlled_by(&view.set.metadata, "apps/v1", "ReplicaSet");
                let patch = claim::adoption(uid(&pod.metadata), &owner);
                client.patch::<Pod>(&ObjectKey::of(&pod.metadata), patch).await?;
            }
            Action::Adopt(_) => {}
            Action::Release(pod) => {
                let patch = claim::release(uid(&pod.metadata), uid(&view.set.metadata));
                let key = ObjectKey::of(&pod.metadata);
                claim::unless_gone(client.patch::<Pod>(&key, patch).await)?;
            }
            Action::Create(pods) => self.create(view, pods).await?,
            Action::Delete(pods) => self.delete(view, pods).await?,
            Action::PatchStatus(status) => {
                let status = serde_json::json!({ "status": status });
                let patch = claim::of_seen(&view.set.metadata, status);
                client.patch_status::<ReplicaSet>(key, patch).await?;
            }
        }
        Ok(())
    }
}
