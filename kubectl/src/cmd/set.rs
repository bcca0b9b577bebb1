//! `set image`, `set env`, `set resources`

use super::{ChangeFlags, DryRun, key_value};
use crate::client::PatchType;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::resource::{self, Info, SelectFlags, Wanted};
use crate::threeway;
use serde_json::{Value, json};

/// Set specific features on objects.
#[derive(clap::Args, Debug)]
pub struct SetArgs {
    #[command(subcommand)]
    sub: Sub,
}

#[derive(clap::Subcommand, Debug)]
enum Sub {
    /// Update the image of a pod template
    Image(Common),
    /// Update environment variables on a pod template
    Env {
        #[command(flatten)]
        common: Common,
        /// Only these containers (* for all)
        #[arg(long, short = 'c', default_value = "*")]
        containers: String,
        /// Print the variables and change nothing
        #[arg(long)]
        list: bool,
    },
    /// Update resource requests/limits on objects with pod templates
    Resources {
        #[command(flatten)]
        common: Common,
        /// Only these containers (* for all)
        #[arg(long, short = 'c', default_value = "*")]
        containers: String,
        /// cpu=200m,memory=512Mi
        #[arg(long)]
        limits: Option<String>,
        /// cpu=100m,memory=256Mi
        #[arg(long)]
        requests: Option<String>,
    },
}

#[derive(clap::Args, Debug)]
struct Common {
    /// TYPE NAME or TYPE/NAME, then CONTAINER=IMAGE, KEY=VALUE or KEY-
    args: Vec<String>,
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    select: SelectFlags,
    /// All objects of the type
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    change: ChangeFlags,
}

pub async fn run(ctx: &Context, args: &SetArgs) -> Result<()> {
    let common = match &args.sub {
        Sub::Image(common) | Sub::Env { common, .. } | Sub::Resources { common, .. } => common,
    };
    let split = common.args.iter().position(|a| is_setting(a)).unwrap_or(common.args.len());
    let (resources, settings) = common.args.split_at(split);
    if resources.is_empty() && common.files.filename.is_empty() {
        return Err(Error::msg(resource::NOTHING_NAMED));
    }
    check(&args.sub, settings)?;
    let wanted = Wanted {
        args: resources,
        files: Some(&common.files),
        select: Some(&common.select),
        all: common.all,
        ..Default::default()
    };
    let (infos, mut errors) = resource::fetch(ctx, &wanted).await?;
    for info in &infos {
        if let Err(e) = one(ctx, &args.sub, common, settings, info).await {
            errors.push(e);
        }
    }
    Error::collect(errors)
}

fn is_setting(arg: &str) -> bool {
    arg.contains('=') || (arg.ends_with('-') && arg.len() > 1)
}

fn check(sub: &Sub, settings: &[String]) -> Result<()> {
    match sub {
        Sub::Image(_) if settings.is_empty() => {
            Err(Error::msg("at least one image update is required"))
        }
        Sub::Env { list: false, .. } if settings.is_empty() => {
            Err(Error::msg("at least one environment variable must be provided"))
        }
        Sub::Resources { limits: None, requests: None, .. } => Err(Error::msg(
            "you must specify an update to requests or limits (in the form of --requests/--limits)",
        )),
        _ => Ok(()),
    }
}

async fn one(
    ctx: &Context,
    sub: &Sub,
    common: &Common,
    settings: &[String],
    info: &Info,
) -> Result<()> {
    let mut object = info.object.clone();
    let spec = pod_spec(&mut object)
        .ok_or_else(|| Error::msg(format!("{} has no pod template", info.shown())))?;
    let done = match sub {
        Sub::Image(_) => {
            images(spec, settings)?;
            "image updated"
        }
        Sub::Env { list: true, .. } => return list_env(ctx, spec, info),
        Sub::Env { containers, .. } => {
            env(spec, containers, settings)?;
            "env updated"
        }
        Sub::Resources { containers, limits, requests, .. } => {
            for (field, amounts) in [("limits", limits), ("requests", requests)] {
                if let Some(amounts) = amounts {
                    self::resources(spec, containers, field, amounts)?;
                }
            }
            "resource requirements updated"
        }
    };
    send(ctx, &common.change, info, object, done).await
}

/// Sends the difference between the object as it was and as it shall be.
async fn send(
    ctx: &Context,
    change: &ChangeFlags,
    info: &Info,
    new: Value,
    done: &str,
) -> Result<()> {
    if new == info.object {
        // Nothing to do is nothing to say, as kubectl has it.
        return Ok(());
    }
    let mut object = new;
    if change.dry_run != DryRun::Client {
        let schema = rkube_api::schema::builtin();
        let r = &info.resource;
        let (kind, patch) = match schema.id_of_kind(&r.group, &r.version, &r.kind) {
            Some(root) => (
                PatchType::Strategic,
                threeway::strategic_two_way(schema, root, &info.object, &object),
            ),
            None => (PatchType::Merge, threeway::json_merge_two_way(&info.object, &object)),
        };
        let path = format!("{}{}", info.path(), change.query_text("kubectl-set"));
        object = ctx.http().await?.patch(&path, kind, &patch).await?;
    }
    change.report(ctx, info, &object, done)
}

