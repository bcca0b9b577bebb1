//! A server on a free port with a directory of its own, and a client that speaks to it over TLS.
#![allow(dead_code)] // Each test binary uses a part of this.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rkube_apiserver::pki::Pair;
use rkube_apiserver::{ApiServer, ApiServerConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A server being served.
pub struct Harness {
    pub server: Arc<ApiServer>,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
    pub shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Harness {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ApiServerConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind((IpAddr::from([127, 0, 0, 1]), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = ApiServerConfig::new(dir.path());
        config.secure_port = address.port();
        config.advertise_address = IpAddr::from([192, 0, 2, 1]);
        change(&mut config);
        let server = ApiServer::start(config).await.unwrap();
        let shutdown = CancellationToken::new();
        let (serve, stop) = (Arc::clone(&server), shutdown.clone());
        let serving = tokio::spawn(async move { serve.serve(listener, stop).await });
        Harness { server, address, dir, shutdown, serving }
    }

    /// Ends serving and closes the store; the directory stays.
    pub async fn stop(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.serving.await.unwrap();
        self.server.shutdown().await;
        self.dir
    }

    pub fn admin(&self) -> Client {
        self.client(Some(self.server.pki().admin.clone()))
    }

    pub fn anonymous(&self) -> Client {
        self.client(None)
    }

    pub fn user(&self, name: &str, group: Option<&str>) -> Client {
        let now = std::time::SystemTime::now();
        self.client(Some(self.server.pki().issue_client(name, group, now).unwrap()))
    }

    pub fn node(&self, name: &str) -> Client {
        self.user(&format!("system:node:{name}"), Some("system:nodes"))
    }

    pub fn client(&self, pair: Option<Pair>) -> Client {
        Client::new(self.address, self.server.ca_pem(), pair)
    }
}

/// A client with or without a certificate; every request has a connection of its own.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.status.as_u16(), code, "{}", self.text());
        self.json()
    }

    /// The status and the reason and message of a refusal.
    #[track_caller]
    pub fn refused(self, code: u16, reason: &str) -> String {
        let value = self.expect(code);
        assert_eq!(value["kind"], "Status", "{value}");
        assert_eq!(value["reason"], reason, "{value}");
        value["message"].as_str().unwrap_or("").to_owned()
    }
}

/// Whom a client with this CA believes.
pub fn roots(ca_pem: &str) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    roots
}

impl Client {
    pub fn new(address: SocketAddr, ca_pem: &str, pair: Option<Pair>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(ca_pem));
        let mut config = match pair {
            Some(pair) => {
                let (chain, key) = pair.der().unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Client::with(address, Arc::new(config))
    }

    /// With settings of its own.
    pub fn with(address: SocketAddr, tls: Arc<rustls::ClientConfig>) -> Self {
        Client { address, tls }
    }

    /// A connection; it stays open between requests.
    pub async fn open(&self) -> Result<http1::SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(self.address).await.map_err(|e| e.to_string())?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
            .map_err(|e| e.to_string())?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<http::Response<Incoming>, String> {
        let mut sender = self.open().await?;
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        sender.send_request(request).await.map_err(|e| e.to_string())
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let response = self.try_send(method, path, headers, body).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, bytes }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub async fn post(&self, path: &str, value: &Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], value.to_string())
            .await
    }

    pub async fn put(&self, path: &str, value: &Value) -> Answer {
        self.send(Method::PUT, path, &[("content-type", "application/json")], value.to_string())
            .await
    }

    pub async fn patch(&self, path: &str, content_type: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, &[("content-type", content_type)], body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    pub async fn watch(&self, path: &str, accept: &str) -> Events {
        let response = self.try_send(Method::GET, path, &[("accept", accept)], "").await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Events { body: response.into_body(), rest: Vec::new() }
    }
}

/// The events of a watch.
pub struct Events {
    body: Incoming,
    rest: Vec<u8>,
}

impl Events {
    /// The next event; None at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame())
                .await
                .expect("an event within 20 s")?;
            self.rest.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn step(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

/// A ConfigMap.
pub fn config_map(name: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"},
    })
}

/// A Pod.
pub fn pod(name: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "a:1"}]},
    })
}

/// A Node with an address.
pub fn node(name: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]},
    })
}

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
