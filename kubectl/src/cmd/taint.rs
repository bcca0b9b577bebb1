//! `taint`

use super::{ChangeFlags, DryRun};
use crate::client::PatchType;
use crate::context::Context;
use crate::describe::{list, text};
use crate::error::{Error, Result};
use crate::resource::{self, Info, SelectFlags, Wanted};
use serde_json::{Value, json};

/// Update the taints on one or more nodes.
#[derive(clap::Args, Debug)]
pub struct TaintArgs {
    /// nodes NAME…, then KEY[=VALUE]:EFFECT… or KEY[:EFFECT]-…
    args: Vec<String>,
    #[command(flatten)]
    select: SelectFlags,
    /// All nodes
    #[arg(long)]
    all: bool,
    /// Replace taints that are there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    change: ChangeFlags,
}

/// What to do with one taint; an empty effect stands for all.
#[derive(Debug, PartialEq)]
struct Change {
    key: String,
    value: String,
    effect: String,
    remove: bool,
}

fn parse(text: &str) -> Result<Change> {
    let bad = || Error::msg(format!("invalid taint spec: {text}"));
    let (body, remove) = match text.strip_suffix('-') {
        Some(body) => (body, true),
        None => (text, false),
    };
    let (pair, effect) = body.rsplit_once(':').unwrap_or((body, ""));
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect);
    if key.is_empty() || !(known || (remove && effect.is_empty())) {
        return Err(match known || effect.is_empty() {
            true => bad(),
            false => Error::Plain(format!(
                "error: invalid taint effect: {effect}, unsupported taint effect\nSee 'rkubectl taint -h' for help and examples"
            )),
        });
    }
    if let Some(fault) = rkube_api::selector::qualified_name_fault(key) {
        return Err(Error::msg(format!("invalid taint spec: {text}, {fault}")));
    }
    Ok(Change { key: key.into(), value: value.into(), effect: effect.into(), remove })
}

pub async fn run(ctx: &Context, args: &TaintArgs) -> Result<()> {
    let split = args.args.iter().position(|a| a.contains([':', '=']) || a.ends_with('-'));
    let (resources, changes) = args.args.split_at(split.unwrap_or(args.args.len()));
    if resources.is_empty() {
        return Err(Error::msg("one or more resources must be specified as <resource> <name>"));
    }
    if changes.is_empty() {
        return Err(Error::msg("at least one taint update is required"));
    }
    let changes = changes.iter().map(|c| parse(c)).collect::<Result<Vec<_>>>()?;
    let wanted =
        Wanted { args: resources, select: Some(&args.select), all: args.all, ..Default::default() };
    let (infos, mut errors) = resource::fetch(ctx, &wanted).await?;
    for info in &infos {
        if info.resource.plural != "nodes" {
            return Err(Error::msg(format!(
                "invalid resource type {}, only node types are supported",
                info.resource.plural
            )));
        }
        errors.extend(one(ctx, args, info, &changes).await.err());
    }
    Error::collect(errors)
}

async fn one(ctx: &Context, args: &TaintArgs, info: &Info, changes: &[Change]) -> Result<()> {
    let mut taints: Vec<Value> = list(&info.object["spec"]["taints"]).to_vec();
    for change in changes {
        apply(&mut taints, change, args.overwrite, &info.name)?;
    }
    let mut object = info.object.clone();
    object["spec"]["taints"] = json!(taints);
    if args.change.dry_run != DryRun::Client {
        // The list is replaced as a whole: the version makes sure that nobody else changed it.
        let patch = json!({
            "metadata": {"resourceVersion": info.object["metadata"]["resourceVersion"]},
            "spec": {"taints": taints},
        });
        let path = format!("{}{}", info.path(), args.change.query_text("kubectl-taint"));
        object = ctx.http().await?.patch(&path, PatchType::Merge, &patch).await?;
    }
    let only_removed = changes.iter().all(|c| c.remove);
    let done = match (only_removed, changes.iter().any(|c| c.remove)) {
        (true, _) => "untainted",
        (false, true) => "modified",
        (false, false) => "tainted",
    };
    args.change.report(ctx, info, &object, done)
}

fn apply(taints: &mut Vec<Value>, change: &Change, overwrite: bool, node: &str) -> Result<()> {
    let fits = |t: &Value| {
        text(&t["key"]) == change.key
            && (change.effect.is_empty() || text(&t["effect"]) == change.effect)
    };
    let there = taints.iter().any(fits);
    if change.remove {
        if !there {
            let what = match change.effect.as_str() {
                "" => change.key.clone(),
                effect => format!("{}:{effect}", change.key),
            };
            return Err(Error::msg(format!("taint {what:?} not found")));
        }
        taints.retain(|t| !fits(t));
        return Ok(());
    }
    if there && !overwrite {
        return Err(Error::msg(format!(
            "node {node} already has {} taint(s) with same effect(s) and --overwrite is false",
            change.key
        )));
    }
    taints.retain(|t| !fits(t));
    let mut taint = json!({"key": change.key, "effect": change.effect});
    if !change.value.is_empty() {
        taint["value"] = change.value.clone().into();
    }
    taints.push(taint);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints() {
        let mut taints = Vec::new();
        apply(&mut taints, &parse("a=b:NoSchedule").unwrap(), false, "n").unwrap();
        apply(&mut taints, &parse("a:NoExecute").unwrap(), false, "n").unwrap();
        assert!(apply(&mut taints, &parse("a=c:NoSchedule").unwrap(), false, "n").is_err());
        assert_eq!(taints.len(), 2);
        apply(&mut taints, &parse("a-").unwrap(), false, "n").unwrap();
        assert!(taints.is_empty());
        assert!(apply(&mut taints, &parse("a:NoSchedule-").unwrap(), false, "n").is_err());
        for bad in ["a", "a=b", "a:Nope", ":NoSchedule"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
