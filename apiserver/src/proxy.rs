//! Logs, exec, attach and port-forward: handed on to the kubelet of the pod's node.
//!
//! The kubelet is reached at its node's InternalIP over TLS and must show the certificate of that
//! very node, so a node that lies about its address reaches nobody else. An upgrade is passed
//! byte for byte in both directions, whatever protocol is spoken on it; a refused one is passed
//! back as it came.

use crate::authn::Identity;
use crate::authz::{self, Attributes};
use crate::body::{self, Body, RequestBody};
use crate::context::Cx;
use crate::rest;
use crate::server::ApiServer;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rkube_api::{ApiError, Reason};
use rkube_store::Key;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const KUBELET_PORT: u16 = 10250;

/// Where a node's kubelet listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kubelet {
    node: String,
    address: SocketAddr,
}

/// Hands a request on to the kubelet.
///
/// # Errors
/// 400 without a node or container, 403 without the right to, 502-like failures as 500 or 503.
pub async fn to_kubelet(
    api: &Arc<ApiServer>,
    cx: &Cx,
    mut parts: Parts,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let (node, path) = target(api, cx)?;
    let kubelet = kubelet(api, &node)?;
    let body = body::read(body).await?;
    let on_upgrade = parts.extensions.remove::<OnUpgrade>();
    let request = outgoing(&parts, &path, &kubelet, body)?;
    let mut sender = connect(api, &kubelet).await?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|e| unreachable_kubelet(&kubelet, format!("sending the request: {e}")))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(api, on_upgrade, answer);
    }
    let (mut head, incoming) = answer.into_parts();
    strip_hop_headers(&mut head.headers);
    // The connection lives as long as the body: the sender goes with it.
    let stream = futures::stream::unfold((incoming, sender), |(mut incoming, sender)| async move {
        loop {
            let frame = incoming.frame().await?;
            match frame {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some((Ok(data), (incoming, sender)));
                    }
                }
                Err(error) => return Some((Err(error.into()), (incoming, sender))),
            }
        }
    });
    Ok(Response::from_parts(head, Body::stream(stream)))
}

/// The node a request is for, and the path at its kubelet.
fn target(api: &Arc<ApiServer>, cx: &Cx) -> Result<(String, String), ApiError> {
    let info = &cx.info;
    if info.resource == "nodes" {
        if cx.info.verb != "get" {
            return Err(rest::method_not_allowed());
        }
        let query = if info.rest.is_empty() { String::new() } else { info.rest.clone() };
        return Ok((info.name.clone(), format!("/{query}")));
    }
    if info.subresource != "log" {
        authorize_create(api, cx)?;
    }
    let pod = pod(api, info)?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("");
    if node.is_empty() {
        return Err(ApiError::bad_request(format!(
            "pod {} does not have a host assigned",
            info.name
        )));
    }
    let place = format!("{}/{}", info.namespace, info.name);
    let path = match info.subresource.as_str() {
        "portforward" => format!("/portForward/{place}{}", kubelet_query(cx, "portforward")?),
        sub => {
            let container = container(cx, &pod)?;
            let root = match sub {
                "log" => "containerLogs",
                "exec" => "exec",
                _ => "attach",
            };
            format!("/{root}/{place}/{container}{}", kubelet_query(cx, sub)?)
        }
    };
    Ok((node.to_owned(), path))
}

/// A GET that upgrades does what a POST does, so it needs the same right.
fn authorize_create(api: &ApiServer, cx: &Cx) -> Result<(), ApiError> {
    let mut asked = Attributes::of(&cx.info, "");
    asked.verb = "create";
    authz::authorize(&cx.identity, &asked, &api.storage.graph())
        .map_err(|why| authz::forbidden(&cx.identity, &asked, &why))
}

fn pod(api: &ApiServer, info: &crate::request_info::RequestInfo) -> Result<Value, ApiError> {
    let object = api
        .storage
        .view()
        .get(&Key::new("pods", &info.namespace, &info.name))
        .ok_or_else(|| ApiError::not_found("", "pods", &info.name))?;
    serde_json::from_slice(&object.json).map_err(ApiError::internal)
}

