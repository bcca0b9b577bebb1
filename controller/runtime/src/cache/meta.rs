//! Metadata of any kind behind one face, for the garbage collector and the namespace controller.

use super::{Index, Store, Stored};
use crate::ObjectKey;
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{api::DynamicObject, core::PartialObjectMeta};

/// An object of which only the metadata is kept.
pub type Meta = PartialObjectMeta<DynamicObject>;

impl Stored for Meta {
    fn object_meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn object_meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    /// Graph walkers read names, owners and finalizers, never annotations.
    fn trim(&mut self) {
        self.metadata.annotations = None;
    }
}

/// Metadata of one kind's objects, whatever else their store holds.
pub trait MetaSource: Send + Sync {
    /// The metadata of one object.
    fn get(&self, key: &ObjectKey) -> Option<ObjectMeta>;

    /// The metadata of the objects under a term.
    fn by_index(&self, index: Index, value: &str) -> Vec<ObjectMeta>;

    /// Calls `handler` with every object's metadata before and after each change, beginning with
    /// those that are there. See [`Store::on_change`].
    fn on_change(&self, handler: MetaHandler);

    /// Whether the first full list has arrived.
    fn is_synced(&self) -> bool;

    /// Waits until the first full list has arrived.
    fn wait_synced(&self) -> BoxFuture<'_, ()>;
}

/// Told the metadata before and after; answers false when it wants no more.
pub type MetaHandler =
    Box<dyn Fn(&ObjectKey, Option<&ObjectMeta>, Option<&ObjectMeta>) -> bool + Send + Sync>;

impl<K: Stored> MetaSource for Store<K> {
    fn get(&self, key: &ObjectKey) -> Option<ObjectMeta> {
        Store::get(self, key).map(|object| object.object_meta().clone())
    }

    fn by_index(&self, index: Index, value: &str) -> Vec<ObjectMeta> {
        Store::by_index(self, index, value)
            .iter()
            .map(|object| object.object_meta().clone())
            .collect()
    }

    fn on_change(&self, handler: MetaHandler) {
        Store::on_change(self, move |change| {
            let meta = |object: &Option<std::sync::Arc<K>>| {
                object.as_ref().map(|o| o.object_meta().clone())
            };
            handler(&change.key, meta(&change.old).as_ref(), meta(&change.new).as_ref())
        });
    }

    fn is_synced(&self) -> bool {
        Store::is_synced(self)
    }

    fn wait_synced(&self) -> BoxFuture<'_, ()> {
        Store::wait_synced(self).boxed()
    }
}
