//! `wait`

use crate::client::JSON;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::resource::{self, Info, SelectFlags, Wanted};
use futures::StreamExt;
use rkube_api::jsonpath::{Template, relaxed, text_of};
use serde_json::Value;
use std::time::Duration;

/// Wait for a specific condition on one or many resources.
#[derive(clap::Args, Debug)]
pub struct WaitArgs {
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
    /// delete, create, condition=NAME[=VALUE] or jsonpath='{PATH}'[=VALUE]
    #[arg(long = "for", default_value = "", hide_default_value = true, value_name = "WHAT")]
    condition: String,
    /// How long to wait for each object; negative for a week
    #[arg(long, default_value = "30s", allow_hyphen_values = true, value_name = "DURATION")]
    timeout: String,
    /// name prints the objects' names alone
    #[arg(long, short = 'o', default_value = "", hide_default_value = true)]
    output: String,
}

#[derive(Debug)]
enum Condition {
    Delete,
    Create,
    Status { name: String, value: String },
    JsonPath { path: Template, value: Option<String> },
}

impl Condition {
    fn parse(text: &str) -> Result<Self> {
        let lower = text.to_lowercase();
        if lower == "delete" {
            return Ok(Condition::Delete);
        }
        if lower == "create" {
            return Ok(Condition::Create);
        }
        if let Some(rest) = text.strip_prefix("condition=") {
            let (name, value) = rest.split_once('=').unwrap_or((rest, "true"));
            return Ok(Condition::Status { name: name.into(), value: value.into() });
        }
        if let Some(rest) = text.strip_prefix("jsonpath=") {
            let rest = rest.trim_matches('\'');
            let split = rest.find('}').map_or(rest.len(), |at| at + 1);
            // The path may hold `==` in a filter: the value begins behind the closing brace.
            let (path, value) = rest.split_at(split);
            let path = relaxed(path)
                .and_then(|p| Template::parse(&p))
                .map_err(|e| Error::msg(e.to_string()))?;
            let value = match value.trim_start_matches('\'') {
                "" => None,
                v => match v.strip_prefix('=') {
                    Some(v) if !v.is_empty() => Some(v.trim_matches(['\'', '"']).to_owned()),
                    _ => {
                        return Err(Error::msg(
                            "jsonpath wait has to have a value after equal sign",
                        ));
                    }
                },
            };
            return Ok(Condition::JsonPath { path, value });
        }
        Err(Error::msg(format!("unrecognized condition: {text:?}")))
    }

    fn holds(&self, object: &Value) -> bool {
        match self {
            Condition::Delete => false,
            Condition::Create => true,
            Condition::Status { name, value } => condition_holds(object, name, value),
            Condition::JsonPath { path, value } => {
                let Ok(found) = path.find(object) else { return false };
                match (found.as_slice(), value) {
                    ([], _) => false,
                    (_, None) => true,
                    ([one], Some(v)) => text_of(one) == *v,
                    _ => false,
                }
            }
        }
    }
}

fn condition_holds(object: &Value, name: &str, value: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or(&[]);
    conditions.iter().any(|c| {
        let text = |key: &str| c[key].as_str().unwrap_or("");
        // A condition that speaks of an older version of the object says nothing.
        let current =
            match (c["observedGeneration"].as_i64(), object["metadata"]["generation"].as_i64()) {
                (Some(seen), Some(now)) => seen >= now,
                _ => true,
            };
        let own = object["status"]["observedGeneration"]
            .as_i64()
            .is_none_or(|seen| seen >= object["metadata"]["generation"].as_i64().unwrap_or(0));
        text("type").eq_ignore_ascii_case(name)
            && text("status").eq_ignore_ascii_case(value)
            && current
            && own
    })
}

pub async fn run(ctx: &Context, args: &WaitArgs) -> Result<()> {
    let condition = Condition::parse(&args.condition)?;
    let timeout = timeout(&args.timeout)?;
    if args.resources.is_empty() && args.files.filename.is_empty() {
        return Err(Error::msg(resource::NOTHING_NAMED));
    }
    let wanted = Wanted {
        args: &args.resources,
        files: Some(&args.files),
        select: Some(&args.select),
        all: args.all,
        all_namespaces: args.all_namespaces,
    };
    if matches!(condition, Condition::Create) {
        return wait_created(ctx, args, &wanted, timeout).await;
    }
    let (infos, mut errors) = resource::fetch(ctx, &wanted).await?;
    if matches!(condition, Condition::Delete) {
        errors.retain(|e| !e.is_not_found());
    }
    if infos.is_empty() && errors.is_empty() && !matches!(condition, Condition::Delete) {
        return Err(Error::msg("no matching resources found"));
    }
    for info in &infos {
        if let Err(e) = one(ctx, args, info, &condition, timeout).await {
            errors.push(e);
        }
    }
    Error::collect(errors)
}

