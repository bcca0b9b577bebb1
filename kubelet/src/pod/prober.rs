//! Asks what probes and hooks ask: over HTTP, TCP or gRPC from the node, or by a command inside.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rkube_cri::{Code, Runtime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// No more of an answer than this is read or shown.
const MAX_BODY_BYTES: usize = 10 << 10;

/// Asks, from this node.
#[derive(Clone)]
pub struct Prober {
    runtime: Arc<dyn Runtime>,
    tls: Arc<rustls::ClientConfig>,
}

impl Prober {
    /// A prober that runs commands through `runtime`.
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let verifier = Arc::new(AnyCertificate(schemes));
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            // ring supports both protocol versions that are compiled in.
            .expect("ring knows TLS 1.2 and 1.3");
        let tls = builder.dangerous().with_custom_certificate_verifier(verifier);
        Self { runtime, tls: Arc::new(tls.with_no_client_auth()) }
    }

    /// Runs a command in a container; fails if its exit code is not 0.
    pub async fn exec(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<String, String> {
        match self.runtime.exec_sync(id, command, timeout).await {
            Ok(output) if output.exit_code == 0 => Ok(shown(&output.stdout)),
            Ok(output) => Err(shown(&[output.stdout, output.stderr].concat())),
            Err(error) if error.code == Code::DeadlineExceeded => Err(format!(
                "command timed out: {command:?} timed out after {}s",
                timeout.as_secs()
            )),
            Err(error) => Err(error.message),
        }
    }

    /// Gets a URL; fails unless the answer is from 200 to 399.
    pub async fn http_get(
        &self,
        host: &str,
        port: u16,
        https: bool,
        path: &str,
        headers: &[(String, String)],
    ) -> Result<String, String> {
        let url =
            format!("{}://{}{path}", if https { "https" } else { "http" }, authority(host, port));
        let failed = |error: String| format!("Get \"{url}\": {error}");
        let request = get_request(host, port, path, headers).map_err(failed)?;
        let stream = dial(host, port).await.map_err(failed)?;
        let (status, body) = if https {
            let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(e.to_string()))?;
            let connector = tokio_rustls::TlsConnector::from(self.tls.clone());
            let stream =
                connector.connect(name, stream).await.map_err(|e| failed(e.to_string()))?;
            exchange(stream, request).await.map_err(failed)?
        } else {
            exchange(stream, request).await.map_err(failed)?
        };
        match status {
            200..=399 => Ok(shown(&body)),
            _ => Err(format!("HTTP probe failed with statuscode: {status}")),
        }
    }

    /// Opens a connection and closes it.
    pub async fn connect(&self, host: &str, port: u16) -> Result<String, String> {
        dial(host, port).await.map(|_| String::new())
    }

    /// Asks `grpc.health.v1.Health/Check` whether a service is serving.
    pub async fn grpc_health(
        &self,
        host: &str,
        port: u16,
        service: &str,
    ) -> Result<String, String> {
        let stream = dial(host, port).await?;
        let answer = grpc_check(stream, &authority(host, port), service).await?;
        // HealthCheckResponse { status = 1 } with SERVING = 1.
        match answer.get(5..) {
            Some([0x08, 0x01, ..]) => Ok("service is serving".to_owned()),
            _ => Err("service unhealthy (responded with a status other than SERVING)".to_owned()),
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_BODY_BYTES)]).into_owned()
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let address = authority(host, port);
    TcpStream::connect((host, port)).await.map_err(|error| {
        let refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
        let text =
            if refused { "connect: connection refused".to_owned() } else { error.to_string() };
        format!("dial tcp {address}: {text}")
    })
}

fn get_request(
    host: &str,
    port: u16,
    path: &str,
    headers: &[(String, String)],
) -> Result<http::Request<Full<Bytes>>, String> {
    let mut request = http::Request::builder().method("GET").uri(path);
    let own = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let defaults = [
        ("host", authority(host, port)),
        ("user-agent", "kube-probe/1.36".into()),
        ("accept", "*/*".into()),
    ];
    for (name, value) in defaults.into_iter().filter(|(name, _)| !own(name)) {
        request = request.header(name, value);
    }
    request.body(Full::default()).map_err(|error| error.to_string())
}

