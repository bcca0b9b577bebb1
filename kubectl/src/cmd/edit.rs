//! `edit`: the user's editor on the live object; what changed is sent as a patch.

use super::{ChangeFlags, ValidateFlag};
use crate::client::{PatchType, query};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::printers::{json, yaml};
use crate::resource::{self, Info, SelectFlags, Wanted};
use crate::threeway;
use serde_json::Value;
use std::io::Write;
use std::process::Command;

/// Edit a resource on the server.
#[derive(clap::Args, Debug)]
pub struct EditArgs {
    /// TYPE NAME or TYPE/NAME
    resources: Vec<String>,
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    select: SelectFlags,
    #[command(flatten)]
    change: ChangeFlags,
    #[command(flatten)]
    validate: ValidateFlag,
}

pub async fn run(ctx: &Context, args: &EditArgs) -> Result<()> {
    let wanted = Wanted {
        args: &args.resources,
        files: Some(&args.files),
        select: Some(&args.select),
        ..Default::default()
    };
    let (infos, mut errors) = resource::fetch(ctx, &wanted).await?;
    for info in &infos {
        errors.extend(one(ctx, args, info).await.err());
    }
    Error::collect(errors)
}

async fn one(ctx: &Context, args: &EditArgs, info: &Info) -> Result<()> {
    let as_json = args.change.output.output == "json";
    let shown = args.change.output.shown(info.object.clone());
    let original = if as_json { json::pretty(&shown) } else { yaml::to_string(&shown) };
    let mut text = original.clone();
    let mut why = String::new();
    loop {
        let edited = edit(info, &text, &why, as_json)?;
        if edited.trim().is_empty() || edited == text {
            if why.is_empty() {
                ctx.io.line("Edit cancelled, no changes made.");
                return Ok(());
            }
            return Err(Error::msg(format!("Edit cancelled, no valid changes were saved. {why}")));
        }
        text = edited;
        let new = match rkube_api::yaml::parse_value(&text) {
            Ok(new) if new.is_object() => new,
            Ok(_) => {
                why = "an object is expected".into();
                continue;
            }
            Err(e) => {
                why = e.to_string();
                continue;
            }
        };
        if new == shown {
            ctx.io.line("Edit cancelled, no changes made.");
            return Ok(());
        }
        match send(ctx, args, info, &shown, &new).await {
            Err(e @ Error::Status(_)) => why = e.to_string(),
            other => return other,
        }
    }
}

async fn send(ctx: &Context, args: &EditArgs, info: &Info, old: &Value, new: &Value) -> Result<()> {
    for field in ["apiVersion", "kind"] {
        if old[field] != new[field] {
            return Err(Error::msg(format!("{field} may not be changed")));
        }
    }
    let schema = rkube_api::schema::builtin();
    let r = &info.resource;
    let (kind, patch) = match schema.id_of_kind(&r.group, &r.version, &r.kind) {
        Some(root) => (PatchType::Strategic, threeway::strategic_two_way(schema, root, old, new)),
        None => (PatchType::Merge, threeway::json_merge_two_way(old, new)),
    };
    let mut pairs = args.change.query("kubectl-edit");
    pairs.push(args.validate.pair()?);
    let path = format!("{}{}", info.path(), query(&pairs));
    ctx.http().await?.patch(&path, kind, &patch).await?;
    ctx.io.line(format!("{} edited", info.shown()));
    Ok(())
}

/// Runs the editor on a file that only this user can read, and gives its new content.
fn edit(info: &Info, text: &str, why: &str, as_json: bool) -> Result<String> {
    use std::os::unix::fs::OpenOptionsExt;
    let suffix = if as_json { "json" } else { "yaml" };
    let name =
        format!("rkubectl-edit-{}-{}.{suffix}", std::process::id(), info.name.replace('/', "_"));
    let path = std::env::temp_dir().join(name);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
    if !as_json {
        file.write_all(heading(why).as_bytes())?;
    }
    file.write_all(text.as_bytes())?;
    drop(file);
    let ended = run_editor(&path);
    let edited = std::fs::read_to_string(&path);
    // Left behind, the file would block the next edit of the same object.
    std::fs::remove_file(&path)?;
    ended?;
    let edited = edited?;
    let lines = edited.split_inclusive('\n').skip_while(|l| !as_json && l.starts_with('#'));
    Ok(lines.collect())
}

fn heading(why: &str) -> String {
    let mut text = String::from(
        "# Please edit the object below. Lines beginning with a '#' will be ignored,\n# and an empty file will abort the edit.\n#\n",
    );
    for line in why.lines() {
        text.push_str(&format!("# {line}\n"));
    }
    text
}

fn run_editor(path: &std::path::Path) -> Result<()> {
    let editor = ["KUBE_EDITOR", "EDITOR", "VISUAL"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|e| !e.is_empty()))
        .unwrap_or_else(|| "vi".into());
    // The variable may hold options: the shell takes it apart.
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(path)
        .status()
        .map_err(|e| Error::msg(format!("there was a problem with the editor {editor:?}: {e}")))?;
    match status.success() {
        true => Ok(()),
        false => {
            Err(Error::msg(format!("there was a problem with the editor {editor:?}: {status}")))
        }
    }
}