/// The container that is meant: the one named, or the only one.
fn container(cx: &Cx, pod: &Value) -> Result<String, ApiError> {
    let name = &cx.info.name;
    let names = |field: &str| -> Vec<&str> {
        let list = pod["spec"][field].as_array();
        list.into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let Some(asked) = cx.query.text("container") else {
        let default =
            pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
        return match (default.filter(|d| main.contains(d)), main.as_slice()) {
            (Some(default), _) => Ok(default.into()),
            (None, [only]) => Ok((*only).into()),
            _ => {
                let mut text = format!(
                    "a container name must be specified for pod {name}, choose one of: [{}]",
                    main.join(" ")
                );
                if !init.is_empty() {
                    text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(ApiError::bad_request(text))
            }
        };
    };
    if main.iter().chain(&init).chain(&ephemeral).any(|c| *c == asked) {
        Ok(asked.into())
    } else {
        Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}")))
    }
}

/// The query in the kubelet's words: upstream renames the streams on the way.
fn kubelet_query(cx: &Cx, subresource: &str) -> Result<String, ApiError> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    if subresource == "log" {
        let known = [
            "follow",
            "previous",
            "sinceSeconds",
            "sinceTime",
            "timestamps",
            "tailLines",
            "limitBytes",
            "stream",
        ];
        for name in known {
            if let Some(value) = cx.query.text(name) {
                pairs.push((name.into(), value.into()));
            }
        }
    } else if subresource == "portforward" {
        // A SPDY client names its ports stream by stream, a WebSocket client here.
        pairs.extend(cx.query.all("ports").map(|ports| ("port".into(), ports.into())));
    } else {
        for (name, renamed) in
            [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
        {
            if cx.query.flag(name)? == Some(true) {
                pairs.push((renamed.into(), "1".into()));
            }
        }
        pairs.extend(cx.query.all("command").map(|c| ("command".into(), c.into())));
    }
    let text: Vec<String> =
        pairs.iter().map(|(k, v)| format!("{k}={}", percent_encode(v))).collect();
    Ok(if text.is_empty() { String::new() } else { format!("?{}", text.join("&")) })
}

fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Where the kubelet of a node is.
fn kubelet(api: &ApiServer, node: &str) -> Result<Kubelet, ApiError> {
    let object = api
        .storage
        .view()
        .get(&Key::new("nodes", "", node))
        .ok_or_else(|| ApiError::not_found("", "nodes", node))?;
    let value: Value = serde_json::from_slice(&object.json).map_err(ApiError::internal)?;
    let addresses = value["status"]["addresses"].as_array();
    let address = addresses
        .into_iter()
        .flatten()
        .filter(|a| a["type"] == "InternalIP")
        .find_map(|a| a["address"].as_str()?.parse::<IpAddr>().ok())
        .ok_or_else(|| ApiError::internal(format!("node {node} has no InternalIP")))?;
    let port = value["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0).unwrap_or(KUBELET_PORT);
    Ok(Kubelet { node: node.into(), address: SocketAddr::new(address, port) })
}

fn unreachable_kubelet(kubelet: &Kubelet, why: impl std::fmt::Display) -> ApiError {
    ApiError::new(
        Reason::InternalError,
        format!(
            "error dialing backend: kubelet of node {} at {}: {why}",
            kubelet.node, kubelet.address
        ),
    )
}

async fn connect(
    api: &ApiServer,
    kubelet: &Kubelet,
) -> Result<http1::SendRequest<Full<Bytes>>, ApiError> {
    let attempt = tokio::time::timeout(CONNECT_DEADLINE, handshake(api, kubelet)).await;
    let stream = match attempt {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable_kubelet(kubelet, error)),
        Err(_) => return Err(unreachable_kubelet(kubelet, "i/o timeout")),
    };
    check_peer(kubelet, &stream)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| unreachable_kubelet(kubelet, e))?;
    // Ends when the sender and the body are dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a kubelet ended");
        }
    });
    Ok(sender)
}

async fn handshake(api: &ApiServer, kubelet: &Kubelet) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(kubelet.address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(kubelet.node.clone()).map_err(std::io::Error::other)?;
    TlsConnector::from(Arc::clone(&api.kubelet_tls)).connect(name, stream).await
}

/// The certificate must be a node's, and this node's.
fn check_peer(kubelet: &Kubelet, stream: &TlsStream<TcpStream>) -> Result<(), ApiError> {
    let shown = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| Identity::from_certificate(chain.first()?));
    if shown.as_ref().and_then(Identity::node_name) == Some(&kubelet.node) {
        return Ok(());
    }
    Err(unreachable_kubelet(kubelet, "what answers there is not this node"))
}

fn outgoing(
    parts: &Parts,
    path: &str,
    kubelet: &Kubelet,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, ApiError> {
    let upgrade = parts.headers.get(header::UPGRADE).cloned();
    let mut headers = parts.headers.clone();
    strip_hop_headers(&mut headers);
    for name in
        [header::AUTHORIZATION, header::HOST, header::CONTENT_LENGTH, header::ACCEPT_ENCODING]
    {
        headers.remove(name);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    if let Ok(host) = HeaderValue::from_str(&kubelet.address.to_string()) {
        headers.insert(header::HOST, host);
    }
    let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .body(Full::new(body))
        .map_err(|e| ApiError::bad_request(format!("the request can't be handed on: {e}")))?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn strip_hop_headers(headers: &mut HeaderMap) {
    const HOP: [HeaderName; 7] = [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    for name in HOP {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}

/// Answers 101 and joins the two connections.
fn switch(
    api: &Arc<ApiServer>,
    on_upgrade: Option<OnUpgrade>,
    mut answer: Response<hyper::body::Incoming>,
) -> Result<Response<Body>, ApiError> {
    let on_upgrade =
        on_upgrade.ok_or_else(|| ApiError::bad_request("the connection can't be upgraded"))?;
    let kubelet_side = hyper::upgrade::on(&mut answer);
    let stopping = api.stopping.clone();
    tokio::spawn(async move {
        let (client, kubelet) = match tokio::try_join!(on_upgrade, kubelet_side) {
            Ok(pair) => pair,
            Err(error) => {
                tracing::debug!(%error, "an upgrade was given up");
                return;
            }
        };
        tokio::select! {
            () = rkube_streaming::join(TokioIo::new(client), TokioIo::new(kubelet)) => {}
            () = stopping.cancelled() => {}
        }
    });
    let (head, _) = answer.into_parts();
    Ok(Response::from_parts(head, Body::Empty))
}