async fn exchange<S>(stream: S, request: http::Request<Full<Bytes>>) -> Result<(u16, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let ask = async {
        let answer = sender.send_request(request).await.map_err(text)?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_BODY_BYTES).collect().await;
        Ok((status, body.map(|b| b.to_bytes()).unwrap_or_default()))
    };
    tokio::pin!(ask);
    // The connection is driven only as long as the answer is awaited.
    tokio::select! {
        answer = &mut ask => answer,
        result = connection => match result {
            Ok(()) => ask.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

async fn grpc_check(stream: TcpStream, authority: &str, service: &str) -> Result<Bytes, String> {
    let text = |error: hyper::Error| {
        let cause = std::error::Error::source(&error);
        format!("no gRPC answer: {}", cause.map_or(error.to_string(), ToString::to_string))
    };
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream))
            .await
            .map_err(text)?;
    let request = http::Request::builder()
        .method("POST")
        .uri(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(health_request(service)))
        .map_err(|error| error.to_string())?;
    let ask = async {
        let answer = sender.send_request(request).await.map_err(text)?;
        let body = Limited::new(answer.into_body(), MAX_BODY_BYTES).collect().await;
        body.map(|b| b.to_bytes()).map_err(|error| format!("no gRPC answer: {error}"))
    };
    tokio::select! {
        answer = ask => answer,
        result = connection => Err(result.map_or_else(text, |()| "no gRPC answer: connection closed".to_owned())),
    }
}

/// A gRPC frame with `HealthCheckRequest { service = 1 }`.
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if let Some(length) = u8::try_from(service.len()).ok().filter(|l| (1..128).contains(l)) {
        message.extend([0x0a, length]);
        message.extend(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
    [&[0u8], length.as_slice(), &message].concat().into()
}

/// A probe asks whether the application answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_cri::FakeRuntime;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn answers(with: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(with.as_bytes()).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn http_and_tcp() {
        let prober = Prober::new(Arc::new(FakeRuntime::default()));
        let good = answers("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
        let bad = answers("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(prober.http_get("127.0.0.1", good, false, "/", &[]).await, Ok(String::new()));
        let failed = prober.http_get("127.0.0.1", bad, false, "/x", &[]).await.unwrap_err();
        assert_eq!(failed, "HTTP probe failed with statuscode: 503");
        assert!(prober.connect("127.0.0.1", good).await.is_ok());
        let refused = prober.connect("127.0.0.1", 1).await.unwrap_err();
        assert_eq!(refused, "dial tcp 127.0.0.1:1: connect: connection refused");
    }

    /// A gRPC server that gives this answer to every call.
    async fn grpc_answers(message: &'static [u8]) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = move |request: http::Request<hyper::body::Incoming>| async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(message))))
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let executor = hyper_util::rt::TokioExecutor::new();
                let service = hyper::service::service_fn(answer);
                let server = hyper::server::conn::http2::Builder::new(executor);
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        port
    }

    #[tokio::test]
    async fn grpc() {
        let prober = Prober::new(Arc::new(FakeRuntime::default()));
        let serving = grpc_answers(&[0, 0, 0, 0, 2, 8, 1]).await;
        assert!(prober.grpc_health("127.0.0.1", serving, "").await.is_ok());
        // NOT_SERVING, and a server without this service: a status and no message.
        for message in [&[0, 0, 0, 0, 2, 8, 2][..], &[]] {
            let port = grpc_answers(message).await;
            let failed = prober.grpc_health("127.0.0.1", port, "x").await.unwrap_err();
            assert!(failed.contains("service unhealthy"), "{failed}");
        }
        let plain = answers("HTTP/1.1 200 OK\r\n\r\n").await;
        let failed = prober.grpc_health("127.0.0.1", plain, "").await.unwrap_err();
        assert!(failed.starts_with("no gRPC answer: "), "{failed}");
    }

    #[test]
    fn a_health_request_is_framed() {
        assert_eq!(health_request("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }
}
