//! `-o custom-columns=NAME:.metadata.name,…`

use super::tabwriter::{TABLE, align_remembering};
use crate::error::{Error, Result};
use rkube_api::jsonpath::{Template, relaxed, text_of};
use serde_json::Value;
use std::cell::RefCell;

/// Headings and where their values stand. Remembers whether the headings were printed, and the
/// widths, so that the rows of a watch line up.
#[derive(Debug)]
pub struct CustomColumns {
    columns: Vec<(String, Template)>,
    state: RefCell<(bool, Vec<usize>)>,
}

impl CustomColumns {
    /// From `HEADING:path,HEADING:path`.
    pub fn parse(spec: &str, headers: bool) -> Result<Self> {
        let columns = spec.split(',').map(|part| {
            let (name, path) = part.split_once(':').ok_or_else(|| {
                Error::msg(format!(
                    "unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>"
                ))
            })?;
            column(name, path)
        });
        Ok(Self::new(columns.collect::<Result<_>>()?, headers))
    }

    /// From a file of two lines: headings, paths.
    pub fn parse_file(text: &str, headers: bool) -> Result<Self> {
        let mut lines = text.lines();
        let (Some(names), Some(paths)) = (lines.next(), lines.next()) else {
            return Err(Error::msg(
                "template has no columns: a line of headings and a line of paths are expected",
            ));
        };
        let (names, paths): (Vec<&str>, Vec<&str>) =
            (names.split_whitespace().collect(), paths.split_whitespace().collect());
        if names.len() != paths.len() {
            return Err(Error::msg(format!(
                "number of headers ({}) and field specifications ({}) don't match",
                names.len(),
                paths.len()
            )));
        }
        let columns = names.iter().zip(paths).map(|(n, p)| column(n, p));
        Ok(Self::new(columns.collect::<Result<_>>()?, headers))
    }

    fn new(columns: Vec<(String, Template)>, headers: bool) -> Self {
        CustomColumns { columns, state: RefCell::new((!headers, Vec::new())) }
    }

    /// The rows of these objects; the first time, below the headings.
    pub fn render(&self, objects: &[Value]) -> Result<String> {
        let mut state = self.state.borrow_mut();
        let mut text = String::new();
        if !std::mem::replace(&mut state.0, true) {
            let names: Vec<&str> = self.columns.iter().map(|(n, _)| n.as_str()).collect();
            text.push_str(&format!("{}\n", names.join("\t")));
        }
        for object in objects {
            let cells: Vec<String> =
                self.columns.iter().map(|(_, path)| cell(path, object)).collect::<Result<_>>()?;
            text.push_str(&format!("{}\n", cells.join("\t")));
        }
        Ok(align_remembering(&text, TABLE, &mut state.1))
    }
}

fn column(name: &str, path: &str) -> Result<(String, Template)> {
    let relaxed = relaxed(path).map_err(|e| Error::msg(e.to_string()))?;
    let template = Template::parse(&relaxed).map_err(|e| Error::msg(e.to_string()))?;
    Ok((name.to_owned(), template))
}

fn cell(path: &Template, object: &Value) -> Result<String> {
    let found = path.find(object).map_err(|e| Error::msg(e.to_string()))?;
    let texts: Vec<String> = found.iter().map(|v| go_text(v)).collect();
    Ok(if texts.is_empty() { "<none>".into() } else { texts.join(",") })
}

/// A value as Go's `fmt` shows it: `map[a:b]`, `[a b]`.
fn go_text(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => {
            let mut pairs: Vec<String> =
                map.iter().map(|(k, v)| format!("{k}:{}", go_text(v))).collect();
            pairs.sort();
            format!("map[{}]", pairs.join(" "))
        }
        leaf => text_of(leaf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_of_ones_own() {
        let columns = CustomColumns::parse("N:.metadata.name,R:{.spec.replicas}", true).unwrap();
        let objects = [
            json!({"metadata": {"name": "ssa"}, "spec": {"replicas": 2}}),
            json!({"metadata": {"name": "web"}}),
        ];
        assert_eq!(columns.render(&objects).unwrap(), "N     R\nssa   2\nweb   <none>\n");
        assert_eq!(columns.render(&objects[..1]).unwrap(), "ssa   2\n");
    }
}
