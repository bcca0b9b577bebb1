//! JSON as Go prints it: sorted keys, four spaces, `<`, `>` and `&` escaped.

use serde_json::Value;

/// Several lines, with a newline at the end.
pub fn pretty(value: &Value) -> String {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    // A Value always serializes, and into memory nothing fails.
    let _ = serde::Serialize::serialize(&sorted(value), &mut serializer);
    let mut text = escape_html(&String::from_utf8_lossy(&bytes));
    text.push('\n');
    text
}

/// One line, without a newline.
pub fn compact(value: &Value) -> String {
    escape_html(&sorted(value).to_string())
}

/// The same value with the keys of each object in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            Value::Object(entries.into_iter().map(|(k, v)| (k.clone(), sorted(v))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn escape_html(json: &str) -> String {
    // These characters can only stand inside strings.
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_go_prints_it() {
        let value = json!({"b": "<&>", "a": [1, {}], "c": {}});
        assert_eq!(
            pretty(&value),
            "{\n    \"a\": [\n        1,\n        {}\n    ],\n    \"b\": \"\\u003c\\u0026\\u003e\",\n    \"c\": {}\n}\n"
        );
        assert_eq!(compact(&json!({"b": 1, "a": "x"})), "{\"a\":\"x\",\"b\":1}");
    }
}
