//! Feeds the rule from the caches and carries out what it says.

use super::{
    plan::{Action, Rule, View, size_of},
    status::creation_failed,
};
use crate::{
    claim::{self, unless_gone},
    common::{controlled_by, controller_of, is_terminal, name, namespace, uid},
    context::Context,
};
use async_trait::async_trait;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::api::{DeleteParams, Patch, Preconditions};
use rkube_api::selector::LabelSelector;
use rkube_runtime::{
    ActError, Change, ClientError, Controller, EventType, Index, ObjectKey, Recorder, Store,
    WorkQueue,
};
use serde_json::{Value, json};
use std::sync::Arc;

struct Deployments {
    ctx: Context,
    deployments: Store<Deployment>,
    sets: Store<ReplicaSet>,
    pods: Store<Pod>,
    events: Recorder,
}

/// Runs the controller until the future is dropped.
pub(crate) async fn start(ctx: Context) {
    let queue = WorkQueue::new("deployment", &ctx.metrics);
    let deployments = ctx.caches.store::<Deployment>();
    let (sets, pods) = (ctx.caches.store::<ReplicaSet>(), ctx.caches.store::<Pod>());
    deployments.wait_synced().await;
    sets.wait_synced().await;
    pods.wait_synced().await;
    queue.feed(&deployments, |change: &Change<Deployment>| vec![change.key.clone()]);
    let all = deployments.clone();
    queue.feed(&sets, move |change: &Change<ReplicaSet>| {
        change.both().flat_map(|set| deployments_of(&all, set)).collect()
    });
    let owners = sets.clone();
    queue.feed(&pods, move |change: &Change<Pod>| recreated(&owners, change));
    let events = ctx.recorder("deployment-controller");
    let controller = Deployments { ctx: ctx.clone(), deployments, sets, pods, events };
    ctx.run(controller, queue, 4).await;
}

/// The Deployments that a set may concern: its own, or, for a set that nobody controls, those that
/// match.
fn deployments_of(deployments: &Store<Deployment>, set: &ReplicaSet) -> Vec<ObjectKey> {
    let namespace = namespace(&set.metadata);
    if let Some(owner) = controller_of(&set.metadata) {
        let ours = owner.kind == "Deployment";
        return ours.then(|| ObjectKey::new(namespace, &owner.name)).into_iter().collect();
    }
    let matches = |deployment: &&Arc<Deployment>| {
        let selector = deployment.spec.as_ref().map(|s| LabelSelector::from_typed(&s.selector));
        matches!(selector, Some(Ok(s)) if s.matches(&set.metadata.labels))
    };
    let nearby = deployments.in_namespace(namespace);
    nearby.iter().filter(matches).map(|d| ObjectKey::of(&d.metadata)).collect()
}

/// A Deployment that is recreated waits for its old pods to end.
fn recreated(sets: &Store<ReplicaSet>, change: &Change<Pod>) -> Vec<ObjectKey> {
    let ended = change.new.as_ref().is_none_or(|pod| is_terminal(pod));
    let owner = change.latest().filter(|_| ended).and_then(|pod| controller_of(&pod.metadata));
    let set = owner.and_then(|o| sets.named(&change.key.namespace, &o.name));
    let deployment = set.as_ref().and_then(|set| controller_of(&set.metadata));
    deployment.map(|o| ObjectKey::new(&change.key.namespace, &o.name)).into_iter().collect()
}

impl Deployments {
    async fn create(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), ActError> {
        match self.ctx.client.create(set).await {
            Ok(set) => {
                self.tell_scaled(deployment, &set, 0, size_of(&set));
                Ok(())
            }
            // Created by an earlier attempt, or a collision: the cache is about to show which.
            Err(error) if error.is_already_exists() => Err(error.into()),
            Err(error) => {
                let message = format!(
                    "Failed to create new replica set \"{}\": {}",
                    name(&set.metadata),
                    error.message()
                );
                let events = &self.events;
                events.event(deployment, EventType::Warning, "ReplicaSetCreateError", &message);
                if let Some(patch) = creation_failed(deployment, &message, self.ctx.clock.now()) {
                    self.patch_status(deployment, patch).await?;
                }
                Err(error.into())
            }
        }
    }

    async fn scale(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
        replicas: i32,
        annotations: Value,
    ) -> Result<(), ActError> {
        let mut patch = json!({ "metadata": { "resourceVersion": set.metadata.resource_version } });
        if !annotations.is_null() {
            patch["metadata"]["annotations"] = annotations;
        }
        if size_of(set) != replicas {
            patch["spec"] = json!({ "replicas": replicas });
        }
        let key = ObjectKey::of(&set.metadata);
        self.ctx.client.patch::<ReplicaSet>(&key, Patch::Merge(patch)).await?;
        self.tell_scaled(deployment, set, size_of(set), replicas);
        Ok(())
    }

