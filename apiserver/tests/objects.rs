//! Objects: created, read, changed, deleted; and what is refused.

mod common;

use common::{Harness, MAPS, PODS, config_map, node, pod};
use http::Method;
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");
const MERGE: &str = "application/merge-patch+json";

#[tokio::test]
async fn bodies_that_can_not_be_taken() {
    let h = Harness::start().await;
    let admin = h.admin();
    let post = async |content_type: &str, body: String| {
        admin.send(Method::POST, MAPS, &[("content-type", content_type)], body).await
    };
    for broken in ["", "{\"a\":", "[]", "null", "{\"metadata\": 3}", "\u{0}"] {
        let status = post("application/json", broken.into()).await.status;
        assert!(matches!(status.as_u16(), 400 | 422), "{broken}: {status}");
    }
    let deep = format!("{}{}", "{\"a\":".repeat(5000), "1");
    assert_eq!(post("application/json", deep).await.status, 400);
    let yaml = "a: &a [x]\nb: [*a, *a\n";
    assert_eq!(post("application/yaml", yaml.into()).await.status, 400);
    post("text/plain", "x".into()).await.refused(415, "UnsupportedMediaType");
    assert_eq!(post("application/vnd.kubernetes.protobuf", "k8s\0\u{1}".into()).await.status, 400);
    let mut big = config_map("big");
    big["data"]["a"] = "x".repeat(3_200_000).into();
    let message = admin.post(MAPS, &big).await.refused(413, "RequestEntityTooLarge");
    assert_eq!(message, "Request entity too large: limit is 3145728");
    big["data"]["a"] = "x".repeat(1_100_000).into();
    admin.post(MAPS, &big).await.refused(422, "Invalid");
    let mut wrong = config_map("w");
    wrong["data"]["a"] = json!(5);
    admin.post(MAPS, &wrong).await.refused(400, "BadRequest");
    admin.post(MAPS, &config_map("Bad_Name")).await.refused(422, "Invalid");
    let mut elsewhere = config_map("w");
    elsewhere["metadata"]["namespace"] = "other".into();
    admin.post(MAPS, &elsewhere).await.refused(400, "BadRequest");
    admin.post(MAPS, &pod("w")).await.refused(400, "BadRequest");
    let nowhere = "/api/v1/namespaces/none/configmaps";
    let message = admin.post(nowhere, &config_map("w")).await.refused(404, "NotFound");
    assert_eq!(message, "namespaces \"none\" not found");
    let accept = [("accept", "text/html")];
    admin.send(Method::GET, MAPS, &accept, "").await.refused(406, "NotAcceptable");
    h.stop().await;
}

#[tokio::test]
async fn yaml_and_unknown_fields() {
    let h = Harness::start().await;
    let admin = h.admin();
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: written}\ndata: {k: v}\n";
    let typed = [("content-type", "application/yaml")];
    admin.send(Method::POST, MAPS, &typed, yaml).await.expect(201);
    let mut odd = config_map("odd");
    odd["dota"] = json!({});
    let answer = admin.post(MAPS, &odd).await;
    assert_eq!(answer.headers["warning"], "299 - \"unknown field \\\"dota\\\"\"");
    assert_eq!(answer.expect(201)["dota"], Value::Null);
    let strict = format!("{MAPS}?fieldValidation=Strict");
    admin.post(&strict, &odd).await.refused(400, "BadRequest");
    let wrong = format!("{MAPS}?fieldValidation=Maybe");
    admin.post(&wrong, &odd).await.refused(422, "Invalid");
    let got = admin
        .send(Method::GET, &format!("{MAPS}/written"), &[("accept", "application/yaml")], "")
        .await;
    assert!(got.text().contains("k: v"), "{}", got.text());
    h.stop().await;
}

