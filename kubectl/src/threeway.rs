//! The patch that turns what the server has into what a manifest says, and removes what the
//! manifest's last version had and this one lacks. Fields that neither mentions stay.
//!
//! Types that the schema knows get a strategic merge patch, others a JSON merge patch.

use rkube_api::schema::{FieldType, ListKind, Schema, TypeId};
use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

/// How the schema sees the fields of a map.
#[derive(Clone)]
enum Shape {
    Struct(TypeId),
    Each(FieldType),
    Unknown,
}

#[derive(Clone, Copy)]
struct Options {
    /// Leave out what is new or changed: only deletions are wanted.
    deletions_only: bool,
    retain_keys: bool,
}

/// A strategic merge patch from `current` to `modified`; `original` is what was applied last.
pub fn strategic(
    schema: &Schema,
    root: TypeId,
    original: &Value,
    modified: &Value,
    current: &Value,
) -> Value {
    let diff = Diff { schema };
    let map = |v: &'_ Value| v.as_object().cloned().unwrap_or_default();
    let (original, modified, current) = (map(original), map(modified), map(current));
    let shape = Shape::Struct(root);
    let changes = Options { deletions_only: false, retain_keys: false };
    let deletions = Options { deletions_only: true, retain_keys: false };
    let delta = diff.maps(&current, &modified, &shape, changes);
    let gone = diff.maps(&original, &modified, &shape, deletions);
    Value::Object(diff.merge(gone, delta, &shape))
}

/// A strategic merge patch between two versions of one object.
pub fn strategic_two_way(schema: &Schema, root: TypeId, old: &Value, new: &Value) -> Value {
    strategic(schema, root, old, new, old)
}

/// The same three-way patch as a JSON merge patch.
pub fn json_merge(original: &Value, modified: &Value, current: &Value) -> Value {
    let mut patch = merge_diff(original, modified, true);
    let delta = merge_diff(current, modified, false);
    overlay(&mut patch, delta);
    patch
}

/// A JSON merge patch between two versions of one object.
pub fn json_merge_two_way(old: &Value, new: &Value) -> Value {
    json_merge(old, new, old)
}

/// The nulls (`deletions`) or the additions and changes between two values.
fn merge_diff(old: &Value, new: &Value, deletions: bool) -> Value {
    let empty = Object::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut patch = Object::new();
    if deletions {
        for key in old.keys().filter(|k| !new.contains_key(*k)) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    for (key, value) in new {
        match old.get(key) {
            Some(before) if before.is_object() && value.is_object() => {
                let inner = merge_diff(before, value, deletions);
                if inner.as_object().is_some_and(|m| !m.is_empty()) {
                    patch.insert(key.clone(), inner);
                }
            }
            Some(before) if before == value => {}
            _ if deletions => {}
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

/// Lays one patch over another; nulls stay.
fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                match under.get_mut(&key) {
                    Some(place) => overlay(place, value),
                    None => {
                        under.insert(key, value);
                    }
                }
            }
        }
        (place, value) => *place = value,
    }
}

struct Diff<'a> {
    schema: &'a Schema,
}

/// What the schema says about a field.
struct Meta {
    shape: Shape,
    merge: bool,
    retain_keys: bool,
    merge_key: Option<String>,
    replace: bool,
}

