//! Feeds the rule from every kind's metadata and carries out what it says.

use super::plan::{Action, Content, FINALIZER, Rule, View};
use crate::{
    claim::{of_seen, unless_gone},
    common::namespace,
    context::Context,
    resources::{REDISCOVER, Resource, discover},
};
use async_trait::async_trait;
use futures::future::try_join_all;
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, Preconditions},
};
use parking_lot::RwLock;
use rkube_runtime::{
    ActError, Change, ClientError, Controller, Index, MetaSource, ObjectKey, Store, WorkQueue,
};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A kind of objects in namespaces; events are not cached.
#[derive(Clone)]
struct Kind {
    resource: Resource,
    source: Option<Arc<dyn MetaSource>>,
}

struct Namespaces {
    ctx: Context,
    namespaces: Store<Namespace>,
    kinds: RwLock<Vec<Kind>>,
    discovered: parking_lot::Mutex<Instant>,
    queue: WorkQueue<ObjectKey>,
}

/// Runs the controller until the future is dropped.
pub(crate) async fn start(ctx: Context) {
    let queue = WorkQueue::new("namespace", &ctx.metrics);
    let namespaces = ctx.caches.store::<Namespace>();
    namespaces.wait_synced().await;
    let controller = Namespaces {
        ctx: ctx.clone(),
        namespaces: namespaces.clone(),
        kinds: RwLock::default(),
        discovered: parking_lot::Mutex::new(Instant::now()),
        queue: queue.clone(),
    };
    if let Err(error) = controller.discover().await {
        tracing::warn!(%error, "discovery for the namespace controller");
        return;
    }
    queue.feed(&namespaces, |change: &Change<Namespace>| {
        let going = change.new.as_ref().filter(|n| n.metadata.deletion_timestamp.is_some());
        going.map(|_| change.key.clone()).into_iter().collect()
    });
    ctx.run(controller, queue, 2).await;
}

impl Namespaces {
    /// Learns which kinds there are; a namespace is never declared empty by an old answer.
    async fn discover(&self) -> Result<(), kube::Error> {
        let resources = discover(self.ctx.client.kube().clone()).await?;
        let known: Vec<String> = self.kinds.read().iter().map(|k| k.resource.dotted()).collect();
        let new = resources.into_iter().filter(|r| r.namespaced && !known.contains(&r.dotted()));
        for resource in new {
            let source = (!resource.is_event()).then(|| self.ctx.caches.metadata(&resource.api));
            if let Some(source) = &source {
                source.wait_synced().await;
                self.listen(source.as_ref());
            }
            self.kinds.write().push(Kind { resource, source });
        }
        *self.discovered.lock() = Instant::now();
        Ok(())
    }

    /// What goes away in a namespace that goes away brings the next look.
    fn listen(&self, source: &dyn MetaSource) {
        let (queue, namespaces) = (self.queue.downgrade(), self.namespaces.clone());
        source.on_change(Box::new(move |key, _old, new| {
            let Some(queue) = queue.upgrade() else { return false };
            let name = ObjectKey::cluster(&key.namespace);
            let going = |n: Arc<Namespace>| n.metadata.deletion_timestamp.is_some();
            if new.is_none() && namespaces.get(&name).is_some_and(going) {
                queue.add(name);
            }
            true
        }));
    }

    async fn delete_all(&self, kind: &Kind, name: &str) -> Result<(), ActError> {
        let api = self.api(kind, name);
        let params = DeleteParams::background();
        if kind.resource.delete_collection {
            api.delete_collection(&params, &ListParams::default()).await?;
            return Ok(());
        }
        let Some(source) = &kind.source else { return Ok(()) };
        for meta in source.by_index(Index::Namespace, name) {
            let uid = Preconditions { uid: meta.uid.clone(), ..Preconditions::default() };
            let key = ObjectKey::of(&meta);
            let params = params.clone().preconditions(uid);
            let client = &self.ctx.client;
            unless_gone(client.delete_dynamic(&kind.resource.api, &key, &params).await)?;
        }
        Ok(())
    }

