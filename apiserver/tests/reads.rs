//! Lists, watches, tables, protobuf, discovery.

mod common;

use common::{Harness, MAPS, PODS, config_map, pod};
use http::Method;
use serde_json::{Value, json};
use std::io::Read;

const MERGE: &str = "application/merge-patch+json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

async fn fill(h: &Harness, count: usize) {
    for i in 0..count {
        h.admin().post(MAPS, &config_map(&format!("m{i:02}"))).await.expect(201);
    }
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn pages_are_one_consistent_list() {
    let h = Harness::start().await;
    let admin = h.admin();
    fill(&h, 10).await;
    let first = admin.get(&format!("{MAPS}?limit=4")).await.expect(200);
    // Ten of ours and the root CA.
    assert_eq!(first["metadata"]["remainingItemCount"], 7);
    admin.post(MAPS, &config_map("m05x")).await.expect(201);
    admin.delete(&format!("{MAPS}/m09")).await.expect(200);
    let mut all = names(&first);
    let mut page = first.clone();
    while let Some(token) = page["metadata"]["continue"].as_str() {
        page = admin.get(&format!("{MAPS}?limit=4&continue={token}")).await.expect(200);
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        all.extend(names(&page));
    }
    assert_eq!(all.len(), 11);
    assert!(all.contains(&"m09".to_owned()) && !all.contains(&"m05x".to_owned()));
    admin.get(&format!("{MAPS}?continue=zzz")).await.refused(400, "BadRequest");
    admin.get(&format!("{MAPS}?limit=x")).await.refused(400, "BadRequest");
    h.stop().await;
}

#[tokio::test]
async fn revisions_of_lists() {
    let h = Harness::start().await;
    let admin = h.admin();
    fill(&h, 2).await;
    let list = admin.get(MAPS).await.expect(200);
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    admin.delete(&format!("{MAPS}/m00")).await.expect(200);
    let exact = format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact");
    assert_eq!(names(&admin.get(&exact).await.expect(200)), names(&list));
    let not_older = format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=NotOlderThan");
    assert_eq!(names(&admin.get(&not_older).await.expect(200)).len(), 2);
    let future = format!("{MAPS}?resourceVersion=999999&resourceVersionMatch=NotOlderThan");
    let answer = admin.get(&future).await;
    assert_eq!(answer.headers["retry-after"], "1");
    let status = answer.expect(504);
    assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    for (query, code) in [
        ("resourceVersion=abc", 400),
        ("resourceVersion=0&resourceVersionMatch=Exact", 422),
        ("resourceVersionMatch=Exact", 422),
        ("sendInitialEvents=true", 422),
        ("watch=1&resourceVersionMatch=NotOlderThan", 422),
        ("watch=1&sendInitialEvents=true", 422),
        ("labelSelector=a%20in%20b", 400),
        ("fieldSelector=spec.foo%3Dx", 400),
    ] {
        assert_eq!(admin.get(&format!("{MAPS}?{query}")).await.status, code, "{query}");
    }
    h.stop().await;
}

#[tokio::test]
async fn selectors() {
    let h = Harness::start().await;
    let admin = h.admin();
    for (name, node) in [("a", "n1"), ("b", "n2"), ("c", "n1")] {
        let mut p = pod(name);
        p["spec"]["nodeName"] = node.into();
        admin.post(PODS, &p).await.expect(201);
    }
    let select =
        async |query: &str| names(&admin.get(&format!("{PODS}?{query}")).await.expect(200));
    assert_eq!(select("fieldSelector=spec.nodeName%3Dn1").await, ["a", "c"]);
    assert_eq!(select("fieldSelector=spec.nodeName!%3Dn1").await, ["b"]);
    assert_eq!(select("labelSelector=app%3Da").await, ["a"]);
    assert_eq!(select("labelSelector=app+notin+(a,b)").await, ["c"]);
    assert_eq!(select("fieldSelector=metadata.name%3Db").await, ["b"]);
    assert_eq!(select("fieldSelector=status.phase%3DPending&labelSelector=app%3Dc").await, ["c"]);
    h.stop().await;
}

#[tokio::test]
async fn a_watch_tells_every_change_in_order() {
    let h = Harness::start().await;
    let admin = h.admin();
    let list = admin.get(MAPS).await.expect(200);
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut events =
        admin.watch(&format!("{MAPS}?watch=1&resourceVersion={revision}"), "*/*").await;
    admin.post(MAPS, &config_map("w")).await.expect(201);
    admin.patch(&format!("{MAPS}/w"), MERGE, &json!({"data": {"a": "2"}})).await.expect(200);
    admin.delete(&format!("{MAPS}/w")).await.expect(200);
    let mut last = revision.parse::<u64>().unwrap();
    for word in ["ADDED", "MODIFIED", "DELETED"] {
        let event = events.next().await.unwrap();
        assert_eq!(event["type"], word);
        let revision = event["object"]["metadata"]["resourceVersion"].as_str().unwrap();
        let revision: u64 = revision.parse().unwrap();
        assert!(revision > last);
        last = revision;
    }
    h.stop().await;
}

#[tokio::test]
async fn a_watch_begins_with_what_is_there_and_marks_its_end() {
    let h = Harness::start().await;
    let admin = h.admin();
    fill(&h, 2).await;
    let mut events = admin.watch(&format!("{MAPS}?watch=1"), "*/*").await;
    for name in ["kube-root-ca.crt", "m00", "m01"] {
        assert_eq!(events.step().await, ("ADDED".into(), name.to_owned()));
    }
    let path = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut events = admin.watch(&path, "*/*").await;
    for _ in 0..3 {
        assert_eq!(events.step().await.0, "ADDED");
    }
    let mark = events.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["kind"], "ConfigMap");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    admin.post(MAPS, &config_map("after")).await.expect(201);
    assert_eq!(events.step().await, ("ADDED".into(), "after".into()));
    h.stop().await;
}

