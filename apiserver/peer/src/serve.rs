//! Connections of other members: accept, handshake, gRPC.
//!
//! Every connection holds one of a fixed number of permits from before its handshake to its end,
//! so that a flood waits in the kernel's queue. Whoever has no certificate of the CA costs a
//! handshake that must be done within seconds; whoever has one that is not a member's is told so
//! and let go.

use crate::MESSAGE_BYTES;
use crate::dial::{KEEP_ALIVE, KEEP_ALIVE_MOST};
use crate::inbox::Inbox;
use crate::name::identity_of;
use crate::peers::Shared;
use crate::service::PeerService;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rkube_proto::peer::peer_server::PeerServer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

const CONNECTIONS: usize = 256;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(3);
/// How long someone who is no member may take to read that.
const LINGER: Duration = Duration::from_secs(2);
/// How long links may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(2);
/// A member has one link here, and a question about the status now and then.
const STREAMS: u32 = 16;
/// What a peer may send ahead on one link before the store has taken it.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Larger than the usual 16 KiB, for less work per byte.
const HTTP_FRAME: u32 = 256 << 10;
const HEADER_BYTES: u32 = 16 << 10;

/// Accepts until `stop`; then ends all links. Dropped, it cuts them.
pub(crate) async fn serve<I: Inbox>(
    shared: Arc<Shared<I>>,
    listener: TcpListener,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => break,
            next = accept(&listener, &permits) => next,
            Some(_) = connections.join_next() => continue,
        };
        let Some((stream, address, permit)) = next else { continue };
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        connections.spawn(async move {
            connection(shared, stream, address, stop).await;
            drop(permit);
        });
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        warn!(connections = connections.len(), "connections of members cut at shutdown");
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address, permit)),
        Err(error) => {
            // Out of file descriptors, mostly: pause, so that the loop doesn't spin.
            warn!(%error, "accepting a connection failed");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn connection<I: Inbox>(
    shared: Arc<Shared<I>>,
    stream: TcpStream,
    address: SocketAddr,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(Arc::clone(&shared.tls.server));
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return info!(%address, %error, "TLS handshake failed"),
        Err(_) => return info!(%address, "TLS handshake took too long"),
    };
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let caller = shown.first().map_or(Err("no certificate was shown"), |c| identity_of(c));
    let most = match caller {
        Ok(_) => Duration::MAX,
        Err(why) => {
            info!(%address, why, "a connection is refused");
            LINGER
        }
    };
    let service = PeerService { shared, caller, stop: stop.clone() };
    let server = PeerServer::new(service).max_decoding_message_size(MESSAGE_BYTES);
    let connection =
        builder().serve_connection(TokioIo::new(stream), TowerToHyperService::new(server));
    tokio::pin!(connection);
    let served = async {
        tokio::select! {
            result = connection.as_mut() => return result,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    if let Ok(Err(error)) = tokio::time::timeout(most, served).await {
        debug!(%address, %error, "connection ended");
    }
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_MOST)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(HTTP_FRAME)
        .max_header_list_size(HEADER_BYTES);
    builder
}
