//! `replace`

use super::{ChangeFlags, DryRun, ValidateFlag, with_places};
use crate::client::query;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::resource::{self, Info};
use serde_json::Value;
use std::time::Duration;

/// Replace a resource by file name or stdin.
#[derive(clap::Args, Debug)]
pub struct ReplaceArgs {
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    change: ChangeFlags,
    #[command(flatten)]
    validate: ValidateFlag,
    /// Delete and create again
    #[arg(long)]
    force: bool,
    /// Seconds that the object gets to end, with --force
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    grace_period: i64,
    /// How long to wait for its end, with --force; 0 for five minutes
    #[arg(long, value_parser = crate::duration::parse_flag, default_value = "0")]
    timeout: Duration,
    /// Keep the manifest on the object, so that apply can go on from it
    #[arg(long)]
    save_config: bool,
    /// Replace this subresource
    #[arg(long, value_name = "NAME")]
    subresource: Option<String>,
}

pub async fn run(ctx: &Context, args: &ReplaceArgs) -> Result<()> {
    if args.files.filename.is_empty() {
        return Err(Error::msg("must specify one of -f and -k"));
    }
    let mut errors = Vec::new();
    for info in resource::from_files(ctx, &args.files).await? {
        match one(ctx, args, &info).await {
            Ok(()) => {}
            Err(e @ Error::Unreachable(_)) => return Err(e),
            Err(e) => errors.push(with_places(e.in_source("replacing", info.source()), &info)),
        }
    }
    Error::collect(errors)
}

async fn one(ctx: &Context, args: &ReplaceArgs, info: &Info) -> Result<()> {
    let object = match args.save_config {
        true => super::apply::modified(&info.object),
        false => info.object.clone(),
    };
    let mut pairs = args.change.query("kubectl-replace");
    pairs.push(args.validate.pair()?);
    let object = match (args.force, args.change.dry_run) {
        (_, DryRun::Client) => object,
        (true, _) => recreated(ctx, args, info, object, &query(&pairs)).await?,
        (false, _) => {
            let sub = args.subresource.as_ref().map(|s| format!("/{s}")).unwrap_or_default();
            let path = format!("{}{sub}{}", info.path(), query(&pairs));
            let answer = ctx.http().await?.put(&path, &object).await;
            answer.map_err(|e| resource::no_such_type(e, &info.resource))?
        }
    };
    args.change.report(ctx, info, &object, "replaced")
}

async fn recreated(
    ctx: &Context,
    args: &ReplaceArgs,
    info: &Info,
    object: Value,
    query: &str,
) -> Result<Value> {
    let http = ctx.http().await?;
    let grace = (args.grace_period >= 0).then_some(args.grace_period);
    match http.delete(&info.path(), &super::delete::options(grace, "Background", false)).await {
        Ok(_) => ctx.io.line(format!("{} {:?} deleted", info.resource.singular, info.name)),
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e),
    }
    let limit = if args.timeout.is_zero() { Duration::from_secs(300) } else { args.timeout };
    super::delete::wait_gone(ctx, info, "", limit).await?;
    http.post(&format!("{}{query}", info.collection()), &object).await
}
