//! Connections to other members: TCP, TLS to exactly the member that is wanted, HTTP/2.

use crate::inbox::Refusal;
use crate::name::{identity_of, peer_name};
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rkube_proto::peer::peer_client::PeerClient;
use rkube_store::Identity;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::error::Error;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tonic::body::Body;

/// A connection on which nothing came in for this long is asked for a sign of life.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long that sign may take.
pub(crate) const KEEP_ALIVE_MOST: Duration = Duration::from_millis(1500);

/// Why a member could not be asked, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// There is no connection.
    #[error("{address}: {action}: {why}")]
    Connect {
        /// Host and port.
        address: String,
        /// `connecting`, `TLS handshake`
        action: &'static str,
        /// Why not.
        why: String,
    },
    /// It answered, or the connection broke before it did.
    #[error("{why}")]
    Call {
        /// What it has against this member's membership, if that is it.
        refusal: Option<Refusal>,
        /// What it said, or what broke.
        why: String,
    },
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl From<tonic::Status> for PeerError {
    fn from(status: tonic::Status) -> Self {
        let mut why = status.message().to_owned();
        let mut cause = status.source();
        while let Some(error) = cause {
            why = format!("{why}: {error}");
            cause = error.source();
        }
        PeerError::Call { refusal: Refusal::of(&status), why }
    }
}

/// Sends the calls of a client over one connection.
#[derive(Clone)]
pub(crate) struct Caller(http2::SendRequest<Body>);

impl tower::Service<http::Request<Body>> for Caller {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.send_request(request).boxed()
    }
}

/// Runs the tasks of one connection, which end together.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.0.lock().spawn(future.map(drop));
    }
}

/// A connection to a member; it is cut when this is dropped.
pub(crate) struct Connection {
    pub(crate) client: PeerClient<Caller>,
    tasks: Tasks,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.0.lock().abort_all();
    }
}

/// Connects to a member at an address, and to nobody else there.
pub(crate) async fn connect(
    tls: &Arc<ClientConfig>,
    to: Identity,
    address: &str,
) -> Result<Connection, PeerError> {
    let failed = |action: &'static str| {
        move |why: String| PeerError::Connect { address: address.to_owned(), action, why }
    };
    let connecting = failed("connecting");
    let stream = TcpStream::connect(address).await.map_err(|e| connecting(e.to_string()))?;
    stream.set_nodelay(true).map_err(|e| failed("connecting")(e.to_string()))?;
    let handshake = failed("TLS handshake");
    let name = peer_name(to);
    let server = ServerName::try_from(name.clone()).map_err(|e| handshake(e.to_string()))?;
    let connector = TlsConnector::from(Arc::clone(tls));
    let stream = connector
        .connect(server, stream)
        .await
        .map_err(|e| failed("TLS handshake")(e.to_string()))?;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    // The name alone is not enough: a certificate may have others beside it.
    match shown.first().map(|certificate| identity_of(certificate)) {
        Some(Ok(identity)) if identity == to => {}
        _ => return Err(failed("TLS handshake")("its certificate is not a member's".into())),
    }
    let tasks = Tasks::default();
    let (sender, connection) = http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_MOST)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed("HTTP/2 handshake")(e.to_string()))?;
    // What breaks is told to whoever has a call under way.
    tasks.execute(connection);
    let origin = format!("https://{name}").parse().expect("a DNS name makes an origin");
    let client = PeerClient::with_origin(Caller(sender), origin);
    Ok(Connection { client, tasks })
}
