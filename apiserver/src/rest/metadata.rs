//! The metadata that the server owns, and what must hold for it whatever the kind.

use crate::ids;
use jiff::Timestamp;
use rkube_api::ApiError;
use rkube_api::registry::Kind;
use serde_json::{Map, Value};

/// A time as `metadata` has it.
pub fn time(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The object's metadata, made if it is missing.
pub fn of(value: &mut Value) -> &mut Map<String, Value> {
    if !value.get("metadata").is_some_and(Value::is_object) {
        value["metadata"] = Value::Object(Map::new());
    }
    match value.get_mut("metadata") {
        Some(Value::Object(map)) => map,
        // It was made above.
        _ => unreachable!("metadata is an object"),
    }
}

/// The name in an object, empty if there is none.
pub fn name(value: &Value) -> &str {
    rkube_api::meta::metadata_str(value, "name")
}

/// Puts the request's namespace into the object.
///
/// # Errors
/// 400 if the object names another one.
pub fn set_namespace(kind: &Kind, value: &mut Value, namespace: &str) -> Result<(), ApiError> {
    let metadata = of(value);
    let named = metadata.get("namespace").and_then(Value::as_str).unwrap_or("");
    if !kind.namespaced {
        if !named.is_empty() {
            return Err(ApiError::bad_request("namespace not allowed on this object"));
        }
        metadata.remove("namespace");
        return Ok(());
    }
    if !named.is_empty() && named != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    metadata.insert("namespace".into(), namespace.into());
    Ok(())
}

/// What a new object gets, and loses if a client sent it.
pub fn prepare_create(value: &mut Value, now: Timestamp) {
    let metadata = of(value);
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        metadata.remove(key);
    }
    metadata.insert("uid".into(), ids::uuid().into());
    metadata.insert("creationTimestamp".into(), time(now).into());
}

/// What a client can't change.
pub fn prepare_update(value: &mut Value, old: &Value) {
    let old = &old["metadata"];
    let metadata = of(value);
    let owned = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "selfLink",
    ];
    for key in owned {
        match old.get(key) {
            Some(value) => metadata.insert(key.into(), value.clone()),
            None => metadata.remove(key),
        };
    }
    metadata.remove("resourceVersion");
}

/// The finalizers of an object.
pub fn finalizers(value: &Value) -> Vec<&str> {
    let list = value["metadata"]["finalizers"].as_array();
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}
