//! Every kind's metadata, and how to walk from objects to owners and dependents.

use super::plan::{Dependent, Owner, OwnerState, View, blocks, state_of};
use crate::{
    common::{namespace, uid},
    resources::Resource,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::RwLock;
use rkube_api::meta::split_api_version;
use rkube_runtime::{Index, MetaSource, ObjectKey};
use std::sync::Arc;

/// A kind and its objects' metadata.
#[derive(Clone)]
pub(super) struct Kind {
    pub resource: Resource,
    pub source: Arc<dyn MetaSource>,
}

/// All kinds; they are only ever added, so an index stays valid. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Graph {
    kinds: Arc<RwLock<Vec<Kind>>>,
}

impl Graph {
    /// Adds a kind and answers its index.
    pub fn add(&self, kind: Kind) -> usize {
        let mut kinds = self.kinds.write();
        kinds.push(kind);
        kinds.len() - 1
    }

    /// Whether a kind is known, in whatever version.
    pub fn knows(&self, resource: &Resource) -> bool {
        let (group, kind) = (&resource.api.group, &resource.api.kind);
        self.kinds
            .read()
            .iter()
            .any(|k| k.resource.api.group == *group && k.resource.api.kind == *kind)
    }

    /// The kind of an index.
    pub fn kind(&self, index: usize) -> Option<Kind> {
        self.kinds.read().get(index).cloned()
    }

    /// The kind that an owner reference names.
    pub fn kind_of(&self, owner: &OwnerReference) -> Option<Kind> {
        let (group, _version) = split_api_version(&owner.api_version);
        let kinds = self.kinds.read();
        let found = kinds
            .iter()
            .find(|k| k.resource.api.group == group && k.resource.api.kind == owner.kind);
        found.cloned()
    }

    /// An owner's kind and metadata, if the caches have it.
    pub fn locate(&self, owner: &OwnerReference) -> Option<(usize, ObjectMeta)> {
        let (group, _version) = split_api_version(&owner.api_version);
        let kinds = self.kinds.read();
        let index = kinds
            .iter()
            .position(|k| k.resource.api.group == group && k.resource.api.kind == owner.kind)?;
        let found = kinds.get(index)?.source.by_index(Index::Uid, &owner.uid);
        Some((index, found.into_iter().next()?))
    }

    /// The objects of all kinds that name this uid as an owner.
    pub fn dependents(&self, owner_uid: &str) -> Vec<(usize, ObjectMeta)> {
        let kinds = self.kinds.read();
        let of = |(index, kind): (usize, &Kind)| {
            let found = kind.source.by_index(Index::Owner, owner_uid);
            found.into_iter().map(move |meta| (index, meta)).collect::<Vec<_>>()
        };
        kinds.iter().enumerate().flat_map(of).collect()
    }

    /// An object with its owners and dependents.
    pub fn view(&self, kind: usize, key: &ObjectKey) -> Option<View> {
        let meta = self.kind(kind)?.source.get(key)?;
        let references = meta.owner_references.clone().unwrap_or_default();
        let owners = references.into_iter().map(|r| self.owner(&meta, r)).collect();
        let dependents = self.dependents(uid(&meta)).into_iter();
        let dependents = dependents
            .map(|(kind, dependent)| Dependent {
                kind,
                blocks: blocks(&dependent, &meta),
                meta: dependent,
            })
            .collect();
        Some(View { meta, owners, dependents })
    }

    fn owner(&self, meta: &ObjectMeta, reference: OwnerReference) -> Owner {
        // A kind that is not served (yet) might come back with its objects, so it counts as there.
        let Some(kind) = self.kind_of(&reference) else {
            return Owner { reference, state: OwnerState::Solid };
        };
        let blocks = reference.block_owner_deletion == Some(true);
        let found = kind.source.by_index(Index::Uid, &reference.uid);
        let state = match found.first() {
            _ if kind.resource.namespaced && namespace(meta).is_empty() => OwnerState::Foreign,
            Some(owner) if kind.resource.namespaced && namespace(owner) != namespace(meta) => {
                OwnerState::Foreign
            }
            Some(owner) if owner.name.as_deref() == Some(&reference.name) => {
                state_of(owner, blocks)
            }
            _ => OwnerState::Missing,
        };
        Owner { reference, state }
    }
}
