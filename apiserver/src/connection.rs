//! Connections: accept, handshake, HTTP, and a shutdown that lets requests in flight finish.
//!
//! Every connection holds one of a fixed number of permits from before its handshake to its end,
//! so a flood waits in the kernel's queue. A client has ten seconds for the handshake and as long
//! for each head of a request.

use crate::authn::{Caller, Identity};
use crate::body::Body;
use crate::server::ApiServer;
use crate::tls::ServerTls;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::UnixTime;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Once};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client whose handshake failed may take to read why.
const LINGER: Duration = Duration::from_secs(1);
/// How long the next request's head may take. hyper counts from the end of the last answer, so an
/// idle connection ends then: later than clients let go of theirs (90 s in Go and hyper), or a
/// request would now and then meet a connection that is being closed.
const HEAD_DEADLINE: Duration = Duration::from_secs(120);
/// As upstream: enough for a client's watches over one connection.
const MAX_STREAMS: u32 = 250;
const MAX_HEADER_BYTES: u32 = 64 * 1024;

/// Accepts until `shutdown`, then drains for at most `grace`.
pub async fn serve(
    server: Arc<ApiServer>,
    listener: TcpListener,
    tls: ServerTls,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let permits = Arc::new(Semaphore::new(server.config().max_connections));
    let tracker = TaskTracker::new();
    loop {
        let Some((stream, peer, permit)) = next(&listener, &permits, &shutdown).await else {
            break;
        };
        let (server, tls, shutdown) = (Arc::clone(&server), tls.clone(), shutdown.clone());
        tracker.spawn(async move {
            serve_one(server, tls, stream, peer, shutdown).await;
            drop(permit);
        });
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(grace, tracker.wait()).await.is_err() {
        warn!(connections = tracker.len(), "connections cut at shutdown");
    }
}

/// The next connection; None at shutdown.
async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = tokio::select! {
        () = shutdown.cancelled() => return None,
        permit = Arc::clone(permits).acquire_owned() => permit.ok()?,
    };
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => return Some((stream, peer, permit)),
            Err(error) => {
                // Out of file descriptors, mostly: pause, so that the loop doesn't spin.
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_one(
    server: Arc<ApiServer>,
    tls: ServerTls,
    stream: TcpStream,
    peer: SocketAddr,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let handshake = TlsAcceptor::from(Arc::clone(&tls.config)).accept(stream).into_fallible();
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, stream))) => {
            info!(%peer, %error, "TLS handshake failed");
            let _ = tokio::time::timeout(LINGER, linger(stream)).await;
            return;
        }
        Err(_) => {
            info!(%peer, "TLS handshake took too long");
            return;
        }
    };
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let caller = tls.caller(shown, UnixTime::now());
    debug!(%peer, ?caller, "connected");
    let visitor = Arc::new(Visitor { peer, caller, told: Once::new() });
    let service = hyper::service::service_fn(move |request| {
        answer(Arc::clone(&server), visitor.identity(UnixTime::now()), request)
    });
    let builder = builder();
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%peer, %error, "connection ended");
    }
}

/// The client of a connection.
struct Visitor {
    peer: SocketAddr,
    caller: Caller,
    /// Whether the log has said why its requests are refused.
    told: Once,
}

impl Visitor {
    /// Who makes a request now.
    fn identity(&self, now: UnixTime) -> Identity {
        match self.caller.at(now) {
            Ok(identity) => identity.clone(),
            Err(why) => {
                let peer = self.peer;
                self.told.call_once(|| info!(%peer, %why, "client certificate refused"));
                Identity::refused()
            }
        }
    }
}

/// Lets the client read the alert that says why its handshake failed (that its key is not its
/// certificate's, say): closing while its first request waits unread would reset the connection
/// and throw the alert away.
async fn linger(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut unread = [0; 4096];
    while stream.read(&mut unread).await.is_ok_and(|n| n > 0) {}
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .keep_alive(true)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

async fn answer(
    server: Arc<ApiServer>,
    identity: Identity,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    Ok(server.handle(identity, request).await)
}
