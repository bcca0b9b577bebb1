//! Pieces of table cells that several kinds share.

use super::access::{fields, items, len, text};
use crate::selector::LabelSelector;
use serde_json::Value;

/// A text, or `<none>` for an empty one.
pub(super) fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// The names and the images of a template's or pod's containers.
pub(super) fn containers(spec: &Value) -> (String, String) {
    let all = |key: &str| {
        let list: Vec<&str> = items(spec, "containers").map(|(_, c)| text(c, key)).collect();
        list.join(",")
    };
    (all("name"), all("image"))
}

/// A label selector as a text: `a=b,c in (d,e),!f`; `<none>` if it is empty.
pub(super) fn selector(selector: &Value) -> String {
    match LabelSelector::from_value(selector) {
        Ok(parsed) if !parsed.requirements().is_empty() => parsed.to_string(),
        Ok(_) => "<none>".into(),
        Err(_) => "<error>".into(),
    }
}

/// A map of labels as a text: `a=b,c=d`; `<none>` if it is empty.
pub(super) fn labels(labels: Option<&Value>) -> String {
    let pairs = labels.into_iter().flat_map(fields);
    let parts: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or(""))).collect();
    if parts.is_empty() { "<none>".into() } else { parts.join(",") }
}

/// Up to three of a list, and how many more there are; `<unset>` for none.
pub(super) fn a_few(all: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 3;
    let all: Vec<String> = all.collect();
    match all.len() {
        0 => "<unset>".into(),
        count if count > SHOWN => {
            format!("{} + {} more...", all[..SHOWN].join(","), count - SHOWN)
        }
        _ => all.join(","),
    }
}

/// How many entries some maps have together.
pub(super) fn entries(object: &Value, keys: &[&str]) -> Value {
    keys.iter().map(|key| len(object, key)).sum::<usize>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_read_as_upstream_writes_them() {
        let both = json!({"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["y", "x"]},
            {"key": "a", "operator": "DoesNotExist"}]});
        assert_eq!(selector(&both), "!a,b=1,c in (x,y)");
        assert_eq!(selector(&json!({})), "<none>");
    }

    #[test]
    fn long_lists_are_cut() {
        let list = |n: usize| (1..=n).map(|i| i.to_string());
        assert_eq!(a_few(list(3)), "1,2,3");
        assert_eq!(a_few(list(5)), "1,2,3 + 2 more...");
        assert_eq!(a_few(list(0)), "<unset>");
    }
}
