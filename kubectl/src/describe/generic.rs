//! Any object: its fields with their names in words.

use super::{Page, plain, text};
use serde_json::Value;

/// An object of a kind without a description of its own.
pub fn object(page: &mut Page, object: &Value, events: Option<&[Value]>) {
    let metadata = &object["metadata"];
    page.field(0, "Name", text(&metadata["name"]));
    page.field(0, "Namespace", text(&metadata["namespace"]));
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    let mut rest = object.clone();
    if let Some(metadata) = rest["metadata"].as_object_mut() {
        for shown in ["name", "namespace", "labels", "annotations", "managedFields"] {
            metadata.remove(shown);
        }
    }
    fields(page, 0, &rest);
    page.events(events);
}

fn fields(page: &mut Page, level: usize, value: &Value) {
    let mut entries: Vec<_> = value.as_object().into_iter().flatten().collect();
    entries.sort_by(|a, b| a.0.cmp(b.0));
    for (key, value) in entries {
        let title = words(key);
        match value {
            Value::Object(_) => {
                page.line(level, format!("{title}:"));
                fields(page, level + 1, value);
            }
            Value::Array(items) => {
                page.line(level, format!("{title}:"));
                for item in items {
                    match item {
                        Value::Object(_) | Value::Array(_) => fields(page, level + 1, item),
                        leaf => page.line(level + 1, plain(leaf)),
                    }
                }
            }
            leaf => page.field(level, &title, plain(leaf)),
        }
    }
}

/// `leaseDurationSeconds` becomes `Lease Duration Seconds`, `apiVersion` `API Version`.
fn words(key: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut before_upper = true;
    for c in key.chars() {
        match words.last_mut() {
            Some(word) if !c.is_uppercase() || before_upper => word.push(c),
            _ => words.push(c.to_uppercase().to_string()),
        }
        before_upper = c.is_uppercase();
    }
    let known = ["Api", "Uid", "Ip", "Url", "Id"];
    words
        .into_iter()
        .map(|w| if known.contains(&w.as_str()) { w.to_uppercase() } else { w })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn names_in_words() {
        assert_eq!(words("leaseDurationSeconds"), "Lease Duration Seconds");
        assert_eq!(words("apiVersion"), "API Version");
        assert_eq!(words("uid"), "UID");
    }
}
