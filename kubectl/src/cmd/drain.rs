//! `cordon`, `uncordon`, `drain`

use super::{ChangeFlags, DryRun};
use crate::client::PatchType;
use crate::context::Context;
use crate::describe::{list, text};
use crate::error::{Error, Result};
use crate::resource::{self, Info, SelectFlags, Wanted};
use serde_json::{Value, json};
use std::time::Duration;

/// Mark node as (un)schedulable.
#[derive(clap::Args, Debug)]
pub struct CordonArgs {
    /// Nodes
    nodes: Vec<String>,
    #[command(flatten)]
    select: SelectFlags,
    #[command(flatten)]
    change: ChangeFlags,
}

/// Drain node in preparation for maintenance.
#[derive(clap::Args, Debug)]
pub struct DrainArgs {
    /// Nodes
    nodes: Vec<String>,
    #[command(flatten)]
    select: SelectFlags,
    /// Also pods that nothing would create again
    #[arg(long)]
    force: bool,
    /// Leave pods of daemon sets where they are
    #[arg(long)]
    ignore_daemonsets: bool,
    /// Also pods whose emptyDir volumes are lost by it
    #[arg(long)]
    delete_emptydir_data: bool,
    /// Seconds that each pod gets to end; -1 leaves it to the pod
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    grace_period: i64,
    /// How long to try; 0 for ever
    #[arg(long, value_parser = crate::duration::parse_flag, default_value = "0")]
    timeout: Duration,
    /// Only pods that this selects
    #[arg(long)]
    pod_selector: Option<String>,
    /// Delete pods instead of evicting them
    #[arg(long)]
    disable_eviction: bool,
    /// Only try it
    #[arg(long, value_name = "WHERE", num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client")]
    dry_run: DryRun,
}

async fn nodes(
    ctx: &Context,
    names: &[String],
    select: &SelectFlags,
    verb: &str,
) -> Result<Vec<Info>> {
    if names.is_empty() && select.selector.is_none() {
        return Err(Error::Plain(format!(
            "error: USAGE: {verb} NODE [flags]\nSee 'rkubectl {verb} -h' for help and examples"
        )));
    }
    let mut args = vec!["nodes".to_owned()];
    args.extend(names.iter().map(|n| n.rsplit('/').next().unwrap_or(n).to_owned()));
    let wanted = Wanted { args: &args, select: Some(select), ..Default::default() };
    let (infos, errors) = resource::fetch(ctx, &wanted).await?;
    Error::collect(errors)?;
    Ok(infos)
}

pub async fn cordon(ctx: &Context, args: &CordonArgs, on: bool) -> Result<()> {
    let verb = if on { "cordon" } else { "uncordon" };
    for info in nodes(ctx, &args.nodes, &args.select, verb).await? {
        mark(ctx, &args.change, &info, on).await?;
    }
    Ok(())
}

async fn mark(ctx: &Context, change: &ChangeFlags, info: &Info, on: bool) -> Result<()> {
    let done = if on { "cordoned" } else { "uncordoned" };
    if (info.object["spec"]["unschedulable"] == true) == on {
        return change.report(ctx, info, &info.object, &format!("already {done}"));
    }
    if change.dry_run != DryRun::Client {
        let patch =
            json!({"spec": {"unschedulable": if on { Value::Bool(true) } else { Value::Null }}});
        let path = format!("{}{}", info.path(), change.query_text("kubectl-cordon"));
        ctx.http().await?.patch(&path, PatchType::Strategic, &patch).await?;
    }
    change.report(ctx, info, &info.object, done)
}

/// What to do with the pods of a node.
#[derive(Debug, Default)]
struct Plan {
    evict: Vec<Info>,
    warnings: Vec<String>,
    refusals: Vec<String>,
}

