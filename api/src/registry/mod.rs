//! One entry a kind: its names, scope, columns, selectable fields, subresources and the rules
//! that a table of types can't state.
//!
//! Each kind (or small group of kinds) has one module here, with its entry and its rules;
//! [`builtin`] lists them. All rules are pure.

mod access;
mod age;
mod builder;
mod config;
mod endpoint_slice;
mod event;
mod fault;
mod index;
mod member;
mod metadata;
mod names;
mod namespace;
mod node;
mod pod;
mod print;
mod service;
#[cfg(test)]
mod tests;
mod workload;

pub use age::human_duration;
pub use index::{bump_generation, index_terms};

use crate::error::FieldError;
use jiff::Timestamp;
use serde_json::Value;
use std::sync::{Arc, LazyLock};

/// All kinds that are served, in discovery order.
pub struct Registry {
    /// Core group first, then by group and plural.
    pub kinds: Vec<Arc<Kind>>,
}

/// The kinds that are compiled in.
pub fn builtin() -> &'static Registry {
    static BUILTIN: LazyLock<Registry> = LazyLock::new(|| {
        let entries = [
            config::entries(),
            endpoint_slice::entries(),
            event::entries(),
            member::entries(),
            namespace::entries(),
            node::entries(),
            pod::entries(),
            service::entries(),
            workload::entries(),
        ];
        Registry::new(entries.into_iter().flatten().map(Arc::new).collect())
    });
    &BUILTIN
}

impl Registry {
    /// A registry of these kinds, brought into discovery order.
    pub fn new(mut kinds: Vec<Arc<Kind>>) -> Self {
        kinds.sort_by(|a, b| {
            (&a.group, &a.version, &a.plural).cmp(&(&b.group, &b.version, &b.plural))
        });
        Registry { kinds }
    }

    /// The kind behind a URL's group, version and plural.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|k| k.plural == plural && k.group == group && k.version == version)
    }

    /// The kind with this full name.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|k| k.kind == kind && k.group == group && k.version == version)
    }

    /// The first kind that a person means by a short name, a singular, a plural or a kind in any
    /// case; `name.group` chooses the group.
    pub fn by_short_name(&self, name: &str) -> Option<&Arc<Kind>> {
        let name = name.to_lowercase();
        let (word, group) = match name.split_once('.') {
            Some((word, group)) => (word, Some(group)),
            None => (name.as_str(), None),
        };
        self.kinds.iter().find(|k| {
            let known = k.plural == word
                || k.singular == word
                || k.kind.to_lowercase() == word
                || k.short_names.iter().any(|s| s == word);
            known && group.is_none_or(|g| k.group == g)
        })
    }
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        crate::meta::api_version(&self.group, &self.version)
    }

    /// The resource in the store's keys: `pods`, `deployments.apps`. A kind that is stored as
    /// another one has the other's.
    pub fn store_resource(&self) -> String {
        let group = self.stored_as.as_ref().map_or(self.group.as_str(), |c| &c.group);
        if group.is_empty() { self.plural.clone() } else { format!("{}.{group}", self.plural) }
    }

    /// The subresource with this name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// How a kind's objects are kept in another kind's form.
#[derive(Clone)]
pub struct Conversion {
    /// Group of the kind that is stored.
    pub group: String,
    /// Version of the kind that is stored.
    pub version: String,
    /// From this kind's form to the stored one.
    pub to_stored: fn(Value) -> Value,
    /// From the stored form to this kind's.
    pub from_stored: fn(Value) -> Value,
}

/// The rules of a kind that has none.
struct Plain;

impl Strategy for Plain {
    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![access::name_cell(object), age::age_cell(object, now)]
    }
}

/// A kind that the API serves.
pub struct Kind {
    /// Empty for the core group.
    pub group: String,
    /// `v1`
    pub version: String,
    /// `Pod`
    pub kind: String,
    /// `pods`
    pub plural: String,
    /// `pod`
    pub singular: String,
    /// `po`
    pub short_names: Vec<String>,
    /// `all`
    pub categories: Vec<String>,
    /// Lives in a namespace.
    pub namespaced: bool,
    /// The verbs that discovery names.
    pub verbs: Vec<String>,
    /// The type's name in the schema: `core.v1.Pod`.
    pub type_name: String,
    /// Columns of the printed table, in order.
    pub columns: Vec<Column>,
    /// Fields that `fieldSelector` knows, beside `metadata.name` and `metadata.namespace`.
    pub selectable_fields: Vec<String>,
    /// What hangs below an object.
    pub subresources: Vec<Subresource>,
    /// `spec` and `status` have different writers: the main resource ignores `status`.
    pub has_status: bool,
    /// `metadata.generation` counts changes of the spec.
    pub has_generation: bool,
    /// The objects are kept in another kind's form, which this one is a view of.
    pub stored_as: Option<Conversion>,
    /// The objects are never kept: the server makes them on request from what it knows.
    pub computed: bool,
    /// The rules.
    pub strategy: Box<dyn Strategy>,
}

/// A path below an object.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// `status`, `scale`, `log`
    pub name: String,
    /// The verbs that discovery names.
    pub verbs: Vec<String>,
    /// Group, version and kind of what it takes and gives; the parent's own if None.
    pub kind: Option<(String, String, String)>,
}

/// A column of the printed table.
#[derive(Clone, Debug)]
pub struct Column {
    /// The heading.
    pub name: String,
    /// `string`, `integer`, `date`
    pub ty: String,
    /// `name` for the column that identifies the row.
    pub format: String,
    /// What it shows.
    pub description: String,
    /// Above 0: only with `-o wide`.
    pub priority: i32,
}

/// What of an object is written: the whole, or one subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The object itself.
    Main,
    /// `/status`
    Status,
    /// `namespaces/finalize`: the finalizers of a namespace's spec.
    Finalize,
    /// `pods/ephemeralcontainers`: containers that are added to a running pod.
    EphemeralContainers,
}

/// The rules of a kind that a table of types can't state. All methods are pure.
///
/// A write runs them in this order: `default` (after the table's defaults), `prepare_*`,
/// admission, `validate*`.
pub trait Strategy: Send + Sync {
    /// Fills what depends on other fields.
    fn default(&self, _object: &mut Value) {}

    /// Clears what a client may not set at creation and sets what the server owns.
    fn prepare_create(&self, _object: &mut Value) {}

    /// The same for an update: carries over what `target` may not change.
    fn prepare_update(&self, _target: Target, _new: &mut Value, _old: &Value) {}

    /// All faults of a new object, those of its metadata among them.
    fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// All faults of a change, immutable fields among them; includes those of `validate`.
    fn validate_update(&self, _target: Target, new: &Value, _old: &Value) -> Vec<FieldError> {
        self.validate(new)
    }

    /// Texts for the `Warning` header.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// The values of the kind's selectable fields, in the order of [`Kind::selectable_fields`].
    fn selectable_values(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// The cells of the object's row, in the order of [`Kind::columns`].
    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value>;

    /// Whether a change is one of what is desired, so that `metadata.generation` counts it.
    fn desired_changed(&self, new: &Value, old: &Value) -> bool {
        index::differ_beside_status(new, old)
    }

    /// Whether a name is good for this kind, with what is wrong if not. `validate` asks it.
    fn validate_name(&self, _name: &str) -> Option<String> {
        None
    }
}
