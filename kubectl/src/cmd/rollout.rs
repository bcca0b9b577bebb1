//! `rollout`: how far a deployment is, its history, and the way back.

use super::ChangeFlags;
use super::DryRun;
use crate::client::{JSON, PatchType};
use crate::context::Context;
use crate::describe::workload::revision;
use crate::describe::{Page, number, pod, text};
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::resource::{self, Info, SelectFlags, Wanted};
use futures::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;

/// Manage the rollout of a resource.
#[derive(clap::Args, Debug)]
pub struct RolloutArgs {
    #[command(subcommand)]
    sub: Sub,
}

#[derive(clap::Subcommand, Debug)]
enum Sub {
    /// Show the status of the rollout
    Status {
        #[command(flatten)]
        target: Target,
        /// Watch until it is done
        #[arg(long, short = 'w', num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", action = clap::ArgAction::Set)]
        watch: bool,
        /// How long to watch; 0 for ever
        #[arg(long, value_parser = crate::duration::parse_flag, default_value = "0")]
        timeout: Duration,
        /// Only this revision
        #[arg(long, default_value_t = 0)]
        revision: i64,
    },
    /// View rollout history
    History {
        #[command(flatten)]
        target: Target,
        /// Show this revision in full
        #[arg(long, default_value_t = 0)]
        revision: i64,
    },
    /// Undo a previous rollout
    Undo {
        #[command(flatten)]
        target: Target,
        /// Back to this revision; 0 for the one before
        #[arg(long, default_value_t = 0)]
        to_revision: i64,
        #[command(flatten)]
        change: ChangeFlags,
    },
    /// Restart a resource
    Restart {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        change: ChangeFlags,
    },
    /// Mark a resource as paused
    Pause {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        change: ChangeFlags,
    },
    /// Resume a paused resource
    Resume {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        change: ChangeFlags,
    },
}

#[derive(clap::Args, Debug)]
struct Target {
    /// TYPE NAME… or TYPE/NAME…
    resources: Vec<String>,
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    select: SelectFlags,
}

pub async fn run(ctx: &Context, args: &RolloutArgs) -> Result<()> {
    let target = match &args.sub {
        Sub::Status { target, .. }
        | Sub::History { target, .. }
        | Sub::Undo { target, .. }
        | Sub::Restart { target, .. }
        | Sub::Pause { target, .. }
        | Sub::Resume { target, .. } => target,
    };
    if target.resources.is_empty() && target.files.filename.is_empty() {
        return Err(Error::msg("required resource not specified"));
    }
    let selects = target.select.selector.is_some();
    let wanted = Wanted {
        args: &target.resources,
        files: Some(&target.files),
        select: Some(&target.select),
        all: !selects && target.resources.len() == 1 && !target.resources[0].contains('/'),
        ..Default::default()
    };
    let (infos, mut errors) = resource::fetch(ctx, &wanted).await?;
    for info in &infos {
        if let Err(e) = one(ctx, &args.sub, info).await {
            errors.push(e);
        }
    }
    Error::collect(errors)
}

async fn one(ctx: &Context, sub: &Sub, info: &Info) -> Result<()> {
    match sub {
        Sub::Status { watch, timeout, revision, .. } => {
            status(ctx, info, *watch, *timeout, *revision).await
        }
        Sub::History { revision, .. } => history(ctx, info, *revision).await,
        Sub::Undo { to_revision, change, .. } => undo(ctx, info, *to_revision, change).await,
        Sub::Restart { change, .. } => {
            if info.object["spec"]["paused"] == true {
                return Err(Error::msg(format!(
                    "{} {:?} can't restart paused deployment (run rollout resume first)",
                    info.resource.qualified(),
                    info.name
                )));
            }
            let now = ctx.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let patch = json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": now}}}}});
            change_it(ctx, info, change, "kubectl-rollout", &patch, "restarted").await
        }
        Sub::Pause { change, .. } => pause(ctx, info, change, true).await,
        Sub::Resume { change, .. } => pause(ctx, info, change, false).await,
    }
}

async fn change_it(
    ctx: &Context,
    info: &Info,
    change: &ChangeFlags,
    manager: &str,
    patch: &Value,
    done: &str,
) -> Result<()> {
    let mut object = info.object.clone();
    if change.dry_run == DryRun::Client {
        json_patch::merge(&mut object, patch);
    } else {
        let path = format!("{}{}", info.path(), change.query_text(manager));
        object = ctx.http().await?.patch(&path, PatchType::Strategic, patch).await?;
    }
    change.report(ctx, info, &object, done)
}

