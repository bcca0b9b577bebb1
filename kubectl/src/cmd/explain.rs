//! `explain`: what a field means, from the server's OpenAPI.

use crate::context::Context;
use crate::describe::{list, text};
use crate::error::{Error, Result};
use serde_json::Value;

/// How wide descriptions are set.
const WIDTH: usize = 76;

/// Get documentation for a resource.
#[derive(clap::Args, Debug)]
pub struct ExplainArgs {
    /// TYPE[.FIELD…]
    path: Option<String>,
    /// All fields of fields, without descriptions
    #[arg(long)]
    recursive: bool,
    /// Of this version, as group/version
    #[arg(long)]
    api_version: Option<String>,
}

pub async fn run(ctx: &Context, args: &ExplainArgs) -> Result<()> {
    let Some(path) = &args.path else {
        return Err(Error::msg(
            "You must specify the type of resource to explain. Use \"rkubectl api-resources\" for a complete list of supported resources.",
        ));
    };
    let (resource, fields) = match path.split_once('.') {
        Some((resource, fields)) => (resource, fields.split('.').collect()),
        None => (path.as_str(), Vec::new()),
    };
    let mut resource = ctx.resource(resource).await?;
    if let Some(version) = &args.api_version {
        resource = ctx.resource_of_kind(version, &resource.kind, "").await.map_err(|_| {
            Error::msg(format!("couldn't find resource for \"{version}, Kind={}\"", resource.kind))
        })?;
    }
    let document = ctx.http().await?.get(&format!("/openapi/v3{}", resource.base())).await?;
    let schemas = &document["components"]["schemas"];
    let of_kind = |s: &&Value| {
        list(&s["x-kubernetes-group-version-kind"]).iter().any(|g| {
            text(&g["group"]) == resource.group
                && text(&g["version"]) == resource.version
                && text(&g["kind"]) == resource.kind
        })
    };
    let Some(root) = schemas.as_object().into_iter().flat_map(|m| m.values()).find(of_kind) else {
        return Err(Error::msg(format!(
            "the server describes no kind {:?} in {}",
            resource.kind,
            resource.api_version()
        )));
    };
    let mut head = String::new();
    if !resource.group.is_empty() {
        head.push_str(&format!("GROUP:      {}\n", resource.group));
    }
    head.push_str(&format!("KIND:       {}\nVERSION:    {}\n\n", resource.kind, resource.version));
    ctx.io.print(head);
    ctx.io.print(explain(schemas, root, &fields, args.recursive)?);
    Ok(())
}

fn explain(schemas: &Value, root: &Value, fields: &[&str], recursive: bool) -> Result<String> {
    let mut out = String::new();
    let mut here = root;
    let mut described = vec![text(&root["description"])];
    for (i, name) in fields.iter().enumerate() {
        let field = &inner(schemas, here)["properties"][*name];
        if field.is_null() {
            return Err(Error::msg(format!("field {name:?} does not exist")));
        }
        here = field;
        if i + 1 == fields.len() {
            out.push_str(&format!("FIELD: {name} <{}>{}\n\n\n", type_name(schemas, field), ""));
            described = vec![text(&field["description"])];
            let target = inner(schemas, field);
            if !std::ptr::eq(target, field) {
                described.push(text(&target["description"]));
            }
        }
    }
    out.push_str("DESCRIPTION:\n");
    let described: Vec<&str> = described.into_iter().filter(|d| !d.is_empty()).collect();
    match described.is_empty() {
        true => out.push_str("    <empty>\n"),
        false => described.iter().for_each(|d| wrapped(&mut out, d, 4)),
    }
    out.push_str("    \n");
    if inner(schemas, here)["properties"].is_object() {
        out.push_str("FIELDS:\n");
        list_fields(&mut out, schemas, inner(schemas, here), 2, recursive, &mut Vec::new());
    }
    out.push('\n');
    Ok(out)
}

