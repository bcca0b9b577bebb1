//! `-o`: which form an object is printed in.

use super::custom_columns::CustomColumns;
use super::{json, yaml};
use crate::error::{Error, Result};
use rkube_api::jsonpath::Template;
use serde_json::Value;

/// The flags for output that all verbs which print objects share.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct OutputFlags {
    /// Output format: json, yaml, name, wide, jsonpath=…, jsonpath-file=…, custom-columns=…, custom-columns-file=…
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "", hide_default_value = true)]
    pub output: String,
    /// Keep the managedFields when printing json or yaml
    #[arg(long)]
    pub show_managed_fields: bool,
}

/// A form of output.
#[derive(Debug)]
pub enum Format {
    /// The verb's own: a table, or one line a change.
    Human { wide: bool },
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// `pod/x`
    Name,
    /// A template over the object.
    JsonPath(Template),
    /// A table of the user's own.
    CustomColumns(CustomColumns),
}

const ALLOWED: &str = "custom-columns,custom-columns-file,json,jsonpath,jsonpath-as-json,jsonpath-file,name,wide,yaml";

impl OutputFlags {
    /// What `-o` asks for; `headers` is about custom columns.
    pub fn format(&self, headers: bool) -> Result<Format> {
        let (name, rest) = match self.output.split_once('=') {
            Some((name, rest)) => (name, Some(rest)),
            None => (self.output.as_str(), None),
        };
        let template = |what: &str| {
            rest.filter(|r| !r.is_empty())
                .map(str::to_owned)
                .ok_or_else(|| Error::msg(format!("template format specified but no {what} given")))
        };
        let file = || -> Result<String> {
            let path = template("template file")?;
            std::fs::read_to_string(&path)
                .map_err(|e| Error::msg(format!("error reading --template {path}, {e}")))
        };
        let jsonpath = |text: &str| {
            Template::parse(text)
                .map(Format::JsonPath)
                .map_err(|e| Error::msg(format!("error parsing jsonpath {text}, {e}")))
        };
        match name {
            "" => Ok(Format::Human { wide: false }),
            "wide" => Ok(Format::Human { wide: true }),
            "json" => Ok(Format::Json),
            "yaml" => Ok(Format::Yaml),
            "name" => Ok(Format::Name),
            "jsonpath" => jsonpath(&template("template")?),
            "jsonpath-file" => jsonpath(file()?.trim_end_matches('\n')),
            "jsonpath-as-json" => {
                let mut template = Template::parse(&template("template")?)
                    .map_err(|e| Error::msg(format!("error parsing jsonpath, {e}")))?;
                template.as_json = true;
                Ok(Format::JsonPath(template))
            }
            "custom-columns" => match rest.filter(|r| !r.is_empty()) {
                Some(spec) => CustomColumns::parse(spec, headers).map(Format::CustomColumns),
                None => {
                    Err(Error::msg("custom-columns format specified but no custom columns given"))
                }
            },
            "custom-columns-file" => {
                CustomColumns::parse_file(&file()?, headers).map(Format::CustomColumns)
            }
            _ => Err(Error::msg(format!(
                "unable to match a printer suitable for the output format {:?}, allowed formats are: {ALLOWED}",
                self.output
            ))),
        }
    }

    /// The object as it is shown: without managedFields unless they are asked for.
    pub fn shown(&self, mut object: Value) -> Value {
        if !self.show_managed_fields {
            hide_managed_fields(&mut object);
        }
        object
    }
}

fn hide_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        hide_managed_fields(item);
    }
}

impl Format {
    /// The text of an object in a form that is not human; None for the human one.
    pub fn render(&self, object: &Value, named: &str) -> Result<Option<String>> {
        Ok(Some(match self {
            Format::Human { .. } => return Ok(None),
            Format::Json => json::pretty(object),
            Format::Yaml => yaml::to_string(object),
            Format::Name => format!("{named}\n"),
            Format::JsonPath(template) => {
                template.render(object).map_err(|e| jsonpath_error(template, object, &e))?
            }
            Format::CustomColumns(columns) => columns.render(std::slice::from_ref(object))?,
        }))
    }
}

fn jsonpath_error(
    template: &Template,
    object: &Value,
    e: &rkube_api::jsonpath::JsonPathError,
) -> Error {
    Error::msg(format!(
        "error executing jsonpath {:?}: Error executing template: {e}. Printing more information for debugging the template:\n\ttemplate was:\n\t\t{}\n\tobject given to jsonpath engine was:\n\t\t{}\n",
        template.text(),
        template.text(),
        json::compact(object)
    ))
}

/// The `List` that stands for several objects.
pub fn list_of(objects: Vec<Value>) -> Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": objects,
    })
}
