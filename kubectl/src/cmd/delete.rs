//! `delete`: by file, name or selector; waits until the objects are gone.

use super::DryRun;
use crate::client::JSON;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::resource::{self, Info, SelectFlags, Wanted};
use futures::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;

/// Delete resources by file names, stdin, names, or by label selector.
#[derive(clap::Args, Debug)]
pub struct DeleteArgs {
    /// TYPE NAME… or TYPE/NAME…
    resources: Vec<String>,
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
    /// Seconds that the object gets to end; -1 leaves it to the object
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "SECONDS")]
    grace_period: i64,
    /// With --grace-period=0: do not wait for the object's end
    #[arg(long)]
    force: bool,
    /// End it as soon as possible (a grace period of 1)
    #[arg(long)]
    now: bool,
    /// Wait until the objects are gone
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
    /// How long to wait; 0 for as long as the grace period needs
    #[arg(long, value_parser = crate::duration::parse_flag, default_value = "0", value_name = "DURATION")]
    timeout: Duration,
    /// What happens to what the objects own: background, foreground or orphan
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "background", default_missing_value = "background", value_name = "HOW")]
    cascade: String,
    /// Missing objects are no failure
    #[arg(long)]
    ignore_not_found: bool,
    /// Only try it: here (client) or with all of the server's checks (server)
    #[arg(long, value_name = "WHERE", num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client")]
    dry_run: DryRun,
    /// name prints only what was deleted
    #[arg(long, short = 'o', default_value = "", hide_default_value = true)]
    output: String,
}

impl DeleteArgs {
    /// Whether it waits until the objects are gone.
    #[cfg(test)]
    pub fn wait(&self) -> bool {
        self.wait
    }

    fn grace(&self) -> Result<Option<i64>> {
        if self.now {
            return if self.grace_period == -1 {
                Ok(Some(1))
            } else {
                Err(Error::msg("--now and --grace-period cannot be specified together"))
            };
        }
        if self.grace_period == 0 && !self.force {
            // Without --force a pod must not vanish while its containers still run.
            return Ok(Some(1));
        }
        if self.force && self.grace_period < 0 {
            return Ok(Some(0));
        }
        if self.force && self.grace_period > 0 {
            return Err(Error::msg(
                "--force and --grace-period greater than 0 cannot be specified together",
            ));
        }
        Ok((self.grace_period >= 0).then_some(self.grace_period))
    }

    fn propagation(&self) -> Result<&'static str> {
        match self.cascade.as_str() {
            "background" | "true" => Ok("Background"),
            "foreground" => Ok("Foreground"),
            "orphan" | "false" => Ok("Orphan"),
            other => Err(Error::msg(format!(
                "invalid cascade value ({other}). Must be \"background\", \"foreground\", or \"orphan\""
            ))),
        }
    }
}

/// `DeleteOptions`
pub fn options(grace: Option<i64>, propagation: &str, dry_run: bool) -> Value {
    let mut options = json!({"propagationPolicy": propagation});
    if let Some(seconds) = grace {
        options["gracePeriodSeconds"] = seconds.into();
    }
    if dry_run {
        options["dryRun"] = json!(["All"]);
    }
    options
}

pub async fn run(ctx: &Context, args: &DeleteArgs) -> Result<()> {
    if !matches!(args.output.as_str(), "" | "name") {
        return Err(Error::msg(format!(
            "unexpected -o output mode: {}. We only support '-o name'",
            args.output
        )));
    }
    let grace = args.grace()?;
    let options = options(grace, args.propagation()?, args.dry_run == DryRun::Server);
    let wanted = Wanted {
        args: &args.resources,
        files: Some(&args.files),
        select: Some(&args.select),
        all: args.all,
        all_namespaces: args.all_namespaces,
    };
    let mut errors = Vec::new();
    let infos = selected(ctx, args, &wanted).await?;
    if args.force && grace == Some(0) {
        ctx.io.note("Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely.");
    }
    let mut going = Vec::new();
    for info in &infos {
        match one(ctx, args, info, &options).await {
            Ok(uid) => going.push((info, uid)),
            Err(e) if args.ignore_not_found && e.is_not_found() => {}
            Err(e @ Error::Unreachable(_)) => return Err(e),
            Err(e) => errors.push(e),
        }
    }
    if infos.is_empty() && errors.is_empty() {
        ctx.io.line("No resources found");
    }
    if args.wait && args.dry_run == DryRun::None && grace != Some(0) {
        let limit =
            if args.timeout.is_zero() { Duration::from_secs(7 * 24 * 3600) } else { args.timeout };
        for (info, uid) in going {
            if let Err(e) = wait_gone(ctx, info, &uid, limit).await {
                errors.push(e);
            }
        }
    }
    Error::collect(errors)
}

