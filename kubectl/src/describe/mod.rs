//! Descriptions of objects for people. Pure: what an object alone doesn't say (its events, its
//! pods) is handed in.

pub mod generic;
pub mod node;
pub mod pod;
pub mod simple;
pub mod workload;

use crate::printers::tabwriter::{DESCRIBE, align};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use std::fmt::Write;

/// Annotations longer than this are cut.
const ANNOTATION_WIDTH: usize = 140;
/// The annotation that only repeats the object.
const HIDDEN: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Text under way: lines with tabs between what is to line up.
pub struct Page {
    text: String,
    /// For ages.
    pub now: Timestamp,
}

impl Page {
    /// An empty page.
    pub fn new(now: Timestamp) -> Self {
        Page { text: String::new(), now }
    }

    /// A line, indented by two spaces a level.
    pub fn line(&mut self, level: usize, text: impl AsRef<str>) {
        self.text.extend(std::iter::repeat_n("  ", level));
        self.text.push_str(text.as_ref());
        self.text.push('\n');
    }

    /// `name:` and its value, lined up with its neighbours'.
    pub fn field(&mut self, level: usize, name: &str, value: impl AsRef<str>) {
        self.line(level, format!("{name}:\t{}", value.as_ref()));
    }

    /// The finished text.
    pub fn finish(self) -> String {
        align(&self.text, DESCRIBE)
    }

    /// The text with its tabs, as kubectl leaves it in a few places.
    pub fn finish_unaligned(self) -> String {
        self.text
    }

    /// `a=b` lines below each other.
    pub fn labels(&mut self, title: &str, labels: &Value) {
        let lines = sorted_pairs(labels).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        self.lines(title, lines);
    }

    /// `a: b` lines below each other, long ones cut.
    pub fn annotations(&mut self, title: &str, annotations: &Value) {
        let mut lines = Vec::new();
        for (key, value) in sorted_pairs(annotations) {
            if key == HIDDEN {
                continue;
            }
            let value = value.strip_suffix('\n').unwrap_or(&value);
            if key.len() + value.len() + 2 <= ANNOTATION_WIDTH && !value.contains('\n') {
                lines.push(format!("{key}: {value}"));
                continue;
            }
            lines.push(format!("{key}:"));
            lines.extend(value.split('\n').map(|l| format!("  {}", shorten(l))));
        }
        self.lines(title, lines);
    }

    /// A title and lines that stand in one column beside it.
    pub fn lines(&mut self, title: &str, lines: Vec<String>) {
        if lines.is_empty() {
            return self.line(0, format!("{title}:\t<none>"));
        }
        for (i, line) in lines.into_iter().enumerate() {
            self.line(0, if i == 0 { format!("{title}:\t{line}") } else { format!("\t{line}") });
        }
    }

    /// Name, namespace, labels and annotations, as most descriptions begin.
    pub fn header(&mut self, object: &Value, namespaced: bool) {
        let metadata = &object["metadata"];
        self.field(0, "Name", text(&metadata["name"]));
        if namespaced {
            self.field(0, "Namespace", text(&metadata["namespace"]));
        }
        self.labels("Labels", &metadata["labels"]);
        self.annotations("Annotations", &metadata["annotations"]);
    }

    /// The events about an object, oldest first; nothing is said if they are unknown.
    pub fn events(&mut self, events: Option<&[Value]>) {
        let Some(events) = events else { return };
        if events.is_empty() {
            return self.line(0, "Events:\t<none>");
        }
        self.line(0, "Events:");
        self.line(1, "Type\tReason\tAge\tFrom\tMessage");
        self.line(1, "----\t------\t----\t----\t-------");
        let mut sorted: Vec<&Value> = events.iter().collect();
        sorted.sort_by_key(|e| last_seen(e));
        for event in sorted {
            let row = format!(
                "{}\t{}\t{}\t{}\t{}",
                text(&event["type"]),
                text(&event["reason"]),
                self.seen(event),
                event_source(event),
                text(&event["message"]).trim()
            );
            self.line(1, row);
        }
    }

    /// `5s (x3 over 2m)`
    pub fn seen(&self, event: &Value) -> String {
        let first = match event["eventTime"].as_str() {
            Some(_) => &event["eventTime"],
            None => &event["firstTimestamp"],
        };
        let first = self.age(first);
        let series = &event["series"];
        let (last, count) = if series.is_object() {
            (&series["lastObservedTime"], series["count"].as_i64().unwrap_or(0))
        } else {
            (&event["lastTimestamp"], event["count"].as_i64().unwrap_or(0))
        };
        match count > 1 || series.is_object() {
            true => format!("{} (x{count} over {first})", self.age(last)),
            false => first,
        }
    }

    /// How long ago.
    pub fn age(&self, time: &Value) -> String {
        match timestamp(time) {
            Some(t) => crate::duration::human(self.now.as_second() - t.as_second()),
            None => "<unknown>".into(),
        }
    }
}

/// Who reported an event.
pub fn event_source(event: &Value) -> &str {
    match text(&event["source"]["component"]) {
        "" => text(&event["reportingComponent"]),
        component => component,
    }
}

/// When an event was last seen.
pub fn last_seen(event: &Value) -> Option<Timestamp> {
    let candidates = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["firstTimestamp"],
    ];
    candidates.into_iter().find_map(timestamp)
}

fn timestamp(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// A string, or nothing.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// A list's items, or none.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or(&[])
}

/// A number, or 0.
pub fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// Text or number as text.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// `<none>` for nothing.
pub fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

/// `Fri, 20 Nov 2026 16:53:44 +0000`, in this machine's time zone.
pub fn date(value: &Value) -> String {
    match timestamp(value) {
        Some(t) => t.to_zoned(TimeZone::system()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string(),
        None => String::new(),
    }
}

/// `a=b,c=d` of a selector in its map form, or `<none>`.
pub fn map_text(map: &Value) -> String {
    crate::printers::table::labels_text(map)
}

/// `a=b,c in (d,e)` of a label selector.
pub fn selector_text(selector: &Value) -> String {
    let mut terms: Vec<(String, String)> = sorted_pairs(&selector["matchLabels"])
        .into_iter()
        .map(|(k, v)| (k.clone(), format!("{k}={v}")))
        .collect();
    for e in list(&selector["matchExpressions"]) {
        let key = text(&e["key"]);
        let values: Vec<&str> = list(&e["values"]).iter().map(text).collect();
        let shown = match text(&e["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        terms.push((key.to_owned(), shown));
    }
    terms.sort();
    let terms: Vec<String> = terms.into_iter().map(|(_, t)| t).collect();
    or_none(&terms.join(",")).to_owned()
}

/// The pairs of a map in the order of their keys.
pub fn sorted_pairs(map: &Value) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> =
        map.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), plain(v))).collect();
    pairs.sort();
    pairs
}

/// `Deployment/web`, if something controls the object.
pub fn controller(object: &Value) -> Option<String> {
    let owners = list(&object["metadata"]["ownerReferences"]);
    let owner = owners.iter().find(|o| o["controller"] == true)?;
    Some(format!("{}/{}", text(&owner["kind"]), text(&owner["name"])))
}

fn shorten(line: &str) -> String {
    let room = ANNOTATION_WIDTH - 2;
    if line.len() <= room {
        return line.to_owned();
    }
    let mut cut = String::new();
    for c in line.chars().take_while({
        let mut length = 0;
        move |c| {
            length += c.len_utf8();
            length <= room
        }
    }) {
        // Writing to a String can't fail.
        let _ = cut.write_char(c);
    }
    cut + "..."
}
