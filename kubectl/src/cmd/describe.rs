//! `describe`: fetches what belongs to an object and lays it out.

use crate::client::escape;
use crate::context::Context;
use crate::describe::{Page, generic, node, pod, simple, workload};
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::resource::{self, Info, SelectFlags, Selection};
use serde_json::Value;

/// Show details of a resource or a group of resources.
#[derive(clap::Args, Debug)]
pub struct DescribeArgs {
    /// TYPE [NAME or its beginning…] or TYPE/NAME…
    resources: Vec<String>,
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    select: SelectFlags,
    /// In all namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// With the events about each object
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", action = clap::ArgAction::Set)]
    show_events: bool,
    /// Accepted for kubectl's sake
    #[arg(long, default_value_t = 500, hide = true)]
    chunk_size: u32,
}

pub async fn run(ctx: &Context, args: &DescribeArgs) -> Result<()> {
    let (infos, errors, by_beginning) = found(ctx, args).await?;
    for (i, info) in infos.iter().enumerate() {
        let text = describe(ctx, info, args.show_events).await?;
        match (by_beginning, i) {
            (true, _) => ctx.io.print(format!("{text}\n")),
            (false, 0) => ctx.io.print(text),
            (false, _) => ctx.io.print(format!("\n\n{text}")),
        }
    }
    if infos.is_empty() && errors.is_empty() {
        let namespace = ctx.namespace().await?;
        ctx.io.note(if args.all_namespaces {
            "No resources found".into()
        } else {
            format!("No resources found in {namespace} namespace.")
        });
    }
    Error::collect(errors)
}

/// The objects, what is missing, and whether names were only the beginnings of names.
async fn found(ctx: &Context, args: &DescribeArgs) -> Result<(Vec<Info>, Vec<Error>, bool)> {
    let mut by_beginning = false;
    let http = ctx.http().await?;
    let mut infos = Vec::new();
    let mut errors = Vec::new();
    if !args.files.filename.is_empty() {
        let wanted = resource::Wanted { files: Some(&args.files), ..Default::default() };
        let (infos, errors) = resource::fetch(ctx, &wanted).await?;
        return Ok((infos, errors, false));
    }
    let Some(selection) = resource::parse_args(ctx, &args.resources).await? else {
        return Err(Error::msg(
            "You must specify the type of resource to describe. Use \"rkubectl api-resources\" for a complete list of supported resources.",
        ));
    };
    match selection {
        Selection::Types(types) => {
            for r in types {
                let namespace = ctx.namespace().await?;
                let namespace = (!args.all_namespaces).then_some(namespace.as_str());
                infos.extend(resource::list(ctx, &r, namespace, Some(&args.select)).await?);
            }
        }
        Selection::Named(named) => {
            for (r, name) in named {
                let mut info = resource::bare(ctx, r, &name).await?;
                match http.get(&info.path()).await {
                    Ok(object) => {
                        info.object = object;
                        infos.push(info);
                    }
                    Err(e) if e.is_not_found() => match beginning_with(ctx, &info).await? {
                        some if !some.is_empty() => {
                            by_beginning = true;
                            infos.extend(some);
                        }
                        _ => errors.push(resource::no_such_type(e, &info.resource)),
                    },
                    Err(e @ Error::Status(_)) => errors.push(e),
                    Err(other) => return Err(other),
                }
            }
        }
    }
    Ok((infos, errors, by_beginning))
}

/// The objects whose names begin as the one that does not exist.
async fn beginning_with(ctx: &Context, info: &Info) -> Result<Vec<Info>> {
    let mut all = match resource::list(ctx, &info.resource, info.namespace.as_deref(), None).await {
        Ok(all) => all,
        Err(Error::Unreachable(e)) => return Err(Error::Unreachable(e)),
        Err(_) => return Ok(Vec::new()),
    };
    all.retain(|other| other.name.starts_with(&info.name));
    Ok(all)
}

