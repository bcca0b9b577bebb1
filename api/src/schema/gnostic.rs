//! An OpenAPI 2 document as gnostic's `openapi.v2.Document` message: older kubectl reads nothing
//! else. The numbers are those of gnostic's `OpenAPIv2.proto`.

use super::wire::Writer;
use serde_json::{Map, Value};

/// What clients put into `Accept`.
pub const ACCEPT: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// The `Content-Type` to answer with: the `@` that is asked for is no token, and clients that parse
/// the type fail at it.
pub const CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The message of a document such as [`super::openapi::v2`] makes.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut w = Writer::default();
    w.text(1, text(document, "swagger"));
    w.message(2, |w| {
        w.text(1, text(&document["info"], "title"));
        w.text(2, text(&document["info"], "version"));
    });
    w.message(8, |w| {
        for (path, item) in entries(document, "paths") {
            named(w, 2, path, |w| path_item(w, item));
        }
    });
    w.message(9, |w| {
        for (name, definition) in entries(document, "definitions") {
            named(w, 1, name, |w| schema(w, definition));
        }
    });
    w.finish()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn entries<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value.get(key).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn texts(w: &mut Writer, number: u32, value: &Value, key: &str) {
    items(value, key).filter_map(Value::as_str).for_each(|s| w.string(number, s));
}

fn flag(w: &mut Writer, number: u32, value: &Value, key: &str) {
    if value.get(key) == Some(&Value::Bool(true)) {
        w.bool(number, true);
    }
}

/// `NamedX { name = 1, value = 2 }`
fn named(w: &mut Writer, number: u32, name: &str, fill: impl FnOnce(&mut Writer)) {
    w.message(number, |w| {
        w.string(1, name);
        w.message(2, fill);
    });
}

/// `Any { yaml = 2 }`; JSON is YAML.
fn any(w: &mut Writer, number: u32, value: &Value) {
    w.message(number, |w| w.string(2, &value.to_string()));
}

fn vendor_extensions(w: &mut Writer, number: u32, value: &Value) {
    let all = value.as_object().into_iter().flat_map(Map::iter);
    for (name, value) in all.filter(|(name, _)| name.starts_with("x-")) {
        named(w, number, name, |w| w.string(2, &value.to_string()));
    }
}

fn path_item(w: &mut Writer, item: &Value) {
    for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(operation) = item.get(method) {
            w.message(number, |w| write_operation(w, operation));
        }
    }
    items(item, "parameters").for_each(|p| parameter(w, 9, p));
}

fn write_operation(w: &mut Writer, operation: &Value) {
    texts(w, 1, operation, "tags");
    w.text(3, text(operation, "description"));
    w.text(5, text(operation, "operationId"));
    texts(w, 6, operation, "produces");
    texts(w, 7, operation, "consumes");
    items(operation, "parameters").for_each(|p| parameter(w, 8, p));
    w.message(9, |w| {
        for (code, answer) in entries(operation, "responses") {
            named(w, 1, code, |w| w.message(1, |w| response(w, answer)));
        }
    });
    vendor_extensions(w, 13, operation);
}

fn response(w: &mut Writer, answer: &Value) {
    w.text(1, text(answer, "description"));
    if let Some(inner) = answer.get("schema") {
        w.message(2, |w| w.message(1, |w| schema(w, inner)));
    }
}

/// `ParametersItem { parameter = 1 { body_parameter = 1 | non_body_parameter = 2 } }`
fn parameter(w: &mut Writer, number: u32, p: &Value) {
    w.message(number, |w| {
        w.message(1, |w| match text(p, "in") {
            "body" => w.message(1, |w| {
                w.text(2, text(p, "name"));
                w.text(3, "body");
                flag(w, 4, p, "required");
                w.message(5, |w| schema(w, &p["schema"]));
            }),
            "path" => w.message(2, |w| w.message(4, |w| plain_parameter(w, p, [5, 6], 18))),
            _ => w.message(2, |w| w.message(3, |w| plain_parameter(w, p, [6, 7], 20))),
        });
    });
}

fn plain_parameter(w: &mut Writer, p: &Value, [ty, format]: [u32; 2], unique: u32) {
    flag(w, 1, p, "required");
    w.text(2, text(p, "in"));
    w.text(3, text(p, "description"));
    w.text(4, text(p, "name"));
    w.text(ty, text(p, "type"));
    w.text(format, text(p, "format"));
    flag(w, unique, p, "uniqueItems");
}

fn schema(w: &mut Writer, s: &Value) {
    w.text(1, text(s, "$ref"));
    w.text(2, text(s, "format"));
    w.text(4, text(s, "description"));
    if let Some(default) = s.get("default") {
        any(w, 5, default);
    }
    texts(w, 19, s, "required");
    if let Some(inner) = s.get("additionalProperties") {
        w.message(21, |w| w.message(1, |w| schema(w, inner)));
    }
    if let Some(ty) = s.get("type").and_then(Value::as_str) {
        w.message(22, |w| w.string(1, ty));
    }
    if let Some(inner) = s.get("items") {
        w.message(23, |w| w.message(1, |w| schema(w, inner)));
    }
    if s.get("properties").is_some() {
        w.message(25, |w| {
            for (name, property) in entries(s, "properties") {
                named(w, 1, name, |w| schema(w, property));
            }
        });
    }
    vendor_extensions(w, 31, s);
}
