//! The narrow port through which a component writes.
//!
//! Every answer goes into the kind's store at once (if it has one), so what a component did is in
//! the view of its next reconcile whether or not the watch has said so yet.

use crate::{Cached, Caches, Metrics, ObjectKey};
use http::{HeaderName, HeaderValue, Request};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    client::Body,
};
use serde_json::Value;
use std::{sync::Arc, time::Instant};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// The header that carries the term of the leader that writes.
pub const LEADER_TERM: HeaderName = HeaderName::from_static("rkube-leader-term");

/// A request that failed.
#[derive(Debug, Error)]
#[error("{verb} {kind} {key}: {}", message(source))]
pub struct ClientError {
    /// What was tried: `create`, `patch`, …
    pub verb: &'static str,
    /// The kind: `Pod`, …
    pub kind: String,
    /// The object.
    pub key: ObjectKey,
    /// Why it failed.
    #[source]
    pub source: Box<kube::Error>,
}

impl ClientError {
    /// What the failure of a call for an object of this kind is told as.
    pub fn of<K: Cached>(
        verb: &'static str,
        key: &ObjectKey,
    ) -> impl FnOnce(kube::Error) -> ClientError {
        move |source| ClientError {
            verb,
            kind: K::kind(&()).into_owned(),
            key: key.clone(),
            source: Box::new(source),
        }
    }

    /// The object is not there.
    pub fn is_not_found(&self) -> bool {
        self.reason() == "NotFound"
    }

    /// An object of that name is there already.
    pub fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }

    /// A precondition (resource version, uid) does not hold.
    pub fn is_conflict(&self) -> bool {
        self.reason() == "Conflict"
    }

    /// The namespace is going away and takes nothing new.
    pub fn is_namespace_terminating(&self) -> bool {
        let causes = match self.source.as_ref() {
            kube::Error::Api(status) => status.details.as_ref().map(|d| d.causes.as_slice()),
            _ => None,
        };
        causes.unwrap_or_default().iter().any(|c| c.reason == "NamespaceTerminating")
    }

    /// The machine-readable reason that the API server gave, or empty.
    pub fn reason(&self) -> &str {
        match self.source.as_ref() {
            kube::Error::Api(status) => &status.reason,
            _ => "",
        }
    }

    /// What the API server said, in its own words.
    pub fn message(&self) -> String {
        message(&self.source)
    }
}

fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Writes objects; clones share all.
#[derive(Clone)]
pub struct Client {
    kube: kube::Client,
    caches: Caches,
    manager: Arc<str>,
}

impl Client {
    /// Writes as field manager `manager` and into `caches`.
    pub fn new(kube: kube::Client, caches: Caches, manager: &str) -> Self {
        Client { kube, caches, manager: manager.into() }
    }

    /// The same under another field manager's name.
    pub fn managed_by(&self, manager: &str) -> Self {
        Client { manager: manager.into(), ..self.clone() }
    }

    /// The name under which its writes stand in `managedFields`.
    pub fn manager(&self) -> &str {
        &self.manager
    }

    /// What it writes through, for calls that have no method here.
    pub fn kube(&self) -> &kube::Client {
        &self.kube
    }

    /// Creates an object.
    pub async fn create<K: Cached>(&self, object: &K) -> Result<K, ClientError> {
        let key = ObjectKey::of(object.object_meta());
        let api = K::api(self.kube.clone(), &key.namespace);
        let params =
            PostParams { field_manager: Some(self.manager.to_string()), ..Default::default() };
        let created =
            api.create(&params, object).await.map_err(ClientError::of::<K>("create", &key))?;
        Ok(self.remember(created))
    }

    /// Patches an object.
    pub async fn patch<K: Cached>(
        &self,
        key: &ObjectKey,
        patch: Patch<Value>,
    ) -> Result<K, ClientError> {
        let api = K::api(self.kube.clone(), &key.namespace);
        let done = api.patch(&key.name, &self.patch_params(&patch), &patch).await;
        Ok(self.remember(done.map_err(ClientError::of::<K>("patch", key))?))
    }

    /// Patches an object's status.
    pub async fn patch_status<K: Cached>(
        &self,
        key: &ObjectKey,
        patch: Patch<Value>,
    ) -> Result<K, ClientError> {
        let api = K::api(self.kube.clone(), &key.namespace);
        let done = api.patch_status(&key.name, &self.patch_params(&patch), &patch).await;
        Ok(self.remember(done.map_err(ClientError::of::<K>("patch status of", key))?))
    }

