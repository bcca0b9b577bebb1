//! One kind's objects in memory.
//!
//! States of an object here: absent, present at a resourceVersion, buried (deleted lately, its uid
//! remembered). Invariants: a watch event or a write's answer older than what is present changes
//! nothing; a buried uid never comes back; handlers see every change once and in order; no lock is
//! held while other code runs except the one that orders handlers, and reading from a handler is
//! allowed.

use super::{Index, Stored};
use crate::ObjectKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};
use tokio::sync::watch;

/// How many deleted uids are remembered: far more than writes can be under way at once, since a
/// uid is needed only until the answer of a write that raced with the deletion has arrived.
const BURIED: usize = 4096;

/// All objects of one kind; clones are the same store.
pub struct Store<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Store<K> {
    fn clone(&self) -> Self {
        Store { shared: self.shared.clone() }
    }
}

/// What happened to one object.
#[derive(Clone, Debug)]
pub struct Change<K> {
    /// The object's key.
    pub key: ObjectKey,
    /// Before; none for a new object.
    pub old: Option<Arc<K>>,
    /// After; none for a deleted object.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The object as it is, or as it last was.
    pub fn latest(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// The object as it was and as it is, as far as there is either.
    pub fn both(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) -> bool + Send + Sync>;

struct Shared<K> {
    state: RwLock<State<K>>,
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    objects: HashMap<ObjectKey, Arc<K>>,
    index: HashMap<(Index, String), HashSet<ObjectKey>>,
    buried: HashSet<String>,
    buried_order: VecDeque<String>,
}

impl<K> Default for Store<K> {
    /// An empty store that nothing feeds yet and that is not synced.
    fn default() -> Self {
        let state = State {
            objects: HashMap::new(),
            index: HashMap::new(),
            buried: HashSet::new(),
            buried_order: VecDeque::new(),
        };
        let shared = Shared {
            state: RwLock::new(state),
            handlers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
        };
        Store { shared: Arc::new(shared) }
    }
}

impl<K: Stored> Store<K> {
    /// The object of this key.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.shared.state.read().objects.get(key).cloned()
    }

    /// The object of this name in a namespace (empty for objects of the cluster).
    pub fn named(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get(&ObjectKey::new(namespace, name))
    }

    /// Every object, in no order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.state.read().objects.values().cloned().collect()
    }

    /// The objects under a term of an index, in no order.
    pub fn by_index(&self, index: Index, value: &str) -> Vec<Arc<K>> {
        let state = self.shared.state.read();
        let keys = state.index.get(&(index, value.to_owned()));
        keys.into_iter().flatten().filter_map(|key| state.objects.get(key).cloned()).collect()
    }

    /// The objects of a namespace, in no order.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.by_index(Index::Namespace, namespace)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.shared.state.read().objects.len()
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first full list has arrived.
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits until the first full list has arrived.
    pub async fn wait_synced(&self) {
        // The sender lives in `shared`, which `self` holds, so the wait can't fail.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Calls `handler` for every object that is there and from then on for every change, in order,
    /// until it answers false. It runs on the watch's task: it must be quick, and it may read any
    /// store but must not add handlers.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) -> bool + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        for object in self.list() {
            let key = ObjectKey::of(object.object_meta());
            if !handler(&Change { key, old: None, new: Some(object) }) {
                return;
            }
        }
        handlers.push(Box::new(handler));
    }

    /// Takes what the watch or a write's answer says, unless something newer is known.
    pub fn apply(&self, object: K) {
        let mut handlers = self.shared.handlers.lock();
        let change = self.shared.state.write().apply(object);
        dispatch(&mut handlers, change);
    }

    /// Removes what the watch says is deleted.
    pub fn delete(&self, object: &K) {
        let mut handlers = self.shared.handlers.lock();
        let change = self.shared.state.write().delete(object.object_meta());
        dispatch(&mut handlers, change);
    }

    /// Takes a full list: what it lacks is deleted. The store is synced from then on.
    pub fn replace(&self, objects: Vec<K>) {
        let mut handlers = self.shared.handlers.lock();
        let listed: HashSet<ObjectKey> =
            objects.iter().map(|o| ObjectKey::of(o.object_meta())).collect();
        let gone: Vec<Arc<K>> = self
            .list()
            .into_iter()
            .filter(|o| !listed.contains(&ObjectKey::of(o.object_meta())))
            .collect();
        for object in gone {
            let change = self.shared.state.write().delete(object.object_meta());
            dispatch(&mut handlers, change);
        }
        for object in objects {
            let change = self.shared.state.write().apply(object);
            dispatch(&mut handlers, change);
        }
        drop(handlers);
        self.shared.synced.send_replace(true);
    }
}

fn dispatch<K>(handlers: &mut Vec<Handler<K>>, change: Option<Change<K>>) {
    if let Some(change) = change {
        handlers.retain(|handler| handler(&change));
    }
}

impl<K: Stored> State<K> {
    fn apply(&mut self, mut object: K) -> Option<Change<K>> {
        let uid = object.object_meta().uid.as_deref().unwrap_or_default();
        if self.buried.contains(uid) {
            return None;
        }
        let key = ObjectKey::of(object.object_meta());
        if self.objects.get(&key).is_some_and(|old| !newer(object.object_meta(), old.object_meta()))
        {
            return None;
        }
        object.object_meta_mut().managed_fields = None;
        object.trim();
        let new = Arc::new(object);
        let old = self.objects.insert(key.clone(), new.clone());
        if let Some(old) = &old {
            self.unindex(&key, old);
        }
        for term in terms(new.as_ref()) {
            self.index.entry(term).or_default().insert(key.clone());
        }
        Some(Change { key, old, new: Some(new) })
    }

