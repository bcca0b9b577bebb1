//! Which client certificates are believed, and what the others are told.

mod common;

use bytes::Bytes;
use common::{Client, Harness, PODS};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rkube_apiserver::pki::Pair;
use rustls::SupportedProtocolVersion;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An administrator's certificate, valid from a day ago to a time, for these purposes.
fn issue(ca: &Pair, until: SystemTime, purposes: Vec<ExtendedKeyUsagePurpose>) -> Pair {
    let ca_key = KeyPair::from_pem(&ca.key).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, ca_key).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "jane");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = until.into();
    params.extended_key_usages = purposes;
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    Pair { certificate, key: key.serialize_pem() }
}

/// Another authority, which goes by a name of its own.
fn other_authority() -> Pair {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "somebody-else");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    Pair { certificate, key: key.serialize_pem() }
}

/// Shows one pair's certificate and signs with another's key.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl Shows {
    fn new(certificate: &Pair, key: &Pair) -> Self {
        let (chain, _) = certificate.der().unwrap();
        let (_, key) = key.der().unwrap();
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        Shows(Arc::new(CertifiedKey::new(chain, key)))
    }
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A client's settings with one version of TLS.
fn config(
    h: &Harness,
    version: &'static SupportedProtocolVersion,
    shows: Shows,
) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(common::roots(h.server.ca_pem()))
        .with_client_cert_resolver(Arc::new(shows));
    Arc::new(config)
}

fn client(h: &Harness, version: &'static SupportedProtocolVersion, shows: Shows) -> Client {
    Client::with(h.address, config(h, version, shows))
}

/// Writes a long request, the end of it when the log says that the handshake failed, and reads.
async fn insist(
    h: &Harness,
    config: Arc<rustls::ClientConfig>,
    log: &Log,
) -> std::io::Result<usize> {
    let stream = TcpStream::connect(h.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(config).connect(name, stream).await?;
    stream.write_all(&[b'x'; 1 << 20]).await?;
    while log.lines("TLS handshake failed").is_empty() {
        tokio::task::yield_now().await;
    }
    stream.write_all(b"x").await?;
    stream.flush().await?;
    stream.read(&mut [0; 1024]).await
}

/// The code and body of a GET on a connection that stays open.
async fn get(sender: &mut SendRequest<Full<Bytes>>, path: &str) -> (u16, String) {
    let request = Request::get(path).header("host", "localhost").body(Full::default()).unwrap();
    sender.ready().await.unwrap();
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (head.status.as_u16(), String::from_utf8(bytes.to_vec()).unwrap())
}

/// A log in memory, of what happens on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn lines(&self, with: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_clusters_certificates_are_believed() {
    let h = Harness::start().await;
    let ca = h.server.pki().ca_pair();
    let tomorrow = SystemTime::now() + DAY;
    let client_use = issue(ca, tomorrow, vec![ExtendedKeyUsagePurpose::ClientAuth]);
    // Without purposes it is good for all.
    for pair in [client_use, issue(ca, tomorrow, Vec::new())] {
        h.client(Some(pair.clone())).get(PODS).await.expect(200);
        for version in [&TLS12, &TLS13] {
            client(&h, version, Shows::new(&pair, &pair)).get(PODS).await.expect(200);
        }
    }
    h.stop().await;
}

#[tokio::test]
async fn others_get_401_everywhere() {
    let h = Harness::start().await;
    let namesake = Harness::start().await;
    let (pki, now) = (h.server.pki(), SystemTime::now());
    let client_use = || vec![ExtendedKeyUsagePurpose::ClientAuth];
    let own = other_authority();
    let cases = [
        ("expired", issue(pki.ca_pair(), now - Duration::from_secs(3600), client_use())),
        ("not valid yet", pki.issue_client("late", Some("system:masters"), now + DAY).unwrap()),
        ("for servers", pki.server.clone()),
        ("of an unknown authority", issue(&own, now + DAY, client_use())),
        ("of an authority of the same name", namesake.server.pki().admin.clone()),
        ("its own authority", own),
    ];
    for (what, pair) in cases {
        for version in [&TLS12, &TLS13] {
            let client = client(&h, version, Shows::new(&pair, &pair));
            for path in [PODS, "/api", "/healthz", "/readyz", "/version", "/rkube/v1/ca"] {
                let answer = client.get(path).await;
                assert_eq!(answer.status, 401, "{what}, {path}: {}", answer.text());
                assert_eq!(answer.refused(401, "Unauthorized"), "Unauthorized", "{what}, {path}");
            }
            let join = client.send(Method::POST, "/rkube/v1/join", &[], "{}").await;
            join.refused(401, "Unauthorized");
        }
    }
    h.admin().get(PODS).await.expect(200);
    // And the other way round: a client that knows another authority does not believe the server.
    let wrong = Client::new(h.address, namesake.server.ca_pem(), None);
    assert!(wrong.try_send(Method::GET, "/version", &[], "").await.is_err());
    namesake.stop().await;
    h.stop().await;
}

#[tokio::test]
async fn a_certificate_without_its_key_is_worth_nothing() {
    let h = Harness::start().await;
    let thief = h.server.pki().issue_client("thief", None, SystemTime::now()).unwrap();
    for version in [&TLS12, &TLS13] {
        client(&h, version, Shows::new(&thief, &thief)).get("/version").await.expect(200);
        let (log, _guard) = Log::start();
        let stolen = Shows::new(&h.server.pki().admin, &thief);
        let attempt = insist(&h, config(&h, version, stolen), &log);
        let answer = tokio::time::timeout(Duration::from_secs(20), attempt).await.expect("an end");
        let told = answer.expect_err("no answer to a thief").to_string();
        // Whatever else it has written, it gets to read why.
        assert!(told.contains("DecryptError"), "{version:?}: {told}");
        let lines = log.lines("TLS handshake failed");
        assert!(lines.len() == 1 && lines[0].contains("BadSignature"), "{lines:?}");
    }
    h.stop().await;
}

#[tokio::test]
async fn the_log_says_why_once_a_connection() {
    let h = Harness::start().await;
    let (log, _guard) = Log::start();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let expired = issue(h.server.pki().ca_pair(), hour_ago, Vec::new());
    let mut sender = h.client(Some(expired)).open().await.unwrap();
    for _ in 0..3 {
        assert_eq!(get(&mut sender, PODS).await.0, 401);
    }
    let lines = log.lines("client certificate refused");
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(line.contains("INFO") && line.contains("127.0.0.1:"), "{line}");
    assert!(line.contains("\"jane\"") && line.contains("expired"), "{line}");
    h.stop().await;
}

#[tokio::test]
async fn a_certificate_that_expires_takes_its_connection_along() {
    let h = Harness::start().await;
    let (log, _guard) = Log::start();
    let soon = SystemTime::now() + Duration::from_secs(3);
    let pair = issue(h.server.pki().ca_pair(), soon, Vec::new());
    let mut sender = h.client(Some(pair)).open().await.unwrap();
    assert_eq!(get(&mut sender, PODS).await.0, 200);
    let started = Instant::now();
    let body = loop {
        match get(&mut sender, PODS).await {
            (200, _) => assert!(started.elapsed() < Duration::from_secs(30), "it never expires"),
            (code, body) => {
                assert_eq!(code, 401, "{body}");
                break body;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(body.contains(r#""reason":"Unauthorized""#), "{body}");
    assert_eq!(get(&mut sender, "/version").await.0, 401);
    let lines = log.lines("client certificate refused");
    assert!(lines.len() == 1 && lines[0].contains("expired at"), "{lines:?}");
    h.stop().await;
}
