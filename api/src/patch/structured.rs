//! Objects under their schema, as server-side apply sees them: which fields they have, how two of
//! them differ, how one merges into another, and how fields are taken out.

use super::fieldset::{self, FieldSet};
use crate::schema::{Field, FieldType, ListKind, Schema, TypeId};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Fields that no manager owns.
const UNOWNED: [&str; 2] = ["apiVersion", "kind"];
/// The same in `metadata`.
const UNOWNED_METADATA: [&str; 10] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
    "deletionTimestamp",
];

/// Structures that Go's types hold by value. They exist even in an empty object, so nobody comes
/// to own them by creating an object (their fields are owned, of course).
const BY_VALUE: [&str; 14] = [
    "metadata",
    "spec",
    "status",
    "template",
    "strategy",
    "updateStrategy",
    "jobTemplate",
    "involvedObject",
    "source",
    "loadBalancer",
    "daemonEndpoints",
    "kubeletEndpoint",
    "nodeInfo",
    "scaleTargetRef",
];

/// How an object differs from an older one.
#[derive(Debug, Default, PartialEq)]
pub struct Comparison {
    /// Paths that were added or have another value.
    pub changed: FieldSet,
    /// Paths that are gone.
    pub removed: FieldSet,
}

/// Compares an object with its older state; without one, all of it is new.
pub fn compare(schema: &Schema, ty: TypeId, old: Option<&Value>, new: &Value) -> Comparison {
    let walk = Walk { schema };
    let mut out = Comparison::default();
    let empty = Map::new();
    let old = old.and_then(Value::as_object).unwrap_or(&empty);
    let new = new.as_object().unwrap_or(&empty);
    let root = FieldType::Struct(ty);
    walk.compare_objects(old, new, &root, true, Level::Root, &mut out);
    out
}

/// The fields of a configuration that is to be applied. The error says which field the schema
/// lacks or which item lacks its keys.
pub fn field_set(schema: &Schema, ty: TypeId, config: &Value) -> Result<FieldSet, String> {
    let mut set = FieldSet::default();
    if let Value::Object(map) = config {
        let root = FieldType::Struct(ty);
        Walk { schema }.applied_object(map, &root, Level::Root, "", &mut set)?;
    }
    Ok(set)
}

/// Merges a configuration into an object. Items of keyed lists and sets come in the order of the
/// configuration, with the object's other items between them where they were.
pub fn merge(schema: &Schema, ty: TypeId, object: &mut Value, config: &Value) {
    Walk { schema }.merge(object, config, &FieldType::Struct(ty));
}

/// Takes fields and items out of an object; a map or list that this empties goes too.
pub fn remove(schema: &Schema, ty: TypeId, object: &mut Value, gone: &FieldSet) {
    Walk { schema }.remove(object, gone, &FieldType::Struct(ty));
}

/// Where in an object a walk is: fields that nobody owns stand at the top only.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Metadata,
    Below,
}

impl Level {
    fn skips(self, name: &str) -> bool {
        match self {
            Level::Root => UNOWNED.contains(&name),
            Level::Metadata => UNOWNED_METADATA.contains(&name),
            Level::Below => false,
        }
    }

    fn below(self, name: &str) -> Level {
        if self == Level::Root && name == "metadata" { Level::Metadata } else { Level::Below }
    }
}

/// How a list's items are told apart.
enum Items<'s> {
    Atomic,
    Values,
    Keyed(&'s [String], &'s FieldType),
}

struct Walk<'s> {
    schema: &'s Schema,
}

static ANY: FieldType = FieldType::Any;

impl<'s> Walk<'s> {
    /// The value has parts that are owned one by one.
    fn granular(&self, ty: &FieldType) -> bool {
        match ty {
            FieldType::Struct(id) => !self.schema.get(*id).atomic,
            FieldType::Map { atomic, .. } => !atomic,
            FieldType::Any => true,
            _ => false,
        }
    }

