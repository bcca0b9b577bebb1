//! Bodies between bytes and values: JSON, YAML, protobuf.

use crate::negotiate::Encoding;
use bytes::Bytes;
use rkube_api::registry::Kind;
use rkube_api::schema::{self, Decoded, FieldValidation, Schema, TypeId, protobuf};
use rkube_api::{ApiError, GroupVersionKind};
use serde_json::Value;

/// The type of a kind.
///
/// # Errors
/// 500 if the schema lacks it.
pub fn type_of(schema: &Schema, kind: &Kind) -> Result<TypeId, ApiError> {
    schema
        .id(&kind.type_name)
        .ok_or_else(|| ApiError::internal(format!("the schema has no type {}", kind.type_name)))
}

/// A type by its name in the schema.
///
/// # Errors
/// 500 if the schema lacks it.
pub fn type_named(schema: &Schema, name: &str) -> Result<TypeId, ApiError> {
    schema.id(name).ok_or_else(|| ApiError::internal(format!("the schema has no type {name}")))
}

/// Decodes a body under a type.
///
/// # Errors
/// 400 in upstream's words.
pub fn decode(
    schema: &Schema,
    id: TypeId,
    encoding: Encoding,
    body: &[u8],
    mode: FieldValidation,
) -> Result<Decoded, ApiError> {
    match encoding {
        Encoding::Json => schema::decode(schema, id, body, mode),
        Encoding::Yaml => schema::decode_yaml(schema, id, body, mode),
        Encoding::Protobuf => protobuf::decode(schema, id, body),
    }
}

/// An object's protobuf message without its envelope.
///
/// # Errors
/// 406 if the kind has none.
pub fn message(schema: &Schema, kind: &Kind, value: &Value) -> Result<Bytes, ApiError> {
    Ok(protobuf::encode_message(schema, type_of(schema, kind)?, value)?.into())
}

/// The protobuf message of an object's metadata alone.
///
/// # Errors
/// 406 if the schema has no such type.
pub fn partial_message(schema: &Schema, value: &Value) -> Result<Bytes, ApiError> {
    let id = type_named(schema, "meta.v1.PartialObjectMetadata")?;
    Ok(protobuf::encode_message(schema, id, value)?.into())
}

/// The envelope around a message.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Bytes {
    protobuf::envelope(&GroupVersionKind::new(api_version, kind), message)
}

/// A list's bytes from the messages of its items.
///
/// # Errors
/// 500 if the schema lacks list metadata.
pub fn list(
    schema: &Schema,
    api_version: &str,
    list_kind: &str,
    metadata: &Value,
    items: &[Bytes],
) -> Result<Bytes, ApiError> {
    let gvk = GroupVersionKind::new(api_version, list_kind);
    protobuf::encode_list(schema, &gvk, metadata, items.iter().map(|i| &**i))
}

/// Appends one frame of a watch.
pub fn watch_frame(piece: &mut Vec<u8>, word: &str, object: &[u8]) {
    piece.extend_from_slice(&protobuf::watch_frame(word, object));
}

/// A built-in object with its envelope, by its own `apiVersion` and `kind`; None if it has no
/// such form.
pub fn to_protobuf(value: &Value) -> Option<Bytes> {
    let schema = schema::builtin();
    let gvk = GroupVersionKind::new(value["apiVersion"].as_str()?, value["kind"].as_str()?);
    let id = match gvk.kind.as_str() {
        "Status" => schema.id("meta.v1.Status")?,
        "PartialObjectMetadata" => schema.id("meta.v1.PartialObjectMetadata")?,
        kind => schema
            .id_of_kind(if gvk.group.is_empty() { "core" } else { &gvk.group }, &gvk.version, kind)
            .or_else(|| schema.id_of_kind(&gvk.group, &gvk.version, kind))?,
    };
    protobuf::encode(schema, &gvk, id, value).ok()
}

/// YAML of a value.
pub fn to_yaml(value: &Value) -> String {
    // A JSON value always has a YAML form.
    serde_yaml::to_string(value).unwrap_or_default()
}
