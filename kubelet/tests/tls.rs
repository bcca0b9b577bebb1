//! The kubelet's server: who may ask, and logs from the node's files.

mod support;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rkube_cri::FakeRuntime;
use rkube_kubelet::{KubeletConfig, NoHostPorts, run};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use support::Api;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

struct Pki {
    ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        Self { ca, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, organization: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

async fn get(port: u16, pki: &Pki, client: Option<(String, String)>, path: &str) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let Ok(mut stream) = connector.connect(name, stream).await else { return "refused".into() };
    let request = format!("GET {path} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    match stream.write_all(request.as_bytes()).await {
        Ok(()) => match stream.read_to_string(&mut answer).await {
            Ok(_) => answer,
            Err(_) if !answer.is_empty() => answer,
            Err(_) => "refused".into(),
        },
        Err(_) => "refused".into(),
    }
}

fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn only_masters_of_the_own_ca_may_ask() {
    let (pki, other) = (Pki::new(), Pki::new());
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = pki.issue("system:nodes");
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let config = KubeletConfig {
        node_name: "n1".into(),
        node_ip: Some(IpAddr::from([127, 0, 0, 1])),
        kubelet_address: IpAddr::from([127, 0, 0, 1]),
        kubelet_port: port,
        data_dir: dir.path().to_owned(),
        cgroup_root: String::new(),
        tls_cert_file: Some(write(dir.path(), "cert", &certificate)),
        tls_private_key_file: Some(write(dir.path(), "key", &key)),
        client_ca_file: Some(write(dir.path(), "ca", &pki.ca)),
        ..KubeletConfig::default()
    };
    let (api, runtime) = (Api::new(), Arc::new(FakeRuntime::default()));
    runtime.add_image("web:1");
    let stop = CancellationToken::new();
    let task =
        tokio::spawn(run(config, api.client(), runtime, Arc::new(NoHostPorts), stop.clone()));
    let path = "/api/v1/namespaces/default/pods/web";
    api.put(
        path,
        json!({"metadata": {"uid": "u1"}, "status": {"phase": "Pending"},
        "spec": {"nodeName": "n1", "containers": [{"name": "app", "image": "web:1"}]}}),
    );
    api.until(path, "running", |pod| pod.is_some_and(|p| p["status"]["phase"] == "Running")).await;

    let masters = Some(pki.issue("system:masters"));
    assert!(get(port, &pki, masters.clone(), "/healthz").await.ends_with("ok"));
    assert!(get(port, &pki, Some(pki.issue("system:nodes")), "/pods").await.contains(" 403 "));
    assert_eq!(get(port, &pki, Some(other.issue("system:masters")), "/pods").await, "refused");
    assert_eq!(get(port, &pki, None, "/pods").await, "refused");
    assert!(get(port, &pki, masters.clone(), "/pods").await.contains("\"name\":\"web\""));

    let logs = dir.path().join("logs/default_web_u1/app");
    std::fs::create_dir_all(&logs).unwrap();
    write(&logs, "0.log", "2026-01-01T00:00:00Z stdout F hello\n");
    let log = get(port, &pki, masters.clone(), "/containerLogs/default/web/app?tailLines=5").await;
    assert!(log.contains("hello\n"), "{log}");
    let none = get(port, &pki, masters, "/containerLogs/default/web/app?previous=true").await;
    assert!(none.contains(" 400 ") && none.contains("previous terminated container"), "{none}");
    stop.cancel();
    task.await.unwrap().unwrap();
}