#[tokio::test]
async fn the_server_owns_metadata() {
    let h = Harness::start().await;
    let admin = h.admin();
    let mut sent = config_map("m");
    sent["metadata"]["uid"] = "mine".into();
    sent["metadata"]["creationTimestamp"] = Value::Null;
    let made = admin.post(MAPS, &sent).await.expect(201);
    let metadata = &made["metadata"];
    assert_eq!(metadata["uid"].as_str().unwrap().len(), 36);
    assert!(metadata["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(metadata["namespace"], "default");
    assert_eq!(metadata["managedFields"][0]["operation"], "Update");
    admin.post(MAPS, &sent).await.refused(409, "AlreadyExists");
    let generated = json!({"metadata": {"generateName": "g-"}});
    let name = admin.post(MAPS, &generated).await.expect(201)["metadata"]["name"].clone();
    assert!(name.as_str().unwrap().starts_with("g-") && name.as_str().unwrap().len() == 7);
    admin.post(MAPS, &json!({"metadata": {}})).await.refused(422, "Invalid");
    h.stop().await;
}

#[tokio::test]
async fn optimistic_locks() {
    let h = Harness::start().await;
    let admin = h.admin();
    let path = format!("{MAPS}/o");
    let first = admin.post(MAPS, &config_map("o")).await.expect(201);
    let mut second = first.clone();
    second["data"]["a"] = "2".into();
    let second = admin.put(&path, &second).await.expect(200);
    assert_ne!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let message = admin.put(&path, &first).await.refused(409, "Conflict");
    assert!(message.contains("the object has been modified"), "{message}");
    let same = admin.put(&path, &second).await.expect(200);
    assert_eq!(same["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let stale = json!({"metadata": {"resourceVersion": "1"}, "data": {"a": "3"}});
    admin.patch(&path, MERGE, &stale).await.refused(409, "Conflict");
    let mut other = second.clone();
    other["metadata"]["uid"] = "x".into();
    admin.put(&path, &other).await.refused(409, "Conflict");
    let mut free = second.clone();
    free["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    free["data"]["a"] = "4".into();
    assert_eq!(admin.put(&path, &free).await.expect(200)["data"]["a"], "4");
    let mut misnamed = second;
    misnamed["metadata"]["name"] = "p".into();
    admin.put(&path, &misnamed).await.refused(400, "BadRequest");
    admin.put(&format!("{MAPS}/none"), &config_map("none")).await.refused(404, "NotFound");
    h.stop().await;
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let h = Harness::start().await;
    h.admin().post(MAPS, &config_map("c")).await.expect(201);
    let path = format!("{MAPS}/c");
    let patches = (0..8).map(|i| {
        let (admin, path) = (h.admin(), path.clone());
        async move {
            admin.patch(&path, MERGE, &json!({"data": {format!("k{i}"): "v"}})).await.expect(200)
        }
    });
    futures::future::join_all(patches).await;
    let data = h.admin().get(&path).await.expect(200)["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 9);
    h.stop().await;
}

#[tokio::test]
async fn four_kinds_of_patches() {
    let h = Harness::start().await;
    let admin = h.admin();
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "a:1"}, {"name": "e", "image": "e:1"}]}}},
    });
    admin.post(deployments, &deployment).await.expect(201);
    let path = format!("{deployments}/d");
    let strategic =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "a:2"}]}}}});
    let after =
        admin.patch(&path, "application/strategic-merge-patch+json", &strategic).await.expect(200);
    let containers = after["spec"]["template"]["spec"]["containers"].as_array().unwrap().clone();
    assert_eq!(containers.len(), 2);
    assert_eq!(after["metadata"]["generation"], 2);
    let operations = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
    let after = admin.patch(&path, "application/json-patch+json", &operations).await.expect(200);
    assert_eq!(after["spec"]["replicas"], 3);
    let test = json!([{"op": "test", "path": "/spec/replicas", "value": 9}]);
    admin.patch(&path, "application/json-patch+json", &test).await.refused(422, "Invalid");
    let merge = json!({"metadata": {"labels": {"x": "y"}}});
    let after = admin.patch(&path, MERGE, &merge).await.expect(200);
    assert_eq!(after["metadata"]["generation"], 3, "labels are no change of the spec");
    admin.patch(&path, "application/x", &merge).await.refused(415, "UnsupportedMediaType");
    let bad = json!({"spec": {"replicas": "many"}});
    let status = admin.patch(&path, MERGE, &bad).await.status.as_u16();
    assert!(matches!(status, 400 | 422), "{status}");
    let immutable = json!({"spec": {"selector": {"matchLabels": {"z": "z"}}}});
    admin.patch(&path, MERGE, &immutable).await.refused(422, "Invalid");

    let apply = "application/apply-patch+yaml";
    admin.patch(&path, apply, &deployment).await.refused(422, "Invalid");
    let mut mine = deployment.clone();
    mine["spec"]["replicas"] = 5.into();
    let as_a = format!("{path}?fieldManager=a");
    admin.patch(&as_a, apply, &mine).await.refused(409, "Conflict");
    let after = admin.patch(&format!("{as_a}&force=true"), apply, &mine).await.expect(200);
    assert_eq!(after["spec"]["replicas"], 5);
    mine["metadata"]["name"] = "new".into();
    let created = format!("{deployments}/new?fieldManager=a");
    admin.patch(&created, apply, &mine).await.expect(201);
    let again = admin.patch(&created, apply, &mine).await.expect(200);
    let once_more = admin.patch(&created, apply, &mine).await.expect(200);
    assert_eq!(again["metadata"]["resourceVersion"], once_more["metadata"]["resourceVersion"]);

    let scale = admin.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(5)));
    assert_eq!(scale["status"]["selector"], "a=b");
    admin
        .patch(&format!("{path}/scale"), MERGE, &json!({"spec": {"replicas": -1}}))
        .await
        .refused(422, "Invalid");
    admin
        .patch(&format!("{path}/scale"), MERGE, &json!({"spec": {"replicas": 7}}))
        .await
        .expect(200);
    assert_eq!(admin.get(&path).await.expect(200)["spec"]["replicas"], 7);
    h.stop().await;
}

