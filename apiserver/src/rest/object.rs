//! Objects between the store's bytes, JSON values and responses.

use super::table;
use crate::body::Body;
use crate::codec;
use crate::context::Cx;
use crate::negotiate::{Encoding, Shape};
use crate::response;
use crate::server::ApiServer;
use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use rkube_api::ApiError;
use rkube_api::patch::managed;
use rkube_api::registry::{Kind, index_terms};
use rkube_store::{Header, Key, NewObject, Object};
use serde_json::{Value, json};
use std::time::Duration;

/// Slot of the protobuf message among an object's other encodings.
const PROTOBUF: usize = 0;
/// Slot of the metadata alone.
const METADATA: usize = 2;

/// The key of an object of a kind.
pub fn key_of(kind: &Kind, namespace: &str, name: &str) -> Key {
    let namespace = if kind.namespaced { namespace } else { "" };
    Key::new(kind.store_resource().as_str(), namespace, name)
}

/// A stored object as a value of the kind.
///
/// # Errors
/// 500 if the store holds what is no JSON.
pub fn value_of(kind: &Kind, object: &Object) -> Result<Value, ApiError> {
    read(kind, object, |json| serde_json::from_slice(json))
}

/// The same with packed managed fields, to be changed and written back.
///
/// # Errors
/// 500 if the store holds what is no JSON.
pub fn packed_of(kind: &Kind, object: &Object) -> Result<Value, ApiError> {
    read(kind, object, managed::parse)
}

fn read(
    kind: &Kind,
    object: &Object,
    parse: impl FnOnce(&[u8]) -> serde_json::Result<Value>,
) -> Result<Value, ApiError> {
    let value = parse(&object.json)
        .map_err(|e| ApiError::internal(format!("decoding {:?}: {e}", object.key)))?;
    Ok(match &kind.stored_as {
        Some(conversion) => (conversion.from_stored)(value),
        None => value,
    })
}

/// An object as it goes into the store; managed fields may be packed.
///
/// # Errors
/// 500 if it can't be encoded.
pub fn encode(
    api: &ApiServer,
    kind: &Kind,
    value: &Value,
    now: Timestamp,
) -> Result<NewObject, ApiError> {
    let converted;
    let (stored_kind, value) = match &kind.stored_as {
        None => (kind, value),
        Some(conversion) => {
            converted = (conversion.to_stored)(value.clone());
            let stored =
                api.registry.resource(&conversion.group, &conversion.version, &kind.plural);
            (stored.map_or(kind, |k| k.as_ref()), &converted)
        }
    };
    let header = header(stored_kind, value, now, api.config().event_ttl);
    NewObject::encode(value, header).map_err(ApiError::internal)
}

/// What the store knows of an object without reading it.
fn header(kind: &Kind, value: &Value, now: Timestamp, event_ttl: Duration) -> Header {
    let metadata = &value["metadata"];
    let labels = metadata["labels"].as_object().into_iter().flatten();
    let mut labels: Vec<(Box<str>, Box<str>)> =
        labels.map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or("").into())).collect();
    labels.sort();
    let boxed = |list: Vec<String>| list.into_iter().map(String::into_boxed_str).collect();
    let expires_at = expires_at(kind, value, now, event_ttl);
    Header {
        uid: metadata["uid"].as_str().unwrap_or("").into(),
        labels: labels.into(),
        fields: boxed(kind.strategy.selectable_values(value)),
        index: boxed(index_terms(kind, value)),
        expires_at,
        terminating: metadata["deletionTimestamp"].is_string(),
    }
}

/// When an object's time is over: an event's some time after its last write, a join token's when
/// it says so.
fn expires_at(kind: &Kind, value: &Value, now: Timestamp, event_ttl: Duration) -> Option<i64> {
    match kind.plural.as_str() {
        "events" => Some(now.as_second().saturating_add(event_ttl.as_secs() as i64)),
        "secrets" if value["type"] == crate::join::TOKEN_TYPE => crate::join::end_of_token(value),
        _ => None,
    }
}

