//! `port-forward`

use crate::client::chain;
use crate::context::Context;
use crate::describe::{list, text};
use crate::error::{Error, Result};
use crate::pods;
use crate::resource::{self, Info};
use crate::stream;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

/// Forward one or more local ports to a pod.
#[derive(clap::Args, Debug)]
pub struct PortForwardArgs {
    /// POD or TYPE/NAME, then [LOCAL:]REMOTE… (an empty LOCAL takes any free port)
    args: Vec<String>,
    /// The local addresses to listen on
    #[arg(long, value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
}

/// A local port and the pod's port behind it.
#[derive(Clone, Debug, PartialEq)]
struct Forward {
    local: u16,
    remote: u16,
}

pub async fn run(ctx: &Context, args: &PortForwardArgs) -> Result<()> {
    let [target, ports @ ..] = args.args.as_slice() else { return Err(usage()) };
    if ports.is_empty() {
        return Err(usage());
    }
    let pod = pods::behind(ctx, target).await?.remove(0);
    let service = service(ctx, target).await?;
    let forwards =
        ports.iter().map(|p| forward(p, &pod, service.as_ref())).collect::<Result<Vec<_>>>()?;
    if pod.object["status"]["phase"] != "Running" {
        return Err(Error::msg(format!(
            "unable to forward port because pod is not running. Current status={}",
            text(&pod.object["status"]["phase"])
        )));
    }
    let api = stream::api(ctx, &pod).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for forward in forwards {
        for listener in listen(&args.address, forward.local).await? {
            let local = listener.local_addr()?;
            ctx.io.line(format!("Forwarding from {local} -> {}", forward.remote));
            let link = Arc::new(Link {
                api: api.clone(),
                pod: pod.name.clone(),
                remote: forward.remote,
                io: ctx.io.clone(),
            });
            tasks.spawn(serve(listener, local, link));
        }
    }
    // Each task runs until the user ends the program.
    while tasks.join_next().await.is_some() {}
    Ok(())
}

fn usage() -> Error {
    Error::Plain("error: TYPE/NAME and list of ports are required for port-forward\nSee 'rkubectl port-forward -h' for help and examples".into())
}

/// The service that is forwarded to: its ports are other than its pods'.
async fn service(ctx: &Context, target: &str) -> Result<Option<Value>> {
    let Some((kind, name)) = target.split_once('/') else { return Ok(None) };
    let resource = ctx.resource(kind).await?;
    if resource.plural != "services" {
        return Ok(None);
    }
    let info = resource::bare(ctx, resource, name).await?;
    Ok(Some(ctx.http().await?.get(&info.path()).await?))
}

fn forward(text: &str, pod: &Info, service: Option<&Value>) -> Result<Forward> {
    let (local, remote) = match text.split_once(':') {
        Some((local, remote)) => (local, remote),
        None => (text, text),
    };
    let bad = |what: &str, port: &str| {
        Error::msg(format!(
            "error parsing {what} port '{port}': a number from 1 to 65535 is expected"
        ))
    };
    let remote_port = match service {
        Some(service) => target_port(service, pod, remote)?,
        None => match remote.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => container_port(pod, remote).ok_or_else(|| bad("remote", remote))?,
        },
    };
    let local = match (local, local.parse::<u16>()) {
        ("", _) => 0,
        (_, Ok(port)) => port,
        // `http` alone means the same port here as there.
        (_, Err(_)) if !text.contains(':') => remote_port,
        _ => return Err(bad("local", local)),
    };
    Ok(Forward { local, remote: remote_port })
}

fn container_port(pod: &Info, name: &str) -> Option<u16> {
    let containers = list(&pod.object["spec"]["containers"]);
    let port = containers.iter().flat_map(|c| list(&c["ports"])).find(|p| p["name"] == name)?;
    port["containerPort"].as_u64().and_then(|p| u16::try_from(p).ok())
}