#[tokio::test]
async fn dry_runs_leave_nothing_behind() {
    let h = Harness::start().await;
    let admin = h.admin();
    let before = admin.get(MAPS).await.expect(200)["metadata"]["resourceVersion"].clone();
    admin.post(&format!("{MAPS}?dryRun=All"), &config_map("d")).await.expect(201);
    admin.get(&format!("{MAPS}/d")).await.refused(404, "NotFound");
    let root = format!("{MAPS}/kube-root-ca.crt");
    admin
        .patch(&format!("{root}?dryRun=All"), MERGE, &json!({"data": {"x": "y"}}))
        .await
        .expect(200);
    admin.delete(&format!("{root}?dryRun=All")).await.expect(200);
    admin.post(&format!("{MAPS}?dryRun=Some"), &config_map("d")).await.refused(422, "Invalid");
    assert_eq!(admin.get(MAPS).await.expect(200)["metadata"]["resourceVersion"], before);
    h.stop().await;
}

#[tokio::test]
async fn deletions() {
    let h = Harness::start().await;
    let admin = h.admin();
    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["example.org/x"]);
    admin.post(MAPS, &held).await.expect(201);
    let path = format!("{MAPS}/held");
    let wrong = json!({"preconditions": {"uid": "x"}}).to_string();
    admin.send(Method::DELETE, &path, &[JSON], wrong).await.refused(409, "Conflict");
    let policy = json!({"propagationPolicy": "Sideways"}).to_string();
    admin.send(Method::DELETE, &path, &[JSON], policy).await.refused(422, "Invalid");
    let going = admin.delete(&path).await.expect(200);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["example.org/x", "example.org/y"]}});
    admin.patch(&path, MERGE, &more).await.refused(422, "Invalid");
    admin.patch(&path, MERGE, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    admin.get(&path).await.refused(404, "NotFound");

    for name in ["a", "b", "c"] {
        let mut map = config_map(name);
        map["metadata"]["labels"] = json!({"l": name});
        admin.post(MAPS, &map).await.expect(201);
    }
    admin.delete(&format!("{MAPS}?labelSelector=l%20in%20(a,b)")).await.expect(200);
    admin.get(&format!("{MAPS}/c")).await.expect(200);
    admin.get(&format!("{MAPS}/a")).await.refused(404, "NotFound");
    let gone = admin.delete(&format!("{MAPS}/c")).await.expect(200);
    assert_eq!((&gone["status"], &gone["details"]["name"]), (&json!("Success"), &json!("c")));
    admin.delete("/api/v1/namespaces/kube-system").await.refused(403, "Forbidden");
    h.stop().await;
}

#[tokio::test]
async fn pods_are_bound_once_and_deleted_with_grace() {
    let h = Harness::start().await;
    let admin = h.admin();
    admin.post("/api/v1/nodes", &node("n1")).await.expect(201);
    let made = admin.post(PODS, &pod("p")).await.expect(201);
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"},
    });
    admin.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    admin.post(&format!("{PODS}/p/binding"), &binding).await.refused(409, "Conflict");
    admin.post("/api/v1/namespaces/default/bindings", &binding).await.refused(409, "Conflict");
    let bound = admin.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    admin.post(&format!("{PODS}/p/eviction"), &eviction).await.expect(201);
    let going = admin.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    admin.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await.expect(200);
    admin.get(&format!("{PODS}/p")).await.refused(404, "NotFound");
    admin.post(PODS, &pod("q")).await.expect(201);
    admin.delete(&format!("{PODS}/q")).await.expect(200);
    admin.get(&format!("{PODS}/q")).await.refused(404, "NotFound");
    let mut lost = pod("r");
    lost["spec"]["serviceAccountName"] = "nobody".into();
    admin.post(PODS, &lost).await.refused(403, "Forbidden");
    h.stop().await;
}

