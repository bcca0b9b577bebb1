//! `patch`

use super::{ChangeFlags, DryRun};
use crate::client::PatchType;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::resource::{self, Info, Wanted};
use serde_json::Value;

/// Update fields of a resource.
#[derive(clap::Args, Debug)]
pub struct PatchArgs {
    /// TYPE NAME or TYPE/NAME
    resources: Vec<String>,
    #[command(flatten)]
    files: FileFlags,
    /// The patch, as JSON or YAML
    #[arg(long, short = 'p', allow_hyphen_values = true)]
    patch: Option<String>,
    /// A file with the patch
    #[arg(long, value_name = "FILE")]
    patch_file: Option<String>,
    /// strategic, merge or json
    #[arg(long = "type", default_value = "strategic", value_name = "TYPE")]
    kind: String,
    /// Patch this subresource
    #[arg(long, value_name = "NAME")]
    subresource: Option<String>,
    #[command(flatten)]
    change: ChangeFlags,
}

pub async fn run(ctx: &Context, args: &PatchArgs) -> Result<()> {
    let text = match (&args.patch, &args.patch_file) {
        (Some(_), Some(_)) => {
            return Err(Error::msg("cannot specify --patch and --patch-file together"));
        }
        (Some(text), None) => text.clone(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|e| Error::msg(format!("unable to read patch file: open {file}: {e}")))?,
        (None, None) => {
            return Err(Error::msg(
                "must specify --patch or --patch-file containing the contents of the patch",
            ));
        }
    };
    let kind = match args.kind.as_str() {
        "strategic" => PatchType::Strategic,
        "merge" => PatchType::Merge,
        "json" => PatchType::Json,
        other => {
            return Err(Error::msg(format!(
                "--type must be one of [json merge strategic], not {other:?}"
            )));
        }
    };
    let patch = rkube_api::yaml::parse_value(&text)
        .map_err(|e| Error::msg(format!("unable to parse {text:?}: yaml: {e}")))?;
    let wanted = Wanted { args: &args.resources, files: Some(&args.files), ..Default::default() };
    let (infos, mut errors) = resource::fetch(ctx, &wanted).await?;
    for info in &infos {
        if let Err(e) = one(ctx, args, info, kind, &patch).await {
            errors.push(e);
        }
    }
    Error::collect(errors)
}

async fn one(
    ctx: &Context,
    args: &PatchArgs,
    info: &Info,
    kind: PatchType,
    patch: &Value,
) -> Result<()> {
    let sub = args.subresource.as_ref().map(|s| format!("/{s}")).unwrap_or_default();
    let object = if args.change.dry_run == DryRun::Client {
        applied_here(info, kind, patch)?
    } else {
        let path = format!("{}{sub}{}", info.path(), args.change.query_text("kubectl-patch"));
        ctx.http().await?.patch(&path, kind, patch).await?
    };
    let revision = |o: &Value| o["metadata"]["resourceVersion"].clone();
    let changed =
        revision(&object) != revision(&info.object) || args.change.dry_run != DryRun::None;
    args.change.report(ctx, info, &object, if changed { "patched" } else { "patched (no change)" })
}

fn applied_here(info: &Info, kind: PatchType, patch: &Value) -> Result<Value> {
    let mut object = info.object.clone();
    match kind {
        PatchType::Json => {
            let patch: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|e| Error::msg(format!("invalid JSON patch: {e}")))?;
            json_patch::patch(&mut object, &patch)
                .map_err(|e| Error::msg(format!("the patch does not fit: {e}")))?;
        }
        _ => json_patch::merge(&mut object, patch),
    }
    Ok(object)
}
