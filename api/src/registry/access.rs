//! Short ways to read and fill a JSON object. As in Go, an empty string and null count as unset.

use serde_json::{Map, Value};

/// The fields of an object; none for anything else.
pub(super) fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// A field that is there and not null.
pub(super) fn get<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).filter(|v| !v.is_null())
}

/// A list's items with their index; none if the field is missing or no list.
pub(super) fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    value.get(key).and_then(Value::as_array).into_iter().flatten().enumerate()
}

/// A list's objects, to change; none if the field is missing or no list.
pub(super) fn items_mut<'a>(
    value: &'a mut Value,
    key: &str,
) -> impl Iterator<Item = &'a mut Value> {
    let list = value.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter(|item| item.is_object())
}

/// The length of a list or map; 0 if it is missing.
pub(super) fn len(value: &Value, key: &str) -> usize {
    match value.get(key) {
        Some(Value::Array(list)) => list.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    }
}

/// A string field, empty if missing.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

/// A number field.
pub(super) fn int(value: &Value, key: &str) -> Option<i64> {
    value.get(key).and_then(Value::as_i64)
}

/// A truth field, false if missing.
pub(super) fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// Whether a field is missing, null or the empty string.
pub(super) fn unset(value: &Value, key: &str) -> bool {
    match value.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(_) => false,
    }
}

/// Sets a field that is unset, on an object.
pub(super) fn default_to(value: &mut Value, key: &str, default: impl Into<Value>) {
    if unset(value, key)
        && let Some(map) = value.as_object_mut()
    {
        map.insert(key.into(), default.into());
    }
}

/// The object at a key, made if missing; None if something else is there.
pub(super) fn child<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    default_to(value, key, Map::new());
    value.get_mut(key).filter(|v| v.is_object())
}

/// The object at a key, if it is there.
pub(super) fn existing<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    value.get_mut(key).filter(|v| v.is_object())
}

/// Sets or removes a key, so that `value` has there what `from` has.
pub(super) fn carry_over(value: &mut Value, from: &Value, key: &str) {
    if let Some(map) = value.as_object_mut() {
        match from.get(key) {
            Some(kept) => map.insert(key.into(), kept.clone()),
            None => map.remove(key),
        };
    }
}

/// Takes a key away.
pub(super) fn remove(value: &mut Value, key: &str) -> Option<Value> {
    value.as_object_mut().and_then(|map| map.remove(key))
}

/// Truth fields that are not optional in Go: it doesn't write them when they are false.
const PLAIN_FLAGS: &[&str] = &[
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "paused",
    "readOnly",
    "stdin",
    "stdinOnce",
    "tty",
    "unschedulable",
];
/// Maps that Go doesn't write when they are empty.
const PLAIN_MAPS: &[&str] = &[
    "annotations",
    "binaryData",
    "data",
    "labels",
    "limits",
    "matchLabels",
    "nodeSelector",
    "overhead",
    "requests",
    "selector",
];

/// Whether a value says no more than its absence: a Go client that reads and writes an object back
/// leaves such values out.
fn is_negligible(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() && PLAIN_MAPS.contains(&key),
        Value::Bool(flag) => !flag && PLAIN_FLAGS.contains(&key),
        Value::Number(_) => {
            value == 0 && matches!(key, "hostPort" | "initialDelaySeconds" | "minReadySeconds")
        }
    }
}

/// Whether two values mean the same.
pub(super) fn equivalent(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            let covered = |one: &Map<String, Value>, other: &Map<String, Value>, deep: bool| {
                one.iter().all(|(key, value)| match other.get(key) {
                    Some(matching) => !deep || equivalent_at(key, value, matching),
                    None => is_negligible(key, value),
                })
            };
            covered(left, right, true) && covered(right, left, false)
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(a, b)| equivalent(a, b))
        }
        (a, b) => a == b,
    }
}

fn equivalent_at(key: &str, a: &Value, b: &Value) -> bool {
    (is_negligible(key, a) && is_negligible(key, b)) || equivalent(a, b)
}

/// The same for two fields that may be missing.
pub(super) fn same_field(a: &Value, b: &Value, key: &str) -> bool {
    let unset = &Value::Null;
    equivalent_at(key, a.get(key).unwrap_or(unset), b.get(key).unwrap_or(unset))
}

/// The cell of the `Name` column.
pub(super) fn name_cell(object: &Value) -> Value {
    crate::meta::metadata_str(object, "name").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_go_leaves_out_is_no_difference() {
        for (a, b, same) in [
            (json!({"tty": false, "env": [], "value": "", "x": null}), json!({}), true),
            (json!({"a": [{"command": []}]}), json!({"a": [{}]}), true),
            (json!({"nodeSelector": {}}), json!({}), true),
            (json!({"emptyDir": {}}), json!({}), false),
            (json!({"allowPrivilegeEscalation": false}), json!({}), false),
            (json!({"runAsUser": 0}), json!({}), false),
            (json!({"a": 1}), json!({"a": 2}), false),
            (json!({"a": [1]}), json!({"a": [1, 2]}), false),
        ] {
            assert_eq!(equivalent(&a, &b), same, "{a} {b}");
            assert_eq!(equivalent(&b, &a), same, "{b} {a}");
        }
    }
}
