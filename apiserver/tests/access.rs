//! Who gets in, who may do what, and what the doors do with bad visitors.

mod common;

use common::{Harness, MAPS, PODS, config_map, node, pod};
use http::Method;
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn strangers_see_health_and_version_only() {
    let h = Harness::start().await;
    let nobody = h.anonymous();
    for path in ["/healthz", "/livez", "/readyz", "/version", "/rkube/v1/ca"] {
        assert_eq!(nobody.get(path).await.status, 200, "{path}");
    }
    for path in ["/api", "/apis", MAPS, "/metrics", "/openapi/v2", "/"] {
        nobody.get(path).await.refused(401, "Unauthorized");
    }
    let bearer = [("authorization", "Bearer wrong")];
    nobody.send(Method::GET, MAPS, &bearer, "").await.refused(401, "Unauthorized");
    assert!(nobody.get("/readyz?verbose").await.text().contains("[+]store ok"));
    h.stop().await;
}

#[tokio::test]
async fn a_user_without_rights_is_told_so() {
    let h = Harness::start().await;
    let jane = h.user("jane", None);
    let message = jane.get(PODS).await.refused(403, "Forbidden");
    assert_eq!(
        message,
        r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    jane.get("/api").await.expect(200);
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}},
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(jane.post(path, &review).await.expect(201)["status"]["allowed"], false);
    assert_eq!(h.admin().post(path, &review).await.expect(201)["status"]["allowed"], true);
    let who = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = jane.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &who).await;
    assert_eq!(answer.expect(201)["status"]["userInfo"]["username"], "jane");
    h.stop().await;
}

#[tokio::test]
async fn a_node_is_held_to_its_own() {
    let h = Harness::start().await;
    let admin = h.admin();
    let (n1, n2) = (h.node("n1"), h.node("n2"));
    n1.post("/api/v1/nodes", &node("n2")).await.refused(403, "Forbidden");
    n1.post("/api/v1/nodes", &node("n1")).await.expect(201);
    let secret =
        |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    for name in ["mine", "other"] {
        admin.post("/api/v1/namespaces/default/secrets", &secret(name)).await.expect(201);
    }
    let mut p = pod("p");
    p["spec"]["nodeName"] = "n1".into();
    p["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "mine"}}]);
    admin.post(PODS, &p).await.expect(201);
    n1.get("/api/v1/namespaces/default/secrets/mine").await.expect(200);
    n1.get("/api/v1/namespaces/default/secrets/other").await.refused(403, "Forbidden");
    n2.get("/api/v1/namespaces/default/secrets/mine").await.refused(403, "Forbidden");
    n1.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.expect(200);
    n1.get("/api/v1/pods").await.refused(403, "Forbidden");
    n2.get(&format!("{PODS}/p")).await.refused(403, "Forbidden");
    let status = json!({"status": {"phase": "Running"}});
    let merge = "application/merge-patch+json";
    n2.patch(&format!("{PODS}/p/status"), merge, &status).await.refused(403, "Forbidden");
    let done = n1.patch(&format!("{PODS}/p/status"), merge, &status).await.expect(200);
    assert_eq!(done["status"]["phase"], "Running");
    for taken in [
        json!({"labels": {"app": "q"}}),
        json!({"ownerReferences": [
        {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}),
    ] {
        let patch = json!({"metadata": taken});
        let answer = n1.patch(&format!("{PODS}/p/status"), merge, &patch).await;
        // Refused, or taken without the change.
        if answer.status != 403 {
            let metadata = answer.expect(200)["metadata"].clone();
            assert_eq!(
                (&metadata["labels"]["app"], &metadata["ownerReferences"]),
                (&json!("p"), &serde_json::Value::Null)
            );
        }
    }
    let label = json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}}});
    n1.patch("/api/v1/nodes/n1", merge, &label).await.refused(403, "Forbidden");
    let taint = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    n1.patch("/api/v1/nodes/n1", merge, &taint).await.refused(403, "Forbidden");
    let fine = json!({"metadata": {"labels": {"mine": "x"}}});
    n1.patch("/api/v1/nodes/n1", merge, &fine).await.expect(200);
    n2.delete(&format!("{PODS}/p")).await.refused(403, "Forbidden");
    h.stop().await;
}