    /// Nothing is created in a namespace that goes away, so what is empty now stays empty.
    async fn finalize(&self, view: &View) -> Result<(), ActError> {
        let name = view.namespace.metadata.name.as_deref().unwrap_or("");
        let age = self.discovered.lock().elapsed();
        if age > REDISCOVER {
            self.discover().await?;
        }
        let kinds = self.kinds.read().clone();
        for kind in kinds.iter().filter(|k| k.source.is_none()) {
            self.delete_all(kind, name).await?;
        }
        let left = try_join_all(kinds.iter().map(|kind| self.is_empty(kind, name))).await?;
        if left.into_iter().all(|empty| empty) {
            self.remove_finalizer(&view.namespace).await?;
        } else {
            self.queue.add_after(ObjectKey::cluster(name), Duration::from_millis(500));
        }
        Ok(())
    }

    async fn is_empty(&self, kind: &Kind, name: &str) -> Result<bool, kube::Error> {
        let list = self.api(kind, name).list_metadata(&ListParams::default().limit(1)).await?;
        Ok(list.items.is_empty())
    }

    async fn remove_finalizer(&self, namespace: &Namespace) -> Result<(), ActError> {
        let mut finalized = namespace.clone();
        let finalizers = finalized.spec.get_or_insert_default().finalizers.get_or_insert_default();
        finalizers.retain(|f| f != FINALIZER);
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let body = serde_json::to_vec(&finalized)?;
        let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
            .header("content-type", "application/json")
            .body(body)?;
        let kube = self.ctx.client.kube();
        let done = kube.request::<serde_json::Value>(request).await.map(drop);
        let key = ObjectKey::cluster(&name);
        Ok(unless_gone(done.map_err(ClientError::of::<Namespace>("finalize", &key)))?)
    }

    fn api(&self, kind: &Kind, name: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.ctx.client.kube().clone(), name, &kind.resource.api)
    }
}

fn content(index: usize, kind: &Kind, name: &str) -> Option<Content> {
    let left: Vec<ObjectMeta> = kind.source.as_ref()?.by_index(Index::Namespace, name);
    let left: Vec<_> = left.into_iter().filter(|meta| namespace(meta) == name).collect();
    if left.is_empty() {
        return None;
    }
    let mut finalizers = BTreeMap::new();
    for finalizer in left.iter().flat_map(|meta| meta.finalizers.iter().flatten()) {
        *finalizers.entry(finalizer.clone()).or_insert(0) += 1;
    }
    Some(Content {
        kind: index,
        resource: kind.resource.dotted(),
        count: left.len(),
        staying: left.iter().filter(|meta| meta.deletion_timestamp.is_none()).count(),
        finalizers,
    })
}

#[async_trait]
impl Controller for Namespaces {
    type Key = ObjectKey;
    type Rule = Rule;

    fn name(&self) -> &'static str {
        "namespace"
    }

    fn rule(&self) -> &Rule {
        &Rule
    }

    fn view(&self, key: &ObjectKey) -> Option<View> {
        let namespace = self.namespaces.get(key)?;
        let kinds = self.kinds.read();
        let of = |(index, kind)| content(index, kind, &key.name);
        let content = kinds.iter().enumerate().filter_map(of).collect();
        Some(View { namespace, content })
    }

    async fn act(&self, key: &ObjectKey, view: &View, action: Action) -> Result<(), ActError> {
        match action {
            Action::DeleteAll(kind) => {
                let kind = self.kinds.read().get(kind).cloned();
                if let Some(kind) = kind {
                    self.delete_all(&kind, &key.name).await?;
                }
            }
            Action::PatchConditions(conditions) => {
                let patch = json!({ "status": { "conditions": conditions } });
                let patch = of_seen(&view.namespace.metadata, patch);
                unless_gone(self.ctx.client.patch_status::<Namespace>(key, patch).await)?;
            }
            Action::Finalize => self.finalize(view).await?,
        }
        Ok(())
    }
}
