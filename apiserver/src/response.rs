//! Responses.

use crate::body::Body;
use crate::negotiate::{Accepted, Encoding};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use rkube_api::{ApiError, Reason};
use serde_json::{Value, json};

/// A response of bytes with a content type.
pub fn bytes(
    code: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let body: Bytes = body.into();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A response of JSON.
pub fn json(code: StatusCode, value: &Value) -> Response<Body> {
    bytes(code, "application/json", value.to_string())
}

/// A response of plain text.
pub fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", body)
}

/// The response of a refusal or failure.
pub fn error(error: &ApiError, accepted: Accepted) -> Response<Body> {
    let code =
        StatusCode::from_u16(error.reason.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = encoded(code, &error.to_status(), accepted.encoding);
    let headers = response.headers_mut();
    if let Some(seconds) = error.retry_after_seconds {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.reason == Reason::Unauthorized {
        headers
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"rkube\""));
    }
    response
}

/// A response of an object in an encoding; JSON if the object has no other form.
pub fn encoded(code: StatusCode, object: &Value, encoding: Encoding) -> Response<Body> {
    match encode(object, encoding) {
        Some(body) => bytes(code, encoding.media_type(), body),
        None => json(code, object),
    }
}

/// An object in an encoding; None if it has none.
pub fn encode(object: &Value, encoding: Encoding) -> Option<Bytes> {
    match encoding {
        Encoding::Json => Some(object.to_string().into()),
        Encoding::Yaml => Some(crate::codec::to_yaml(object).into()),
        Encoding::Protobuf => crate::codec::to_protobuf(object),
    }
}

/// The `Status` of a deletion that is complete.
pub fn deleted(group: &str, resource: &str, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": resource, "uid": uid});
    if !group.is_empty() {
        details["group"] = group.into();
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    })
}

/// Adds `Warning` headers, each text once, 4 KiB in all at most (as upstream).
pub fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    let mut room: usize = 4096;
    let mut seen: Vec<&str> = Vec::new();
    for text in warnings {
        if seen.contains(&text.as_str()) || text.len() > room {
            continue;
        }
        room -= text.len();
        seen.push(text);
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\r', '\n'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
