//! Strategic merge patch: a merge patch whose lists merge by key, with directives.
//!
//! Directives: `$patch: merge|replace|delete` in a structure or a list's item, `$retainKeys`,
//! `$setElementOrder/<list>` and `$deleteFromPrimitiveList/<list>`. How a field merges stands in
//! the schema. Fields that the schema does not know are merged as they come; decoding the result
//! reports them.

use crate::error::ApiError;
use crate::schema::{Field, FieldType, Schema, TypeId};
use serde_json::{Map, Value};
use std::collections::HashMap;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Merges `patch` into `object`, which is of type `ty`. A patch that breaks the form is a 400.
pub fn apply(schema: &Schema, ty: TypeId, object: Value, patch: &Value) -> Result<Value, ApiError> {
    let Value::Object(patch) = patch else {
        return Err(ApiError::bad_request(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            go_kind(patch)
        )));
    };
    let original = match object {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let merge = Merge { schema };
    merge.map(original, patch, Shape::Struct(ty)).map(Value::Object)
}

/// What is known of the value that a map of the patch stands for.
#[derive(Clone, Copy)]
enum Shape<'s> {
    Struct(TypeId),
    MapOf(&'s FieldType),
    Unknown,
}

impl<'s> Shape<'s> {
    fn of(ty: Option<&'s FieldType>) -> Self {
        match ty {
            Some(FieldType::Struct(id)) => Shape::Struct(*id),
            Some(FieldType::Map { value, .. }) => Shape::MapOf(value),
            _ => Shape::Unknown,
        }
    }
}

struct Merge<'s> {
    schema: &'s Schema,
}

type Object = Map<String, Value>;

