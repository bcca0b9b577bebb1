//! The kubelet's server: logs, exec, attach, port-forward, metrics and stats over HTTPS.
//!
//! Who may ask is decided by the certificate alone: the cluster's CA has to have signed it, for the
//! organization `system:masters`. The API server asks here on behalf of users it has authorized.

mod logs;
mod metrics;
mod stream;
mod tls;

use crate::KubeletError;
use crate::context::Context;
use crate::pods::Known;
use bytes::Bytes;
use futures::stream::BoxStream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::borrow::Cow;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// A client that does not finish its greeting gives up its place.
const HANDSHAKE: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A server that ends when dropped.
pub struct Served {
    /// Where it listens.
    pub address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone)]
struct Shared {
    context: Arc<Context>,
    known: Arc<Known>,
}

/// Starts to listen, if a certificate is configured.
pub(crate) async fn start(
    context: Arc<Context>,
    known: Arc<Known>,
    shutdown: CancellationToken,
) -> Result<Option<Served>, KubeletError> {
    let Some(acceptor) = tls::acceptor(&context.config)? else { return Ok(None) };
    let address = SocketAddr::new(context.config.kubelet_address, context.config.kubelet_port);
    let io = |source| KubeletError::Io { what: format!("listen on {address}"), source };
    let listener = TcpListener::bind(address).await.map_err(io)?;
    let address = listener.local_addr().map_err(io)?;
    let shared = Shared { context, known };
    let task = tokio::spawn(accept(listener, acceptor, shared, shutdown));
    Ok(Some(Served { address, _task: AbortOnDropHandle::new(task) }))
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Shared,
    shutdown: CancellationToken,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, acceptor.clone(), shared.clone()));
                }
                // Out of file descriptors, mostly: others have to end first.
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, shared: Shared) {
    let greeted = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
    let Ok(Ok(stream)) = greeted else { return };
    let allowed = tls::is_master(stream.get_ref().1);
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move {
            Ok::<_, Infallible>(match allowed {
                true => answer(request, shared).await,
                false => text(StatusCode::FORBIDDEN, "only system:masters may ask here\n"),
            })
        }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await
    {
        tracing::debug!(error, "connection");
    }
}

async fn answer(request: Request<Incoming>, shared: Shared) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<String> = path.split('/').skip(1).map(|p| decode(p).into_owned()).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let is_get = request.method() == Method::GET;
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz"] => text(StatusCode::OK, "ok"),
        ["containerLogs", namespace, pod, container] if is_get => {
            let query = Query::of(&request);
            logs::answer(&shared, namespace, pod, container, &query).await
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            let (namespace, pod, container) = (*namespace, *pod, *container);
            stream::exec(&shared, namespace, pod, container, request).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            let (namespace, pod, container) = (*namespace, *pod, *container);
            stream::attach(&shared, namespace, pod, container, request).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            stream::port_forward(&shared, namespace, pod, request).await
        }
        ["pods"] if is_get => metrics::pods(&shared),
        ["metrics"] if is_get => metrics::metrics(&shared).await,
        ["metrics", "resource"] if is_get => metrics::resource(&shared).await,
        ["stats", "summary"] if is_get => metrics::summary(&shared).await,
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

// --- small helpers ---

/// A request's query; names may repeat.
#[derive(Debug, Default)]
struct Query(HashMap<String, Vec<String>>);

impl Query {
    fn of<B>(request: &Request<B>) -> Self {
        Self::parse(request.uri().query().unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut map: HashMap<String, Vec<String>> = HashMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(&name.replace('+', " ")).into_owned();
            map.entry(name).or_default().push(decode(&value.replace('+', " ")).into_owned());
        }
        Self(map)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.first().map(String::as_str)
    }

    fn all(&self, name: &str) -> Vec<String> {
        self.0.get(name).cloned().unwrap_or_default()
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "True" | "TRUE" | "t" | "T"))
    }
}

/// Decodes `%XX`.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let (bytes, mut decoded, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}

fn full(data: impl Into<Bytes>) -> Body {
    Full::new(data.into()).map_err(|never| match never {}).boxed_unsync()
}

fn streamed(stream: BoxStream<'static, io::Result<Bytes>>) -> Body {
    use futures::TryStreamExt;
    StreamBody::new(stream.map_ok(Frame::data)).boxed_unsync()
}

fn with_type(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, message: impl Into<Bytes>) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", full(message))
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => with_type(StatusCode::OK, "application/json", full(bytes)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query =
            Query::parse("command=sh&command=-c&command=echo%20%22hi%22+x&input=1&tty=false");
        assert_eq!(query.all("command"), ["sh", "-c", "echo \"hi\" x"]);
        assert!(query.flag("input") && !query.flag("tty") && !query.flag("error"));
        assert_eq!(decode("100%"), "100%");
    }
}