fn list_fields<'a>(
    out: &mut String,
    schemas: &'a Value,
    schema: &'a Value,
    indent: usize,
    recursive: bool,
    above: &mut Vec<&'a Value>,
) {
    let mut fields: Vec<_> = schema["properties"].as_object().into_iter().flatten().collect();
    fields.sort_by(|a, b| a.0.cmp(b.0));
    let required = list(&schema["required"]);
    for (name, field) in fields {
        let mark = if required.iter().any(|r| r == name) { " -required-" } else { "" };
        out.push_str(&format!(
            "{}{name}\t<{}>{mark}\n",
            " ".repeat(indent),
            type_name(schemas, field)
        ));
        let values: Vec<&str> = list(&field["enum"]).iter().map(text).collect();
        if !values.is_empty() {
            out.push_str(&format!("{}enum: {}\n", " ".repeat(indent), values.join(", ")));
        }
        if !recursive {
            match text(&field["description"]) {
                "" => out.push_str(&format!("{}<no description>\n", " ".repeat(indent + 2))),
                d => wrapped(out, d, indent + 2),
            }
            out.push('\n');
            continue;
        }
        let target = inner(schemas, field);
        // A type that contains itself is shown once.
        let cycle = above.iter().any(|a| std::ptr::eq(*a, target));
        if target["properties"].is_object() && !cycle {
            above.push(target);
            list_fields(out, schemas, target, indent + 2, true, above);
            above.pop();
        }
    }
}

/// The schema that a field's value has in the end: behind references, lists and maps.
fn inner<'a>(schemas: &'a Value, schema: &'a Value) -> &'a Value {
    let mut here = schema;
    // Real schemas nest a few levels; a circle of references must end.
    for _ in 0..16 {
        here = if let Some(name) = reference(here) {
            &schemas[name]
        } else if here["items"].is_object() {
            &here["items"]
        } else if here["additionalProperties"].is_object() {
            &here["additionalProperties"]
        } else {
            return here;
        };
    }
    here
}

fn reference(schema: &Value) -> Option<&str> {
    let direct = schema["$ref"].as_str();
    let only = list(&schema["allOf"]).first().and_then(|s| s["$ref"].as_str());
    direct.or(only)?.rsplit('/').next()
}

/// `string`, `[]Container`, `map[string]string`
fn type_name(schemas: &Value, schema: &Value) -> String {
    if let Some(name) = reference(schema) {
        let target = &schemas[name];
        return match target["properties"].is_object() || text(&target["type"]) == "object" {
            true => name.rsplit('.').next().unwrap_or(name).to_owned(),
            false => match text(&target["type"]) {
                "" => name.rsplit('.').next().unwrap_or(name).to_owned(),
                kind => kind.to_owned(),
            },
        };
    }
    if schema["items"].is_object() {
        return format!("[]{}", type_name(schemas, &schema["items"]));
    }
    if schema["additionalProperties"].is_object() {
        return format!("map[string]{}", type_name(schemas, &schema["additionalProperties"]));
    }
    match text(&schema["type"]) {
        "" | "object" => "Object".into(),
        kind => kind.into(),
    }
}

fn wrapped(out: &mut String, description: &str, indent: usize) {
    let pad = " ".repeat(indent);
    for paragraph in description.split('\n') {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
                out.push_str(&format!("{pad}{}\n", line.trim_end()));
                line.clear();
                line.push_str(word);
                continue;
            }
            if !line.is_empty() || word.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        out.push_str(&format!("{pad}{line}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_of_fields() {
        let schemas = json!({
            "a.Pod": {"description": "A pod.", "properties": {"spec": {"description": "The spec.", "allOf": [{"$ref": "#/components/schemas/a.PodSpec"}]}}},
            "a.PodSpec": {"description": "Spec it is.", "type": "object", "required": ["containers"], "properties": {
                "containers": {"description": "List.", "type": "array", "items": {"$ref": "#/components/schemas/a.Container"}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}}}},
            "a.Container": {"type": "object", "properties": {"name": {"type": "string", "enum": ["x", "y"]}}},
        });
        let text = explain(&schemas, &schemas["a.Pod"], &["spec"], false).unwrap();
        assert_eq!(
            text,
            "FIELD: spec <PodSpec>\n\n\nDESCRIPTION:\n    The spec.\n    Spec it is.\n    \nFIELDS:\n  containers\t<[]Container> -required-\n    List.\n\n  labels\t<map[string]string>\n    <no description>\n\n\n"
        );
        let deep = explain(&schemas, &schemas["a.Pod"], &["spec"], true).unwrap();
        assert!(
            deep.contains(
                "  containers\t<[]Container> -required-\n    name\t<string>\n    enum: x, y\n"
            ),
            "{deep}"
        );
        let e = explain(&schemas, &schemas["a.Pod"], &["spec", "containers", "nope"], false)
            .unwrap_err();
        assert_eq!(e.to_string(), "error: field \"nope\" does not exist");
    }
}