impl Diff<'_> {
    fn meta(&self, shape: &Shape, key: &str) -> Meta {
        let unknown = Meta {
            shape: Shape::Unknown,
            merge: false,
            retain_keys: false,
            merge_key: None,
            replace: false,
        };
        match shape {
            Shape::Unknown => unknown,
            Shape::Each(ty) => Meta { shape: inner_shape(ty), ..unknown },
            Shape::Struct(id) => match self.schema.get(*id).fields.get(key) {
                None => unknown,
                Some(field) => Meta {
                    shape: inner_shape(&field.ty),
                    merge: field.patch_merge,
                    retain_keys: field.patch_retain_keys,
                    merge_key: field.patch_merge_key.as_deref().map(str::to_owned),
                    replace: false,
                },
            },
        }
    }

    fn maps(&self, old: &Object, new: &Object, shape: &Shape, options: Options) -> Object {
        let mut patch = Object::new();
        for (key, value) in new {
            let Some(before) = old.get(key) else {
                if !options.deletions_only {
                    patch.insert(key.clone(), value.clone());
                }
                continue;
            };
            self.field(key, before, value, shape, options, &mut patch);
        }
        if options.deletions_only {
            for key in old.keys().filter(|k| !new.contains_key(*k)) {
                patch.insert(key.clone(), Value::Null);
            }
        }
        let kept: Vec<&String> = new.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k).collect();
        let extra = old.keys().any(|k| !new.contains_key(k));
        if options.retain_keys && !kept.is_empty() && (!patch.is_empty() || extra) {
            let mut kept: Vec<String> = kept.into_iter().cloned().collect();
            kept.sort();
            patch.insert("$retainKeys".into(), json!(kept));
        }
        patch
    }

    fn field(
        &self,
        key: &str,
        old: &Value,
        new: &Value,
        shape: &Shape,
        options: Options,
        patch: &mut Object,
    ) {
        match (old, new) {
            (Value::Object(before), Value::Object(after)) => {
                let meta = self.meta(shape, key);
                if meta.replace {
                    return replace_if_changed(key, old, new, options, patch);
                }
                let options = Options { retain_keys: meta.retain_keys, ..options };
                let inner = self.maps(before, after, &meta.shape, options);
                if !inner.is_empty() {
                    patch.insert(key.into(), Value::Object(inner));
                }
            }
            (Value::Array(before), Value::Array(after)) => {
                let meta = self.meta(shape, key);
                if meta.merge {
                    self.lists(key, before, after, &meta, options, patch);
                } else {
                    replace_if_changed(key, old, new, options, patch);
                }
            }
            _ => replace_if_changed(key, old, new, options, patch),
        }
    }

    fn lists(
        &self,
        key: &str,
        old: &[Value],
        new: &[Value],
        meta: &Meta,
        options: Options,
        patch: &mut Object,
    ) {
        if old.is_empty() {
            if !new.is_empty() && !options.deletions_only {
                patch.insert(key.into(), json!(new));
            }
            return;
        }
        let maps = old.iter().chain(new).all(Value::is_object);
        match meta.merge_key.as_deref().filter(|_| maps) {
            Some(merge_key) => {
                let options = Options { retain_keys: meta.retain_keys, ..options };
                let changed = self.keyed(old, new, merge_key, &meta.shape, options);
                let order_same = old.len() == new.len()
                    && old.iter().zip(new).all(|(a, b)| a[merge_key] == b[merge_key]);
                let order = !changed.is_empty() || (!options.deletions_only && !order_same);
                if order {
                    let keys: Vec<Value> =
                        new.iter().map(|item| json!({merge_key: item[merge_key]})).collect();
                    insert_unless_empty(patch, format!("$setElementOrder/{key}"), keys);
                }
                insert_unless_empty(patch, key.into(), changed);
            }
            None => scalars(key, old, new, options, patch),
        }
    }

    /// The items that differ, in the order of `new`, then the deleted ones.
    fn keyed(
        &self,
        old: &[Value],
        new: &[Value],
        merge_key: &str,
        shape: &Shape,
        options: Options,
    ) -> Vec<Value> {
        let find = |list: &[Value], item: &Value| {
            list.iter()
                .find(|other| other[merge_key] == item[merge_key])
                .and_then(Value::as_object)
                .cloned()
        };
        let mut changed = Vec::new();
        for item in new {
            match (find(old, item), item.as_object()) {
                (Some(before), Some(after)) => {
                    let mut inner = self.maps(&before, after, shape, options);
                    if !inner.is_empty() {
                        inner.insert(merge_key.into(), item[merge_key].clone());
                        changed.push(Value::Object(inner));
                    }
                }
                _ if options.deletions_only => {}
                _ => changed.push(item.clone()),
            }
        }
        if options.deletions_only {
            for item in old.iter().filter(|item| find(new, item).is_none()) {
                changed.push(json!({"$patch": "delete", merge_key: item[merge_key]}));
            }
        }
        changed
    }

    /// Lays the additions over the deletions.
    fn merge(&self, mut under: Object, over: Object, shape: &Shape) -> Object {
        for (key, value) in over {
            let meta = self.meta(shape, &key);
            let merged = match (under.remove(&key), value) {
                (Some(Value::Object(a)), Value::Object(b)) => {
                    Value::Object(self.merge(a, b, &meta.shape))
                }
                (Some(Value::Array(a)), Value::Array(b)) if meta.merge => match &meta.merge_key {
                    Some(merge_key) => Value::Array(self.merge_lists(a, b, merge_key, &meta.shape)),
                    None => Value::Array(b),
                },
                (_, value) => value,
            };
            under.insert(key, merged);
        }
        under
    }

    fn merge_lists(
        &self,
        under: Vec<Value>,
        over: Vec<Value>,
        merge_key: &str,
        shape: &Shape,
    ) -> Vec<Value> {
        let mut out = over;
        for item in under {
            let same = out.iter_mut().find(|other| other[merge_key] == item[merge_key]);
            match (same, item) {
                (Some(place), Value::Object(below)) => {
                    let above = place.as_object().cloned().unwrap_or_default();
                    *place = Value::Object(self.merge(below, above, shape));
                }
                (Some(_), _) => {}
                (None, item) => out.push(item),
            }
        }
        out
    }
}

