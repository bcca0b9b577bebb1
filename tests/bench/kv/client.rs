//! A client of one member: one HTTP/2 connection of its own, TLS with both certificates.

use super::Fault;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rkube_etcd_api::kv_client::KvClient;
use rkube_etcd_api::maintenance_client::MaintenanceClient;
use rkube_etcd_api::{KeyValue, PutRequest, RangeRequest, StatusRequest, StatusResponse};
use rustls::ClientConfig;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

/// What a request goes through: hyper's connection as it is, without the buffer and the
/// reconnects of tonic's own channel.
#[derive(Clone)]
struct Connection(SendRequest<Body>);

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A client; copies share the connection.
#[derive(Clone)]
pub struct Client {
    kv: KvClient<Connection>,
    maintenance: MaintenanceClient<Connection>,
}

impl Client {
    /// Connects to the member at this port of the loopback.
    pub async fn connect(port: u16, tls: &Arc<ClientConfig>) -> Result<Self, Fault> {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        tcp.set_nodelay(true)?;
        let name = "localhost".try_into()?;
        let stream = TlsConnector::from(tls.clone()).connect(name, tcp).await?;
        let (sender, driver) =
            Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // Requests under way say how it ended.
            let _ = driver.await;
        });
        let origin: http::Uri = format!("https://localhost:{port}").parse()?;
        let connection = Connection(sender);
        let kv = KvClient::with_origin(connection.clone(), origin.clone());
        Ok(Client { kv, maintenance: MaintenanceClient::with_origin(connection, origin) })
    }

    /// Returns once the value is durable.
    pub async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Status> {
        self.kv.put(PutRequest { key, value }).await?;
        Ok(())
    }

    /// A linearizable read.
    pub async fn get(&mut self, key: Bytes) -> Result<Option<KeyValue>, Status> {
        let request = RangeRequest { key, ..RangeRequest::default() };
        Ok(self.kv.range(request).await?.into_inner().kvs.pop())
    }

    /// How many keys begin with this; linearizable.
    pub async fn count(&mut self, prefix: &[u8]) -> Result<usize, Status> {
        let mut range_end = prefix.to_vec();
        // No prefix here ends with the last byte there is.
        *range_end.last_mut().expect("a prefix") += 1;
        let request = RangeRequest {
            key: Bytes::copy_from_slice(prefix),
            range_end: range_end.into(),
            count_only: true,
        };
        Ok(self.kv.range(request).await?.into_inner().count as usize)
    }

    /// What the member says of itself.
    pub async fn status(&mut self) -> Result<StatusResponse, Status> {
        Ok(self.maintenance.status(StatusRequest {}).await?.into_inner())
    }
}