    fn tell_scaled(&self, deployment: &Deployment, set: &ReplicaSet, from: i32, to: i32) {
        if from == to {
            return;
        }
        let way = if to > from { "up" } else { "down" };
        let message =
            format!("Scaled {way} replica set {} from {from} to {to}", name(&set.metadata));
        self.events.event(deployment, EventType::Normal, "ScalingReplicaSet", &message);
    }

    /// A Deployment adopts only while the API server says that it still is and stays.
    async fn adopt(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), ClientError> {
        let client = &self.ctx.client;
        let live = client.get_live::<Deployment>(&ObjectKey::of(&deployment.metadata)).await?;
        let stays = live.is_some_and(|live| {
            live.metadata.uid == deployment.metadata.uid
                && live.metadata.deletion_timestamp.is_none()
        });
        if stays {
            let owner = controlled_by(&deployment.metadata, "apps/v1", "Deployment");
            let patch = claim::adoption(uid(&set.metadata), &owner);
            client.patch::<ReplicaSet>(&ObjectKey::of(&set.metadata), patch).await?;
        }
        Ok(())
    }

    async fn patch_status(&self, seen: &Deployment, status: Value) -> Result<(), ClientError> {
        let patch = claim::of_seen(&seen.metadata, json!({ "status": status }));
        let key = ObjectKey::of(&seen.metadata);
        self.ctx.client.patch_status::<Deployment>(&key, patch).await.map(drop)
    }
}

#[async_trait]
impl Controller for Deployments {
    type Key = ObjectKey;
    type Rule = Rule;

    fn name(&self) -> &'static str {
        "deployment"
    }

    fn rule(&self) -> &Rule {
        &Rule
    }

    fn view(&self, key: &ObjectKey) -> Option<View> {
        let deployment = self.deployments.get(key)?;
        let mut sets = self.sets.by_index(Index::Owner, uid(&deployment.metadata));
        let of_sets = sets.iter().map(|set| self.pods.by_index(Index::Owner, uid(&set.metadata)));
        let pods = of_sets.flatten().collect();
        sets.extend(self.sets.by_index(Index::Uncontrolled, &key.namespace));
        let nearby = self.sets.in_namespace(&key.namespace);
        let foreign = nearby.iter().filter(|set| {
            controller_of(&set.metadata).is_none_or(|o| o.uid != uid(&deployment.metadata))
        });
        let taken = foreign.map(|set| name(&set.metadata).to_owned()).collect();
        Some(View { deployment, sets, pods, taken })
    }

    async fn act(&self, key: &ObjectKey, view: &View, action: Action) -> Result<(), ActError> {
        let (client, deployment) = (&self.ctx.client, view.deployment.as_ref());
        match action {
            Action::Adopt(set) => self.adopt(deployment, &set).await?,
            Action::Release(set) => {
                let patch = claim::release(uid(&set.metadata), uid(&deployment.metadata));
                let key = ObjectKey::of(&set.metadata);
                unless_gone(client.patch::<ReplicaSet>(&key, patch).await)?;
            }
            Action::CreateSet(set) => self.create(deployment, &set).await?,
            Action::Scale { set, replicas, annotations } => {
                self.scale(deployment, &set, replicas, annotations).await?;
            }
            Action::PatchSet { set, patch } => {
                let patch = claim::of_seen(&set.metadata, patch);
                client.patch::<ReplicaSet>(&ObjectKey::of(&set.metadata), patch).await?;
            }
            Action::DeleteSet(set) => {
                let seen = Preconditions {
                    uid: set.metadata.uid.clone(),
                    resource_version: set.metadata.resource_version.clone(),
                };
                let params = DeleteParams::background().preconditions(seen);
                let key = ObjectKey::of(&set.metadata);
                unless_gone(client.delete::<ReplicaSet>(&key, &params).await)?;
            }
            Action::Annotate(annotations) => {
                let patch = json!({ "metadata": { "annotations": annotations } });
                let patch = claim::of_seen(&deployment.metadata, patch);
                client.patch::<Deployment>(key, patch).await?;
            }
            Action::PatchStatus(status) => self.patch_status(deployment, status).await?,
            Action::Warn { reason, message } => {
                self.events.event(deployment, EventType::Warning, reason, &message);
            }
        }
        Ok(())
    }
}
