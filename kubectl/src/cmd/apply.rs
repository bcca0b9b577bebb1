//! `apply`: three-way merge here, or server-side apply there.

use super::{ChangeFlags, DryRun, ValidateFlag, with_places};
use crate::client::{PatchType, query};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::printers::json;
use crate::resource::{self, Info};
use crate::threeway;
use serde_json::Value;

/// Where the last applied manifest is kept on the object.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Somebody else may write between our read and our write this often.
pub const CONFLICT_RETRIES: u32 = 5;

/// Apply a configuration to a resource by file name or stdin.
#[derive(clap::Args, Debug)]
pub struct ApplyArgs {
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    change: ChangeFlags,
    #[command(flatten)]
    validate: ValidateFlag,
    /// Let the server merge
    #[arg(long)]
    server_side: bool,
    /// Take over fields that others manage
    #[arg(long)]
    force_conflicts: bool,
    /// Only objects that this selects
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<String>,
    /// Delete and create again what can't be changed
    #[arg(long)]
    force: bool,
    #[command(subcommand)]
    sub: Option<ApplySub>,
}

#[derive(clap::Subcommand, Debug)]
enum ApplySub {
    /// View the last applied configuration of an object
    ViewLastApplied {
        /// TYPE NAME or TYPE/NAME
        resources: Vec<String>,
        #[command(flatten)]
        files: FileFlags,
        /// yaml or json
        #[arg(long, short = 'o', default_value = "yaml")]
        output: String,
    },
}

pub async fn run(ctx: &Context, args: &ApplyArgs) -> Result<()> {
    if let Some(ApplySub::ViewLastApplied { resources, files, output }) = &args.sub {
        return view_last_applied(ctx, resources, files, output).await;
    }
    if args.files.filename.is_empty() {
        return Err(Error::msg("must specify one of -f and -k"));
    }
    if args.force_conflicts && !args.server_side {
        return Err(Error::msg("--force-conflicts only works with --server-side"));
    }
    if args.server_side && args.change.dry_run == DryRun::Client {
        return Err(Error::msg(
            "--dry-run=client doesn't work with --server-side (did you mean --dry-run=server instead?)",
        ));
    }
    args.change.output.format(true)?;
    let selector = args
        .selector
        .as_deref()
        .map(rkube_api::selector::LabelSelector::parse)
        .transpose()
        .map_err(|e| Error::msg(e.to_string()))?;
    let mut infos = resource::from_files(ctx, &args.files).await?;
    if let Some(selector) = selector {
        let none = serde_json::Map::new();
        infos.retain(|i| {
            selector.matches(i.object["metadata"]["labels"].as_object().unwrap_or(&none))
        });
    }
    if infos.is_empty() {
        return Err(Error::msg("no objects passed to apply"));
    }
    let mut errors = Vec::new();
    for info in &infos {
        match one(ctx, args, info).await {
            Ok(()) => {}
            Err(e @ Error::Unreachable(_)) => return Err(e),
            Err(e) => errors.push(with_places(e, info)),
        }
    }
    Error::collect(errors)
}

async fn one(ctx: &Context, args: &ApplyArgs, info: &Info) -> Result<()> {
    if args.server_side {
        return server_side(ctx, args, info).await;
    }
    let http = ctx.http().await?;
    let modified = modified(&info.object);
    let mut left = CONFLICT_RETRIES;
    loop {
        let current = match http.get(&info.path()).await {
            Ok(current) => current,
            Err(e) if e.is_not_found() => return create(ctx, args, info, &modified).await,
            Err(e) => {
                return Err(e.in_source(
                    &format!(
                        "retrieving current configuration of {} from server for",
                        info.shown()
                    ),
                    info.source(),
                ));
            }
        };
        warn(ctx, info, &current);
        match update(ctx, args, info, &modified, &current).await {
            Err(e) if e.is_conflict() && left > 0 => left -= 1,
            Err(e) if args.force && forces(&e) => {
                return recreate(ctx, args, info, &modified).await;
            }
            other => return other,
        }
    }
}

fn forces(e: &Error) -> bool {
    e.is_conflict() || e.status().is_some_and(|s| s.reason == "Invalid")
}

fn warn(ctx: &Context, info: &Info, current: &Value) {
    let metadata = &current["metadata"];
    if !metadata["deletionTimestamp"].is_null() {
        ctx.io.note(format!(
            "Warning: Detected changes to resource {} which is currently being deleted.",
            info.name
        ));
    }
    if metadata["annotations"][LAST_APPLIED].is_null() {
        ctx.io.note(format!(
            "Warning: resource {}/{} is missing the {LAST_APPLIED} annotation which is required by rkubectl apply. rkubectl apply should only be used on resources created declaratively by either rkubectl create --save-config or rkubectl apply. The missing annotation will be patched automatically.",
            info.resource.plural, info.name
        ));
    }
}

/// The manifest with itself as an annotation.
pub fn modified(object: &Value) -> Value {
    let mut object = unannotated(object);
    let text = format!("{}\n", json::compact(&object));
    object["metadata"]["annotations"][LAST_APPLIED] = text.into();
    object
}