async fn pause(ctx: &Context, info: &Info, change: &ChangeFlags, paused: bool) -> Result<()> {
    let now = info.object["spec"]["paused"] == true;
    if now == paused {
        let state = if paused { "already paused" } else { "not paused" };
        return Err(Error::msg(format!(
            "{} {:?} is {state}",
            info.resource.qualified(),
            info.name
        )));
    }
    let patch = json!({"spec": {"paused": if paused { Value::Bool(true) } else { Value::Null }}});
    change_it(
        ctx,
        info,
        change,
        "kubectl-rollout",
        &patch,
        if paused { "paused" } else { "resumed" },
    )
    .await
}

/// How far a rollout is: what to say, and whether it is done.
fn progress(info: &Info, object: &Value, wanted_revision: i64) -> Result<(String, bool)> {
    let name = &info.name;
    match info.resource.kind.as_str() {
        "Deployment" => deployment_progress(name, object, wanted_revision),
        other => Err(Error::msg(format!("no status viewer has been implemented for {other:?}"))),
    }
}

fn deployment_progress(name: &str, d: &Value, wanted_revision: i64) -> Result<(String, bool)> {
    if wanted_revision > 0 && revision(d) != wanted_revision {
        return Err(Error::msg(format!(
            "desired revision ({wanted_revision}) is different from the running revision ({})",
            revision(d)
        )));
    }
    let status = &d["status"];
    if number(&d["metadata"]["generation"]) > number(&status["observedGeneration"]) {
        return Ok(("Waiting for deployment spec update to be observed...".into(), false));
    }
    let conditions = crate::describe::list(&status["conditions"]);
    if conditions
        .iter()
        .any(|c| c["type"] == "Progressing" && c["reason"] == "ProgressDeadlineExceeded")
    {
        return Err(Error::msg(format!("deployment {name:?} exceeded its progress deadline")));
    }
    let wanted = d["spec"]["replicas"].as_i64().unwrap_or(1);
    let (updated, all, available) = (
        number(&status["updatedReplicas"]),
        number(&status["replicas"]),
        number(&status["availableReplicas"]),
    );
    let waiting = |what: String| {
        Ok((format!("Waiting for deployment {name:?} rollout to finish: {what}..."), false))
    };
    if updated < wanted {
        return waiting(format!("{updated} out of {wanted} new replicas have been updated"));
    }
    if all > updated {
        return waiting(format!("{} old replicas are pending termination", all - updated));
    }
    if available < updated {
        return waiting(format!("{available} of {updated} updated replicas are available"));
    }
    Ok((format!("deployment {name:?} successfully rolled out"), true))
}

async fn status(
    ctx: &Context,
    info: &Info,
    watch: bool,
    timeout: Duration,
    revision: i64,
) -> Result<()> {
    let work = follow(ctx, info, watch, revision);
    if timeout.is_zero() {
        return work.await;
    }
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or_else(|_| Err(Error::msg("timed out waiting for the condition")))
}

/// Says how far the rollout is, whenever that changes, until it is done.
async fn follow(ctx: &Context, info: &Info, watch: bool, revision: i64) -> Result<()> {
    let http = ctx.http().await?;
    let mut said = String::new();
    let mut tell = |object: &Value| -> Result<bool> {
        let (text, done) = progress(info, object, revision)?;
        if text != said {
            ctx.io.line(&text);
            said = text;
        }
        Ok(done || !watch)
    };
    let mut object = info.object.clone();
    while !tell(&object)? {
        if let Ok(events) = http.watch(&info.watch_path(&object), JSON).await {
            let mut events = std::pin::pin!(events);
            while let Some(Ok(event)) = events.next().await {
                if event["type"] == "DELETED" {
                    return Err(Error::msg("object has been deleted"));
                }
                if tell(&event["object"])? {
                    return Ok(());
                }
            }
        }
        // The watch is over: look, and go on from there.
        tokio::time::sleep(Duration::from_millis(200)).await;
        object = http.get(&info.path()).await?;
    }
    Ok(())
}

/// A deployment's replica sets in the order of their revisions.
async fn revisions(ctx: &Context, info: &Info) -> Result<Vec<Value>> {
    if info.resource.kind != "Deployment" {
        return Err(Error::msg(format!(
            "no history viewer has been implemented for {:?}",
            info.resource.kind
        )));
    }
    let mut sets = super::describe::owned(ctx, info, "/apis/apps/v1", "replicasets").await?;
    sets.sort_by_key(revision);
    Ok(sets)
}

