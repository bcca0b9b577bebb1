//! Who may join the control plane, who may remove from it, and who gets a snapshot.

mod common;

use common::{Client, Harness};
use http::Method;
use rkube_apiserver::member_requests::{ClusterSettings, MemberRequest, PATH};
use serde_json::{Value, json};

async fn token(h: &Harness, request: &Value) -> String {
    let made = h.admin().post("/rkube/v1/tokens", request).await.expect(201);
    let text = made["token"].as_str().unwrap().to_owned();
    text.split_once(':').unwrap().0.to_owned()
}

fn request(h: &Harness) -> MemberRequest {
    MemberRequest {
        name: "m2".into(),
        peer_address: "192.0.2.2:2380".into(),
        api_url: "https://192.0.2.2:6443".into(),
        version: "0.1.0".into(),
        settings: ClusterSettings::of(h.server.config()),
    }
}

async fn ask(client: &Client, token: &str, request: &MemberRequest) -> common::Answer {
    let bearer = format!("Bearer {token}");
    let body = serde_json::to_string(request).unwrap();
    client.send(Method::POST, PATH, &[("authorization", &bearer)], body).await
}

#[tokio::test]
async fn joining_takes_a_token_for_members() {
    let h = Harness::start().await;
    let (nobody, good) = (h.anonymous(), request(&h));
    for wrong in ["", "a.b", "abcdef.0123"] {
        ask(&nobody, wrong, &good).await.refused(401, "Unauthorized");
    }
    let node = token(&h, &json!({"role": "node"})).await;
    let said = ask(&nobody, &node, &good).await.refused(403, "Forbidden");
    assert!(said.contains("for nodes only"), "{said}");
    let own = h.server.create_token(std::time::Duration::from_secs(60)).await.unwrap();
    ask(&nobody, own.split(':').next().unwrap(), &good).await.refused(403, "Forbidden");

    let any = token(&h, &json!({})).await;
    let mut other = good.clone();
    other.settings.service_cidr = "10.9.0.0/16".into();
    let said = ask(&nobody, &any, &other).await.refused(400, "BadRequest");
    assert!(said.contains("10.9.0.0/16") && said.contains("10.43.0.0/16"), "{said}");
    // Nobody could reach this one: it has no peer port.
    let said = ask(&nobody, &any, &good).await.refused(503, "ServiceUnavailable");
    assert!(said.contains("peer port"), "{said}");
    nobody.get(PATH).await.refused(405, "MethodNotAllowed");
    let bearer = format!("Bearer {any}");
    let headers = [("authorization", bearer.as_str())];
    nobody.send(Method::POST, PATH, &headers, "{").await.refused(400, "BadRequest");
    h.admin().post("/rkube/v1/tokens", &json!({"role": "king"})).await.refused(400, "BadRequest");
    h.stop().await;
}

#[tokio::test]
async fn removals_and_snapshots_are_for_administrators() {
    let h = Harness::start().await;
    let path = format!("{PATH}/m2");
    for stranger in [h.node("n1"), h.user("somebody", None)] {
        stranger.delete(&path).await.refused(403, "Forbidden");
        stranger.get("/rkube/v1/snapshot").await.refused(403, "Forbidden");
    }
    h.anonymous().delete(&path).await.refused(401, "Unauthorized");
    h.anonymous().get("/rkube/v1/snapshot").await.refused(401, "Unauthorized");
    let said = h.admin().delete(&path).await.refused(404, "NotFound");
    assert!(said.contains("\"m2\""), "{said}");
    let own = format!("{PATH}/{:x}?force=true", h.server.store().identity().member_id);
    let said = h.admin().delete(&own).await.refused(409, "Conflict");
    assert!(said.contains("last member"), "{said}");
    h.stop().await;
}

#[tokio::test]
async fn a_removed_member_does_not_start_again() {
    let h = Harness::start().await;
    let (config, identity) = (h.server.config().clone(), h.server.store().identity());
    let _dir = h.stop().await;
    let store_dir = config.store_dir();
    rkube_apiserver::member_file::MemberFile::mark_removed(&store_dir, identity).unwrap();
    let error = rkube_apiserver::ApiServer::start(config).await.err().unwrap().to_string();
    assert!(error.contains("was removed from its cluster") && error.contains("--join"), "{error}");
}