async fn selected(ctx: &Context, args: &DeleteArgs, wanted: &Wanted<'_>) -> Result<Vec<Info>> {
    let mut infos = Vec::new();
    for (info, is_list) in resource::targets(ctx, wanted).await? {
        if !is_list {
            infos.push(info);
            continue;
        }
        let namespace = info.namespace.as_deref();
        infos.extend(resource::list(ctx, &info.resource, namespace, Some(&args.select)).await?);
    }
    Ok(infos)
}

/// Deletes one object and gives its uid.
async fn one(ctx: &Context, args: &DeleteArgs, info: &Info, options: &Value) -> Result<String> {
    let mut answer = Value::Null;
    if args.dry_run != DryRun::Client {
        let deleted = ctx.http().await?.delete(&info.path(), options).await;
        answer = deleted
            .map_err(|e| resource::no_such_type(e, &info.resource))
            .map_err(|e| e.in_source("deleting", info.source()))?;
    }
    report(ctx, args, info);
    let uid = if answer["kind"] == "Status" {
        answer["details"]["uid"].as_str()
    } else {
        answer["metadata"]["uid"].as_str()
    };
    Ok(uid.unwrap_or("").to_owned())
}

fn report(ctx: &Context, args: &DeleteArgs, info: &Info) {
    if args.output == "name" {
        return ctx.io.line(info.shown());
    }
    let (kind, group) = (info.resource.kind.to_lowercase(), &info.resource.group);
    let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
    let how = if args.grace_period == 0 || args.force { "force deleted" } else { "deleted" };
    let suffix = match args.dry_run {
        DryRun::None => "",
        DryRun::Client => " (dry run)",
        DryRun::Server => " (server dry run)",
    };
    ctx.io.line(format!("{kind} {:?} {how}{suffix}", info.name));
}

/// Waits until the object is gone, or another has its name. An empty uid takes any object for the
/// one meant.
pub async fn wait_gone(ctx: &Context, info: &Info, uid: &str, limit: Duration) -> Result<()> {
    let work = async {
        loop {
            if gone(ctx, info, uid).await? {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::msg(format!(
            "timed out waiting for the condition on {}/{}",
            info.resource.plural, info.name
        )))
    })
}

/// Looks once and then watches until something speaks for the end; false to look again.
async fn gone(ctx: &Context, info: &Info, uid: &str) -> Result<bool> {
    let http = ctx.http().await?;
    let now = match http.get(&info.path()).await {
        Ok(now) => now,
        Err(e) if e.is_not_found() => return Ok(true),
        Err(e) => return Err(e),
    };
    let other = |object: &Value| {
        !uid.is_empty() && object["metadata"]["uid"].as_str().is_some_and(|u| u != uid)
    };
    if other(&now) {
        return Ok(true);
    }
    let mut events = std::pin::pin!(match http.watch(&info.watch_path(&now), JSON).await {
        Ok(events) => events,
        Err(e) if e.status().is_some_and(|s| s.code == 410) => return Ok(false),
        Err(e) => return Err(e),
    });
    while let Some(event) = events.next().await {
        match event {
            Ok(event) if event["type"] == "DELETED" || other(&event["object"]) => return Ok(true),
            Ok(_) => {}
            // The watch is too old or broke: look again.
            Err(Error::Status(_) | Error::Unreachable(_)) => break,
            Err(e) => return Err(e),
        }
    }
    // A server that ends watches at once must not be asked in a tight loop.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(false)
}