/// The pod's port behind a service's port (by number or name).
fn target_port(service: &Value, pod: &Info, wanted: &str) -> Result<u16> {
    let missing = || {
        Error::msg(format!(
            "Service {} does not have a service port {wanted}",
            text(&service["metadata"]["name"])
        ))
    };
    let port = list(&service["spec"]["ports"])
        .iter()
        .find(|p| p["name"] == wanted || p["port"].as_u64() == wanted.parse().ok())
        .ok_or_else(missing)?;
    let number = |v: &Value| v.as_u64().and_then(|p| u16::try_from(p).ok());
    match &port["targetPort"] {
        _ if service["spec"]["clusterIP"] == "None" => number(&port["port"]),
        Value::String(name) => container_port(pod, name),
        Value::Null => number(&port["port"]),
        target => number(target),
    }
    .ok_or_else(missing)
}

/// Listens on all addresses; one that works is enough for `localhost`.
async fn listen(addresses: &[String], port: u16) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let mut faults = Vec::new();
    let mut port = port;
    for address in addresses {
        let hosts: &[&str] =
            if address == "localhost" { &["127.0.0.1", "::1"] } else { &[address.as_str()] };
        for host in hosts {
            let host = host.trim_matches(['[', ']']);
            match TcpListener::bind((host, port)).await {
                Ok(listener) => {
                    // Both families of localhost share the free port that the first one got.
                    port = listener.local_addr()?.port();
                    listeners.push(listener);
                }
                Err(e) => faults.push(format!("Unable to listen on port {port}: {host}: {e}")),
            }
        }
    }
    if listeners.is_empty() {
        return Err(Error::msg(format!(
            "unable to listen on any of the requested ports: {}",
            faults.join("; ")
        )));
    }
    Ok(listeners)
}

struct Link {
    api: Api<Pod>,
    pod: String,
    remote: u16,
    io: crate::io::Io,
}

async fn serve(listener: TcpListener, local: SocketAddr, link: Arc<Link>) {
    // Dropping the set with this task ends the connections too.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    link.io.line(format!("Handling connection for {}", local.port()));
                    connections.spawn(carry(socket, local.port(), link.clone()));
                }
                Err(e) => link.io.note(format!("error: accepting on {local}: {e}")),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut socket: TcpStream, local: u16, link: Arc<Link>) {
    let failed = |why: String| {
        link.io
            .note(format!("error: an error occurred forwarding {local} -> {}: {why}", link.remote));
    };
    let mut forwarder = match link.api.portforward(&link.pod, &[link.remote]).await {
        Ok(forwarder) => forwarder,
        // What API server and kubelet say, without kube's own words around it.
        Err(kube::Error::Api(status)) => {
            return failed(format!("error upgrading connection: {}", status.message));
        }
        Err(e) => return failed(chain(&e)),
    };
    let Some(mut remote) = forwarder.take_stream(link.remote) else {
        return failed("no stream".into());
    };
    let fault = forwarder.take_error(link.remote);
    let copied = tokio::io::copy_bidirectional(&mut socket, &mut remote).await;
    drop(remote);
    if copied.is_err()
        && let Some(fault) = fault
        && let Ok(Some(why)) =
            tokio::time::timeout(std::time::Duration::from_millis(200), fault).await
    {
        failed(why);
    }
    forwarder.abort();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports() {
        let pod = Info {
            resource: Default::default(),
            namespace: None,
            name: "x".into(),
            object: json!({"spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}}),
            manifest: None,
        };
        let f = |t: &str| forward(t, &pod, None).map(|f| (f.local, f.remote)).ok();
        assert_eq!(f("80"), Some((80, 80)));
        assert_eq!(f("8000:80"), Some((8000, 80)));
        assert_eq!(f(":80"), Some((0, 80)));
        assert_eq!(f("http"), Some((8080, 8080)));
        assert_eq!(f("x:80"), None);
        assert_eq!(f("0"), None);
        let service =
            json!({"spec": {"ports": [{"name": "web", "port": 80, "targetPort": "http"}]}});
        let s = |t: &str| forward(t, &pod, Some(&service)).map(|f| (f.local, f.remote)).ok();
        assert_eq!(s("80"), Some((80, 8080)));
        assert_eq!(s("9000:web"), Some((9000, 8080)));
        assert_eq!(s("81"), None);
    }
}
