//! JSON patch (RFC 6902), bounded in operations and growth.

use crate::error::{ApiError, Reason};
use json_patch::PatchOperation;
use serde_json::Value;

/// The most operations in one patch.
pub const MAX_OPERATIONS: usize = 10_000;

/// The most bytes that the `copy` operations of one patch may add, as JSON.
pub const MAX_COPIED_BYTES: usize = 3 << 20;

/// Applies the operations in order. A patch that can't be read is a 400; one with too many
/// operations a 413; a `test` that fails or a path that does not exist a 422.
pub fn apply(object: Value, patch: &[u8]) -> Result<Value, ApiError> {
    let operations = decode(patch)?;
    if operations.len() > MAX_OPERATIONS {
        return Err(ApiError::new(
            Reason::RequestEntityTooLarge,
            format!(
                "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                operations.len()
            ),
        ));
    }
    let mut object = object;
    let mut copied = 0;
    for operation in &operations {
        copied += growth(&object, operation);
        if copied > MAX_COPIED_BYTES {
            return Err(ApiError::new(
                Reason::Invalid,
                format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED_BYTES}"
                ),
            ));
        }
        // The whole patch works on a value of its own, so nothing has to be undone on failure.
        json_patch::patch_unsafe(&mut object, std::slice::from_ref(operation))
            .map_err(|_| rejected())?;
    }
    Ok(object)
}

fn decode(patch: &[u8]) -> Result<Vec<PatchOperation>, ApiError> {
    serde_json::from_slice(patch).map_err(|e| {
        let text = if e.is_eof() { "unexpected end of JSON input".into() } else { e.to_string() };
        ApiError::bad_request(format!("error decoding patch: {text}"))
    })
}

fn growth(object: &Value, operation: &PatchOperation) -> usize {
    match operation {
        PatchOperation::Copy(copy) => {
            copy.from.resolve(object).map(|v| v.to_string().len()).unwrap_or(0)
        }
        _ => 0,
    }
}

/// What upstream answers whatever went wrong.
fn rejected() -> ApiError {
    ApiError::new(Reason::Invalid, "the server rejected our request due to an error in our request")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_work_in_order() {
        let patch = br#"[{"op":"test","path":"/a","value":1},{"op":"replace","path":"/a","value":2},
            {"op":"add","path":"/l/-","value":"x"},{"op":"copy","from":"/l","path":"/m"},{"op":"remove","path":"/l/0"}]"#;
        let out = apply(json!({"a": 1, "l": ["y"]}), patch).unwrap();
        assert_eq!(out, json!({"a": 2, "l": ["x"], "m": ["y", "x"]}));
    }

    #[test]
    fn failures_are_upstreams() {
        for (patch, code) in [
            (r#"[{"op":"test","path":"/a","value":9}]"#, 422),
            (r#"[{"op":"remove","path":"/none"}]"#, 422),
            (r#"[{"op""#, 400),
            (r#"{"op":"remove"}"#, 400),
            (r#"[{"op":"jump","path":"/a"}]"#, 400),
        ] {
            let error = apply(json!({"a": 1}), patch.as_bytes()).unwrap_err();
            assert_eq!(error.reason.code(), code, "{patch}");
        }
        let error = apply(json!({}), br#"[{"op""#).unwrap_err();
        assert_eq!(error.message, "error decoding patch: unexpected end of JSON input");
    }

    #[test]
    fn bombs_are_refused() {
        let one = r#"{"op":"add","path":"/a","value":1}"#;
        let many = format!("[{}]", vec![one; MAX_OPERATIONS + 1].join(","));
        assert_eq!(apply(json!({}), many.as_bytes()).unwrap_err().reason.code(), 413);
        let copies = vec![r#"{"op":"copy","from":"/a","path":"/a/-"}"#; 64].join(",");
        let error = apply(json!({"a": ["0123456789"]}), format!("[{copies}]").as_bytes());
        assert!(error.unwrap_err().message.contains("exceeding the limit"));
    }
}