    fn field(&self, ty: &FieldType, name: &str) -> Option<&'s Field> {
        match ty {
            FieldType::Struct(id) => self.schema.get(*id).fields.get(name),
            _ => None,
        }
    }

    fn child<'t>(&self, ty: &'t FieldType, name: &str) -> &'t FieldType
    where
        's: 't,
    {
        match ty {
            FieldType::Struct(_) => self.field(ty, name).map_or(&ANY, |f| &f.ty),
            FieldType::Map { value, .. } => value,
            _ => &ANY,
        }
    }

    fn items<'t>(&self, ty: &'t FieldType) -> Items<'t> {
        match ty {
            FieldType::List { kind: ListKind::Set, .. } => Items::Values,
            FieldType::List { kind: ListKind::Map(keys), item } => Items::Keyed(keys, item),
            _ => Items::Atomic,
        }
    }

    /// Elements of a list's items, in order; None if the list is atomic, or not what its type
    /// says, or has two items with one key: then it is one value.
    fn elements(&self, list: &[Value], ty: &FieldType) -> Option<Vec<Box<str>>> {
        let elements: Vec<Box<str>> = match self.items(ty) {
            Items::Atomic => return None,
            Items::Values => list.iter().map(fieldset::item_value).collect(),
            Items::Keyed(keys, item) => list
                .iter()
                .map(|v| self.key_element(v, keys, item).ok())
                .collect::<Option<Vec<_>>>()?,
        };
        let mut sorted: Vec<&str> = elements.iter().map(|e| &**e).collect();
        sorted.sort_unstable();
        sorted.windows(2).all(|pair| pair[0] != pair[1]).then_some(elements)
    }

    /// The element of a keyed item. A key that is missing has its field's default; the error is
    /// the first key that has neither, with all keys missing being one too.
    fn key_element<'k>(
        &self,
        item: &Value,
        keys: &'k [String],
        ty: &FieldType,
    ) -> Result<Box<str>, &'k str> {
        let first = keys.first().map_or("", String::as_str);
        let Value::Object(map) = item else { return Err(first) };
        let mut found: Vec<(&str, &Value)> = Vec::with_capacity(keys.len());
        for key in keys {
            let default = || self.field(ty, key).and_then(|f| f.default.as_ref());
            match map.get(key).filter(|v| !v.is_null()).or_else(default) {
                Some(value) => found.push((key, value)),
                // One of several keys may be optional (a claim's shareID), the only one may not.
                None if keys.len() == 1 || self.field(ty, key).is_none_or(|f| f.required) => {
                    return Err(key);
                }
                None => {}
            }
        }
        if found.is_empty() {
            return Err(first);
        }
        found.sort_unstable_by_key(|(name, _)| *name);
        Ok(fieldset::item_keys(found.into_iter()))
    }

    // Comparing.

    fn compare_objects(
        &self,
        old: &Map<String, Value>,
        new: &Map<String, Value>,
        ty: &FieldType,
        skeleton: bool,
        level: Level,
        out: &mut Comparison,
    ) {
        for (name, value) in new {
            if level.skips(name) || value.is_null() {
                continue;
            }
            let child = self.child(ty, name);
            let by_value = skeleton && self.by_value(ty, name);
            let mut below = Comparison::default();
            let below_level = level.below(name);
            match old.get(name).filter(|v| !v.is_null()) {
                Some(before) => self.compare(before, value, child, below_level, &mut below),
                None => self.added(value, child, by_value, below_level, &mut below.changed),
            }
            put(out, || fieldset::field(name), below);
        }
        for (name, value) in old {
            let gone = new.get(name).is_none_or(Value::is_null);
            if gone && !value.is_null() && !level.skips(name) {
                let mut below = Comparison::default();
                self.all(value, self.child(ty, name), level.below(name), &mut below.removed);
                put(out, || fieldset::field(name), below);
            }
        }
    }

    fn compare(
        &self,
        old: &Value,
        new: &Value,
        ty: &FieldType,
        level: Level,
        out: &mut Comparison,
    ) {
        match (old, new) {
            (Value::Object(old), Value::Object(new)) if self.granular(ty) => {
                self.compare_objects(old, new, ty, true, level, out);
            }
            (Value::Array(_), Value::Array(_)) if old == new => {}
            (Value::Array(old), Value::Array(new)) => self.compare_lists(old, new, ty, out),
            _ => out.changed.member = old != new,
        }
    }

    fn compare_lists(&self, old: &[Value], new: &[Value], ty: &FieldType, out: &mut Comparison) {
        let (Some(before), Some(after)) = (self.elements(old, ty), self.elements(new, ty)) else {
            out.changed.member = true;
            return;
        };
        let item = self.item(ty);
        let mut rest: HashMap<&str, &Value> = before.iter().map(|e| &**e).zip(old.iter()).collect();
        for (element, value) in after.iter().zip(new) {
            let mut below = Comparison::default();
            match rest.remove(&**element) {
                Some(before) => self.compare(before, value, item, Level::Below, &mut below),
                None => self.added(value, item, false, Level::Below, &mut below.changed),
            }
            put(out, || element.clone(), below);
        }
        for (element, value) in rest {
            let mut below = Comparison::default();
            self.all(value, item, Level::Below, &mut below.removed);
            put(out, || element.into(), below);
        }
    }

    fn item<'t>(&self, ty: &'t FieldType) -> &'t FieldType {
        match ty {
            FieldType::List { item, .. } => item,
            _ => &ANY,
        }
    }

    fn by_value(&self, ty: &FieldType, name: &str) -> bool {
        let required = self.field(ty, name).is_some_and(|f| {
            f.required
                && !matches!(f.ty, FieldType::Scalar(_))
                && !matches!(ty, FieldType::Map { .. })
        });
        matches!(ty, FieldType::Struct(_)) && (required || BY_VALUE.contains(&name))
    }

    /// All paths of a value that was not there before. `skeleton`: the value's type stands in its
    /// parent by value, so the path itself is not new.
    fn added(
        &self,
        value: &Value,
        ty: &FieldType,
        skeleton: bool,
        level: Level,
        set: &mut FieldSet,
    ) {
        match value {
            Value::Null => {}
            Value::Object(map) if self.granular(ty) && !map.is_empty() => {
                set.member = !skeleton;
                for (name, value) in map.iter().filter(|(name, _)| !level.skips(name)) {
                    let mut child = FieldSet::default();
                    let by_value = skeleton && self.by_value(ty, name);
                    self.added(
                        value,
                        self.child(ty, name),
                        by_value,
                        level.below(name),
                        &mut child,
                    );
                    set.put(fieldset::field(name), child);
                }
            }
            Value::Array(list) if !list.is_empty() => {
                set.member = true;
                let Some(elements) = self.elements(list, ty) else { return };
                set.member = !skeleton;
                for (element, value) in elements.into_iter().zip(list) {
                    let mut child = FieldSet::default();
                    self.added(value, self.item(ty), false, Level::Below, &mut child);
                    set.put(element, child);
                }
            }
            _ => set.member = true,
        }
    }

    /// All paths of a value, its own among them.
    fn all(&self, value: &Value, ty: &FieldType, level: Level, set: &mut FieldSet) {
        self.added(value, ty, false, level, set);
    }

    // Applying.

    fn applied_object(
        &self,
        map: &Map<String, Value>,
        ty: &FieldType,
        level: Level,
        path: &str,
        set: &mut FieldSet,
    ) -> Result<(), String> {
        for (name, value) in map {
            if level.skips(name) || value.is_null() {
                continue;
            }
            let path = format!("{path}.{name}");
            if matches!(ty, FieldType::Struct(_)) && self.field(ty, name).is_none() {
                return Err(format!("{path}: field not declared in schema"));
            }
            let mut child = FieldSet::default();
            self.applied(value, self.child(ty, name), level.below(name), &path, &mut child)?;
            set.put(fieldset::field(name), child);
        }
        Ok(())
    }

    fn applied(
        &self,
        value: &Value,
        ty: &FieldType,
        level: Level,
        path: &str,
        set: &mut FieldSet,
    ) -> Result<(), String> {
        match value {
            Value::Object(map) if self.granular(ty) && !map.is_empty() => {
                self.applied_object(map, ty, level, path, set)
            }
            Value::Array(list) if !list.is_empty() => self.applied_list(list, ty, path, set),
            _ => {
                set.member = true;
                Ok(())
            }
        }
    }

    fn applied_list(
        &self,
        list: &[Value],
        ty: &FieldType,
        path: &str,
        set: &mut FieldSet,
    ) -> Result<(), String> {
        if let Items::Keyed(keys, item) = self.items(ty) {
            for (i, value) in list.iter().enumerate() {
                self.key_element(value, keys, item).map_err(|key| {
                    format!("{path}: element {i}: associative list with keys has an element that omits key field {key:?} (and doesn't have default value)")
                })?;
            }
        }
        let Some(elements) = self.elements(list, ty) else {
            if !matches!(self.items(ty), Items::Atomic) {
                return Err(format!("{path}: duplicate entries for key {}", twice(self, list, ty)));
            }
            set.member = true;
            return Ok(());
        };
        for (element, value) in elements.into_iter().zip(list) {
            let mut child = FieldSet::default();
            let path = format!("{path}{}", element_path(&element));
            self.applied(value, self.item(ty), Level::Below, &path, &mut child)?;
            child.member = true;
            set.put(element, child);
        }
        Ok(())
    }

    fn merge(&self, object: &mut Value, config: &Value, ty: &FieldType) {
        match (&mut *object, config) {
            (Value::Object(old), Value::Object(new)) if self.granular(ty) => {
                for (name, value) in new.iter().filter(|(_, v)| !v.is_null()) {
                    let slot = old.entry(name.as_str()).or_insert(Value::Null);
                    self.merge(slot, value, self.child(ty, name));
                }
            }
            (Value::Array(old), Value::Array(new)) => {
                match (self.elements(old, ty), self.elements(new, ty)) {
                    (Some(before), Some(after)) => {
                        *object = Value::Array(self.merge_items(old, new, &before, &after, ty));
                    }
                    _ => *object = config.clone(),
                }
            }
            _ => *object = without_nulls(config),
        }
    }

    fn merge_items(
        &self,
        old: &mut Vec<Value>,
        new: &[Value],
        before: &[Box<str>],
        after: &[Box<str>],
        ty: &FieldType,
    ) -> Vec<Value> {
        let mut live: HashMap<&str, Value> =
            before.iter().map(|e| &**e).zip(std::mem::take(old)).collect();
        let wanted: std::collections::HashSet<&str> = after.iter().map(|e| &**e).collect();
        let mut out = Vec::with_capacity(live.len() + new.len());
        let mut next = 0;
        for element in before {
            if !wanted.contains(&**element) {
                out.extend(live.remove(&**element));
                continue;
            }
            while live.contains_key(&**element) && next < new.len() {
                out.push(self.merged_item(live.remove(&*after[next]), &new[next], ty));
                next += 1;
            }
        }
        for value in &new[next..] {
            out.push(self.merged_item(None, value, ty));
        }
        out
    }

    fn merged_item(&self, live: Option<Value>, config: &Value, ty: &FieldType) -> Value {
        let mut item = live.unwrap_or(Value::Null);
        self.merge(&mut item, config, self.item(ty));
        item
    }

    /// The value consists of parts that are owned one by one.
    fn has_parts(&self, value: &Value, ty: &FieldType) -> bool {
        match value {
            Value::Object(map) => self.granular(ty) && !map.is_empty(),
            Value::Array(list) => !list.is_empty() && self.elements(list, ty).is_some(),
            _ => false,
        }
    }

    /// Takes out what is in `gone`; true if the value is empty now and was not before.
    fn remove(&self, value: &mut Value, gone: &FieldSet, ty: &FieldType) -> bool {
        if gone.children.is_empty() {
            return false;
        }
        match value {
            Value::Object(map) if self.granular(ty) && !map.is_empty() => {
                for (element, below) in &gone.children {
                    let Some(name) = element.strip_prefix("f:") else { continue };
                    let Some(child) = map.get_mut(name) else { continue };
                    let child_ty = self.child(ty, name);
                    // What was owned as an empty whole and has got parts since is kept for these.
                    let whole = below.member && !self.has_parts(child, child_ty);
                    if whole || self.remove(child, below, child_ty) {
                        map.remove(name);
                    }
                }
                map.is_empty()
            }
            Value::Array(list) if !list.is_empty() => {
                let Some(elements) = self.elements(list, ty) else { return false };
                let mut elements = elements.into_iter();
                list.retain_mut(|item| {
                    let below = elements.next().and_then(|e| gone.children.get(&e));
                    below.is_none_or(|below| {
                        self.remove(item, below, self.item(ty));
                        !below.member
                    })
                });
                list.is_empty()
            }
            _ => false,
        }
    }
}

/// Hangs what was found below an element into the whole.
fn put(out: &mut Comparison, element: impl Fn() -> Box<str>, below: Comparison) {
    if !below.changed.is_empty() {
        out.changed.put(element(), below.changed);
    }
    if !below.removed.is_empty() {
        out.removed.put(element(), below.removed);
    }
}

/// How the element stands in a path, for an error.
fn element_path(element: &str) -> String {
    let mut set = FieldSet::default();
    set.put(element.into(), FieldSet { member: true, ..Default::default() });
    set.paths().pop().unwrap_or_default()
}

/// The first element that a list has twice.
fn twice(walk: &Walk<'_>, list: &[Value], ty: &FieldType) -> String {
    let mut seen = std::collections::HashSet::new();
    for item in list {
        let element = match walk.items(ty) {
            Items::Keyed(keys, item_ty) => walk.key_element(item, keys, item_ty).ok(),
            _ => Some(fieldset::item_value(item)),
        };
        if let Some(element) = element
            && !seen.insert(element.clone())
        {
            return element_path(&element);
        }
    }
    String::new()
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k.clone(), without_nulls(v)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(list) => list.iter().map(without_nulls).collect::<Vec<_>>().into(),
        other => other.clone(),
    }
}