fn timeout(text: &str) -> Result<Duration> {
    if text.starts_with('-') {
        return Ok(Duration::from_secs(7 * 24 * 3600));
    }
    crate::duration::parse(text).ok_or_else(|| {
        Error::msg(format!(
            "invalid argument {text:?} for \"--timeout\" flag: time: invalid duration {text:?}"
        ))
    })
}

fn report(ctx: &Context, args: &WaitArgs, info: &Info, what: &str) {
    if args.output == "name" {
        ctx.io.line(info.shown())
    } else {
        ctx.io.line(format!("{} {what}", info.shown()))
    }
}

async fn one(
    ctx: &Context,
    args: &WaitArgs,
    info: &Info,
    condition: &Condition,
    timeout: Duration,
) -> Result<()> {
    let late =
        format!("timed out waiting for the condition on {}/{}", info.resource.plural, info.name);
    if matches!(condition, Condition::Delete) {
        let uid = info.object["metadata"]["uid"].as_str().unwrap_or("");
        super::delete::wait_gone(ctx, info, uid, timeout).await?;
    } else {
        until(ctx, info, timeout, &late, |object| condition.holds(object)).await?;
    }
    report(ctx, args, info, "condition met");
    Ok(())
}

async fn wait_created(
    ctx: &Context,
    args: &WaitArgs,
    wanted: &Wanted<'_>,
    timeout: Duration,
) -> Result<()> {
    let work = async {
        loop {
            let (infos, errors) = resource::fetch(ctx, wanted).await?;
            let missing =
                errors.iter().any(Error::is_not_found) || (infos.is_empty() && errors.is_empty());
            if !missing {
                Error::collect(errors)?;
                return Ok(infos);
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    let infos = tokio::time::timeout(timeout, work)
        .await
        .unwrap_or_else(|_| Err(Error::msg("timed out waiting for the condition")))?;
    infos.iter().for_each(|info| report(ctx, args, info, "condition met"));
    Ok(())
}

/// Watches an object until something holds of it; gives the object as it was then.
pub async fn until(
    ctx: &Context,
    info: &Info,
    timeout: Duration,
    late: &str,
    holds: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let work = async {
        loop {
            if let Some(object) = look(ctx, info, &holds).await? {
                return Ok(object);
            }
        }
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::msg(late)),
    }
}

async fn look(
    ctx: &Context,
    info: &Info,
    holds: &impl Fn(&Value) -> bool,
) -> Result<Option<Value>> {
    let http = ctx.http().await?;
    let now = http.get(&info.path()).await?;
    if holds(&now) {
        return Ok(Some(now));
    }
    let mut events = std::pin::pin!(http.watch(&info.watch_path(&now), JSON).await?);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) if event["type"] == "DELETED" => {
                return Err(Error::msg(format!(
                    "object {}/{} was deleted while it was waited for",
                    info.resource.plural, info.name
                )));
            }
            Ok(event) if holds(&event["object"]) => return Ok(Some(event["object"].clone())),
            Ok(_) => {}
            Err(Error::Status(_) | Error::Unreachable(_)) => break,
            Err(e) => return Err(e),
        }
    }
    // A server that ends watches at once must not be asked in a tight loop.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions() {
        let pod = json!({"metadata": {"generation": 2}, "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Old", "status": "True", "observedGeneration": 1}]}});
        for (text, want) in [
            ("condition=Ready", true),
            ("condition=ready=true", true),
            ("condition=Ready=false", false),
            ("condition=Old", false),
            ("condition=Nope", false),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath='{.status.phase}'=Running", true),
            ("jsonpath={.status.phase}", true),
            ("jsonpath={.status.nope}", false),
            ("jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=True", true),
            ("delete", false),
        ] {
            assert_eq!(Condition::parse(text).unwrap().holds(&pod), want, "{text}");
        }
        assert_eq!(
            Condition::parse("").unwrap_err().to_string(),
            "error: unrecognized condition: \"\""
        );
    }
}
