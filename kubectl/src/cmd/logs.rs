//! `logs`

use crate::client::query;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::pods;
use crate::resource::Info;
use futures::future::try_join_all;
use futures::{Stream, StreamExt};
use std::time::Duration;

/// Print the logs of a container in a pod.
#[derive(clap::Args, Debug)]
pub struct LogsArgs {
    /// POD or TYPE/NAME, and maybe CONTAINER
    args: Vec<String>,
    /// Go on as more is written
    #[arg(long, short = 'f')]
    follow: bool,
    /// Of the container's last run
    #[arg(long, short = 'p')]
    previous: bool,
    /// The container
    #[arg(long, short = 'c')]
    container: Option<String>,
    /// Of all containers
    #[arg(long)]
    all_containers: bool,
    /// Of all pods that the resource selects
    #[arg(long)]
    all_pods: bool,
    /// Of all pods that this selects
    #[arg(long, short = 'l')]
    selector: Option<String>,
    /// Only the last lines; -1 for all
    #[arg(long, allow_negative_numbers = true)]
    tail: Option<i64>,
    /// Only what is newer than this (5s, 2m, 3h)
    #[arg(long, value_parser = crate::duration::parse_flag)]
    since: Option<Duration>,
    /// Only what is newer than this time (RFC 3339)
    #[arg(long)]
    since_time: Option<String>,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
    /// With pod and container before each line
    #[arg(long)]
    prefix: bool,
    /// At most so many bytes
    #[arg(long)]
    limit_bytes: Option<i64>,
    /// How many logs may be followed at once
    #[arg(long, default_value_t = 5)]
    max_log_requests: usize,
    /// A log that can't be read does not end the others
    #[arg(long)]
    ignore_errors: bool,
    /// Do not check the certificate of the kubelet
    #[arg(long)]
    insecure_skip_tls_verify_backend: bool,
}

/// One container's log.
struct Source {
    path: String,
    prefix: String,
}

pub async fn run(ctx: &Context, args: &LogsArgs) -> Result<()> {
    let pods = chosen_pods(ctx, args).await?;
    let mut sources = Vec::new();
    for pod in &pods {
        for container in chosen_containers(ctx, args, pod)? {
            sources.push(source(args, pod, &container));
        }
    }
    if args.follow && sources.len() > args.max_log_requests {
        return Err(Error::msg(format!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {}, use --max-log-requests to increase the limit",
            sources.len(),
            args.max_log_requests
        )));
    }
    if args.follow && sources.len() > 1 {
        try_join_all(sources.iter().map(|s| show(ctx, args, s))).await?;
        return Ok(());
    }
    for source in &sources {
        show(ctx, args, source).await?;
    }
    Ok(())
}

async fn chosen_pods(ctx: &Context, args: &LogsArgs) -> Result<Vec<Info>> {
    if let Some(selector) = &args.selector {
        if !args.args.is_empty() {
            return Err(Error::msg("only a selector (-l) or a POD name is allowed"));
        }
        let found = pods::selected(ctx, selector, false).await?;
        if found.is_empty() {
            ctx.io.note(format!("No resources found in {} namespace.", ctx.namespace().await?));
        }
        return Ok(found);
    }
    let Some(first) = args.args.first() else {
        return Err(Error::Plain("error: expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]'.\nPOD or TYPE/NAME is a required argument for the logs command\nSee 'rkubectl logs -h' for help and examples".into()));
    };
    let namespace = ctx.namespace().await?;
    let mut found = pods::behind(ctx, first).await.map_err(|e| match e.is_not_found() {
        true => Error::msg(format!(
            "error from server (NotFound): {} in namespace {namespace:?}",
            e.bare()
        )),
        false => e,
    })?;
    if found.len() > 1 && !args.all_pods {
        ctx.io.note(format!("Found {} pods, using pod/{}", found.len(), found[0].name));
        found.truncate(1);
    }
    Ok(found)
}

fn chosen_containers(ctx: &Context, args: &LogsArgs, pod: &Info) -> Result<Vec<String>> {
    if args.all_containers {
        return Ok(pods::containers(&pod.object, true));
    }
    let named = args.container.as_deref().or(args.args.get(1).map(String::as_str));
    let name = pods::container(ctx, pod, named, false).map_err(|_| {
        Error::msg(format!("container {} is not valid for pod {}", named.unwrap_or(""), pod.name))
    })?;
    Ok(vec![name])
}

fn source(args: &LogsArgs, pod: &Info, container: &str) -> Source {
    let mut pairs = vec![("container", container.to_owned())];
    let mut switch = |name, on: bool| {
        if on {
            pairs.push((name, "true".to_owned()));
        }
    };
    switch("follow", args.follow);
    switch("previous", args.previous);
    switch("timestamps", args.timestamps);
    switch("insecureSkipTLSVerifyBackend", args.insecure_skip_tls_verify_backend);
    // Many pods' whole logs are more than anybody reads.
    let tail = args.tail.or(args.selector.as_ref().map(|_| 10)).filter(|n| *n >= 0);
    pairs.extend(tail.map(|n| ("tailLines", n.to_string())));
    let since = args.since.map(|d| d.as_secs_f64().ceil() as i64).filter(|s| *s > 0);
    pairs.extend(since.map(|s| ("sinceSeconds", s.to_string())));
    pairs.extend(args.since_time.clone().map(|t| ("sinceTime", t)));
    pairs.extend(args.limit_bytes.map(|n| ("limitBytes", n.to_string())));
    let prefix =
        if args.prefix { format!("[pod/{}/{container}] ", pod.name) } else { String::new() };
    Source { path: format!("{}/log{}", pod.path(), query(&pairs)), prefix }
}

async fn show(ctx: &Context, args: &LogsArgs, source: &Source) -> Result<()> {
    let result = match ctx.http().await?.stream(&source.path).await {
        Ok(pieces) => copy(ctx, pieces, &source.prefix).await,
        Err(e) => Err(e),
    };
    match result {
        Err(e @ Error::Status(_)) if args.ignore_errors => {
            ctx.io.note(format!("error: {}", e.bare()));
            Ok(())
        }
        other => other,
    }
}

/// Prints a log as it comes; by whole lines where a prefix needs it.
async fn copy(
    ctx: &Context,
    pieces: impl Stream<Item = Result<bytes::Bytes>>,
    prefix: &str,
) -> Result<()> {
    let mut pieces = std::pin::pin!(pieces);
    let mut line: Vec<u8> = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        if prefix.is_empty() {
            ctx.io.print(&piece);
            continue;
        }
        for byte in piece {
            line.push(byte);
            if byte == b'\n' {
                ctx.io.print([prefix.as_bytes(), &line].concat());
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        ctx.io.print([prefix.as_bytes(), &line, b"\n"].concat());
    }
    Ok(())
}
