//! Logs and upgraded connections go through to the kubelet of the pod's node, and only to it.

mod common;

use bytes::Bytes;
use common::{Harness, PODS, node, pod};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rkube_apiserver::pki::Pair;
use serde_json::json;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A kubelet that tells what it was asked, and echoes on upgraded connections.
async fn kubelet(h: &Harness, name: &str) -> u16 {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let address = IpAddr::from([127, 0, 0, 1]);
    let certificate = h.server.pki().sign_node(&csr, name, &[address], SystemTime::now()).unwrap();
    let (chain, key) = Pair { certificate, key: key.serialize_pem() }.der().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .with_upgrades()
                    .await;
            });
        }
    });
    port
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let asked = format!("{} {}", request.method(), request.uri());
    let protocol = request.headers().get("upgrade").cloned();
    let refuses = request.uri().path().starts_with("/attach");
    let Some(protocol) = protocol.filter(|_| !refuses) else {
        let mut response = Response::new(Full::from(asked));
        if refuses {
            *response.status_mut() = StatusCode::FORBIDDEN;
        }
        return Ok(response);
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgraded.await.unwrap());
        stream.write_all(asked.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("upgrade", protocol);
    response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    Ok(response)
}

async fn with_pod(h: &Harness, port: u16) {
    let mut n = node("n1");
    n["status"]["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": port}});
    h.admin().post("/api/v1/nodes", &n).await.expect(201);
    let mut p = pod("p");
    p["spec"]["nodeName"] = "n1".into();
    h.admin().post(PODS, &p).await.expect(201);
}

#[tokio::test]
async fn logs_are_passed_on() {
    let h = Harness::start().await;
    let port = kubelet(&h, "n1").await;
    with_pod(&h, port).await;
    let admin = h.admin();
    let logs = admin.get(&format!("{PODS}/p/log?tailLines=5&follow=true&junk=1")).await;
    assert_eq!(logs.text(), "GET /containerLogs/default/p/c?follow=true&tailLines=5");
    admin.get(&format!("{PODS}/p/log?container=x")).await.refused(400, "BadRequest");
    admin.get(&format!("{PODS}/none/log")).await.refused(404, "NotFound");
    admin.post(PODS, &pod("unbound")).await.expect(201);
    let message = admin.get(&format!("{PODS}/unbound/log")).await.refused(400, "BadRequest");
    assert!(message.contains("does not have a host assigned"), "{message}");
    h.stop().await;
}

#[tokio::test]
async fn upgrades_are_passed_byte_for_byte() {
    let h = Harness::start().await;
    let port = kubelet(&h, "n1").await;
    with_pod(&h, port).await;
    let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let path = format!("{PODS}/p/exec?command=ls&command=-l%20x&stdin=true&stdout=true&tty=false");
    let mut response = h.admin().try_send(Method::POST, &path, &upgrade, "").await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let expected = "POST /exec/default/p/c?input=1&output=1&command=ls&command=-l%20x";
    let mut head = vec![0; expected.len()];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(String::from_utf8(head).unwrap(), expected);
    let bytes: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sent = bytes.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut echoed = Vec::new();
    reader.read_to_end(&mut echoed).await.unwrap();
    writing.await.unwrap();
    assert_eq!(echoed, bytes);
    h.stop().await;
}

#[tokio::test]
async fn a_refused_upgrade_comes_back_as_it_is() {
    let h = Harness::start().await;
    let port = kubelet(&h, "n1").await;
    with_pod(&h, port).await;
    let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let response =
        h.admin().try_send(Method::GET, &format!("{PODS}/p/attach"), &upgrade, "").await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "GET /attach/default/p/c");
    h.stop().await;
}

#[tokio::test]
async fn only_the_node_itself_is_talked_to() {
    let h = Harness::start().await;
    let port = kubelet(&h, "other").await;
    with_pod(&h, port).await;
    let message = h.admin().get(&format!("{PODS}/p/log")).await.refused(500, "InternalError");
    assert!(message.contains("error dialing backend"), "{message}");
    h.stop().await;
}

#[tokio::test]
async fn a_node_that_claims_the_servers_address_gets_nothing() {
    let h = Harness::start().await;
    with_pod(&h, h.address.port()).await;
    let message = h.admin().get(&format!("{PODS}/p/log")).await.refused(500, "InternalError");
    assert!(message.contains("error dialing backend"), "{message}");
    h.stop().await;
}
