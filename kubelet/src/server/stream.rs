//! exec, attach and port-forward: the runtime serves the streams, we pass the bytes.
//!
//! The runtime is asked for a URL that is good for one use; the client's upgrade request is sent
//! there as it came, with only the address changed, and once both sides have switched protocols
//! bytes are copied both ways. So SPDY and WebSocket need no code here.

use super::{Body, Query, Shared, full, text};
use crate::pod::state::{CONTAINER_NAME, POD_UID};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use rkube_cri::{AttachOptions, Container, ContainerState, ExecOptions};
use std::sync::Arc;
use tokio::net::TcpStream;

type Refusal = Response<Body>;

pub async fn exec(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let query = Query::of(&request);
    let options = async {
        let id = running(shared, namespace, pod, container).await?.id;
        let command = query.all("command");
        if command.is_empty() {
            return Err(text(StatusCode::BAD_REQUEST, "you must specify at least 1 of command\n"));
        }
        let (tty, stdin, stdout, stderr) = streams(&query);
        let options = ExecOptions { container: id, command, tty, stdin, stdout, stderr };
        shared.context.runtime.exec_url(&options).await.map_err(runtime_error)
    };
    match options.await {
        Ok(url) => pass_on(&url, request).await,
        Err(refusal) => refusal,
    }
}

pub async fn attach(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let query = Query::of(&request);
    let options = async {
        let id = running(shared, namespace, pod, container).await?.id;
        let (tty, stdin, stdout, stderr) = streams(&query);
        let options = AttachOptions { container: id, tty, stdin, stdout, stderr };
        shared.context.runtime.attach_url(&options).await.map_err(runtime_error)
    };
    match options.await {
        Ok(url) => pass_on(&url, request).await,
        Err(refusal) => refusal,
    }
}

pub async fn port_forward(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let query = Query::of(&request);
    let ports = query.all("ports").into_iter().chain(query.all("port"));
    let ports: Vec<i32> = ports
        .flat_map(|list| list.split(',').filter_map(|p| p.parse().ok()).collect::<Vec<_>>())
        .collect();
    let url = async {
        let uid = find(shared, namespace, pod)?.uid().unwrap_or_default();
        let sandboxes = shared.context.runtime.list_sandboxes().await.map_err(runtime_error)?;
        let ready = sandboxes.into_iter().find(|s| s.uid == uid && s.ready);
        let ready = ready
            .ok_or_else(|| text(StatusCode::NOT_FOUND, format!("pod {pod} is not running\n")))?;
        shared.context.runtime.port_forward_url(&ready.id, &ports).await.map_err(runtime_error)
    };
    match url.await {
        Ok(url) => pass_on(&url, request).await,
        Err(refusal) => refusal,
    }
}

/// Names as the kubelet's clients use them, and as the API's users do.
fn streams(query: &Query) -> (bool, bool, bool, bool) {
    let either = |one, other| query.flag(one) || query.flag(other);
    let tty = query.flag("tty");
    (tty, either("input", "stdin"), either("output", "stdout"), either("error", "stderr") && !tty)
}

fn find(shared: &Shared, namespace: &str, pod: &str) -> Result<Arc<Pod>, Refusal> {
    let found = shared.known.find(namespace, pod);
    found.ok_or_else(|| {
        text(StatusCode::NOT_FOUND, format!("pod {namespace}/{pod} does not exist\n"))
    })
}

async fn running(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Container, Refusal> {
    let uid = find(shared, namespace, pod)?.uid().unwrap_or_default();
    let containers = shared.context.runtime.list_containers().await.map_err(runtime_error)?;
    let named = |c: &Container| {
        c.labels.get(POD_UID) == Some(&uid)
            && c.labels.get(CONTAINER_NAME).is_some_and(|name| name == container)
    };
    let found = containers.into_iter().find(|c| c.state == ContainerState::Running && named(c));
    found.ok_or_else(|| {
        let message = format!("container not found (\"{container}\")\n");
        text(StatusCode::NOT_FOUND, message)
    })
}

fn runtime_error(error: rkube_cri::CriError) -> Refusal {
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}

async fn pass_on(url: &str, mut request: Request<Incoming>) -> Response<Body> {
    if !request.headers().contains_key(UPGRADE) {
        return text(StatusCode::BAD_REQUEST, "Upgrade request required\n");
    }
    let client = hyper::upgrade::on(&mut request);
    match ask(url, &request).await {
        Ok(answer) => switch(answer, client),
        Err(error) => {
            text(StatusCode::BAD_GATEWAY, format!("streaming server of the runtime: {error}\n"))
        }
    }
}

async fn ask(url: &str, request: &Request<Incoming>) -> Result<Response<Incoming>, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let authority = uri.authority().ok_or_else(|| format!("{url} has no address"))?;
    let stream = TcpStream::connect(authority.as_str()).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    // Ends with the stream that it carries.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "stream of the runtime");
        }
    });
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut replayed = Request::builder()
        .method(request.method())
        .uri(path)
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    *replayed.headers_mut() = request.headers().clone();
    let host = authority.as_str().parse().map_err(|_| format!("{url} has a bad address"))?;
    replayed.headers_mut().insert(HOST, host);
    sender.send_request(replayed).await.map_err(|error| error.to_string())
}

/// Passes the runtime's answer on; if it has switched protocols, the bytes after it too.
fn switch(mut answer: Response<Incoming>, client: hyper::upgrade::OnUpgrade) -> Response<Body> {
    let status = answer.status();
    let headers: HeaderMap = answer.headers().clone();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, body) = answer.into_parts();
        parts.headers.remove(CONNECTION);
        return Response::from_parts(parts, body.map_err(std::io::Error::other).boxed_unsync());
    }
    let runtime = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let (Ok(client), Ok(runtime)) = tokio::join!(client, runtime) else { return };
        rkube_streaming::join(TokioIo::new(client), TokioIo::new(runtime)).await;
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