impl<'s> Merge<'s> {
    fn field(&self, shape: Shape<'s>, key: &str) -> Option<&'s Field> {
        match shape {
            Shape::Struct(id) => self.schema.get(id).fields.get(key),
            _ => None,
        }
    }

    /// The shape of the value under `key`.
    fn shape(&self, shape: Shape<'s>, key: &str) -> Shape<'s> {
        match shape {
            Shape::MapOf(value) => Shape::of(Some(value)),
            _ => Shape::of(self.field(shape, key).map(|f| &f.ty)),
        }
    }

    fn map(&self, original: Object, patch: &Object, shape: Shape<'s>) -> Result<Object, ApiError> {
        match patch.get(DIRECTIVE).map(|d| d.as_str().unwrap_or("")) {
            None | Some("merge") => {}
            Some("replace") => return Ok(without_directives(patch)),
            Some("delete") => return Ok(Object::new()),
            Some(other) => return Err(unknown_directive(other)),
        }
        let mut merged = retain_keys(original, patch)?;
        self.delete_from_lists(&mut merged, patch)?;
        for (key, value) in patch.iter().filter(|(k, _)| !is_directive(k)) {
            let order = patch.get(&format!("{SET_ORDER}{key}"));
            self.entry(&mut merged, key, value, order, shape)?;
        }
        self.order_untouched(&mut merged, patch, shape)?;
        Ok(merged)
    }

    fn entry(
        &self,
        merged: &mut Object,
        key: &str,
        value: &Value,
        order: Option<&Value>,
        shape: Shape<'s>,
    ) -> Result<(), ApiError> {
        let field = self.field(shape, key);
        let old = merged.get_mut(key).map(Value::take);
        let new = match (old, value) {
            (_, Value::Null) => {
                merged.remove(key);
                return Ok(());
            }
            (Some(Value::Object(old)), Value::Object(new)) => {
                Value::Object(self.map(old, new, self.shape(shape, key))?)
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                Value::Array(self.list(key, old, new, field, order)?)
            }
            (None, Value::Array(new)) if field.is_some_and(|f| f.patch_merge) => {
                Value::Array(self.list(key, Vec::new(), new, field, order)?)
            }
            (_, Value::Object(new)) => {
                if new.get(DIRECTIVE).is_some_and(|d| d == "delete") {
                    merged.remove(key);
                    return Ok(());
                }
                Value::Object(self.map(Object::new(), new, self.shape(shape, key))?)
            }
            (_, new) => cleaned(new),
        };
        merged.insert(key.to_string(), new);
        Ok(())
    }

    fn list(
        &self,
        name: &str,
        original: Vec<Value>,
        patch: &[Value],
        field: Option<&'s Field>,
        order: Option<&Value>,
    ) -> Result<Vec<Value>, ApiError> {
        let merging = field.filter(|f| f.patch_merge);
        let Some(field) = merging else {
            return Ok(patch.iter().filter(|v| !is_directive_item(v)).map(cleaned).collect());
        };
        if original.iter().chain(patch).any(Value::is_array) {
            return Err(ApiError::bad_request("Lists of lists are not supported"));
        }
        let Some(key) = &field.patch_merge_key else {
            let merged = union(&original, patch);
            return order_list(name, merged, &original, patch, order, None);
        };
        if patch.iter().any(|v| v.get(DIRECTIVE).is_some_and(|d| d == "replace")) {
            return Ok(patch.iter().filter(|v| !is_directive_item(v)).map(cleaned).collect());
        }
        let item = match &field.ty {
            FieldType::List { item, .. } => Shape::of(Some(item)),
            _ => Shape::Unknown,
        };
        let (merged, kept) = self.merge_items(&original, patch, key, item)?;
        order_list(name, merged, &original, &kept, order, Some(key))
    }

    /// The merged items, and those of the patch that are not deletions.
    fn merge_items(
        &self,
        original: &[Value],
        patch: &[Value],
        key: &str,
        item: Shape<'s>,
    ) -> Result<(Vec<Value>, Vec<Value>), ApiError> {
        let mut places = Places::of(original, Some(key));
        let mut merged: Vec<Option<Value>> = original.iter().cloned().map(Some).collect();
        let mut kept = Vec::with_capacity(patch.len());
        for value in patch {
            let (map, id) = keyed(value, key)?;
            let place = places.get(id);
            if map.get(DIRECTIVE).is_some_and(|d| d == "delete") {
                place.into_iter().for_each(|i| merged[i] = None);
                continue;
            }
            let old = match place.and_then(|i| merged[i].take()) {
                Some(Value::Object(old)) => old,
                _ => Object::new(),
            };
            let new = Value::Object(self.map(old, map, item)?);
            match place {
                Some(i) => merged[i] = Some(new),
                None => {
                    places.set(id, merged.len());
                    merged.push(Some(new));
                }
            }
            kept.push(value.clone());
        }
        Ok((merged.into_iter().flatten().collect(), kept))
    }

    fn delete_from_lists(&self, merged: &mut Object, patch: &Object) -> Result<(), ApiError> {
        for (key, gone) in patch {
            let Some(name) = key.strip_prefix(DELETE_FROM) else { continue };
            let Value::Array(gone) = gone else {
                return Err(ApiError::bad_request("invalid patch format of primitive list"));
            };
            if let Some(Value::Array(list)) = merged.get_mut(name) {
                let gone = Places::of(gone, None);
                list.retain(|v| gone.get(v).is_none());
            }
        }
        Ok(())
    }

    /// `$setElementOrder` for lists that the patch does not change otherwise.
    fn order_untouched(
        &self,
        merged: &mut Object,
        patch: &Object,
        shape: Shape<'s>,
    ) -> Result<(), ApiError> {
        for (directive, order) in patch {
            let Some(name) = directive.strip_prefix(SET_ORDER) else { continue };
            if patch.contains_key(name) {
                continue;
            }
            let key = self.field(shape, name).and_then(|f| f.patch_merge_key.as_deref());
            if let Some(Value::Array(list)) = merged.get_mut(name) {
                let original = std::mem::take(list);
                *list = order_list(name, original.clone(), &original, &[], Some(order), key)?;
            }
        }
        Ok(())
    }
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE
        || key == RETAIN_KEYS
        || key.starts_with(SET_ORDER)
        || key.starts_with(DELETE_FROM)
}

/// An item that only carries a directive (`- $patch: replace`), or that is to be deleted.
fn is_directive_item(value: &Value) -> bool {
    match value {
        Value::Object(map) => match map.get(DIRECTIVE) {
            Some(directive) => map.len() == 1 || directive == "delete",
            None => false,
        },
        _ => false,
    }
}

fn unknown_directive(directive: &str) -> ApiError {
    ApiError::bad_request(format!("Unknown patch type found: {directive}"))
}

/// A value of the patch as it goes into the object: without directives and nulls.
fn cleaned(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(list) => {
            list.iter().filter(|v| !is_directive_item(v)).map(cleaned).collect::<Vec<_>>().into()
        }
        other => other.clone(),
    }
}

fn without_directives(map: &Object) -> Object {
    map.iter()
        .filter(|(key, value)| !is_directive(key) && !value.is_null())
        .map(|(key, value)| (key.clone(), cleaned(value)))
        .collect()
}

fn retain_keys(mut original: Object, patch: &Object) -> Result<Object, ApiError> {
    let Some(retain) = patch.get(RETAIN_KEYS) else { return Ok(original) };
    let invalid = || ApiError::bad_request("invalid patch format of retainKeys");
    let Value::Array(retain) = retain else { return Err(invalid()) };
    let retained = |key: &str| retain.iter().any(|r| r.as_str() == Some(key));
    let missing =
        patch.iter().any(|(key, value)| !is_directive(key) && !value.is_null() && !retained(key));
    if missing {
        return Err(invalid());
    }
    original.retain(|key, _| retained(key));
    Ok(original)
}

/// An item of a list that merges by key, with its key's value.
fn keyed<'v>(value: &'v Value, key: &str) -> Result<(&'v Object, &'v Value), ApiError> {
    let Value::Object(map) = value else {
        return Err(ApiError::bad_request(format!(
            "expected a map in a list that merges by {key:?}, got {}",
            go_kind(value)
        )));
    };
    let id = map.get(key).ok_or_else(|| {
        ApiError::bad_request(format!("map: {value} does not contain declared merge key: {key}"))
    })?;
    Ok((map, id))
}