/// The manifest with its annotations' map in place, but without itself in it.
pub fn unannotated(object: &Value) -> Value {
    let mut object = object.clone();
    let annotations = super::entry(&mut object, &["metadata", "annotations"]);
    match annotations.as_object_mut() {
        Some(map) => {
            map.remove(LAST_APPLIED);
        }
        None => *annotations = Value::Object(Default::default()),
    }
    object
}

/// What was applied last; null if nobody knows.
pub fn last_applied(current: &Value) -> Value {
    let text = current["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or("");
    serde_json::from_str(text).unwrap_or(Value::Null)
}

/// The patch from the live object to the manifest, and its type.
pub fn patch_for(info: &Info, modified: &Value, current: &Value) -> (PatchType, Value) {
    let original = last_applied(current);
    let schema = rkube_api::schema::builtin();
    let r = &info.resource;
    match schema.id_of_kind(&r.group, &r.version, &r.kind) {
        Some(root) => {
            (PatchType::Strategic, threeway::strategic(schema, root, &original, modified, current))
        }
        None => (PatchType::Merge, threeway::json_merge(&original, modified, current)),
    }
}

async fn create(ctx: &Context, args: &ApplyArgs, info: &Info, modified: &Value) -> Result<()> {
    let mut object = modified.clone();
    if args.change.dry_run != DryRun::Client {
        let mut pairs = args.change.query("kubectl-client-side-apply");
        pairs.push(args.validate.pair()?);
        let path = format!("{}{}", info.collection(), query(&pairs));
        let made = ctx.http().await?.post(&path, modified).await;
        object = made
            .map_err(|e| resource::no_such_type(e, &info.resource))
            .map_err(|e| e.in_source("creating", info.source()))?;
    }
    args.change.report(ctx, info, &object, "created")
}

async fn update(
    ctx: &Context,
    args: &ApplyArgs,
    info: &Info,
    modified: &Value,
    current: &Value,
) -> Result<()> {
    let (kind, patch) = patch_for(info, modified, current);
    if patch.as_object().is_some_and(serde_json::Map::is_empty) {
        return args.change.report(ctx, info, current, "unchanged");
    }
    let mut object = current.clone();
    if args.change.dry_run == DryRun::Client {
        json_patch::merge(&mut object, modified);
    } else {
        let mut pairs = args.change.query("kubectl-client-side-apply");
        pairs.push(args.validate.pair()?);
        let path = format!("{}{}", info.path(), query(&pairs));
        let patched = ctx.http().await?.patch(&path, kind, &patch).await;
        object = patched.map_err(|e| {
            let doing = format!("applying patch:\n{patch}\nto:\n{}\nfor:", about(info));
            e.in_source(&doing, info.source())
        })?;
    }
    args.change.report(ctx, info, &object, "configured")
}

fn about(info: &Info) -> String {
    let r = &info.resource;
    format!(
        "Resource: \"{}/{}, Resource={}\", GroupVersionKind: \"{}/{}, Kind={}\"\nName: {:?}, Namespace: {:?}",
        r.group,
        r.version,
        r.plural,
        r.group,
        r.version,
        r.kind,
        info.name,
        info.namespace.as_deref().unwrap_or("")
    )
}

async fn recreate(ctx: &Context, args: &ApplyArgs, info: &Info, modified: &Value) -> Result<()> {
    let http = ctx.http().await?;
    http.delete(&info.path(), &super::delete::options(None, "Background", false)).await?;
    super::delete::wait_gone(ctx, info, "", std::time::Duration::from_secs(300)).await?;
    create(ctx, args, info, modified).await
}

async fn server_side(ctx: &Context, args: &ApplyArgs, info: &Info) -> Result<()> {
    let mut object = info.object.clone();
    if let Some(annotations) =
        object["metadata"].get_mut("annotations").and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED);
    }
    let mut pairs = args.change.query("kubectl");
    pairs.push(("force", args.force_conflicts.to_string()));
    pairs.push(args.validate.pair()?);
    let path = format!("{}{}", info.path(), query(&pairs));
    let applied = ctx.http().await?.patch(&path, PatchType::Apply, &object).await;
    let object = applied.map_err(|e| explain_conflict(e, info))?;
    args.change.report(ctx, info, &object, "serverside-applied")
}

fn explain_conflict(e: Error, info: &Info) -> Error {
    if !e.is_conflict() {
        return resource::no_such_type(e, &info.resource);
    }
    Error::msg(format!(
        "{}\nThese fields have other managers. Either take them over with --force-conflicts, or leave them out of the manifest, or write the values that they have now and so manage them together.",
        e.bare()
    ))
}

async fn view_last_applied(
    ctx: &Context,
    args: &[String],
    files: &FileFlags,
    output: &str,
) -> Result<()> {
    let wanted = resource::Wanted { args, files: Some(files), ..Default::default() };
    let (infos, errors) = resource::fetch(ctx, &wanted).await?;
    for info in &infos {
        let last = last_applied(&info.object);
        if last.is_null() {
            return Err(Error::msg(format!(
                "no last-applied-configuration annotation found on resource: {}",
                info.name
            )));
        }
        match output {
            "yaml" => ctx.io.print(crate::printers::yaml::to_string(&last)),
            "json" => ctx.io.print(json::pretty(&last)),
            other => {
                return Err(Error::msg(format!(
                    "Unexpected -o output mode: {other}, the flag 'output' must be one of yaml|json"
                )));
            }
        }
    }
    Error::collect(errors)
}