async fn history(ctx: &Context, info: &Info, wanted: i64) -> Result<()> {
    let sets = revisions(ctx, info).await?;
    let cause =
        |rs: &Value| match text(&rs["metadata"]["annotations"]["kubernetes.io/change-cause"]) {
            "" => "<none>".to_owned(),
            cause => cause.to_owned(),
        };
    if wanted > 0 {
        let Some(rs) = sets.iter().find(|rs| revision(rs) == wanted) else {
            return Err(Error::msg(format!(
                "unable to find the specified revision {wanted} in history"
            )));
        };
        let mut page = Page::new(ctx.now());
        let mut template = rs["spec"]["template"].clone();
        if cause(rs) != "<none>" {
            template["metadata"]["annotations"]["kubernetes.io/change-cause"] = cause(rs).into();
        }
        pod::template(&mut page, &template);
        ctx.io.print(format!(
            "{} with revision #{wanted}\n{}\n",
            info.shown(),
            page.finish_unaligned()
        ));
        return Ok(());
    }
    let mut table = String::from("REVISION\tCHANGE-CAUSE\n");
    for rs in &sets {
        table.push_str(&format!("{}\t{}\n", revision(rs), cause(rs)));
    }
    let table = crate::printers::tabwriter::align(&table, crate::printers::tabwriter::DESCRIBE);
    ctx.io.print(format!("{} \n{table}\n", info.shown()));
    Ok(())
}

async fn undo(ctx: &Context, info: &Info, to: i64, change: &ChangeFlags) -> Result<()> {
    if to < 0 {
        return Err(Error::msg(format!("revision must be >= 0 but was {to}")));
    }
    if info.object["spec"]["paused"] == true {
        return Err(Error::msg(format!(
            "you cannot rollback a paused deployment; resume it first with 'rkubectl rollout resume {}' and try again",
            info.shown()
        )));
    }
    let sets = revisions(ctx, info).await?;
    let current = revision(&info.object);
    let back = match to {
        0 => sets.iter().rfind(|rs| revision(rs) != current).ok_or_else(|| {
            Error::msg(format!("no rollout history found for deployment {:?}", info.name))
        })?,
        n => sets.iter().find(|rs| revision(rs) == n).ok_or_else(|| {
            Error::msg(format!("unable to find specified revision {n} in history"))
        })?,
    };
    let template = without_hash(&back["spec"]["template"]);
    if template == without_hash(&info.object["spec"]["template"]) {
        return change.report(
            ctx,
            info,
            &info.object,
            &format!(
                "skipped rollback (current template already matches revision {})",
                revision(back)
            ),
        );
    }
    if change.dry_run == DryRun::Client {
        let mut page = Page::new(ctx.now());
        pod::template(&mut page, &template);
        ctx.io.print(page.finish_unaligned());
        return Ok(());
    }
    let mut annotations = back["metadata"]["annotations"].clone();
    if let Some(map) = annotations.as_object_mut() {
        let own = ["deployment.kubernetes.io/", super::apply::LAST_APPLIED];
        map.retain(|k, _| !own.iter().any(|o| k.starts_with(o)));
        // What was applied last stays with the deployment.
        for (k, v) in info.object["metadata"]["annotations"].as_object().into_iter().flatten() {
            if own.iter().any(|o| k.starts_with(o)) {
                map.insert(k.clone(), v.clone());
            }
        }
    }
    let patch = json!([
        {"op": "replace", "path": "/spec/template", "value": template},
        {"op": "replace", "path": "/metadata/annotations", "value": annotations},
    ]);
    let path = format!("{}{}", info.path(), change.query_text("kubectl-rollout"));
    let object = ctx.http().await?.patch(&path, PatchType::Json, &patch).await?;
    change.report(ctx, info, &object, "rolled back")
}

fn without_hash(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template["metadata"].get_mut("labels").and_then(Value::as_object_mut) {
        labels.remove("pod-template-hash");
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_deployment_is() {
        let d = |generation: i64, updated: i64, all: i64, available: i64| {
            json!({"metadata": {"generation": generation}, "spec": {"replicas": 3}, "status": {
                "observedGeneration": 2, "updatedReplicas": updated, "replicas": all, "availableReplicas": available}})
        };
        let cases = [
            (d(3, 0, 0, 0), "Waiting for deployment spec update to be observed..."),
            (
                d(2, 1, 3, 3),
                "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated...",
            ),
            (
                d(2, 3, 4, 3),
                "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination...",
            ),
            (
                d(2, 3, 3, 2),
                "Waiting for deployment \"web\" rollout to finish: 2 of 3 updated replicas are available...",
            ),
            (d(2, 3, 3, 3), "deployment \"web\" successfully rolled out"),
        ];
        for (object, want) in cases {
            assert_eq!(deployment_progress("web", &object, 0).unwrap().0, want);
        }
    }
}
