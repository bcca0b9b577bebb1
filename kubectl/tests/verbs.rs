//! Verbs from the command line to the printed bytes, against the recorded answers of an API server.
//!
//! The recording holds `METHOD path[ table]` and the body.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use kube::client::Body;
use rkube_kubectl::client::Http;
use rkube_kubectl::context::Context;
use rkube_kubectl::io::Io;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

const RECORDED: &str = include_str!("recorded.json");

/// What a run printed, sent and ended with.
struct Outcome {
    code: u8,
    out: String,
    err: String,
    writes: Vec<(String, Value)>,
}

/// Answers reads from the recording and writes by what they say.
fn answer(recorded: &Value, method: &str, key: &str, body: &Value) -> (u16, Value) {
    if method == "GET" {
        return match recorded.get(key) {
            Some(found) => (200, found.clone()),
            None => (404, not_found(key)),
        };
    }
    let path = key.split([' ', '?']).nth(1).unwrap_or("");
    match (method, recorded.get(format!("GET {path}"))) {
        ("POST", _) if path.ends_with("/exec") => refuse_exec(key),
        ("POST", _) if body["metadata"]["name"] == "taken" => (
            409,
            json!({"kind": "Status", "reason": "AlreadyExists", "code": 409, "details": {"name": "taken"},
                "message": "deployments.apps \"taken\" already exists"}),
        ),
        ("POST", _) => (201, body.clone()),
        (_, None) => (404, not_found(key)),
        ("DELETE", _) => {
            (200, json!({"kind": "Status", "status": "Success", "details": {"uid": "u"}}))
        }
        (_, Some(found)) => {
            let mut object = found.clone();
            object["metadata"]["resourceVersion"] = "999999".into();
            (200, object)
        }
    }
}

/// By the kubelet in words, or by the API server in a `Status`.
fn refuse_exec(key: &str) -> (u16, Value) {
    if key.contains("command=unassigned") {
        let message = "pod full does not have a host assigned";
        return (400, json!({"kind": "Status", "reason": "BadRequest", "message": message}));
    }
    (404, "container not found (\"c\")\n".into())
}

fn not_found(key: &str) -> Value {
    let path = key.split([' ', '?']).nth(1).unwrap_or("");
    let mut parts = path.rsplit('/');
    let (name, plural) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let group = if path.starts_with("/apis/apps") { ".apps" } else { "" };
    json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404,
        "message": format!("{plural}{group} {name:?} not found"), "details": {"name": name}})
}

