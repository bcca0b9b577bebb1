//! `diff`: what apply would change, by way of the server's dry run and `diff -u -N`.

use super::ValidateFlag;
use crate::client::{PatchType, query};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::printers::yaml;
use crate::resource::{self, Info};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Diff the live version against a would-be applied version.
#[derive(clap::Args, Debug)]
pub struct DiffArgs {
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    validate: ValidateFlag,
    /// Let the server merge
    #[arg(long)]
    server_side: bool,
    /// Take over fields that others manage
    #[arg(long)]
    force_conflicts: bool,
    /// The name that the changed fields are tracked under
    #[arg(long)]
    field_manager: Option<String>,
    /// With managedFields
    #[arg(long)]
    show_managed_fields: bool,
}

/// As diff itself: 1 says that something differs, more that something failed.
pub async fn run(ctx: &Context, args: &DiffArgs) -> Result<()> {
    match differences(ctx, args).await {
        Ok(0) => Ok(()),
        Ok(code) => Err(Error::Exit(code)),
        Err(e) => {
            ctx.io.note(e.to_string());
            Err(Error::Exit(e.code().max(2)))
        }
    }
}

async fn differences(ctx: &Context, args: &DiffArgs) -> Result<u8> {
    if args.files.filename.is_empty() {
        return Err(Error::msg("must specify one of -f and -k"));
    }
    let root = std::env::temp_dir().join(format!("rkubectl-diff-{}", std::process::id()));
    let (live, merged) = (root.join("LIVE"), root.join("MERGED"));
    let result = async {
        private_folder(&root)?;
        private_folder(&live)?;
        private_folder(&merged)?;
        for info in resource::from_files(ctx, &args.files).await? {
            let (now, then) = both(ctx, args, &info).await?;
            if let Some(now) = &now {
                write(&live, &info, now)?;
            }
            write(&merged, &info, &then)?;
        }
        compare(ctx, &root)
    };
    let result = result.await;
    // Secrets may lie there; what can't be removed belongs to this user alone.
    let _ = std::fs::remove_dir_all(&root);
    result
}

fn private_folder(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    Ok(std::fs::DirBuilder::new().mode(0o700).create(path)?)
}

/// The live object, if there is one, and what it would become.
async fn both(ctx: &Context, args: &DiffArgs, info: &Info) -> Result<(Option<Value>, Value)> {
    let http = ctx.http().await?;
    let mut left = super::apply::CONFLICT_RETRIES;
    let (live, then) = loop {
        let live = match http.get(&info.path()).await {
            Ok(live) => Some(live),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e),
        };
        match merged(ctx, args, info, live.as_ref()).await {
            Ok(then) => break (live, then),
            // Somebody wrote in between: their change is none of the manifest's.
            Err(e) if e.is_conflict() && !args.server_side && left > 0 => left -= 1,
            Err(e) => return Err(super::with_places(e, info)),
        }
    };
    let clean = |o: Value| if args.show_managed_fields { o } else { without_managed_fields(o) };
    let (mut live, mut then) = (live.map(clean), clean(then));
    if info.resource.kind == "Secret" {
        mask(live.as_mut(), &mut then);
    }
    Ok((live, then))
}

async fn merged(
    ctx: &Context,
    args: &DiffArgs,
    info: &Info,
    live: Option<&Value>,
) -> Result<Value> {
    let http = ctx.http().await?;
    let manager = args.field_manager.as_deref().unwrap_or(if args.server_side {
        "kubectl"
    } else {
        "kubectl-client-side-apply"
    });
    let mut pairs =
        vec![("fieldManager", manager.to_owned()), ("dryRun", "All".into()), args.validate.pair()?];
    if args.server_side {
        pairs.push(("force", args.force_conflicts.to_string()));
        let path = format!("{}{}", info.path(), query(&pairs));
        return http.patch(&path, PatchType::Apply, &info.object).await;
    }
    let modified = super::apply::unannotated(&info.object);
    let Some(now) = live else {
        return http.post(&format!("{}{}", info.collection(), query(&pairs)), &modified).await;
    };
    let (kind, mut patch) = super::apply::patch_for(info, &modified, now);
    patch["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"].clone();
    http.patch(&format!("{}{}", info.path(), query(&pairs)), kind, &patch).await
}

fn without_managed_fields(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

/// A secret's values are not for the screen: only that they differ.
fn mask(live: Option<&mut Value>, then: &mut Value) {
    let before = live.as_ref().map(|l| l["data"].clone()).unwrap_or(Value::Null);
    let after = then["data"].clone();
    let hide = |object: &mut Value, other: &Value, word: &str| {
        for (key, value) in object["data"].as_object_mut().into_iter().flatten() {
            let changed = other.get(key).is_some_and(|o| o != value);
            *value = if changed { format!("*** ({word})") } else { "***".to_owned() }.into();
        }
    };
    if let Some(live) = live {
        hide(live, &after, "before");
    }
    hide(then, &before, "after");
}

fn write(folder: &Path, info: &Info, object: &Value) -> Result<()> {
    let r = &info.resource;
    let parts = [
        r.group.as_str(),
        &r.version,
        &r.kind,
        info.namespace.as_deref().unwrap_or(""),
        &info.name,
    ];
    let mut name: String = if r.group.is_empty() { parts[1..].join(".") } else { parts.join(".") };
    name = name.replace('/', "_");
    Ok(std::fs::write(folder.join(name), yaml::to_string(object))?)
}

/// Runs the user's diff, else `diff -u -N`; gives its exit code.
fn compare(ctx: &Context, root: &Path) -> Result<u8> {
    let custom = std::env::var("KUBECTL_EXTERNAL_DIFF").unwrap_or_default();
    let mut words: Vec<&str> = custom.split_whitespace().collect();
    if words.is_empty() {
        words = vec!["diff", "-u", "-N"];
    }
    let output = Command::new(words[0])
        .args(&words[1..])
        .args(["LIVE", "MERGED"])
        .current_dir(root)
        .output()
        .map_err(|e| Error::msg(format!("executable {:?} can't be run: {e}", words[0])))?;
    ctx.io.print(&output.stdout);
    ctx.io.print_err(&output.stderr);
    Ok(output.status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}