fn plan(args: &DrainArgs, pods: Vec<Info>) -> Plan {
    let mut plan = Plan::default();
    let (mut daemons, mut bare, mut local) = (Vec::new(), Vec::new(), Vec::new());
    for pod in pods {
        let o = &pod.object;
        let ended = matches!(text(&o["status"]["phase"]), "Succeeded" | "Failed");
        let owner =
            list(&o["metadata"]["ownerReferences"]).iter().find(|r| r["controller"] == true);
        let name = format!("{}/{}", pod.namespace.as_deref().unwrap_or(""), pod.name);
        if o["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
            continue;
        }
        if !ended && owner.is_some_and(|r| r["kind"] == "DaemonSet") {
            daemons.push(name);
            continue;
        }
        if !ended && owner.is_none() {
            bare.push(name.clone());
        }
        if !ended && list(&o["spec"]["volumes"]).iter().any(|v| v["emptyDir"].is_object()) {
            local.push(name);
        }
        plan.evict.push(pod);
    }
    let mut sort = |names: Vec<String>, allowed: bool, what: &str, flag: &str, doing: &str| {
        if names.is_empty() {
            return;
        }
        let names = names.join(", ");
        match allowed {
            true if !doing.is_empty() => plan.warnings.push(format!("{doing}: {names}")),
            true => {}
            false => plan
                .refusals
                .push(format!("cannot delete {what} (use --{flag} to override): {names}")),
        }
    };
    sort(
        daemons,
        args.ignore_daemonsets,
        "DaemonSet-managed Pods",
        "ignore-daemonsets",
        "ignoring DaemonSet-managed Pods",
    );
    sort(
        bare,
        args.force,
        "Pods that declare no controller",
        "force",
        "deleting Pods that declare no controller",
    );
    sort(local, args.delete_emptydir_data, "Pods with local storage", "delete-emptydir-data", "");
    plan
}

pub async fn drain(ctx: &Context, args: &DrainArgs) -> Result<()> {
    let change = ChangeFlags { dry_run: args.dry_run, ..Default::default() };
    for node in nodes(ctx, &args.nodes, &args.select, "drain").await? {
        mark(ctx, &change, &node, true).await?;
        let plan = plan(args, pods_on(ctx, args, &node.name).await?);
        if !plan.warnings.is_empty() {
            ctx.io.note(format!("Warning: {}", plan.warnings.join("; ")));
        }
        if !plan.refusals.is_empty() {
            return Err(Error::Plain(format!(
                "error: unable to drain node {:?} due to error: {}, continuing command...\nThere are pending nodes to be drained:\n {}\n{}",
                node.name,
                plan.refusals.join(", "),
                node.name,
                plan.refusals.join("\n")
            )));
        }
        evict_all(ctx, args, &plan.evict).await?;
        change.report(ctx, &node, &node.object, "drained")?;
    }
    Ok(())
}

async fn pods_on(ctx: &Context, args: &DrainArgs, node: &str) -> Result<Vec<Info>> {
    let pods = ctx.resource("pods").await?;
    let select = SelectFlags {
        selector: args.pod_selector.clone(),
        field_selector: Some(format!("spec.nodeName={node}")),
    };
    resource::list(ctx, &pods, None, Some(&select)).await
}

async fn evict_all(ctx: &Context, args: &DrainArgs, pods: &[Info]) -> Result<()> {
    let work = futures::future::try_join_all(pods.iter().map(|pod| evict(ctx, args, pod)));
    if args.timeout.is_zero() {
        return work.await.map(|_| ());
    }
    match tokio::time::timeout(args.timeout, work).await {
        Ok(result) => result.map(|_| ()),
        Err(_) => Err(Error::msg(format!("drain did not complete within {:?}", args.timeout))),
    }
}

async fn evict(ctx: &Context, args: &DrainArgs, pod: &Info) -> Result<()> {
    let namespace = pod.namespace.as_deref().unwrap_or("");
    let verb = if args.disable_eviction { "deleting" } else { "evicting" };
    ctx.io.note(format!("{verb} pod {namespace}/{}", pod.name));
    if args.dry_run != DryRun::None {
        return Ok(());
    }
    let http = ctx.http().await?;
    let grace = (args.grace_period >= 0).then_some(args.grace_period);
    let mut options = json!({});
    if let Some(seconds) = grace {
        options["gracePeriodSeconds"] = seconds.into();
    }
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod.name, "namespace": namespace}, "deleteOptions": options,
    });
    loop {
        let result = match args.disable_eviction {
            true => http.delete(&pod.path(), &options).await,
            false => http.post(&format!("{}/eviction", pod.path()), &eviction).await,
        };
        match result {
            Ok(_) => break,
            Err(e) if e.is_not_found() => break,
            // A disruption budget says: not yet.
            Err(e) if e.status().is_some_and(|s| s.code == 429) => {
                ctx.io.note(format!(
                    "error when evicting pods/{:?} -n {namespace:?} (will retry after 5s): {}",
                    pod.name,
                    e.bare()
                ));
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            Err(e) => {
                return Err(Error::msg(format!(
                    "error when evicting pods/{:?} -n {namespace:?}: {}",
                    pod.name,
                    e.bare()
                )));
            }
        }
    }
    let uid = text(&pod.object["metadata"]["uid"]);
    super::delete::wait_gone(ctx, pod, uid, Duration::from_secs(7 * 24 * 3600)).await?;
    ctx.io.line(format!(
        "pod/{} {}",
        pod.name,
        if args.disable_eviction { "deleted" } else { "evicted" }
    ));
    Ok(())
}
