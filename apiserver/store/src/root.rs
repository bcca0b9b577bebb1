//! The state as a persistent tree: a root is cheap to copy, and a reader's copy never changes.
//!
//! Objects are shared, not copied: the sets below hold pointers that order by the keys inside.

use crate::object::{Key, Object, Scope};
use equivalent::{Comparable, Equivalent};
use imbl::{OrdMap, OrdSet};
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

/// All objects at one revision.
#[derive(Clone, Default)]
pub(crate) struct Root {
    pub(crate) revision: u64,
    pub(crate) resources: OrdMap<Arc<str>, Resource>,
}

/// The objects of one resource, by key and by index term.
#[derive(Clone, Default)]
pub(crate) struct Resource {
    objects: OrdSet<ByKey>,
    terms: OrdSet<ByTerm>,
}

impl Root {
    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.resources.get(&key.resource)?.get(&key.namespace, &key.name)
    }

    /// Puts the object where its key says and returns the one it replaces.
    pub(crate) fn put(&mut self, object: Arc<Object>) -> Option<Arc<Object>> {
        let resource = object.key.resource.clone();
        if !self.resources.contains_key(&resource) {
            self.resources.insert(resource.clone(), Resource::default());
        }
        self.resources.get_mut(&resource).and_then(|resource| resource.put(object))
    }

    /// Removes and returns the object with this key.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Object>> {
        self.get(key)?;
        self.resources.get_mut(&key.resource)?.remove(&key.namespace, &key.name)
    }

    /// All objects in key order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = Arc<Object>> + use<> {
        self.clone().into_objects()
    }

    /// All objects in key order, of a copy that is held until the end.
    pub(crate) fn into_objects(self) -> impl Iterator<Item = Arc<Object>> + Send + use<> {
        self.resources.into_iter().flat_map(|(_, r)| r.objects.into_iter().map(|entry| entry.0))
    }

    pub(crate) fn first_indexed(&self, resource: &str, term: &str) -> Option<Arc<Object>> {
        self.resources.get(resource)?.indexed(term).next()
    }
}

impl Resource {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&At { namespace, name }).map(|entry| &entry.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    fn put(&mut self, object: Arc<Object>) -> Option<Arc<Object>> {
        let old = self.objects.insert(ByKey(object.clone())).map(|entry| entry.0);
        if let Some(old) = &old {
            self.remove_terms(old);
        }
        for place in 0..object.header.index.len() {
            self.terms.insert(ByTerm { object: object.clone(), place: place as u32 });
        }
        old
    }

    fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let old = self.objects.remove(&At { namespace, name })?.0;
        self.remove_terms(&old);
        Some(old)
    }

    fn remove_terms(&mut self, object: &Arc<Object>) {
        for term in &object.header.index {
            let (namespace, name) = (&*object.key.namespace, &*object.key.name);
            self.terms.remove(&TermAt { term, at: Some(At { namespace, name }) });
        }
    }

    /// The objects of the scope in key order, from behind `after` on.
    pub(crate) fn range<'a>(
        &'a self,
        scope: &'a Scope,
        after: Option<&'a Key>,
    ) -> impl Iterator<Item = Arc<Object>> + 'a {
        let namespace = scope.namespace.as_deref().unwrap_or("");
        let name = scope.namespace.as_ref().and(scope.name.as_deref()).unwrap_or("");
        let first = At { namespace, name };
        let after = after.map(|key| At { namespace: &key.namespace, name: &key.name });
        let from = match after {
            Some(after) if after >= first => Bound::Excluded(after),
            _ => Bound::Included(first),
        };
        self.objects
            .range::<_, At>((from, Bound::Unbounded))
            .take_while(move |entry| within(scope, entry))
            .filter(move |entry| scope.name.as_deref().is_none_or(|n| n == &*entry.0.key.name))
            .map(|entry| entry.0.clone())
    }

    /// The objects indexed under this term, in key order.
    pub(crate) fn indexed<'a>(&'a self, term: &'a str) -> impl Iterator<Item = Arc<Object>> + 'a {
        let from = Bound::Included(TermAt { term, at: None });
        self.terms
            .range::<_, TermAt>((from, Bound::Unbounded))
            .take_while(move |entry| entry.term() == term)
            .map(|entry| entry.object.clone())
    }
}

/// False once the walk has left the scope for good.
fn within(scope: &Scope, entry: &ByKey) -> bool {
    let key = &entry.0.key;
    match (scope.namespace.as_deref(), scope.name.as_deref()) {
        (None, _) => true,
        (Some(namespace), None) => namespace == &*key.namespace,
        (Some(namespace), Some(name)) => namespace == &*key.namespace && name == &*key.name,
    }
}

/// An object, ordered by namespace and name.
#[derive(Clone)]
struct ByKey(Arc<Object>);

impl ByKey {
    fn at(&self) -> At<'_> {
        At { namespace: &self.0.key.namespace, name: &self.0.key.name }
    }
}

/// A place within a resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct At<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// An object under one of its terms, ordered by term, namespace and name.
#[derive(Clone)]
struct ByTerm {
    object: Arc<Object>,
    place: u32,
}

impl ByTerm {
    fn term(&self) -> &str {
        &self.object.header.index[self.place as usize]
    }

    fn at(&self) -> TermAt<'_> {
        let key = &self.object.key;
        let at = Some(At { namespace: &key.namespace, name: &key.name });
        TermAt { term: self.term(), at }
    }
}

/// A place in the index; without `at` the one before all objects of the term.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct TermAt<'a> {
    term: &'a str,
    at: Option<At<'a>>,
}

macro_rules! ordered_as {
    ($entry:ty, $query:ident) => {
        impl PartialEq for $entry {
            fn eq(&self, other: &Self) -> bool {
                self.at() == other.at()
            }
        }
        impl Eq for $entry {}
        impl PartialOrd for $entry {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for $entry {
            fn cmp(&self, other: &Self) -> Ordering {
                self.at().cmp(&other.at())
            }
        }
        impl Equivalent<$entry> for $query<'_> {
            fn equivalent(&self, entry: &$entry) -> bool {
                *self == entry.at()
            }
        }
        impl Comparable<$entry> for $query<'_> {
            fn compare(&self, entry: &$entry) -> Ordering {
                self.cmp(&entry.at())
            }
        }
    };
}

ordered_as!(ByKey, At);
ordered_as!(ByTerm, TermAt);