/// The pod's spec, or that of the template.
fn pod_spec(object: &mut Value) -> Option<&mut Value> {
    if object["kind"] == "Pod" {
        return object.get_mut("spec");
    }
    if object["kind"] == "CronJob" {
        return object.pointer_mut("/spec/jobTemplate/spec/template/spec");
    }
    object.pointer_mut("/spec/template/spec")
}

/// The containers whose names fit; `*` fits all.
fn chosen<'a>(spec: &'a mut Value, pattern: &str) -> Vec<&'a mut Value> {
    let Some(spec) = spec.as_object_mut() else { return Vec::new() };
    let fits = |name: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    spec.iter_mut()
        .filter(|(key, _)| *key == "containers" || *key == "initContainers")
        .flat_map(|(_, list)| list.as_array_mut().into_iter().flatten())
        .filter(|c| fits(c["name"].as_str().unwrap_or("")))
        .collect()
}

fn images(spec: &mut Value, settings: &[String]) -> Result<()> {
    for setting in settings {
        let (name, image) = key_value(setting).ok_or_else(|| {
            Error::msg(format!("unexpected {setting:?}: CONTAINER=IMAGE is expected"))
        })?;
        let containers = chosen(spec, name);
        if containers.is_empty() {
            return Err(Error::msg(format!("unable to find container named {name:?}")));
        }
        for container in containers {
            container["image"] = image.into();
        }
    }
    Ok(())
}

fn env(spec: &mut Value, pattern: &str, settings: &[String]) -> Result<()> {
    let containers = chosen(spec, pattern);
    if containers.is_empty() {
        return Err(Error::msg(format!("does not have any containers matching {pattern:?}")));
    }
    for container in containers {
        let mut variables = container["env"].as_array().cloned().unwrap_or_default();
        for setting in settings {
            let (name, value) = match (key_value(setting), setting.strip_suffix('-')) {
                (Some((name, value)), _) => (name, Some(value)),
                (None, Some(name)) => (name, None),
                (None, None) => return Err(Error::msg(format!("invalid env: {setting}"))),
            };
            let at = variables.iter().position(|v| v["name"] == name);
            match (value, at) {
                (Some(value), Some(at)) => variables[at] = json!({"name": name, "value": value}),
                (Some(value), None) => variables.push(json!({"name": name, "value": value})),
                (None, Some(at)) => drop(variables.remove(at)),
                (None, None) => {}
            }
        }
        let had = container.get("env").is_some();
        if !variables.is_empty() {
            container["env"] = variables.into();
        } else if had && let Some(map) = container.as_object_mut() {
            map.remove("env");
        }
    }
    Ok(())
}

fn list_env(ctx: &Context, spec: &mut Value, info: &Info) -> Result<()> {
    for container in chosen(spec, "*") {
        let name = container["name"].as_str().unwrap_or("");
        ctx.io.line(format!("# {} {}, container {name}", info.resource.kind, info.name));
        for v in container["env"].as_array().into_iter().flatten() {
            let name = v["name"].as_str().unwrap_or("");
            match v["value"].as_str() {
                Some(value) => ctx.io.line(format!("{name}={value}")),
                None if v["valueFrom"].is_object() => {
                    ctx.io.line(format!("# {name} from {}", env_source(&v["valueFrom"])));
                }
                None => ctx.io.line(format!("{name}=")),
            }
        }
    }
    Ok(())
}

/// Where a variable's value comes from, in words.
fn env_source(from: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    for (field, word) in [("secretKeyRef", "secret"), ("configMapKeyRef", "configmap")] {
        if from[field].is_object() {
            return format!(
                "{word} {}, key {}",
                text(&from[field]["name"]),
                text(&from[field]["key"])
            );
        }
    }
    match from["fieldRef"]["fieldPath"].as_str() {
        Some(path) => format!("field path {path}"),
        None => format!("resource field {}", text(&from["resourceFieldRef"]["resource"])),
    }
}

fn resources(spec: &mut Value, pattern: &str, field: &str, amounts: &str) -> Result<()> {
    let amounts = amounts
        .split(',')
        .map(|a| {
            let (name, amount) = key_value(a).ok_or_else(|| {
                Error::msg(format!("invalid argument syntax {a}, expected <resource>=<value>"))
            })?;
            rkube_api::quantity::Quantity::parse(amount)
                .map_err(|e| Error::msg(format!("invalid quantity {amount:?}: {e}")))?;
            Ok((name.to_owned(), amount.to_owned()))
        })
        .collect::<Result<Vec<_>>>()?;
    let containers = chosen(spec, pattern);
    if containers.is_empty() {
        return Err(Error::msg(format!("unable to find container named {pattern}")));
    }
    for container in containers {
        let place = super::entry(container, &["resources", field]);
        for (name, amount) in &amounts {
            place[name.as_str()] = amount.clone().into();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings() {
        let mut spec = json!({"containers": [{"name": "c", "image": "a", "env": [{"name": "X", "value": "1"}]}]});
        images(&mut spec, &["c=b".into()]).unwrap();
        env(&mut spec, "*", &["X-".into(), "A=B=C".into()]).unwrap();
        resources(&mut spec, "c", "limits", "cpu=1,memory=1Gi").unwrap();
        assert_eq!(
            spec["containers"][0],
            json!({"name": "c", "image": "b", "env": [{"name": "A", "value": "B=C"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}})
        );
        let e = images(&mut spec, &["nope=x".into()]).unwrap_err();
        assert_eq!(e.to_string(), "error: unable to find container named \"nope\"");
    }
}
