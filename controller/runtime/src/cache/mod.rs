//! The caches of a process: each kind is watched once and each object decoded once, whoever reads.

mod kinds;
mod meta;
mod store;
mod subscription;
mod watch;

pub use kinds::Cached;
pub use meta::{Meta, MetaSource};
pub use store::{Change, Store};
pub use subscription::{Delta, Subscription};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, api::ApiResource, runtime::watcher};
use parking_lot::Mutex;
use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::Arc,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What a store can find objects by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Index {
    /// `metadata.namespace`
    Namespace,
    /// `metadata.uid`
    Uid,
    /// The uid of each owner reference.
    Owner,
    /// The namespace of an object that no owner controls.
    Uncontrolled,
    /// A pod's `spec.nodeName`.
    Node,
    /// An endpoint slice's service (its label `kubernetes.io/service-name`).
    Service,
}

/// An object that a store can hold.
pub trait Stored: Clone + Send + Sync + 'static {
    /// Its metadata.
    fn object_meta(&self) -> &ObjectMeta;

    /// Its metadata, to trim it.
    fn object_meta_mut(&mut self) -> &mut ObjectMeta;

    /// Index terms beyond those that follow from metadata.
    fn terms(&self) -> Vec<(Index, String)> {
        Vec::new()
    }

    /// Drops what no component reads, before the object is kept.
    fn trim(&mut self) {}
}

/// The shared caches; clones are the same. Watches end when the last clone is dropped.
#[derive(Clone)]
pub struct Caches {
    shared: Arc<Shared>,
}

struct Shared {
    client: Option<kube::Client>,
    typed: Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>,
    sources: Mutex<HashMap<(String, String), Arc<dyn MetaSource>>>,
    configs: Mutex<HashMap<TypeId, watcher::Config>>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl Caches {
    /// Caches over an API server. A kind's watch starts when its store is first asked for, on the
    /// tokio runtime of that moment.
    pub fn new(client: kube::Client) -> Self {
        Self::over(Some(client))
    }

    /// Caches that nothing feeds but [`Store::apply`] and its like; for tests and simulations.
    /// Their stores are synced from the start.
    pub fn offline() -> Self {
        Self::over(None)
    }

    fn over(client: Option<kube::Client>) -> Self {
        let stop = CancellationToken::new();
        let shared = Shared {
            client,
            typed: Mutex::default(),
            sources: Mutex::default(),
            configs: Mutex::default(),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        };
        Caches { shared: Arc::new(shared) }
    }

    /// Restricts a kind's watch to a field selector, say `spec.nodeName=n1` for a kubelet in a
    /// process of its own. It counts only before the kind's store is first asked for.
    pub fn restrict<K: Cached>(&self, field_selector: &str) {
        let config = watcher::Config::default().fields(field_selector);
        self.shared.configs.lock().insert(TypeId::of::<K>(), config);
    }

    /// The store of a kind; its watch starts with the first call.
    pub fn store<K: Cached>(&self) -> Store<K> {
        let mut typed = self.shared.typed.lock();
        let known = typed.get(&TypeId::of::<K>()).and_then(|any| any.downcast_ref::<Store<K>>());
        if let Some(store) = known {
            return store.clone();
        }
        let store = Store::<K>::default();
        typed.insert(TypeId::of::<K>(), Box::new(store.clone()));
        drop(typed);
        let kind = (K::group(&()).into_owned(), K::kind(&()).into_owned());
        self.shared.sources.lock().insert(kind, Arc::new(store.clone()));
        self.watch_typed(&store);
        store
    }

    /// The store of a kind if a component has asked for it.
    pub(crate) fn opened<K: Cached>(&self) -> Option<Store<K>> {
        let typed = self.shared.typed.lock();
        typed.get(&TypeId::of::<K>())?.downcast_ref::<Store<K>>().cloned()
    }

    /// The metadata of a kind's objects: from the kind's store if a component has opened one, else
    /// from a watch that carries metadata only.
    pub fn metadata(&self, resource: &ApiResource) -> Arc<dyn MetaSource> {
        let kind = (resource.group.clone(), resource.kind.clone());
        let mut sources = self.shared.sources.lock();
        if let Some(source) = sources.get(&kind) {
            return source.clone();
        }
        let store = Store::<Meta>::default();
        sources.insert(kind, Arc::new(store.clone()));
        drop(sources);
        self.watch_metadata(&store, resource);
        Arc::new(store)
    }

    fn watch_typed<K: Cached>(&self, store: &Store<K>) {
        let Some(client) = &self.shared.client else { return store.replace(Vec::new()) };
        let config =
            self.shared.configs.lock().get(&TypeId::of::<K>()).cloned().unwrap_or_default();
        let events = watcher::watcher(Api::<K>::all(client.clone()), config);
        let resource = K::plural(&()).into_owned();
        tokio::spawn(watch::feed(store.clone(), events, resource, self.shared.stop.clone()));
    }

    fn watch_metadata(&self, store: &Store<Meta>, resource: &ApiResource) {
        let Some(client) = &self.shared.client else { return store.replace(Vec::new()) };
        let api = Api::<Meta>::all_with(client.clone(), resource);
        let events = watcher::watcher(api, watcher::Config::default());
        let name = resource.plural.clone();
        tokio::spawn(watch::feed(store.clone(), events, name, self.shared.stop.clone()));
    }
}
