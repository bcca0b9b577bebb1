//! Feeds the rule from every kind's metadata and carries out what it says.

use super::{
    graph::{Graph, Kind},
    plan::{Action, Dependent, OwnerState, Policy, Rule, View, collect, state_of},
};
use crate::{
    claim::{release, unless_gone},
    common::{namespace, uid},
    context::Context,
    resources::{REDISCOVER, Resource, discover},
};
use async_trait::async_trait;
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::api::{ApiResource, DeleteParams, Patch, Preconditions, PropagationPolicy};
use rkube_runtime::{ActError, ClientError, Controller, EventType, ObjectKey, Recorder, WorkQueue};
use serde_json::json;

/// A kind's index in the graph and an object of it.
type Key = (usize, ObjectKey);

struct Garbage {
    ctx: Context,
    graph: Graph,
    queue: WorkQueue<Key>,
    events: Recorder,
}

/// Runs the collector until the future is dropped.
pub(crate) async fn start(ctx: Context) {
    let queue = WorkQueue::new("garbage-collector", &ctx.metrics);
    let graph = Graph::default();
    let discover_first = extend(&ctx, &graph, &queue).await;
    if let Err(error) = discover_first {
        tracing::warn!(%error, "discovery for the garbage collector");
        return;
    }
    let events = ctx.recorder("garbage-collector-controller");
    let garbage = Garbage { ctx: ctx.clone(), graph: graph.clone(), queue: queue.clone(), events };
    tokio::select! {
        () = ctx.run(garbage, queue.clone(), 8) => {}
        () = keep_extending(&ctx, &graph, &queue) => {}
    }
}

async fn keep_extending(ctx: &Context, graph: &Graph, queue: &WorkQueue<Key>) {
    loop {
        tokio::time::sleep(REDISCOVER).await;
        if let Err(error) = extend(ctx, graph, queue).await {
            tracing::warn!(%error, "discovery for the garbage collector");
        }
    }
}

/// Adds the kinds that are not in the graph yet and waits until they are listed.
async fn extend(ctx: &Context, graph: &Graph, queue: &WorkQueue<Key>) -> Result<(), kube::Error> {
    let resources = discover(ctx.client.kube().clone()).await?;
    let new: Vec<Resource> =
        resources.into_iter().filter(|r| !r.is_event() && !graph.knows(r)).collect();
    let mut added = Vec::new();
    for resource in new {
        let source = ctx.caches.metadata(&resource.api);
        let kind = Kind { resource, source };
        added.push((graph.add(kind.clone()), kind));
    }
    for (_, kind) in &added {
        kind.source.wait_synced().await;
    }
    for (index, kind) in added {
        listen(graph.clone(), index, &kind, queue);
    }
    Ok(())
}

/// Queues what a change of one kind's objects may concern, until the queue is dropped.
fn listen(graph: Graph, index: usize, kind: &Kind, queue: &WorkQueue<Key>) {
    let queue = queue.downgrade();
    kind.source.on_change(Box::new(move |key, old, new| {
        let Some(queue) = queue.upgrade() else { return false };
        match (old, new) {
            (old, Some(new)) if concerns(old, new) => queue.add((index, key.clone())),
            (Some(old), None) => gone(&graph, &queue, old),
            _ => {}
        }
        true
    }));
}

/// Whether a change of an object can change what the collector does about it.
fn concerns(old: Option<&ObjectMeta>, new: &ObjectMeta) -> bool {
    let Some(old) = old else {
        return new.owner_references.is_some() || new.deletion_timestamp.is_some();
    };
    old.owner_references != new.owner_references
        || old.finalizers != new.finalizers
        || old.deletion_timestamp != new.deletion_timestamp
}

/// An object is gone: its dependents may have to follow, its owners may have waited for it.
fn gone(graph: &Graph, queue: &WorkQueue<Key>, old: &ObjectMeta) {
    for (kind, dependent) in graph.dependents(uid(old)) {
        queue.add((kind, ObjectKey::of(&dependent)));
    }
    for owner in old.owner_references.iter().flatten() {
        if let Some((kind, owner)) = graph.locate(owner) {
            queue.add((kind, ObjectKey::of(&owner)));
        }
    }
}

impl Garbage {
    /// Asks the API server for owners that the caches lack and decides with the answers.
    async fn verify(
        &self,
        resource: &Resource,
        view: &View,
        missing: &[OwnerReference],
    ) -> Result<(), ActError> {
        let mut sure = view.clone();
        for owner in &mut sure.owners {
            if missing.contains(&owner.reference) {
                owner.state = self.ask(&view.meta, &owner.reference).await?;
            }
        }
        for action in collect(&sure) {
            self.write(resource, view, action).await?;
        }
        Ok(())
    }

