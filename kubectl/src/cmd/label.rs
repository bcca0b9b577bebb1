//! `label` and `annotate`.

use super::{ChangeFlags, DryRun};
use crate::client::PatchType;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::resource::{self, Info, SelectFlags, Wanted};
use serde_json::{Map, Value, json};

/// Update the labels on a resource.
#[derive(clap::Args, Debug)]
pub struct LabelArgs {
    #[command(flatten)]
    common: Common,
}

/// Update the annotations on a resource.
#[derive(clap::Args, Debug)]
pub struct AnnotateArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args, Debug)]
struct Common {
    /// TYPE NAME… or TYPE/NAME…, then KEY=VALUE… or KEY-…
    args: Vec<String>,
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    select: SelectFlags,
    /// All objects of the type
    #[arg(long)]
    all: bool,
    /// In all namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Replace values that are there
    #[arg(long)]
    overwrite: bool,
    /// Print what is there and change nothing
    #[arg(long)]
    list: bool,
    /// Change only this version of the object
    #[arg(long)]
    resource_version: Option<String>,
    /// Change the given object itself, not the server's
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    change: ChangeFlags,
}

/// Which map of the metadata, and the words about it.
struct What {
    field: &'static str,
    noun: &'static str,
    done: &'static str,
    undone: &'static str,
    manager: &'static str,
}

const LABELS: What = What {
    field: "labels",
    noun: "label",
    done: "labeled",
    undone: "unlabeled",
    manager: "kubectl-label",
};
const ANNOTATIONS: What = What {
    field: "annotations",
    noun: "annotation",
    done: "annotated",
    undone: "annotated",
    manager: "kubectl-annotate",
};

pub async fn label(ctx: &Context, args: &LabelArgs) -> Result<()> {
    run(ctx, &args.common, &LABELS).await
}

pub async fn annotate(ctx: &Context, args: &AnnotateArgs) -> Result<()> {
    run(ctx, &args.common, &ANNOTATIONS).await
}

/// Keys with new values; None removes.
type Changes = Vec<(String, Option<String>)>;

async fn run(ctx: &Context, args: &Common, what: &What) -> Result<()> {
    let split = args.args.iter().position(|a| is_change(a)).unwrap_or(args.args.len());
    let (resources, changes) = args.args.split_at(split);
    let changes = parse(changes, what)?;
    if resources.is_empty() && args.files.filename.is_empty() {
        return Err(Error::msg(
            "one or more resources must be specified as <resource> <name> or <resource>/<name>",
        ));
    }
    if changes.is_empty() && !args.list {
        return Err(Error::msg(format!("at least one {} update is required", what.noun)));
    }
    if args.local {
        return local(ctx, args, &changes, what).await;
    }
    let wanted = Wanted {
        args: resources,
        files: Some(&args.files),
        select: Some(&args.select),
        all: args.all,
        all_namespaces: args.all_namespaces,
    };
    let (infos, mut errors) = resource::fetch(ctx, &wanted).await?;
    for info in &infos {
        if let Err(e) = one(ctx, args, info, &changes, what).await {
            errors.push(e);
        }
    }
    Error::collect(errors)
}

fn is_change(arg: &str) -> bool {
    arg.contains('=') || (arg.ends_with('-') && !arg.starts_with('-'))
}

fn parse(args: &[String], what: &What) -> Result<Changes> {
    let mut changes = Changes::new();
    for arg in args {
        let (key, value) = match (super::key_value(arg), arg.strip_suffix('-')) {
            (Some((key, value)), _) => (key, Some(value.to_owned())),
            (None, Some(key)) => (key, None),
            (None, None) => {
                return Err(Error::msg(format!(
                    "unexpected argument {arg:?}: KEY=VALUE or KEY- is expected"
                )));
            }
        };
        if let Some(fault) = rkube_api::selector::qualified_name_fault(key) {
            return Err(Error::msg(format!("invalid {} key {key:?}: {fault}", what.noun)));
        }
        if let Some(fault) = value
            .as_deref()
            .filter(|_| what.field == "labels")
            .and_then(rkube_api::selector::label_value_fault)
        {
            return Err(Error::msg(format!("invalid label value: {arg:?}: {fault}")));
        }
        if changes.iter().any(|(k, v)| k == key && v.is_some() != value.is_some()) {
            return Err(Error::msg(format!(
                "can not both modify and remove {} {} in the same command",
                if what.noun == "label" { "a" } else { "an" },
                what.noun
            )));
        }
        changes.push((key.to_owned(), value));
    }
    Ok(changes)
}

async fn local(ctx: &Context, args: &Common, changes: &Changes, what: &What) -> Result<()> {
    for mut info in resource::from_files(ctx, &args.files).await? {
        let merged = patch(changes, what, None);
        json_patch::merge(&mut info.object, &merged);
        args.change.report(ctx, &info, &info.object.clone(), what.done)?;
    }
    Ok(())
}

async fn one(
    ctx: &Context,
    args: &Common,
    info: &Info,
    changes: &Changes,
    what: &What,
) -> Result<()> {
    let empty = Map::new();
    let here = info.object["metadata"][what.field].as_object().unwrap_or(&empty);
    if args.list {
        let mut lines: Vec<String> =
            here.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect();
        lines.sort();
        lines.iter().for_each(|line| ctx.io.line(line));
        return Ok(());
    }
    if !args.overwrite {
        check_overwrites(here, changes, what)?;
    }
    let missing = |k: &str, v: &Option<String>| v.is_none() && !here.contains_key(k);
    let missing = changes.iter().filter(|(k, v)| what.field == "labels" && missing(k, v));
    for (key, _) in missing {
        ctx.io.line(format!("{} {key:?} not found.", what.noun));
    }
    let differs = changes.iter().any(|(k, v)| here.get(k).and_then(Value::as_str) != v.as_deref());
    if !differs && what.field == "labels" {
        return args.change.report(ctx, info, &info.object, "not labeled");
    }
    let patch = patch(changes, what, args.resource_version.as_deref());
    let mut object = info.object.clone();
    if args.change.dry_run == DryRun::Client {
        json_patch::merge(&mut object, &patch);
    } else {
        let path = format!("{}{}", info.path(), args.change.query_text(what.manager));
        object = ctx.http().await?.patch(&path, PatchType::Merge, &patch).await?;
    }
    let only_removed = changes.iter().all(|(_, v)| v.is_none());
    args.change.report(ctx, info, &object, if only_removed { what.undone } else { what.done })
}

fn check_overwrites(here: &Map<String, Value>, changes: &Changes, what: &What) -> Result<()> {
    for (key, value) in changes {
        let Some(new) = value else { continue };
        let Some(old) = here.get(key).and_then(Value::as_str) else { continue };
        if what.field == "labels" && old == new {
            continue;
        }
        if what.field == "labels" {
            return Err(Error::msg(format!(
                "'{key}' already has a value ({old}), and --overwrite is false"
            )));
        }
        return Err(Error::msg(format!(
            "--overwrite is false but found the following declared annotation(s): '{key}' already has a value ({old})"
        )));
    }
    Ok(())
}

fn patch(changes: &Changes, what: &What, revision: Option<&str>) -> Value {
    let map: Map<String, Value> = changes
        .iter()
        .map(|(k, v)| (k.clone(), v.clone().map_or(Value::Null, Value::from)))
        .collect();
    let mut patch = json!({"metadata": {what.field: map}});
    if let Some(revision) = revision {
        patch["metadata"]["resourceVersion"] = revision.into();
    }
    patch
}