async fn run_with(line: &[&str], stdin: &str) -> Outcome {
    let mut recorded: Value = serde_json::from_str(RECORDED).unwrap();
    let mut done = recorded["GET /api/v1/namespaces/t/pods/full"].clone();
    done["status"]["phase"] = "Succeeded".into();
    recorded["GET /api/v1/namespaces/t/pods/done"] = done;
    let recorded = Arc::new(recorded);
    let writes: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
    let log = writes.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (recorded, log) = (recorded.clone(), log.clone());
        async move {
            let table = request
                .headers()
                .get("accept")
                .is_some_and(|a| a.to_str().unwrap().contains("as=Table"));
            let method = request.method().to_string();
            let path = request.uri().to_string();
            let key = format!("{method} {path}{}", if table { " table" } else { "" });
            let body = request.into_body().collect_bytes().await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
            if method != "GET" {
                log.lock().unwrap().push((key.clone(), body.clone()));
            }
            let (code, value) = answer(&recorded, &method, &key, &body);
            let text = match value {
                Value::String(text) => text,
                value => value.to_string(),
            };
            let response = Response::builder().status(code).body(Full::new(Bytes::from(text)));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    let (io, out, err) = Io::memory(stdin);
    let args: Vec<_> =
        std::iter::once("rkubectl").chain(line.iter().copied()).map(Into::into).collect();
    let code = match rkube_kubectl::parse(&args, &io) {
        Err(code) => code,
        Ok(cli) => {
            let client = kube::Client::new(service, "default");
            let http = Http::new(client, io.clone(), "https://fake:6443");
            let now = "2026-11-21T04:30:00Z".parse().unwrap();
            let context = Context::with_http(cli.global.clone(), io, http).at(now);
            rkube_kubectl::run(&context, cli.verb).await
        }
    };
    let writes = writes.lock().unwrap().clone();
    Outcome { code, out: out.text(), err: err.text(), writes }
}

async fn run(line: &str) -> Outcome {
    run_with(&line.split(' ').collect::<Vec<_>>(), "").await
}

/// What the time zone changes.
fn timeless(text: &str) -> String {
    let dates = regex::Regex::new(r"\w{3}, \d\d \w{3} \d{4} [\d:]+ [+-]\d{4}").unwrap();
    dates.replace_all(text, "DATE").into_owned()
}

macro_rules! golden {
    ($name:ident, $line:expr) => {
        #[tokio::test]
        async fn $name() {
            let o = run($line).await;
            let shown = format!("exit {}\n{}{}", o.code, timeless(&o.out), o.err);
            insta::assert_snapshot!(stringify!($name), shown);
        }
    };
}

golden!(get_deployments, "-n t get deploy");
golden!(get_several_types, "-n t get deploy,rs,pods");
golden!(get_wide, "-n t get deploy web -o wide");
golden!(get_labels, "-n t get pods --show-labels -L app");
golden!(get_yaml, "-n t get deploy web -o yaml");
golden!(get_json, "-n t get cm cm1 -o json");
golden!(get_name, "-n t get deploy web -o name");
golden!(get_jsonpath, "-n t get deploy web -o jsonpath={.spec.replicas}");
golden!(
    get_columns,
    "-n t get deploy web -o custom-columns=N:.metadata.name,R:.spec.replicas,L:.metadata.labels"
);
golden!(get_missing, "-n t get pod none");
golden!(get_missing_and_present, "-n t get pod/none deploy/web");
golden!(get_bad_format, "get pods -o nope");
golden!(get_nothing_named, "get");
golden!(describe_deployment, "-n t describe deploy web");
golden!(describe_pod, "-n t describe pod full");
golden!(describe_service, "-n t describe svc web");
golden!(describe_config_map, "-n t describe cm cm1");
golden!(describe_secret, "-n t describe secret s1");
golden!(describe_node, "describe node node1");
golden!(describe_namespace, "describe ns t");
golden!(history, "-n t rollout history deployment/web");
golden!(explain_field, "explain deployment.spec.strategy");
golden!(apply_without_files, "apply");
golden!(apply_missing_file, "apply -f none.yaml");
golden!(create_taken, "-n t create deployment taken --image=nginx");
golden!(scale_guarded, "-n t scale deployment web --current-replicas=9 --replicas=4");
golden!(set_image_unknown, "-n t set image deployment/web nope=nginx:2");
golden!(label_twice, "-n t label deployment web app=z");
golden!(undo_unknown, "-n t rollout undo deployment/web --to-revision=99");
golden!(wait_gone_already, "-n t wait --for=delete pod/none --timeout=1s");

const MANIFEST: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, labels: {app: web}}\nspec:\n  replicas: 5\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec: {containers: [{name: c, image: \"nginx:1\", ports: [{containerPort: 80}]}]}\n";

#[tokio::test]
async fn apply_sends_only_what_changed() {
    let o = run_with(&["-n", "t", "apply", "-f", "-"], MANIFEST).await;
    assert_eq!((o.code, o.out.as_str()), (0, "deployment.apps/web configured\n"), "{}", o.err);
    let [(key, patch)] = o.writes.as_slice() else { panic!("{:?}", o.writes) };
    assert_eq!(
        key,
        "PATCH /apis/apps/v1/namespaces/t/deployments/web?fieldManager=kubectl-client-side-apply&fieldValidation=Strict"
    );
    assert_eq!(patch["spec"], json!({"replicas": 5}));
    let keys: Vec<_> = patch["metadata"]["annotations"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["kubectl.kubernetes.io/last-applied-configuration"]);
}

#[tokio::test]
async fn apply_again_changes_nothing() {
    let same = MANIFEST.replace("replicas: 5", "replicas: 2");
    let o = run_with(&["-n", "t", "apply", "-f", "-"], &same).await;
    assert_eq!((o.code, o.out.as_str()), (0, "deployment.apps/web unchanged\n"), "{}", o.err);
    assert!(o.writes.is_empty(), "{:?}", o.writes);
}

#[tokio::test]
async fn apply_creates_what_is_missing() {
    let other = MANIFEST.replace("name: web,", "name: new,");
    let o = run_with(&["-n", "t", "apply", "-f", "-"], &other).await;
    assert_eq!((o.code, o.out.as_str()), (0, "deployment.apps/new created\n"), "{}", o.err);
    let (key, object) = &o.writes[0];
    assert!(key.starts_with("POST /apis/apps/v1/namespaces/t/deployments?"), "{key}");
    let last =
        object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
            .as_str()
            .unwrap();
    assert!(
        last.starts_with(
            "{\"apiVersion\":\"apps/v1\",\"kind\":\"Deployment\",\"metadata\":{\"annotations\":{},"
        ),
        "{last}"
    );
    assert!(last.ends_with("}\n"));
}

#[tokio::test]
async fn a_changed_image_is_patched_by_its_container() {
    let o = run("-n t set image deployment/web c=nginx:2").await;
    assert_eq!(o.out, "deployment.apps/web image updated\n");
    assert_eq!(
        o.writes[0].1,
        json!({"spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "c"}],
            "containers": [{"name": "c", "image": "nginx:2"}]}}}})
    );
}

