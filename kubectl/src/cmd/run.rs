//! `run`: one pod from an image.

use super::{ChangeFlags, DryRun, key_value};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::resource::{self, Info};
use crate::stream::Streams;
use futures::StreamExt;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Run a particular image on the cluster.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    /// The pod's name
    name: String,
    /// The image
    #[arg(long, required = true)]
    image: String,
    /// NAME=VALUE; may be repeated
    #[arg(long)]
    env: Vec<String>,
    /// Labels, as key=value,key=value
    #[arg(long, short = 'l')]
    labels: Option<String>,
    /// Annotations, as key=value; may be repeated
    #[arg(long)]
    annotations: Vec<String>,
    /// A port that the container listens on
    #[arg(long)]
    port: Option<i32>,
    /// Always, OnFailure or Never
    #[arg(long, default_value = "Always")]
    restart: String,
    /// Always, IfNotPresent or Never
    #[arg(long)]
    image_pull_policy: Option<String>,
    /// The arguments replace the image's command, not its arguments
    #[arg(long)]
    command: bool,
    /// Attach to the container
    #[arg(long)]
    attach: bool,
    /// Pass stdin on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// With a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// Delete the pod when it has ended
    #[arg(long)]
    rm: bool,
    /// Print only what the container prints
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Run as privileged container
    #[arg(long)]
    privileged: bool,
    /// How long to wait for the container to run when attaching
    #[arg(long, value_parser = crate::duration::parse_flag, default_value = "60s")]
    pod_running_timeout: Duration,
    #[command(flatten)]
    change: ChangeFlags,
    /// Arguments of the container
    #[arg(last = true)]
    args: Vec<String>,
}

pub async fn run(ctx: &Context, args: &RunArgs) -> Result<()> {
    let attach = args.attach || args.stdin;
    if args.rm && !attach {
        return Err(Error::msg("--rm should only be used for attached containers"));
    }
    if args.tty && !args.stdin {
        return Err(Error::msg("-i/--stdin is required for containers with -t/--tty=true"));
    }
    let object = pod(args)?;
    if !attach || args.change.dry_run != DryRun::None {
        return super::create::make(ctx, &args.change, "", object).await;
    }
    let info = resource::from_manifest(ctx, crate::manifest::Manifest::made(object)).await?;
    let path = format!("{}{}", info.collection(), args.change.query_text("kubectl-run"));
    ctx.http().await?.post(&path, &info.object).await?;
    let result = attached(ctx, args, info.clone()).await;
    if args.rm {
        remove(ctx, args, &info).await?;
    }
    result
}

fn pod(args: &RunArgs) -> Result<Value> {
    let mut container = json!({"name": args.name, "image": args.image, "resources": {}});
    if !args.args.is_empty() {
        container[if args.command { "command" } else { "args" }] = json!(args.args);
    }
    let env = args
        .env
        .iter()
        .map(|e| {
            let (name, value) =
                key_value(e).ok_or_else(|| Error::msg(format!("invalid env: {e}")))?;
            Ok(json!({"name": name, "value": value}))
        })
        .collect::<Result<Vec<_>>>()?;
    if !env.is_empty() {
        container["env"] = env.into();
    }
    if let Some(port) = args.port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    if let Some(policy) = &args.image_pull_policy {
        container["imagePullPolicy"] = policy.clone().into();
    }
    if args.privileged {
        container["securityContext"] = json!({"privileged": true});
    }
    if args.stdin {
        container["stdin"] = true.into();
        container["stdinOnce"] = true.into();
        container["tty"] = args.tty.into();
    }
    if !matches!(args.restart.as_str(), "Always" | "OnFailure" | "Never") {
        return Err(Error::msg(format!("invalid restart policy: {}", args.restart)));
    }
    let mut metadata = json!({"name": args.name, "labels": labels(args)?});
    let annotations = pairs(args.annotations.iter().map(String::as_str))?;
    if !annotations.is_empty() {
        metadata["annotations"] = Value::Object(annotations);
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"containers": [container], "restartPolicy": args.restart, "dnsPolicy": "ClusterFirst"},
        "status": {},
    }))
}

fn labels(args: &RunArgs) -> Result<Value> {
    match &args.labels {
        None => Ok(json!({"run": args.name})),
        Some(text) => Ok(Value::Object(pairs(text.split(',').filter(|p| !p.is_empty()))?)),
    }
}

/// A map from `key=value` texts.
pub fn pairs<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Map<String, Value>> {
    texts
        .map(|text| {
            let (key, value) = key_value(text)
                .ok_or_else(|| Error::msg(format!("unexpected {text:?}: key=value is expected")))?;
            Ok((key.to_owned(), Value::from(value)))
        })
        .collect()
}

async fn attached(ctx: &Context, args: &RunArgs, mut info: Info) -> Result<()> {
    let phase = |object: &Value| object["status"]["phase"].as_str().unwrap_or("").to_owned();
    let started = |object: &Value| !matches!(phase(object).as_str(), "" | "Pending");
    info.object = super::wait::until(
        ctx,
        &info,
        args.pod_running_timeout,
        "timed out waiting for the condition",
        started,
    )
    .await?;
    let streams = Streams {
        container: args.name.clone(),
        stdin: args.stdin,
        tty: args.tty && ctx.io.stdin_is_terminal,
        quiet: args.quiet,
    };
    let attached = match phase(&info.object).as_str() {
        "Running" => super::exec::attach_to(ctx, &info, &streams).await,
        _ => Err(Error::msg("it has ended already")),
    };
    match attached {
        Ok(()) => {}
        Err(e @ (Error::Status(_) | Error::Message(_))) => {
            if !args.quiet && phase(&info.object) == "Running" {
                ctx.io.note(format!(
                    "warning: couldn't attach to pod/{}, falling back to streaming logs: {}",
                    info.name,
                    e.bare()
                ));
            }
            follow_log(ctx, args, &info).await?;
        }
        Err(e) => return Err(e),
    }
    exit_code(ctx, args, &info).await
}

async fn follow_log(ctx: &Context, args: &RunArgs, info: &Info) -> Result<()> {
    let container = crate::client::escape(&args.name);
    let log = format!("{}/log?container={container}&follow=true", info.path());
    let mut pieces = std::pin::pin!(ctx.http().await?.stream(&log).await?);
    while let Some(piece) = pieces.next().await {
        ctx.io.print(piece?);
    }
    Ok(())
}

/// A pod that runs once ends with its container's code.
async fn exit_code(ctx: &Context, args: &RunArgs, info: &Info) -> Result<()> {
    if args.restart == "Always" {
        return Ok(());
    }
    let ended = |o: &Value| matches!(o["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let object = super::wait::until(
        ctx,
        info,
        args.pod_running_timeout,
        "timed out waiting for the condition",
        ended,
    )
    .await?;
    let state = &object["status"]["containerStatuses"][0]["state"]["terminated"];
    match state["exitCode"].as_i64() {
        None | Some(0) => Ok(()),
        Some(code) => {
            ctx.io.note(format!(
                "pod {}/{} terminated (Error)",
                info.namespace.as_deref().unwrap_or(""),
                info.name
            ));
            Err(Error::Exit(u8::try_from(code).unwrap_or(1)))
        }
    }
}

async fn remove(ctx: &Context, args: &RunArgs, info: &Info) -> Result<()> {
    let options = super::delete::options(None, "Background", false);
    match ctx.http().await?.delete(&info.path(), &options).await {
        Ok(_) => {
            if !args.quiet {
                ctx.io.line(format!("pod {:?} deleted", info.name));
            }
            Ok(())
        }
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}
