//! `scale`

use super::ChangeFlags;
use super::DryRun;
use crate::client::PatchType;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::resource::{self, Info, SelectFlags, Wanted};
use serde_json::json;
use std::time::Duration;

/// Set a new size for a deployment or replica set.
#[derive(clap::Args, Debug)]
pub struct ScaleArgs {
    /// TYPE NAME… or TYPE/NAME…
    resources: Vec<String>,
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    select: SelectFlags,
    /// All objects of the type
    #[arg(long)]
    all: bool,
    /// The new size
    #[arg(long, required = true, allow_negative_numbers = true)]
    replicas: i64,
    /// Only if this is the size now
    #[arg(long, allow_negative_numbers = true)]
    current_replicas: Option<i64>,
    /// Only this version of the object
    #[arg(long)]
    resource_version: Option<String>,
    /// How long to wait for the new size; 0 does not wait
    #[arg(long, value_parser = crate::duration::parse_flag, default_value = "0")]
    timeout: Duration,
    #[command(flatten)]
    change: ChangeFlags,
}

pub async fn run(ctx: &Context, args: &ScaleArgs) -> Result<()> {
    if args.replicas < 0 {
        return Err(Error::msg(
            "The --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0",
        ));
    }
    let wanted = Wanted {
        args: &args.resources,
        files: Some(&args.files),
        select: Some(&args.select),
        all: args.all,
        ..Default::default()
    };
    let (infos, mut errors) = resource::fetch(ctx, &wanted).await?;
    for info in &infos {
        if let Err(e) = one(ctx, args, info).await {
            errors.push(e);
        }
    }
    Error::collect(errors)
}

async fn one(ctx: &Context, args: &ScaleArgs, info: &Info) -> Result<()> {
    if let Some(expected) = args.current_replicas.filter(|n| *n >= 0) {
        let now = info.object["spec"]["replicas"].as_i64().unwrap_or(0);
        if now != expected {
            return Err(Error::msg(format!("Expected replicas to be {expected}, was {now}")));
        }
    }
    let revision = info.object["metadata"]["resourceVersion"].as_str();
    if let (Some(expected), Some(now)) = (args.resource_version.as_deref(), revision)
        && expected != now
    {
        return Err(Error::msg(format!("Expected resource version to be {expected}, was {now}")));
    }
    let mut object = info.object.clone();
    if args.change.dry_run == DryRun::Client {
        object["spec"]["replicas"] = args.replicas.into();
    } else {
        let path = format!("{}/scale{}", info.path(), args.change.query_text("kubectl"));
        let mut patch = json!({"spec": {"replicas": args.replicas}});
        if args.current_replicas.is_some() || args.resource_version.is_some() {
            patch["metadata"] = json!({"resourceVersion": revision});
        }
        ctx.http().await?.patch(&path, PatchType::Merge, &patch).await?;
    }
    args.change.report(ctx, info, &object, "scaled")?;
    if !args.timeout.is_zero() && args.change.dry_run == DryRun::None {
        wait_for_size(ctx, args, info).await?;
    }
    Ok(())
}

async fn wait_for_size(ctx: &Context, args: &ScaleArgs, info: &Info) -> Result<()> {
    super::wait::until(ctx, info, args.timeout, "timed out waiting for the condition", |object| {
        let status = &object["status"];
        let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
        status["observedGeneration"].as_i64().unwrap_or(0) >= generation
            && status["replicas"].as_i64().unwrap_or(0) == args.replicas
    })
    .await
    .map(|_| ())
}
