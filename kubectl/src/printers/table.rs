//! Tables: those that the server made, and a plain one for servers that make none.

use super::tabwriter::{TABLE, align_remembering};
use crate::discovery::ApiResource;
use serde_json::{Value, json};

/// What the user wants to see of a table.
#[derive(Clone, Debug, Default)]
pub struct TableOptions {
    /// Columns of lower priority too.
    pub wide: bool,
    /// No headings.
    pub no_headers: bool,
    /// A column for the namespace in front.
    pub with_namespace: bool,
    /// `pod/x` instead of `x`.
    pub with_kind: Option<ApiResource>,
    /// All labels behind.
    pub show_labels: bool,
    /// A column each.
    pub label_columns: Vec<String>,
    /// The kind of change in front (for watches).
    pub with_event: bool,
}

/// Prints tables of one type; the headings once, columns never narrower than before.
#[derive(Debug)]
pub struct TablePrinter {
    options: TableOptions,
    columns: Vec<Column>,
    widths: Vec<usize>,
    headed: bool,
}

#[derive(Debug)]
struct Column {
    name: String,
    index: usize,
    is_name: bool,
}

impl TablePrinter {
    /// A printer that has printed nothing yet.
    pub fn new(options: TableOptions) -> Self {
        let headed = options.no_headers;
        TablePrinter { options, columns: Vec::new(), widths: Vec::new(), headed }
    }

    /// The text of a server's `Table`. Of a watch's tables only the first has columns.
    pub fn render(&mut self, table: &Value, event: &str) -> String {
        if let Some(definitions) = table["columnDefinitions"].as_array().filter(|d| !d.is_empty()) {
            self.columns = self.chosen(definitions);
        }
        let rows = table["rows"].as_array().map(Vec::as_slice).unwrap_or(&[]);
        let mut text = String::new();
        if !self.headed && !rows.is_empty() {
            self.headed = true;
            text.push_str(&self.heading());
        }
        for row in rows {
            text.push_str(&self.row(row, event));
        }
        align_remembering(&text, TABLE, &mut self.widths)
    }

    fn chosen(&self, definitions: &[Value]) -> Vec<Column> {
        let shown = definitions
            .iter()
            .enumerate()
            .filter(|(_, d)| self.options.wide || d["priority"].as_i64().unwrap_or(0) == 0);
        shown
            .map(|(index, d)| Column {
                name: d["name"].as_str().unwrap_or("").to_uppercase(),
                index,
                is_name: d["format"] == "name" || index == 0,
            })
            .collect()
    }

    fn heading(&self) -> String {
        let o = &self.options;
        let mut cells: Vec<String> = Vec::new();
        if o.with_event {
            cells.push("EVENT".into());
        }
        if o.with_namespace {
            cells.push("NAMESPACE".into());
        }
        cells.extend(self.columns.iter().map(|c| c.name.clone()));
        cells.extend(o.label_columns.iter().map(|l| label_heading(l)));
        if o.show_labels {
            cells.push("LABELS".into());
        }
        format!("{}\n", cells.join("\t"))
    }

    fn row(&self, row: &Value, event: &str) -> String {
        let o = &self.options;
        let metadata = &row["object"]["metadata"];
        let mut cells: Vec<String> = Vec::new();
        if o.with_event {
            // As wide as the longest event, though the first rows know only of ADDED.
            cells.push(format!("{event:<8}"));
        }
        if o.with_namespace {
            cells.push(metadata["namespace"].as_str().unwrap_or("").into());
        }
        for column in &self.columns {
            let text = cell_text(&row["cells"][column.index]);
            cells.push(match &o.with_kind {
                Some(kind) if column.is_name => kind.named(&text),
                _ => text,
            });
        }
        let labels = &metadata["labels"];
        for label in &o.label_columns {
            cells.push(labels[label.as_str()].as_str().unwrap_or("").into());
        }
        if o.show_labels {
            cells.push(labels_text(labels));
        }
        format!("{}\n", cells.join("\t"))
    }
}

/// The last part of a label's key, in capitals.
fn label_heading(label: &str) -> String {
    label.rsplit('/').next().unwrap_or(label).to_uppercase()
}

/// One line, without what would break the columns.
fn cell_text(cell: &Value) -> String {
    match cell {
        Value::Null => String::new(),
        Value::String(s) => match s.find(['\n', '\r', '\u{c}']) {
            Some(at) => format!("{}...", escape(&s[..at])),
            None => escape(s),
        },
        other => other.to_string(),
    }
}

/// A terminal must not obey what an object says.
fn escape(text: &str) -> String {
    if !text.contains(|c: char| c.is_control()) {
        return text.to_owned();
    }
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '\t' => out.push(' '),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
        out
    })
}

/// `a=b,c=d`, or `<none>`.
pub fn labels_text(labels: &Value) -> String {
    let Some(map) = labels.as_object().filter(|m| !m.is_empty()) else { return "<none>".into() };
    let mut pairs: Vec<String> =
        map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect();
    pairs.sort();
    pairs.join(",")
}

/// A table of names and ages, for objects that come without one.
pub fn plain(items: &[Value], now: jiff::Timestamp) -> Value {
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let created = item["metadata"]["creationTimestamp"].as_str().unwrap_or("");
            let age = match created.parse::<jiff::Timestamp>() {
                Ok(t) => crate::duration::human(now.as_second() - t.as_second()),
                Err(_) => "<unknown>".into(),
            };
            json!({"cells": [item["metadata"]["name"], age], "object": item})
        })
        .collect();
    json!({
        "kind": "Table",
        "columnDefinitions": [
            {"name": "Name", "type": "string", "format": "name"},
            {"name": "Age", "type": "string"},
        ],
        "rows": rows,
        "metadata": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Value {
        json!({"columnDefinitions": [
            {"name": "Name", "format": "name", "priority": 0},
            {"name": "Ready", "priority": 0}, {"name": "Node", "priority": 1}],
        "rows": [
            {"cells": ["web", "0/3\nx", "n1"], "object": {"metadata": {"namespace": "t", "labels": {"b": "2", "a/app": "1"}}}},
            {"cells": ["a", 3, null], "object": {"metadata": {"namespace": "team"}}}]})
    }

    #[test]
    fn what_the_user_wants_to_see() {
        let mut plain = TablePrinter::new(TableOptions::default());
        assert_eq!(plain.render(&table(), ""), "NAME   READY\nweb    0/3...\na      3\n");
        let mut all = TablePrinter::new(TableOptions {
            wide: true,
            with_namespace: true,
            show_labels: true,
            label_columns: vec!["a/app".into()],
            ..Default::default()
        });
        assert_eq!(
            all.render(&table(), ""),
            "NAMESPACE   NAME   READY    NODE   APP   LABELS\nt           web    0/3...   n1     1     a/app=1,b=2\nteam        a      3                     <none>\n"
        );
        assert_eq!(
            all.render(&json!({"rows": [table()["rows"][1]]}), "").matches("NAME").count(),
            0
        );
    }
}
