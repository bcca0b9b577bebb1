//! `expose`: a service for what is there already.

use super::ChangeFlags;
use crate::context::Context;
use crate::describe::{list, plain};
use crate::error::{Error, Result};
use crate::manifest::{FileFlags, Manifest};
use crate::resource::{self, Info, Wanted};
use serde_json::{Value, json};

/// Expose a resource as a new service.
#[derive(clap::Args, Debug)]
pub struct ExposeArgs {
    /// TYPE NAME or TYPE/NAME
    resources: Vec<String>,
    #[command(flatten)]
    files: FileFlags,
    /// The service's name
    #[arg(long)]
    name: Option<String>,
    /// The service's port
    #[arg(long)]
    port: Option<i64>,
    /// The pods' port, by number or name
    #[arg(long)]
    target_port: Option<String>,
    /// TCP, UDP or SCTP
    #[arg(long, default_value = "TCP")]
    protocol: String,
    /// ClusterIP, NodePort, LoadBalancer or ExternalName
    #[arg(long = "type", default_value = "", hide_default_value = true)]
    kind: String,
    /// The address, or None for a headless service
    #[arg(long)]
    cluster_ip: Option<String>,
    /// The pods, as key=value,key=value
    #[arg(long)]
    selector: Option<String>,
    /// The service's labels, as key=value,key=value
    #[arg(long, short = 'l')]
    labels: Option<String>,
    #[command(flatten)]
    change: ChangeFlags,
}

pub async fn run(ctx: &Context, args: &ExposeArgs) -> Result<()> {
    let wanted = Wanted { args: &args.resources, files: Some(&args.files), ..Default::default() };
    let (infos, mut errors) = resource::fetch(ctx, &wanted).await?;
    for info in &infos {
        let made = match service(args, info) {
            Ok(service) => send(ctx, args, service).await,
            Err(e) => Err(e),
        };
        errors.extend(made.err());
    }
    Error::collect(errors)
}

async fn send(ctx: &Context, args: &ExposeArgs, service: Value) -> Result<()> {
    let info = resource::from_manifest(ctx, Manifest::made(service)).await?;
    let mut object = info.object.clone();
    if args.change.dry_run != super::DryRun::Client {
        let path = format!("{}{}", info.collection(), args.change.query_text("kubectl-expose"));
        object = ctx.http().await?.post(&path, &info.object).await?;
    } else {
        super::create::without_default_namespace(ctx, &mut object);
    }
    args.change.report(ctx, &info, &object, "exposed")
}

fn service(args: &ExposeArgs, info: &Info) -> Result<Value> {
    let name = args.name.clone().unwrap_or_else(|| info.name.clone());
    let selector = match &args.selector {
        Some(text) => Value::Object(super::run::pairs(text.split(','))?),
        None => selector(info)?,
    };
    let labels = match &args.labels {
        Some(text) => Value::Object(super::run::pairs(text.split(','))?),
        None => info.object["metadata"]["labels"].clone(),
    };
    let mut spec = json!({"selector": selector, "ports": ports(args, info)?});
    if !args.kind.is_empty() {
        spec["type"] = args.kind.clone().into();
    }
    if let Some(ip) = &args.cluster_ip {
        spec["clusterIP"] = ip.clone().into();
    }
    let mut metadata = json!({"name": name});
    if labels.is_object() {
        metadata["labels"] = labels;
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec,
        "status": {"loadBalancer": {}},
    }))
}

fn selector(info: &Info) -> Result<Value> {
    let object = &info.object;
    let found = match info.resource.kind.as_str() {
        "Pod" => &object["metadata"]["labels"],
        "Service" | "ReplicationController" => &object["spec"]["selector"],
        _ => &object["spec"]["selector"]["matchLabels"],
    };
    match found.as_object().filter(|m| !m.is_empty()) {
        Some(_) => Ok(found.clone()),
        None if info.resource.kind == "Pod" => Err(Error::msg(
            "couldn't retrieve selectors via --selector flag or introspection: the pod has no labels and cannot be exposed",
        )),
        None => Err(Error::msg(
            "couldn't retrieve selectors via --selector flag or introspection: the object selects no pods by label",
        )),
    }
}

fn ports(args: &ExposeArgs, info: &Info) -> Result<Vec<Value>> {
    let target = |port: i64| match &args.target_port {
        Some(text) => text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n)),
        None => json!(port),
    };
    if let Some(port) = args.port {
        return Ok(vec![
            json!({"port": port, "protocol": args.protocol, "targetPort": target(port)}),
        ]);
    }
    let spec = match info.resource.kind.as_str() {
        "Pod" => &info.object["spec"],
        _ => &info.object["spec"]["template"]["spec"],
    };
    let own: Vec<(i64, String)> = list(&spec["containers"])
        .iter()
        .flat_map(|c| list(&c["ports"]))
        .filter_map(|p| Some((p["containerPort"].as_i64()?, plain(&p["protocol"]))))
        .collect();
    if own.is_empty() {
        return Err(Error::msg("couldn't find port via --port flag or introspection"));
    }
    let several = own.len() > 1;
    Ok(own
        .iter()
        .enumerate()
        .map(|(i, (port, protocol))| {
            let protocol = if protocol.is_empty() { "TCP" } else { protocol };
            let mut one = json!({"port": port, "protocol": protocol, "targetPort": target(*port)});
            if several {
                one["name"] = format!("port-{}", i + 1).into();
            }
            one
        })
        .collect())
}
