//! One member's behaviour as part of a cluster: writes in a term, stale reads, watches without a
//! leader, the members themselves.

use crate::local::{LEADER_TERM, LocalService};
use crate::{ApiServer, ApiServerConfig, Identity, PeerStatus, PeerStatuses};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use rkube_store::Member;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tower::Service;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MEMBERS: &str = "/apis/rkube.dev/v1/members";

struct Host {
    api: Arc<ApiServer>,
    _dir: tempfile::TempDir,
}

struct Answer {
    code: u16,
    headers: http::HeaderMap,
    body: Value,
}

async fn start() -> Host {
    let dir = tempfile::tempdir().unwrap();
    let api = ApiServer::start(ApiServerConfig::new(dir.path())).await.unwrap();
    Host { api, _dir: dir }
}

fn request(method: Method, path: &str, body: &Value) -> Request<Full<Bytes>> {
    let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(Full::new(bytes))
        .unwrap()
}

async fn call(mut service: LocalService, request: Request<Full<Bytes>>) -> Answer {
    let (head, body) = service.call(request).await.unwrap().into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { code: head.status.as_u16(), headers: head.headers, body }
}

impl Host {
    fn admin(&self) -> LocalService {
        self.api.local(Identity::component("test"))
    }

    async fn get(&self, path: &str) -> Answer {
        call(self.admin(), request(Method::GET, path, &Value::Null)).await
    }