#[tokio::test]
async fn joining_takes_a_token() {
    let h = Harness::start().await;
    let nobody = h.anonymous();
    let made = h.admin().post("/rkube/v1/tokens", &json!({"ttlSeconds": 60})).await.expect(201);
    let text = made["token"].as_str().unwrap().to_owned();
    let (token, hash) = text.split_once(":sha256:").unwrap();
    assert_eq!(hash, h.server.pki().ca_hash().unwrap());
    assert_eq!(nobody.get("/rkube/v1/ca").await.text(), h.server.ca_pem());
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let body =
        |name: &str| json!({"nodeName": name, "addresses": ["127.0.0.1"], "csr": csr}).to_string();
    let join = async |token: &str, name: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        nobody.send(Method::POST, "/rkube/v1/join", &headers, body(name)).await
    };
    let last = if token.ends_with('x') { "y" } else { "x" };
    let wrong = format!("{}{last}", &token[..token.len() - 1]);
    join(&wrong, "n1").await.refused(401, "Unauthorized");
    join("", "n1").await.refused(401, "Unauthorized");
    join("a.b", "n1").await.refused(401, "Unauthorized");
    join(token, "Bad Name").await.refused(422, "Invalid");
    for _ in 0..2 {
        let answer = join(token, "n1").await.expect(201);
        assert_eq!(answer["clusterDNS"], "10.43.0.10");
        assert_eq!(answer["clusterID"].as_str().unwrap().len(), 36);
        let pair = rkube_apiserver::pki::Pair {
            certificate: answer["certificate"].as_str().unwrap().into(),
            key: key.serialize_pem(),
        };
        let node = h.client(Some(pair));
        node.get("/api/v1/nodes/n1").await.refused(404, "NotFound");
        node.get("/api/v1/pods").await.refused(403, "Forbidden");
    }
    let expired = h.server.create_token(Duration::ZERO).await.unwrap();
    join(expired.split(':').next().unwrap(), "n1").await.refused(401, "Unauthorized");
    h.node("n1").post("/rkube/v1/tokens", &json!({})).await.refused(403, "Forbidden");
    h.stop().await;
}

#[tokio::test]
async fn paths_mean_one_thing_only() {
    let h = Harness::start().await;
    let admin = h.admin();
    for path in [
        "/api/v1/namespaces/../secrets",
        "/api/v1/namespaces/%2e%2e/secrets",
        "/api/v1//pods",
        "/api/v1/namespaces/default%2fsecrets/x",
    ] {
        admin.get(path).await.refused(400, "BadRequest");
    }
    admin.get("/api/v1/foos").await.refused(404, "NotFound");
    assert_eq!(admin.get("/apis/a.b/v1").await.status, 404);
    admin.put(MAPS, &config_map("x")).await.refused(405, "MethodNotAllowed");
    h.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let h = Harness::start().await;
    h.admin().post(MAPS, &config_map("kept")).await.expect(201);
    let ca = h.server.ca_pem().to_owned();
    let dir = h.stop().await;
    let config = rkube_apiserver::ApiServerConfig::new(dir.path());
    let server = rkube_apiserver::ApiServer::start(config).await.unwrap();
    assert_eq!(server.ca_pem(), ca);
    let request = http::Request::get(format!("{MAPS}/kept"))
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let mut local = server.local(rkube_apiserver::Identity::component("test"));
    let answer = tower::Service::call(&mut local, request).await.unwrap();
    assert_eq!(answer.status(), 200);
    server.shutdown().await;
}