fn inner_shape(ty: &FieldType) -> Shape {
    match ty {
        FieldType::Struct(id) => Shape::Struct(*id),
        FieldType::Map { value, .. } => Shape::Each((**value).clone()),
        FieldType::List { item, kind: ListKind::Atomic | ListKind::Set | ListKind::Map(_) } => {
            inner_shape(item)
        }
        FieldType::Scalar(_) | FieldType::Any => Shape::Unknown,
    }
}

fn replace_if_changed(key: &str, old: &Value, new: &Value, options: Options, patch: &mut Object) {
    if !options.deletions_only && old != new {
        patch.insert(key.into(), new.clone());
    }
}

fn insert_unless_empty(patch: &mut Object, key: String, items: Vec<Value>) {
    if !items.is_empty() {
        patch.insert(key, Value::Array(items));
    }
}

/// A list of plain values that are merged as a set.
fn scalars(key: &str, old: &[Value], new: &[Value], options: Options, patch: &mut Object) {
    let added: Vec<Value> = new.iter().filter(|v| !old.contains(v)).cloned().collect();
    let gone: Vec<Value> = old.iter().filter(|v| !new.contains(v)).cloned().collect();
    let order = if options.deletions_only { !gone.is_empty() } else { old != new };
    if order {
        insert_unless_empty(patch, format!("$setElementOrder/{key}"), new.to_vec());
    }
    if options.deletions_only {
        insert_unless_empty(patch, format!("$deleteFromPrimitiveList/{key}"), gone);
    } else {
        insert_unless_empty(patch, key.into(), added);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(original: Value, modified: Value, current: Value) -> Value {
        let schema = rkube_api::schema::builtin();
        let root = schema.id_of_kind("apps", "v1", "Deployment").unwrap();
        strategic(schema, root, &original, &modified, &current)
    }

    fn deployment(containers: Value, replicas: Value) -> Value {
        json!({"spec": {"replicas": replicas, "template": {"spec": {"containers": containers}}}})
    }

    #[test]
    fn nothing_to_do() {
        let applied = deployment(json!([{"name": "c", "image": "nginx:1"}]), json!(2));
        let mut live = applied.clone();
        live["status"] = json!({"replicas": 2});
        live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
        assert_eq!(patch(applied.clone(), applied, live), json!({}));
    }

    #[test]
    fn changes_and_deletions_by_merge_key() {
        let original = deployment(
            json!([{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]),
            json!(2),
        );
        let modified =
            deployment(json!([{"name": "a", "image": "2"}, {"name": "c", "image": "1"}]), json!(3));
        let got = patch(original.clone(), modified, original);
        assert_eq!(
            got,
            json!({"spec": {"replicas": 3, "template": {"spec": {
            "$setElementOrder/containers": [{"name": "a"}, {"name": "c"}],
            "containers": [
                {"name": "a", "image": "2", "args": null},
                {"name": "c", "image": "1"},
                {"$patch": "delete", "name": "b"},
            ]}}}})
        );
    }

    #[test]
    fn what_only_the_server_has_stays() {
        let original = deployment(json!([{"name": "a"}]), json!(2));
        let mut modified = original.clone();
        modified["spec"].as_object_mut().unwrap().remove("replicas");
        let mut live = original.clone();
        live["spec"]["replicas"] = json!(7);
        live["metadata"] = json!({"labels": {"x": "y"}});
        assert_eq!(patch(original, modified, live), json!({"spec": {"replicas": null}}));
    }

    #[test]
    fn retain_keys_of_a_strategy() {
        let original = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let modified = json!({"spec": {"strategy": {"type": "Recreate"}}});
        assert_eq!(
            patch(original.clone(), modified, original),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate", "rollingUpdate": null}}})
        );
    }

    #[test]
    fn primitive_lists() {
        let original = json!({"metadata": {"finalizers": ["a", "b"]}});
        let modified = json!({"metadata": {"finalizers": ["b", "c"]}});
        assert_eq!(
            patch(original.clone(), modified, original),
            json!({"metadata": {"$setElementOrder/finalizers": ["b", "c"],
                "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}})
        );
    }

    #[test]
    fn json_merge_patches() {
        let original = json!({"spec": {"a": 1, "b": {"c": 1, "d": 2}}});
        let modified = json!({"spec": {"b": {"c": 2}}});
        let current = json!({"spec": {"a": 1, "b": {"c": 1, "d": 2}, "server": true}});
        assert_eq!(
            json_merge(&original, &modified, &current),
            json!({"spec": {"a": null, "b": {"c": 2, "d": null}}})
        );
    }
}
