//! What a reader sees: everything at one revision, unchanged for as long as it is held.

use crate::object::{Key, Object, Scope};
use crate::root::Root;
use std::sync::Arc;

/// All objects at one revision. Cheap to copy; holding it stalls nobody, but keeps the objects
/// of its revision in memory.
#[derive(Clone, Default)]
pub struct View(pub(crate) Arc<Root>);

impl View {
    /// The revision that is seen.
    pub fn revision(&self) -> u64 {
        self.0.revision
    }

    /// The object with this key.
    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.0.get(key).cloned()
    }

    /// The objects of the scope in key order, from behind `after` on.
    pub fn range<'a>(
        &'a self,
        scope: &'a Scope,
        after: Option<&'a Key>,
    ) -> impl Iterator<Item = Arc<Object>> + 'a {
        self.0.resources.get(&scope.resource).into_iter().flat_map(move |r| r.range(scope, after))
    }

    /// At most `limit` objects of [`View::range`].
    pub fn page(&self, scope: &Scope, after: Option<&Key>, limit: usize) -> Vec<Arc<Object>> {
        self.range(scope, after).take(limit).collect()
    }

    /// The objects of the resource that are indexed under this term, in key order (see
    /// [`crate::Header::index`]).
    pub fn indexed<'a>(
        &'a self,
        resource: &str,
        term: &'a str,
    ) -> impl Iterator<Item = Arc<Object>> + 'a {
        self.0.resources.get(resource).into_iter().flat_map(move |r| r.indexed(term))
    }

    /// How many objects the scope has; for a whole resource without a walk.
    pub fn count(&self, scope: &Scope) -> usize {
        match (&scope.namespace, &scope.name) {
            (None, None) => self.0.resources.get(&scope.resource).map_or(0, |r| r.len()),
            _ => self.range(scope, None).count(),
        }
    }

    /// Each resource that ever had an object, with how many it has.
    pub fn resources(&self) -> Vec<(Arc<str>, usize)> {
        self.0.resources.iter().map(|(name, r)| (name.clone(), r.len())).collect()
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("revision", &self.0.revision).finish_non_exhaustive()
    }
}