#[tokio::test]
async fn a_watch_with_a_selector_sees_objects_come_and_go() {
    let h = Harness::start().await;
    let admin = h.admin();
    let path = format!("{MAPS}?watch=1&labelSelector=on%3Dyes");
    let mut events = admin.watch(&path, "*/*").await;
    admin.post(MAPS, &config_map("s")).await.expect(201);
    let label = |v: &str| json!({"metadata": {"labels": {"on": v}}});
    let one = format!("{MAPS}/s");
    for value in ["yes", "no", "yes"] {
        admin.patch(&one, MERGE, &label(value)).await.expect(200);
    }
    admin.patch(&one, MERGE, &json!({"data": {"x": "y"}})).await.expect(200);
    admin.delete(&one).await.expect(200);
    for word in ["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"] {
        let event = events.next().await.unwrap();
        assert_eq!(event["type"], word);
        assert_eq!(event["object"]["metadata"]["labels"]["on"], "yes", "{word}");
    }
    let named = format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Dkube-root-ca.crt");
    let mut events = admin.watch(&named, "*/*").await;
    assert_eq!(events.step().await, ("ADDED".into(), "kube-root-ca.crt".into()));
    h.stop().await;
}

#[tokio::test]
async fn a_watch_ends_when_told_and_at_shutdown() {
    let h = Harness::start().await;
    let admin = h.admin();
    let path = format!("{MAPS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true");
    let mut events = admin.watch(&path, "*/*").await;
    assert_eq!(events.step().await.0, "ADDED");
    while let Some(event) = events.next().await {
        assert_eq!(event["type"], "BOOKMARK");
    }
    let mut events = admin.watch(&format!("{MAPS}?watch=1"), "*/*").await;
    events.next().await;
    h.shutdown.cancel();
    assert!(events.next().await.is_none());
    h.stop().await;
}

#[tokio::test]
async fn tables_and_metadata() {
    let h = Harness::start().await;
    let admin = h.admin();
    admin.post(PODS, &pod("p")).await.expect(201);
    let get = async |path: &str, accept: &str| {
        admin.send(Method::GET, path, &[("accept", accept)], "").await.expect(200)
    };
    let table = get(PODS, TABLE).await;
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"][0]["cells"][0], "p");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let whole = get(&format!("{PODS}?includeObject=Object"), TABLE).await;
    assert_eq!(whole["rows"][0]["object"]["kind"], "Pod");
    let one = get(&format!("{PODS}/p"), TABLE).await;
    assert_eq!(one["rows"].as_array().unwrap().len(), 1);
    let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let list = get(PODS, partial).await;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0]["spec"], Value::Null);
    let mut events = admin.watch(&format!("{PODS}?watch=1"), TABLE).await;
    let first = events.next().await.unwrap();
    assert!(first["object"]["columnDefinitions"].is_array());
    admin
        .patch(&format!("{PODS}/p"), MERGE, &json!({"metadata": {"labels": {"x": "y"}}}))
        .await
        .expect(200);
    let second = events.next().await.unwrap();
    assert_eq!(second["object"]["columnDefinitions"], Value::Null);
    assert_eq!(second["object"]["rows"][0]["cells"][0], "p");
    h.stop().await;
}