#[tokio::test]
async fn namespaces_end_in_two_steps() {
    let h = Harness::start().await;
    let admin = h.admin();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "t"}});
    admin.post("/api/v1/namespaces", &namespace).await.expect(201);
    let path = "/api/v1/namespaces/t";
    let mut account = admin.get(&format!("{path}/serviceaccounts/default")).await;
    while account.status == 404 {
        tokio::task::yield_now().await;
        account = admin.get(&format!("{path}/serviceaccounts/default")).await;
    }
    let going = admin.delete(path).await.expect(200);
    assert_eq!(going["status"]["phase"], "Terminating");
    let message =
        admin.post(&format!("{path}/configmaps"), &config_map("x")).await.refused(403, "Forbidden");
    assert!(message.contains("because it is being terminated"), "{message}");
    let mut last = admin.get(path).await.expect(200);
    last["spec"]["finalizers"] = json!([]);
    admin.put(&format!("{path}/finalize"), &last).await.expect(200);
    admin.get(path).await.refused(404, "NotFound");
    h.stop().await;
}

#[tokio::test]
async fn services_get_addresses_and_ports_of_their_own() {
    let h = Harness::start().await;
    let admin = h.admin();
    let path = "/api/v1/namespaces/default/services";
    let service = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["ports"] = spec.get("ports").cloned().unwrap_or(json!([{"port": 80}]));
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    };
    let made = futures::future::join_all((0..20).map(|i| {
        let (admin, body) = (h.admin(), service(&format!("s{i}"), json!({"type": "NodePort"})));
        async move { admin.post(path, &body).await.expect(201) }
    }))
    .await;
    let mut seen = std::collections::BTreeSet::new();
    for one in &made {
        let spec = &one["spec"];
        assert!(seen.insert(spec["clusterIP"].to_string()));
        assert!(seen.insert(spec["ports"][0]["nodePort"].to_string()));
    }
    let taken = made[0]["spec"]["clusterIP"].clone();
    admin.post(path, &service("x", json!({"clusterIP": taken}))).await.refused(422, "Invalid");
    admin.post(path, &service("x", json!({"clusterIP": "1.2.3.4"}))).await.refused(422, "Invalid");
    let port = json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]});
    admin.post(path, &service("x", port)).await.refused(422, "Invalid");
    let headless = admin.post(path, &service("x", json!({"clusterIP": "None"}))).await.expect(201);
    assert_eq!(headless["spec"]["clusterIP"], "None");
    let own = admin.get(&format!("{path}/kubernetes")).await.expect(200);
    assert_eq!(own["spec"]["clusterIP"], "10.43.0.1");
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let slice = admin.get(slices).await.expect(200);
    assert_eq!(slice["endpoints"][0]["addresses"][0], "192.0.2.1");
    h.stop().await;
}

#[tokio::test]
async fn events_end_by_themselves() {
    let h = Harness::with(|c| c.event_ttl = std::time::Duration::from_secs(1)).await;
    let admin = h.admin();
    let path = "/api/v1/namespaces/default/events";
    let mut watch = admin.watch(&format!("{path}?watch=1"), "*/*").await;
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default", "uid": "u"},
        "reason": "Testing", "type": "Normal",
    });
    admin.post(path, &event).await.expect(201);
    assert_eq!(watch.step().await.0, "ADDED");
    assert_eq!(watch.step().await.0, "DELETED");
    let view = "/apis/events.k8s.io/v1/namespaces/default/events";
    admin.post(path, &event).await.expect(201);
    let list = admin.get(&format!("{view}?fieldSelector=regarding.name%3Dp")).await.expect(200);
    assert_eq!(list["items"][0]["regarding"]["name"], "p");
    h.stop().await;
}

#[tokio::test]
async fn no_two_nodes_share_a_range_of_addresses() {
    let h = Harness::start().await;
    let admin = h.admin();
    for name in ["n1", "n2"] {
        admin.post("/api/v1/nodes", &node(name)).await.expect(201);
    }
    let range = json!({"spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"]}});
    admin.patch("/api/v1/nodes/n1", MERGE, &range).await.expect(200);
    admin.patch("/api/v1/nodes/n2", MERGE, &range).await.refused(409, "Conflict");
    h.stop().await;
}
