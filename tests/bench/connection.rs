//! One keep-alive TLS connection with the administrator's certificate, HTTP/1.1.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Where to connect and as whom.
#[derive(Clone)]
pub struct Credentials {
    address: String,
    tls: Arc<rustls::ClientConfig>,
}

impl Credentials {
    /// From a kubeconfig with embedded certificates.
    pub fn read(kubeconfig: &Path) -> Result<Self, Fault> {
        use base64::Engine as _;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let text = std::fs::read_to_string(kubeconfig)?;
        let value: serde_json::Value = serde_yaml::from_str(&text)?;
        let pem = |value: &serde_json::Value| -> Result<Vec<u8>, Fault> {
            let text = value.as_str().ok_or("no embedded certificate")?;
            Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
        };
        let cluster = &value["clusters"][0]["cluster"];
        let user = &value["users"][0]["user"];
        let mut roots = rustls::RootCertStore::empty();
        let ca = pem(&cluster["certificate-authority-data"])?;
        roots.add(CertificateDer::from_pem_slice(&ca).map_err(|e| format!("{e:?}"))?)?;
        let certificate = pem(&user["client-certificate-data"])?;
        let certificate =
            CertificateDer::from_pem_slice(&certificate).map_err(|e| format!("{e:?}"))?;
        let key = pem(&user["client-key-data"])?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| format!("{e:?}"))?;
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        let server = cluster["server"].as_str().ok_or("no server")?;
        let address = server.trim_start_matches("https://").to_string();
        Ok(Credentials { address, tls: Arc::new(tls) })
    }

    pub async fn connect(&self) -> Connection {
        self.try_connect().await.expect("a connection")
    }

    pub async fn try_connect(&self) -> Result<Connection, Fault> {
        let tcp = TcpStream::connect(&self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        let (sender, driver) = handshake(TokioIo::new(tls)).await?;
        tokio::spawn(async move {
            let _ = driver.await;
        });
        Ok(Connection { sender, host: self.address.clone() })
    }
}

/// The lines of a watch.
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    /// Where the next line begins in the buffer.
    start: usize,
}

impl Lines {
    pub fn new(body: Incoming) -> Self {
        Lines { body, buffer: Vec::new(), start: 0 }
    }

    /// The next line, without its end; none when the watch has ended.
    pub async fn next(&mut self) -> Option<&[u8]> {
        let mut seen = self.start;
        loop {
            if let Some(at) = self.buffer[seen..].iter().position(|byte| *byte == b'\n') {
                let line = self.start..seen + at;
                self.start = line.end + 1;
                return Some(&self.buffer[line]);
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            seen = self.buffer.len();
            let frame = self.body.frame().await?.ok()?;
            self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
    }
}

/// A connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Sends a request; gives the status and the body as it comes.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<hyper::Response<Incoming>, Fault> {
        self.sender.ready().await?;
        let mut request = Request::builder().method(method).uri(path).header("host", &self.host);
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(self.sender.send_request(request.body(Full::new(body))?).await?)
    }

    /// A GET with its whole body.
    pub async fn get(&mut self, path: &str) -> Result<(u16, Bytes), Fault> {
        let answer = self.send("GET", path, &[], Bytes::new()).await?;
        let status = answer.status().as_u16();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }

    /// A POST that has to succeed.
    pub async fn create(&mut self, path: &str, body: Bytes) {
        self.must("POST", path, body).await;
    }

    /// A DELETE that has to succeed.
    pub async fn delete(&mut self, path: &str) {
        self.must("DELETE", path, Bytes::new()).await;
    }

    async fn must(&mut self, method: &str, path: &str, body: Bytes) {
        let answer = self.send(method, path, &[], body).await.expect("an answer");
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        assert!(status.is_success(), "{method} {path}: {}", String::from_utf8_lossy(&body));
    }
}