async fn describe(ctx: &Context, info: &Info, show_events: bool) -> Result<String> {
    let mut page = Page::new(ctx.now());
    let events = if show_events { Some(events_of(ctx, info).await) } else { None };
    let events = events.as_deref();
    let object = &info.object;
    match (info.resource.group.as_str(), info.resource.kind.as_str()) {
        ("", "Pod") => pod::pod(&mut page, object, events),
        ("apps", "Deployment") => {
            let sets = owned(ctx, info, "/apis/apps/v1", "replicasets").await?;
            workload::deployment(&mut page, object, &sets, events);
        }
        ("apps", "ReplicaSet") => {
            let pods = owned(ctx, info, "/api/v1", "pods").await?;
            workload::replica_set(&mut page, object, &pods, events);
        }
        ("", "Node") => {
            let pods = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", escape(&info.name));
            let pods = items(ctx, &pods).await?;
            let lease = format!(
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}",
                escape(&info.name)
            );
            let lease = ctx.http().await?.get(&lease).await;
            let lease = lease.as_ref().map_err(Error::bare);
            node::node(&mut page, object, lease, &pods, events);
        }
        ("", "Service") => {
            let slices = format!(
                "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{}",
                info.namespace.as_deref().unwrap_or(""),
                escape(&info.name)
            );
            let slices = items(ctx, &slices).await.unwrap_or_default();
            simple::service(&mut page, object, &slices, events);
        }
        ("", "ConfigMap") => simple::config_map(&mut page, object, events),
        ("", "Secret") => simple::secret(&mut page, object),
        ("", "Namespace") => {
            let within =
                |plural: &str| format!("/api/v1/namespaces/{}/{plural}", escape(&info.name));
            let quotas = items(ctx, &within("resourcequotas")).await.ok();
            let limits = items(ctx, &within("limitranges")).await.ok();
            simple::namespace(&mut page, object, quotas.as_deref(), limits.as_deref());
        }
        ("", "ServiceAccount") => simple::service_account(&mut page, object, events),
        _ => generic::object(&mut page, object, events),
    }
    Ok(page.finish())
}

async fn items(ctx: &Context, path: &str) -> Result<Vec<Value>> {
    let mut list = ctx.http().await?.get(path).await?;
    match list["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Ok(Vec::new()),
    }
}

/// What an object with a selector owns.
pub async fn owned(ctx: &Context, info: &Info, base: &str, plural: &str) -> Result<Vec<Value>> {
    let selector = crate::describe::selector_text(&info.object["spec"]["selector"]);
    let path = format!(
        "{base}/namespaces/{}/{plural}?labelSelector={}",
        info.namespace.as_deref().unwrap_or(""),
        escape(&selector)
    );
    let uid = &info.object["metadata"]["uid"];
    let mut all = items(ctx, &path).await?;
    all.retain(|o| {
        let owners = crate::describe::list(&o["metadata"]["ownerReferences"]);
        owners.iter().any(|r| r["uid"] == *uid && r["controller"] == true)
    });
    Ok(all)
}

/// The events about an object; none if the server has none to give.
async fn events_of(ctx: &Context, info: &Info) -> Vec<Value> {
    let mut fields = vec![
        format!("involvedObject.name={}", info.name),
        format!("involvedObject.kind={}", info.resource.kind),
    ];
    if let Some(ns) = &info.namespace {
        fields.insert(1, format!("involvedObject.namespace={ns}"));
    }
    if let Some(uid) =
        info.object["metadata"]["uid"].as_str().filter(|_| info.resource.kind != "Node")
    {
        fields.push(format!("involvedObject.uid={uid}"));
    }
    let scope = match &info.namespace {
        Some(ns) => format!("/api/v1/namespaces/{ns}/events"),
        None => "/api/v1/events".to_owned(),
    };
    let path = format!("{scope}?fieldSelector={}&limit=500", escape(&fields.join(",")));
    items(ctx, &path).await.unwrap_or_default()
}