/// Both lists without duplicates, the original's items first.
fn union(original: &[Value], patch: &[Value]) -> Vec<Value> {
    let mut places = Places::default();
    let mut merged = Vec::with_capacity(original.len() + patch.len());
    for value in original.iter().chain(patch) {
        if places.get(value).is_none() {
            places.set(value, merged.len());
            merged.push(value.clone());
        }
    }
    merged
}

/// Where in a list an item stands: hostile lists are long.
#[derive(Default)]
struct Places(HashMap<String, usize>);

impl Places {
    fn of(list: &[Value], key: Option<&str>) -> Self {
        let mut places = Places::default();
        for (i, value) in list.iter().enumerate() {
            places.0.entry(identity(value, key).to_string()).or_insert(i);
        }
        places
    }

    fn get(&self, id: &Value) -> Option<usize> {
        self.0.get(&id.to_string()).copied()
    }

    fn set(&mut self, id: &Value, place: usize) {
        self.0.insert(id.to_string(), place);
    }
}

/// What tells an item from the others.
fn identity<'v>(value: &'v Value, key: Option<&str>) -> &'v Value {
    match key {
        Some(key) => value.get(key).unwrap_or(&Value::Null),
        None => value,
    }
}

/// Orders a merged list: the items that `order` (or else the patch) names in that order, and
/// between them the others, before the first named one that they stood before in `original`.
fn order_list(
    name: &str,
    merged: Vec<Value>,
    original: &[Value],
    patch: &[Value],
    order: Option<&Value>,
    key: Option<&str>,
) -> Result<Vec<Value>, ApiError> {
    let order = match order {
        Some(Value::Array(order)) => {
            check_order(name, patch, order, key)?;
            order
        }
        Some(_) => {
            return Err(ApiError::bad_request("invalid patch format of setElementOrder list"));
        }
        None => patch,
    };
    let (wanted, before) = (Places::of(order, key), Places::of(original, key));
    let place = |places: &Places, value: Value| (places.get(identity(&value, key)), value);
    let (mut named, others): (Vec<_>, Vec<_>) = merged
        .into_iter()
        .map(|value| place(&wanted, value))
        .partition(|(wanted, _)| wanted.is_some());
    named.sort_by_key(|(wanted, _)| *wanted);
    let live = |list: Vec<(Option<usize>, Value)>| {
        list.into_iter().map(|(_, value)| place(&before, value)).collect::<Vec<_>>()
    };
    Ok(interleave(live(others), live(named)))
}

/// Merges two lists whose items know where they stood: an item of `others` goes before the first
/// of `named` that it stood before, at the latest to the end.
fn interleave(
    others: Vec<(Option<usize>, Value)>,
    named: Vec<(Option<usize>, Value)>,
) -> Vec<Value> {
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some((left, _)), Some((right, _))) = (others.peek(), named.peek()) {
        let before = left.is_some() && right.is_some() && left < right;
        out.extend(if before { others.next() } else { named.next() });
    }
    out.extend(named);
    out.extend(others);
    out.into_iter().map(|(_, value)| value).collect()
}

