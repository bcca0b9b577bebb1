//! Tables: the columns and rows that `kubectl get` prints.

use crate::context::Cx;
use crate::rest::object::partial;
use rkube_api::registry::Kind;
use rkube_api::{ApiError, FieldError};
use serde_json::{Value, json};

/// What of its object a row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata; the default.
    Metadata,
    /// The whole.
    Object,
}

/// The parameter `includeObject`.
///
/// # Errors
/// 422 for an unknown word.
pub fn include_object(cx: &Cx) -> Result<IncludeObject, ApiError> {
    match cx.query.get("includeObject").unwrap_or("") {
        "" | "Metadata" => Ok(IncludeObject::Metadata),
        "None" => Ok(IncludeObject::None),
        "Object" => Ok(IncludeObject::Object),
        other => Err(crate::context::invalid_option(
            "TableOptions",
            FieldError::NotSupported {
                path: "includeObject".into(),
                value: other.into(),
                supported: ["None", "Metadata", "Object"].map(String::from).into(),
            },
        )),
    }
}

/// The definitions of a kind's columns.
pub fn columns(kind: &Kind) -> Value {
    let column = |c: &rkube_api::registry::Column| {
        json!({
            "name": c.name, "type": c.ty, "format": c.format,
            "description": c.description, "priority": c.priority,
        })
    };
    kind.columns.iter().map(column).collect()
}

/// An object's row.
pub fn row(cx: &Cx, kind: &Kind, value: &Value, include: IncludeObject) -> Value {
    let cells = kind.strategy.cells(value, cx.now);
    let object = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial(value, cx.accepted.meta_version),
        IncludeObject::Object => value.clone(),
    };
    json!({"cells": cells, "object": object})
}

/// A table of rows.
pub fn table(cx: &Cx, metadata: Value, columns: Value, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{}", cx.accepted.meta_version),
        "metadata": metadata, "columnDefinitions": columns, "rows": rows,
    })
}

/// A table of one object.
///
/// # Errors
/// 422 for a bad `includeObject`.
pub fn of_one(cx: &Cx, kind: &Kind, value: &Value) -> Result<Value, ApiError> {
    let include = include_object(cx)?;
    let metadata =
        json!({"resourceVersion": value["metadata"]["resourceVersion"].as_str().unwrap_or("")});
    Ok(table(cx, metadata, columns(kind), vec![row(cx, kind, value, include)]))
}