    fn delete(&mut self, meta: &ObjectMeta) -> Option<Change<K>> {
        let key = ObjectKey::of(meta);
        if let Some(uid) = meta.uid.clone().filter(|uid| self.buried.insert(uid.clone())) {
            self.buried_order.push_back(uid);
            if self.buried_order.len() > BURIED
                && let Some(oldest) = self.buried_order.pop_front()
            {
                self.buried.remove(&oldest);
            }
        }
        if self.objects.get(&key)?.object_meta().uid != meta.uid {
            return None;
        }
        let old = self.objects.remove(&key)?;
        self.unindex(&key, &old);
        Some(Change { key, old: Some(old), new: None })
    }

    fn unindex(&mut self, key: &ObjectKey, object: &K) {
        for term in terms(object) {
            if let Some(keys) = self.index.get_mut(&term) {
                keys.remove(key);
                if keys.is_empty() {
                    self.index.remove(&term);
                }
            }
        }
    }
}

/// Whether `new` may take the place of `old`. Resource versions are decimal and comparable; where a
/// foreign server's are not, the latest to arrive counts.
fn newer(new: &ObjectMeta, old: &ObjectMeta) -> bool {
    let version = |m: &ObjectMeta| m.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok());
    match (version(new), version(old)) {
        (Some(new), Some(old)) => new > old,
        _ => true,
    }
}

/// Every index term of an object.
fn terms<K: Stored>(object: &K) -> Vec<(Index, String)> {
    let meta = object.object_meta();
    let mut terms = object.terms();
    terms.extend(meta.namespace.clone().map(|n| (Index::Namespace, n)));
    terms.extend(meta.uid.clone().map(|u| (Index::Uid, u)));
    let owners = meta.owner_references.iter().flatten();
    if !owners.clone().any(|o| o.controller == Some(true)) {
        terms.extend(meta.namespace.clone().map(|n| (Index::Uncontrolled, n)));
    }
    terms.extend(owners.map(|o| (Index::Owner, o.uid.clone())));
    terms
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{
        api::core::v1::{Pod, PodSpec},
        apimachinery::pkg::apis::meta::v1::OwnerReference,
    };

    fn pod(name: &str, uid: &str, version: u64, node: Option<&str>) -> Pod {
        let owner = OwnerReference { uid: "rs".into(), ..Default::default() };
        Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("default".into()),
                uid: Some(uid.into()),
                resource_version: Some(version.to_string()),
                owner_references: Some(vec![owner]),
                managed_fields: Some(vec![]),
                ..Default::default()
            },
            spec: Some(PodSpec { node_name: node.map(Into::into), ..Default::default() }),
            status: None,
        }
    }

    fn names(pods: Vec<Arc<Pod>>) -> Vec<String> {
        let mut names: Vec<_> = pods.iter().filter_map(|p| p.metadata.name.clone()).collect();
        names.sort();
        names
    }

    #[test]
    fn older_news_changes_nothing() {
        let store = Store::default();
        store.apply(pod("a", "1", 5, Some("n1")));
        store.apply(pod("a", "1", 4, None));
        let kept = store.named("default", "a").unwrap();
        assert_eq!(kept.metadata.resource_version.as_deref(), Some("5"));
        assert_eq!(kept.metadata.managed_fields, None);
    }

    #[test]
    fn a_late_answer_does_not_raise_the_dead() {
        let store = Store::default();
        store.delete(&pod("a", "1", 7, None));
        store.apply(pod("a", "1", 6, None));
        assert!(store.is_empty());
        store.apply(pod("a", "2", 8, None));
        store.delete(&pod("a", "1", 7, None));
        assert_eq!(store.len(), 1, "the deletion was of the former object of that name");
    }

    #[test]
    fn indexes_follow_the_object() {
        let store = Store::default();
        store.apply(pod("a", "1", 1, None));
        store.apply(pod("b", "2", 2, Some("n1")));
        store.apply(pod("a", "1", 3, Some("n2")));
        assert_eq!(names(store.by_index(Index::Owner, "rs")), ["a", "b"]);
        assert_eq!(names(store.by_index(Index::Node, "n2")), ["a"]);
        assert_eq!(names(store.by_index(Index::Node, "")), Vec::<String>::new());
        store.delete(&pod("a", "1", 4, None));
        assert_eq!(names(store.in_namespace("default")), ["b"]);
        assert!(store.by_index(Index::Node, "n2").is_empty());
    }

    #[test]
    fn a_full_list_deletes_what_it_lacks_and_handlers_see_it() {
        let store = Store::default();
        store.apply(pod("a", "1", 1, None));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        store.on_change(move |c| {
            log.lock().push((c.key.name.clone(), c.old.is_some(), c.new.is_some()));
            true
        });
        assert!(!store.is_synced());
        store.replace(vec![pod("b", "2", 2, None)]);
        assert!(store.is_synced());
        let expected = [("a", false, true), ("a", true, false), ("b", false, true)];
        assert_eq!(*seen.lock(), expected.map(|(n, o, c)| (n.to_owned(), o, c)));
    }
}