fn check_order(
    name: &str,
    patch: &[Value],
    order: &[Value],
    key: Option<&str>,
) -> Result<(), ApiError> {
    let named = Places::of(order, key);
    if patch.iter().all(|p| named.get(identity(p, key)).is_some()) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "The order in patch list:\n{}\n doesn't match {SET_ORDER}{name} list:\n{}\n",
        Value::from(patch.to_vec()),
        Value::from(order.to_vec())
    )))
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use serde_json::json;

    fn patched(kind: &str, object: Value, patch: Value) -> Result<Value, ApiError> {
        let schema = schema::builtin();
        apply(schema, schema.id(kind).unwrap(), object, &patch)
    }

    fn pod(spec: Value) -> Value {
        json!({ "spec": spec })
    }

    fn names(list: &Value) -> Vec<&str> {
        list.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn structures_and_maps_merge() {
        let old = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"replicas": 1, "paused": true}});
        let patch = json!({"metadata": {"labels": {"b": null, "c": "3"}}, "spec": {"replicas": 2}});
        let new = patched("apps.v1.Deployment", old, patch).unwrap();
        assert_eq!(
            new,
            json!({"metadata": {"labels": {"a": "1", "c": "3"}}, "spec": {"replicas": 2, "paused": true}})
        );
    }

    #[test]
    fn lists_merge_by_key() {
        let old = pod(
            json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]}),
        );
        let patch = pod(
            json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}, {"name": "a", "args": ["y"]}],
            "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
        );
        let new = patched("core.v1.Pod", old, patch).unwrap();
        assert_eq!(
            new,
            pod(json!({"containers": [{"name": "a", "image": "1", "args": ["y"]},
            {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}))
        );
    }

    #[test]
    fn new_items_come_first_without_an_order() {
        let old = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        let new = patched("core.v1.Pod", old.clone(), pod(json!({"containers": [{"name": "c"}]})))
            .unwrap();
        assert_eq!(names(&new["spec"]["containers"]), ["c", "a", "b"]);
        let ordered = pod(json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}));
        let new = patched("core.v1.Pod", old, ordered).unwrap();
        assert_eq!(names(&new["spec"]["containers"]), ["b", "a"]);
    }

    #[test]
    fn items_are_deleted_and_replaced() {
        let old =
            pod(json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "y"}}));
        let patch = pod(
            json!({"containers": [{"$patch": "delete", "name": "a"}], "nodeSelector": {"$patch": "replace", "z": "1"}}),
        );
        let new = patched("core.v1.Pod", old.clone(), patch).unwrap();
        assert_eq!(new, pod(json!({"containers": [{"name": "b"}], "nodeSelector": {"z": "1"}})));
        let patch = pod(
            json!({"containers": [{"$patch": "replace"}, {"name": "c"}], "nodeSelector": {"$patch": "delete"}}),
        );
        let new = patched("core.v1.Pod", old, patch).unwrap();
        assert_eq!(new, pod(json!({"containers": [{"name": "c"}], "nodeSelector": {}})));
    }

    #[test]
    fn primitive_lists() {
        let old = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["d"],
            "$setElementOrder/finalizers": ["a", "d", "c"]}});
        let new = patched("core.v1.Pod", old, patch).unwrap();
        assert_eq!(new["metadata"]["finalizers"], json!(["a", "d", "c"]));
    }

    #[test]
    fn atomic_lists_are_replaced() {
        let old = pod(json!({"tolerations": [{"key": "a"}]}));
        let new =
            patched("core.v1.Pod", old, pod(json!({"tolerations": [{"key": "b", "value": null}]})))
                .unwrap();
        assert_eq!(new["spec"]["tolerations"], json!([{"key": "b"}]));
    }

    #[test]
    fn retain_keys_drops_the_others() {
        let old = pod(json!({"volumes": [{"name": "v", "emptyDir": {}}]}));
        let patch = pod(
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}, "$retainKeys": ["name", "hostPath"]}]}),
        );
        let new = patched("core.v1.Pod", old.clone(), patch).unwrap();
        assert_eq!(new, pod(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})));
        let bad = pod(
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}, "$retainKeys": ["name"]}]}),
        );
        assert_eq!(
            patched("core.v1.Pod", old, bad).unwrap_err().message,
            "invalid patch format of retainKeys"
        );
    }

    #[test]
    fn long_lists_take_no_longer_than_they_are_long() {
        let list = |from: usize| -> Vec<Value> {
            (from..from + 10_000).map(|i| json!({"name": i.to_string()})).collect()
        };
        let order: Vec<Value> = list(0).into_iter().chain(list(10_000)).collect();
        let old = pod(json!({"containers": list(0)}));
        let patch = pod(json!({"containers": list(10_000), "$setElementOrder/containers": order}));
        let new = patched("core.v1.Pod", old, patch).unwrap();
        assert_eq!(new["spec"]["containers"].as_array().unwrap().len(), 20_000);
    }

    #[test]
    fn faults_are_named() {
        for (patch, message) in [
            (
                json!([]),
                "json: cannot unmarshal array into Go value of type map[string]interface {}",
            ),
            (json!({"spec": {"$patch": "explode"}}), "Unknown patch type found: explode"),
            (
                pod(json!({"containers": [{"image": "x"}]})),
                "map: {\"image\":\"x\"} does not contain declared merge key: name",
            ),
            (
                pod(json!({"containers": ["x"]})),
                "expected a map in a list that merges by \"name\", got string",
            ),
        ] {
            let old = pod(json!({"containers": [{"name": "a"}]}));
            let error = patched("core.v1.Pod", old, patch).unwrap_err();
            assert_eq!((error.message.as_str(), error.reason.code()), (message, 400));
        }
    }
}