/// A stored object as the answer.
///
/// # Errors
/// 406 if it has no such form.
pub fn respond(
    api: &ApiServer,
    cx: &Cx,
    kind: &Kind,
    code: StatusCode,
    object: &Object,
) -> Result<Response<Body>, ApiError> {
    let accepted = cx.accepted;
    match (accepted.shape, accepted.encoding) {
        (Shape::Object, Encoding::Json) => {
            Ok(response::bytes(code, "application/json", json_of(kind, object)?))
        }
        (Shape::Object, Encoding::Protobuf) => {
            let message = message_of(api, kind, object)?;
            let body = codec::envelope(&kind.api_version(), &kind.kind, &message);
            Ok(response::bytes(code, Encoding::Protobuf.media_type(), body))
        }
        _ => respond_value(api, cx, kind, code, &value_of(kind, object)?),
    }
}

/// A value that is not in the store as the answer.
///
/// # Errors
/// 406 if it has no such form.
pub fn respond_value(
    api: &ApiServer,
    cx: &Cx,
    kind: &Kind,
    code: StatusCode,
    value: &Value,
) -> Result<Response<Body>, ApiError> {
    let accepted = cx.accepted;
    let shaped = match accepted.shape {
        Shape::Object => {
            if accepted.encoding == Encoding::Protobuf {
                let message = codec::message(api.schema, kind, value)?;
                let body = codec::envelope(&kind.api_version(), &kind.kind, &message);
                return Ok(response::bytes(code, accepted.encoding.media_type(), body));
            }
            None
        }
        Shape::Metadata => Some(partial(value, accepted.meta_version)),
        Shape::Table => Some(table::of_one(cx, kind, value)?),
    };
    let value = shaped.as_ref().unwrap_or(value);
    Ok(response::encoded(code, value, accepted.encoding))
}

/// The JSON of a stored object as the kind.
///
/// # Errors
/// 500 if the store holds what is no JSON.
pub fn json_of(kind: &Kind, object: &Object) -> Result<Bytes, ApiError> {
    match &kind.stored_as {
        None => Ok(object.json.clone()),
        Some(_) => Ok(value_of(kind, object)?.to_string().into()),
    }
}

/// The protobuf message of a stored object, kept with it.
///
/// # Errors
/// 406 if the kind has no such form.
pub fn message_of(api: &ApiServer, kind: &Kind, object: &Object) -> Result<Bytes, ApiError> {
    let make = || codec::message(api.schema, kind, &value_of(kind, object)?);
    if kind.stored_as.is_some() {
        return make();
    }
    let mut fault = None;
    let message = object.encoding(PROTOBUF, || {
        make().unwrap_or_else(|error| {
            fault = Some(error);
            Bytes::new()
        })
    });
    match (fault, message.is_empty()) {
        (Some(error), _) => Err(error),
        // No object of a kind with metadata has an empty message: an earlier attempt failed.
        (None, true) => make(),
        (None, false) => Ok(message.clone()),
    }
}

/// The metadata of a stored object, as JSON, kept with it.
///
/// # Errors
/// 500 if the store holds what is no JSON.
pub fn partial_of(kind: &Kind, object: &Object, meta_version: &str) -> Result<Bytes, ApiError> {
    if meta_version != "v1" {
        return Ok(partial(&value_of(kind, object)?, meta_version).to_string().into());
    }
    // Metadata is the same in both forms of a kind that is stored as another.
    let made = object.encoding(METADATA, || {
        let value: Value = serde_json::from_slice(&object.json).unwrap_or_default();
        partial(&value, "v1").to_string().into()
    });
    Ok(made.clone())
}

/// `PartialObjectMetadata` of an object.
pub fn partial(value: &Value, meta_version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{meta_version}"),
        "metadata": value["metadata"],
    })
}