    async fn ask(
        &self,
        meta: &ObjectMeta,
        owner: &OwnerReference,
    ) -> Result<OwnerState, ClientError> {
        let Some(kind) = self.graph.kind_of(owner) else { return Ok(OwnerState::Solid) };
        let resource = &kind.resource;
        if resource.namespaced && namespace(meta).is_empty() {
            // An object of the cluster can't have an owner in a namespace; it is left alone.
            return Ok(OwnerState::Solid);
        }
        let namespace = if resource.namespaced { namespace(meta) } else { "" };
        let key = ObjectKey::new(namespace, &owner.name);
        let live = self.ctx.client.get_live_dynamic(&resource.api, &key).await?;
        Ok(match live {
            Some(live) if live.metadata.uid.as_deref() == Some(&owner.uid) => {
                state_of(&live.metadata, owner.block_owner_deletion == Some(true))
            }
            _ => OwnerState::Absent,
        })
    }

    async fn write(
        &self,
        resource: &Resource,
        view: &View,
        action: Action,
    ) -> Result<(), ActError> {
        let key = ObjectKey::of(&view.meta);
        match action {
            Action::Delete(policy) => self.delete(&resource.api, &view.meta, policy).await?,
            Action::DropOwners(owners) => {
                let patch = without_owners(&view.meta, &owners);
                unless_gone(self.ctx.client.patch_dynamic(&resource.api, &key, patch).await)?;
            }
            Action::RemoveFinalizer(finalizer) => {
                let patch = without_finalizer(&view.meta, finalizer);
                unless_gone(self.ctx.client.patch_dynamic(&resource.api, &key, patch).await)?;
            }
            Action::Orphan(dependent) => self.orphan(&view.meta, &dependent).await?,
            Action::Examine(dependent) => {
                self.queue.add((dependent.kind, ObjectKey::of(&dependent.meta)));
            }
            Action::WarnForeign(owner) => self.warn(resource, &view.meta, &owner),
            Action::Verify(_) => {}
        }
        Ok(())
    }

    async fn delete(
        &self,
        resource: &ApiResource,
        meta: &ObjectMeta,
        policy: Policy,
    ) -> Result<(), ClientError> {
        let params = DeleteParams {
            propagation_policy: Some(match policy {
                Policy::Background => PropagationPolicy::Background,
                Policy::Foreground => PropagationPolicy::Foreground,
                Policy::Orphan => PropagationPolicy::Orphan,
            }),
            // Seen as it is: an owner that was added meanwhile makes this a conflict.
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let key = ObjectKey::of(meta);
        unless_gone(self.ctx.client.delete_dynamic(resource, &key, &params).await)
    }

    async fn orphan(&self, owner: &ObjectMeta, dependent: &Dependent) -> Result<(), ClientError> {
        let Some(kind) = self.graph.kind(dependent.kind) else { return Ok(()) };
        let key = ObjectKey::of(&dependent.meta);
        let patch = release(uid(&dependent.meta), uid(owner));
        let api = &kind.resource.api;
        match self.ctx.client.patch_dynamic(api, &key, patch).await {
            // Custom resources know no strategic merge.
            Err(error) if error.reason() == "UnsupportedMediaType" => {
                let patch = without_owners(&dependent.meta, &[uid(owner).to_owned()]);
                unless_gone(self.ctx.client.patch_dynamic(api, &key, patch).await)
            }
            done => unless_gone(done),
        }
    }

    fn warn(&self, resource: &Resource, meta: &ObjectMeta, owner: &OwnerReference) {
        let involved = ObjectReference {
            api_version: Some(resource.api.api_version.clone()),
            kind: Some(resource.api.kind.clone()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..Default::default()
        };
        let message = format!(
            "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace \"{}\"",
            owner.api_version,
            owner.kind,
            namespace(meta),
            owner.name,
            owner.uid,
            namespace(meta)
        );
        let events = &self.events;
        events.event_about(involved, EventType::Warning, "OwnerRefInvalidNamespace", &message);
    }
}

/// The owner references that are left, for the version of the object that was seen.
fn without_owners(meta: &ObjectMeta, owners: &[String]) -> Patch<serde_json::Value> {
    let all = meta.owner_references.iter().flatten();
    let left: Vec<_> = all.filter(|o| !owners.contains(&o.uid)).collect();
    Patch::Merge(json!({ "metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "ownerReferences": left,
    } }))
}

fn without_finalizer(meta: &ObjectMeta, finalizer: &str) -> Patch<serde_json::Value> {
    let left: Vec<_> = meta.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
    Patch::Merge(json!({ "metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "finalizers": left,
    } }))
}

#[async_trait]
impl Controller for Garbage {
    type Key = Key;
    type Rule = Rule;

    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn rule(&self) -> &Rule {
        &Rule
    }

    fn view(&self, (kind, key): &Key) -> Option<View> {
        self.graph.view(*kind, key)
    }

    async fn act(&self, (kind, _): &Key, view: &View, action: Action) -> Result<(), ActError> {
        let Some(kind) = self.graph.kind(*kind) else { return Ok(()) };
        match action {
            Action::Verify(missing) => self.verify(&kind.resource, view, &missing).await,
            action => self.write(&kind.resource, view, action).await,
        }
    }
}