    fn term(&self) -> u64 {
        self.api.storage.status().term
    }
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

#[tokio::test]
async fn a_write_of_an_old_term_changes_nothing() {
    let host = start().await;
    let term = host.term();
    let create = |name: &str| request(Method::POST, MAPS, &map(name));
    let now = call(host.admin().with_term(term), create("now")).await;
    assert_eq!(now.code, 201, "{}", now.body);

    let before = host.api.storage.view().revision();
    let one = format!("{MAPS}/now");
    let late = host.admin().with_term(term - 1);
    let patch = json!({"data": {"a": "b"}});
    let mut merge = request(Method::PATCH, &one, &patch);
    merge.headers_mut().insert("content-type", "application/merge-patch+json".parse().unwrap());
    let delete = request(Method::DELETE, &one, &Value::Null);
    for refused in [create("late"), merge, delete] {
        let answer = call(late.clone(), refused).await;
        assert_eq!((answer.code, &answer.body["reason"]), (409, &json!("Conflict")));
        let message = answer.body["message"].as_str().unwrap();
        assert!(message.contains("term") && message.contains("is over"), "{message}");
    }
    assert_eq!(host.api.storage.view().revision(), before);
}

#[tokio::test]
async fn the_header_of_a_term_counts_inside_only() {
    let host = start().await;
    let with = |name: &str, term: &str| {
        let mut request = request(Method::POST, MAPS, &map(name));
        request.headers_mut().insert(LEADER_TERM, term.parse().unwrap());
        request
    };
    let good = host.term().to_string();
    assert_eq!(call(host.admin(), with("a", &good)).await.code, 201);
    assert_eq!(call(host.admin(), with("b", "0")).await.code, 409);
    assert_eq!(call(host.admin(), with("c", "no number")).await.code, 409);
    // The header comes before what the service was made with.
    assert_eq!(call(host.admin().with_term(99), with("d", &good)).await.code, 201);
    // As it comes from the network.
    let outside = with("e", "0").map(|body| body.map_err(Into::into).boxed_unsync());
    let answer = host.api.handle(Identity::component("test"), outside).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_stale_read_says_so() {
    let host = start().await;
    for path in [MAPS.to_owned(), format!("{MAPS}/kube-root-ca.crt")] {
        let fresh = host.get(&path).await;
        assert_eq!((fresh.code, fresh.headers.get("warning")), (200, None));
        let stale = host.get(&format!("{path}?allowStale=true")).await;
        let warning = stale.headers["warning"].to_str().unwrap();
        assert!(warning.starts_with("299 - \"may be stale: member "), "{warning}");
        assert_eq!(stale.body, fresh.body);
    }
    assert_eq!(host.get(&format!("{MAPS}?allowStale=maybe")).await.code, 400);
}

#[tokio::test]
async fn a_revision_of_the_future_is_waited_for() {
    let host = start().await;
    let next = host.api.storage.view().revision() + 1;
    let path = format!("{MAPS}?resourceVersion={next}&resourceVersionMatch=NotOlderThan");
    let (create, read) = tokio::join!(
        async {
            tokio::task::yield_now().await;
            call(host.admin(), request(Method::POST, MAPS, &map("next"))).await
        },
        host.get(&path),
    );
    assert_eq!((create.code, read.code), (201, 200));
    let names: Vec<&Value> =
        read.body["items"].as_array().unwrap().iter().map(|i| &i["metadata"]["name"]).collect();
    assert!(names.contains(&&json!("next")), "{names:?}");
    let never = host.get(&format!("{MAPS}?resourceVersion=99999&resourceVersionMatch=Exact")).await;
    assert_eq!((never.code, &never.body["reason"]), (504, &json!("Timeout")));
    let cause = &never.body["details"]["causes"][0]["reason"];
    assert_eq!(cause, "ResourceVersionTooLarge");
}

#[tokio::test]
async fn watches_end_without_a_leader_unless_they_may_be_stale() {
    let host = start().await;
    let open = |query: &str| {
        let mut service = host.admin();
        let request = request(Method::GET, &format!("{MAPS}?watch=1{query}"), &Value::Null);
        async move { service.call(request).await.unwrap() }
    };
    let ending = open("").await.into_body();
    let mut staying = open("&allowStale=true").await.into_body();
    host.api.contact.set_lost(true);
    let whole = tokio::time::timeout(Duration::from_secs(5), ending.collect()).await;
    let first = String::from_utf8(whole.unwrap().unwrap().to_bytes().to_vec()).unwrap();
    assert!(first.ends_with('\n') && !first.contains("ERROR"), "it ended cleanly: {first}");
    let made = call(host.admin(), request(Method::POST, MAPS, &map("later"))).await;
    assert_eq!(made.code, 201);
    loop {
        let frame = staying.frame().await.expect("the stale watch goes on").unwrap();
        if String::from_utf8_lossy(&frame.into_data().unwrap()).contains("\"later\"") {
            break;
        }
    }
}

struct Others;

impl PeerStatuses for Others {
    fn statuses(
        &self,
        members: Vec<Member>,
        _: Duration,
    ) -> BoxFuture<'static, Vec<Result<PeerStatus, String>>> {
        Box::pin(async move { members.iter().map(|_| Err("gone".into())).collect() })
    }
}

#[tokio::test]
async fn members_are_computed_and_read_only() {
    let host = start().await;
    host.api.ask_peers_by(Arc::new(Others));
    let list = host.get(MEMBERS).await;
    assert_eq!((list.code, &list.body["kind"]), (200, &json!("MemberList")));
    let member = &list.body["items"][0];
    assert_eq!(member["status"]["role"], "leader", "{member}");
    assert_eq!(member["status"]["term"], host.term());
    let name = member["metadata"]["name"].as_str().unwrap();
    let one = format!("{MEMBERS}/{name}");
    assert_eq!(host.get(&one).await.body["metadata"]["uid"], member["metadata"]["uid"]);
    assert_eq!(host.get(&format!("{MEMBERS}/nobody")).await.code, 404);
    let none = host.get(&format!("{MEMBERS}?fieldSelector=metadata.name%3Dnobody")).await;
    assert_eq!(none.body["items"], json!([]));
    // What takes a leader is refused, what does not is not asked of one.
    host.api.contact.set_lost(true);
    assert_eq!(host.get(MEMBERS).await.code, 200);
    for (method, path) in [
        (Method::POST, MEMBERS),
        (Method::DELETE, MEMBERS),
        (Method::PUT, &one),
        (Method::PATCH, &one),
        (Method::GET, "/apis/rkube.dev/v1/members?watch=1"),
    ] {
        let answer = call(host.admin(), request(method.clone(), path, &Value::Null)).await;
        assert_eq!(answer.code, 405, "{method} {path}");
    }
    let mut table = request(Method::GET, MEMBERS, &Value::Null);
    let accept = "application/json;as=Table;g=meta.k8s.io;v=v1";
    table.headers_mut().insert("accept", accept.parse().unwrap());
    let table = call(host.admin(), table).await.body;
    assert_eq!(table["columnDefinitions"][1]["name"], "Role");
    assert_eq!(table["rows"][0]["cells"][1], "leader");
    let groups = host.get("/apis").await.body;
    let named = |g: &Value| g["name"] == "rkube.dev";
    assert!(groups["groups"].as_array().unwrap().iter().any(named));
    let resources = host.get("/apis/rkube.dev/v1").await.body;
    assert_eq!(resources["resources"][0]["shortNames"], json!(["mem"]));
    assert_eq!(resources["resources"][0]["verbs"], json!(["delete", "get", "list"]));
}
