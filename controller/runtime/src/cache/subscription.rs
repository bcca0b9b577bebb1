//! A reader's own pace: what changed since it last looked, each object once.

use super::{Change, Store, Stored};
use crate::ObjectKey;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
};
use tokio::sync::Notify;

/// One object's change between two looks of a [`Subscription`]: `old` is what the reader saw last.
pub type Delta<K> = Change<K>;

/// Changes of a store, coalesced: an object that changes often while nobody reads is delivered once,
/// as it then is. So the memory it takes is bounded by the number of objects and nothing is lost
/// that still matters.
pub struct Subscription<K> {
    store: Store<K>,
    pending: Arc<Pending<K>>,
}

struct Pending<K> {
    queue: Mutex<Waiting<K>>,
    wake: Notify,
}

struct Waiting<K> {
    order: VecDeque<ObjectKey>,
    old: HashMap<ObjectKey, Option<Arc<K>>>,
}

impl<K: Stored> Subscription<K> {
    /// Starts with every object that is there.
    pub fn new(store: &Store<K>) -> Self {
        let waiting = Waiting { order: VecDeque::new(), old: HashMap::new() };
        let pending = Arc::new(Pending { queue: Mutex::new(waiting), wake: Notify::new() });
        let weak = Arc::downgrade(&pending);
        store.on_change(move |change| note(&weak, change));
        Subscription { store: store.clone(), pending }
    }

    /// Waits for the next change. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Delta<K> {
        loop {
            // A wake-up that comes before the wait is kept by `Notify`.
            if let Some(delta) = self.try_next() {
                return delta;
            }
            self.pending.wake.notified().await;
        }
    }

    /// The next change if there is one.
    pub fn try_next(&mut self) -> Option<Delta<K>> {
        loop {
            let (key, old) = {
                let mut waiting = self.pending.queue.lock();
                let key = waiting.order.pop_front()?;
                let old = waiting.old.remove(&key).flatten();
                (key, old)
            };
            let new = self.store.get(&key);
            if old.is_some() || new.is_some() {
                return Some(Delta { key, old, new });
            }
        }
    }
}

/// Remembers a change until it is read; false once the reader is gone.
fn note<K>(pending: &Weak<Pending<K>>, change: &Change<K>) -> bool {
    let Some(pending) = pending.upgrade() else { return false };
    let mut waiting = pending.queue.lock();
    if !waiting.old.contains_key(&change.key) {
        waiting.old.insert(change.key.clone(), change.old.clone());
        waiting.order.push_back(change.key.clone());
    }
    drop(waiting);
    pending.wake.notify_one();
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    fn node(name: &str, version: u64) -> Node {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            uid: Some(name.into()),
            resource_version: Some(version.to_string()),
            ..Default::default()
        };
        Node { metadata, ..Default::default() }
    }

    fn version(node: &Option<Arc<Node>>) -> Option<&str> {
        node.as_ref()?.metadata.resource_version.as_deref()
    }

    #[tokio::test]
    async fn changes_coalesce_until_they_are_read() {
        let store = Store::default();
        store.apply(node("a", 1));
        let mut changes = Subscription::new(&store);
        store.apply(node("a", 2));
        store.apply(node("b", 3));
        let a = changes.next().await;
        assert_eq!((version(&a.old), version(&a.new)), (None, Some("2")));
        store.apply(node("a", 4));
        store.apply(node("a", 5));
        assert_eq!(changes.next().await.key.name, "b");
        let a = changes.next().await;
        assert_eq!((version(&a.old), version(&a.new)), (Some("2"), Some("5")));
        store.apply(node("c", 6));
        store.delete(&node("c", 6));
        assert!(changes.try_next().is_none(), "came and went unseen");
    }
}