#[tokio::test]
async fn protobuf_goes_in_and_out() {
    let h = Harness::start().await;
    let admin = h.admin();
    let protobuf = "application/vnd.kubernetes.protobuf";
    admin.post(PODS, &pod("p")).await.expect(201);
    let accept = [("accept", protobuf)];
    let one = admin.send(Method::GET, &format!("{PODS}/p"), &accept, "").await;
    assert_eq!(one.headers["content-type"], protobuf);
    assert!(one.bytes.starts_with(b"k8s\0"));
    admin.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await.expect(200);
    let both = [("accept", protobuf), ("content-type", protobuf)];
    // What a server gave out has a resourceVersion, which a create must not have.
    admin.send(Method::POST, PODS, &both, one.bytes.clone()).await;
    let list = admin.send(Method::GET, PODS, &accept, "").await;
    assert!(list.bytes.starts_with(b"k8s\0"));
    assert!(list.bytes.windows(7).any(|w| w == b"PodList"));
    let missing = admin.send(Method::GET, &format!("{PODS}/none"), &accept, "").await;
    assert_eq!(missing.status, 404);
    assert!(missing.bytes.starts_with(b"k8s\0"));
    h.stop().await;
}

#[tokio::test]
async fn large_lists_are_compressed_on_demand() {
    let h = Harness::start().await;
    let admin = h.admin();
    for i in 0..4 {
        let mut map = config_map(&format!("big{i}"));
        map["data"]["a"] = "abc".repeat(40_000).into();
        admin.post(MAPS, &map).await.expect(201);
    }
    let plain = admin.get(MAPS).await;
    assert!(plain.headers.get("content-encoding").is_none());
    let zipped = admin.send(Method::GET, MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(zipped.headers["content-encoding"], "gzip");
    assert!(zipped.bytes.len() * 10 < plain.bytes.len());
    let one = format!("{MAPS}/one-large");
    let mut map = config_map("one-large");
    map["data"]["a"] = "abc".repeat(80_000).into();
    admin.post(MAPS, &map).await.expect(201);
    let single = admin.send(Method::GET, &one, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(single.headers["content-encoding"], "gzip");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&zipped.bytes[..]).read_to_string(&mut text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["items"], plain.json()["items"]);
    h.stop().await;
}

#[tokio::test]
async fn discovery_in_all_its_forms() {
    let h = Harness::start().await;
    let admin = h.admin();
    assert_eq!(admin.get("/api").await.expect(200)["kind"], "APIVersions");
    assert_eq!(admin.get("/apis").await.expect(200)["kind"], "APIGroupList");
    assert_eq!(admin.get("/apis/apps").await.expect(200)["preferredVersion"]["version"], "v1");
    let core = admin.get("/api/v1").await.expect(200);
    let found =
        |name: &str| core["resources"].as_array().unwrap().iter().any(|r| r["name"] == name);
    for name in ["pods", "pods/log", "pods/eviction", "bindings", "namespaces/finalize"] {
        assert!(found(name), "{name}");
    }
    for name in ["pods/resize", "services/proxy", "serviceaccounts/token"] {
        assert!(!found(name), "{name} is not served");
    }
    let accept =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let answer = admin.send(Method::GET, "/apis", &[("accept", accept)], "").await;
    let content_type = answer.headers["content-type"].to_str().unwrap();
    assert!(content_type.contains("as=APIGroupDiscoveryList"), "{content_type}");
    let tag = answer.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(answer.expect(200)["kind"], "APIGroupDiscoveryList");
    let known = [("accept", accept), ("if-none-match", tag.as_str())];
    assert_eq!(admin.send(Method::GET, "/apis", &known, "").await.status, 304);
    let index = admin.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap();
    let answer = admin.get(url).await;
    assert_eq!(answer.headers["cache-control"], "public, immutable");
    assert!(answer.expect(200)["paths"].as_object().unwrap().len() > 10);
    assert_eq!(admin.get("/openapi/v3/api/v1?hash=0").await.status, 301);
    let gnostic = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let answer = admin.send(Method::GET, "/openapi/v2", &[("accept", gnostic)], "").await;
    assert!(answer.bytes.len() > 10_000);
    let metrics = admin.get("/metrics").await.text();
    for name in ["apiserver_request_total{", "apiserver_storage_objects{", "process_open_fds"] {
        assert!(metrics.contains(name), "{name}");
    }
    h.stop().await;
}