    /// Deletes an object. That it is gone already is an error of its own
    /// ([`is_not_found`](ClientError::is_not_found)).
    pub async fn delete<K: Cached>(
        &self,
        key: &ObjectKey,
        params: &DeleteParams,
    ) -> Result<(), ClientError> {
        let api = K::api(self.kube.clone(), &key.namespace);
        let done =
            api.delete(&key.name, params).await.map_err(ClientError::of::<K>("delete", key))?;
        if let Some(object) = done.left().filter(|o| o.object_meta().deletion_timestamp.is_some()) {
            self.remember(object);
        }
        Ok(())
    }

    /// Reads an object from the API server, past the cache.
    pub async fn get_live<K: Cached>(&self, key: &ObjectKey) -> Result<Option<K>, ClientError> {
        let api = K::api(self.kube.clone(), &key.namespace);
        api.get_opt(&key.name).await.map_err(ClientError::of::<K>("get", key))
    }

    /// Reads an object of any kind from the API server.
    pub async fn get_live_dynamic(
        &self,
        resource: &ApiResource,
        key: &ObjectKey,
    ) -> Result<Option<DynamicObject>, ClientError> {
        let done = self.dynamic(resource, key).get_opt(&key.name).await;
        done.map_err(failed_dynamic("get", resource, key))
    }

    /// Patches an object of any kind.
    pub async fn patch_dynamic(
        &self,
        resource: &ApiResource,
        key: &ObjectKey,
        patch: Patch<Value>,
    ) -> Result<(), ClientError> {
        let api = self.dynamic(resource, key);
        let done = api.patch(&key.name, &self.patch_params(&patch), &patch).await;
        done.map(drop).map_err(failed_dynamic("patch", resource, key))
    }

    /// Deletes an object of any kind.
    pub async fn delete_dynamic(
        &self,
        resource: &ApiResource,
        key: &ObjectKey,
        params: &DeleteParams,
    ) -> Result<(), ClientError> {
        let done = self.dynamic(resource, key).delete(&key.name, params).await;
        done.map(drop).map_err(failed_dynamic("delete", resource, key))
    }

    fn dynamic(&self, resource: &ApiResource, key: &ObjectKey) -> Api<DynamicObject> {
        match key.namespace.as_str() {
            "" => Api::all_with(self.kube.clone(), resource),
            namespace => Api::namespaced_with(self.kube.clone(), namespace, resource),
        }
    }

    fn patch_params(&self, patch: &Patch<Value>) -> PatchParams {
        let params =
            PatchParams { field_manager: Some(self.manager.to_string()), ..PatchParams::default() };
        if matches!(patch, Patch::Apply(_)) { params.force() } else { params }
    }

    fn remember<K: Cached>(&self, object: K) -> K {
        if let Some(store) = self.caches.opened::<K>() {
            store.apply(object.clone());
        }
        object
    }
}

fn failed_dynamic(
    verb: &'static str,
    resource: &ApiResource,
    key: &ObjectKey,
) -> impl FnOnce(kube::Error) -> ClientError {
    let (kind, key) = (resource.kind.clone(), key.clone());
    move |source| ClientError { verb, kind, key, source: Box::new(source) }
}

/// A client that counts its requests and, with a term, stamps each with it. Once `cancelled` it
/// sends nothing more.
pub fn instrument(
    client: kube::Client,
    metrics: Metrics,
    term: Option<u64>,
    cancelled: CancellationToken,
) -> kube::Client {
    let namespace = client.default_namespace().to_owned();
    let send = move |mut request: Request<Body>| {
        let (client, metrics, cancelled) = (client.clone(), metrics.clone(), cancelled.clone());
        async move {
            if cancelled.is_cancelled() {
                return Err(kube::Error::Service("no longer the leader".into()));
            }
            if let Some(term) = term {
                request.headers_mut().insert(LEADER_TERM, HeaderValue::from(term));
            }
            let (method, start) = (request.method().clone(), Instant::now());
            let answer = client.send(request).await;
            let code =
                answer.as_ref().map_or("<error>".into(), |a| a.status().as_u16().to_string());
            metrics.request(method.as_str(), &code, start.elapsed().as_secs_f64());
            answer
        }
    };
    kube::Client::new(tower::service_fn(send), namespace)
}