#[tokio::test]
async fn deletes_say_how() {
    let o =
        run("-n t delete deployment web --cascade=foreground --grace-period=5 --wait=false").await;
    assert_eq!((o.code, o.out.as_str()), (0, "deployment.apps \"web\" deleted\n"));
    assert_eq!(o.writes[0].1, json!({"propagationPolicy": "Foreground", "gracePeriodSeconds": 5}));
}

#[tokio::test]
async fn broken_manifests_name_the_place() {
    let o =
        run_with(&["apply", "-f", "-"], "apiVersion: v1\nkind: Pod\n  metadata: {name: x\n").await;
    assert_eq!(o.code, 1);
    assert_eq!(
        o.err,
        "error: error parsing STDIN: error converting YAML to JSON: yaml: line 3: mapping values are not allowed in this context\nSTDIN:3:11: mapping values are not allowed in this context\n"
    );
}

#[tokio::test]
async fn what_can_not_be_joined_says_why() {
    for (line, told) in [
        (
            "-n t exec full -q -- ls",
            "error: unable to upgrade connection: container not found (\"c\")\n",
        ),
        (
            "-n t exec full -q -- unassigned",
            "Error from server (BadRequest): pod full does not have a host assigned\n",
        ),
        (
            "-n t exec done -- ls",
            "error: cannot exec into a container in a completed pod; current phase is Succeeded\n",
        ),
        (
            "-n t attach done",
            "error: cannot attach a container in a completed pod; current phase is Succeeded\n",
        ),
        (
            "-n t cp Cargo.toml done:/x",
            "error: cannot exec into a container in a completed pod; current phase is Succeeded\n",
        ),
        (
            "-n t port-forward done 0:80",
            "error: unable to forward port because pod is not running. Current status=Succeeded\n",
        ),
    ] {
        let o = run(line).await;
        assert_eq!((o.code, o.err.as_str()), (1, told), "{line}");
    }
}

#[tokio::test]
async fn nobody_listens() {
    let (io, _, err) = Io::memory("");
    let args = ["rkubectl", "-s", "http://127.0.0.1:1", "get", "pods"].map(Into::into);
    let cli = rkube_kubectl::parse(&args, &io).unwrap_or_else(|_| panic!());
    let code = rkube_kubectl::run(&Context::new(cli.global.clone(), io), cli.verb).await;
    assert_eq!(code, 1);
    let text = err.text();
    assert!(text.starts_with("The connection to the server 127.0.0.1:1 was refused - did you specify the right host or port?\n"), "{text}");
    assert!(text.contains("Tried http://127.0.0.1:1.") && text.contains("rkube up"), "{text}");
}
