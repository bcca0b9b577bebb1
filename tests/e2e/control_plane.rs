//! The API server by itself: bad input, identities, restarts.

use crate::Test;
use crate::cluster::{Cluster, eventually, run};

pub const TESTS: &[Test] = &[
    ("bad_input_is_told_as_kubectl_users_know_it", bad_input),
    ("broken_yaml_names_line_and_column", broken_yaml),
    ("nobody_gets_in_without_a_certificate", nobody_gets_in),
    ("a_second_server_on_the_data_directory_is_refused", second_server),
    ("an_unreachable_server_says_what_was_tried", unreachable),
    ("killed_and_started_again_everything_is_as_before", killed_and_started),
    ("a_wrong_token_joins_nothing", wrong_token),
];

fn refused(cluster: &Cluster, manifest: &str) -> String {
    let rkubectl = env!("CARGO_BIN_EXE_rkubectl");
    cluster.kubectl_with(rkubectl, &["apply", "-f", "-"], manifest).fails()
}

fn deployment(name: &str, change: &str) -> String {
    let base = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: 1\n  \
         selector: {{matchLabels: {{a: b}}}}\n  template:\n    metadata: {{labels: {{a: b}}}}\n    \
         spec:\n      containers: [{{name: c, image: registry.rkube.local/web:1}}]\n"
    );
    let (from, to) = change.split_once(" => ").unwrap_or(("", ""));
    if from.is_empty() { base } else { base.replacen(from, to, 1) }
}

fn bad_input(cluster: &Cluster) {
    let cases = [
        (
            "replicas: 1 => replicas: -1",
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        ("replicas: 1 => replicas: one", "replicas"),
        ("replicas: 1 => replcas: 1", "unknown field \"spec.replcas\""),
        (
            "matchLabels: {a: b} => matchLabels: {a: c}",
            "`selector` does not match template `labels`",
        ),
        (
            "image: registry.rkube.local/web:1 => image: ''",
            "spec.template.spec.containers[0].image: Required value",
        ),
        ("labels: {a: b} => labels: {'a b': b}", "Invalid value: \"a b\""),
    ];
    for (change, expected) in cases {
        let answer = refused(cluster, &deployment("bad", change));
        assert!(answer.contains(expected), "{change}: {answer}");
    }
    let answer = refused(cluster, &deployment("Bad_Name", ""));
    assert!(answer.contains("a lowercase RFC 1123 subdomain must consist of"), "{answer}");
    let none = cluster.rkubectl(&["get", "deployments", "-A", "-o", "name"]).ok();
    assert!(!none.contains("bad"), "{none}");
}

fn broken_yaml(cluster: &Cluster) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broken.yaml");
    std::fs::write(&file, "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: [x\ndata: {}\n")
        .unwrap();
    let answer = cluster.rkubectl(&["apply", "-f", &file.display().to_string()]).fails();
    assert!(answer.contains("broken.yaml"), "{answer}");
    assert!(answer.contains(":5:") || answer.contains("line 5"), "{answer}");
    let bomb: String = (1..30).fold("a0: &a0 [x]\n".into(), |text, n| {
        let before = n - 1;
        format!("{text}a{n}: &a{n} [*a{before}, *a{before}, *a{before}, *a{before}]\n")
    });
    std::fs::write(&file, bomb).unwrap();
    let answer = cluster.rkubectl(&["apply", "-f", &file.display().to_string()]).fails();
    assert!(answer.contains("alias"), "{answer}");
}

fn nobody_gets_in(_: &Cluster) {
    let curl = |args: &[&str]| {
        let mut all = vec!["-sk", "-o", "/dev/null", "-w", "%{http_code}"];
        all.extend(args);
        run("curl", &all).stdout
    };
    let pods = "https://127.0.0.1:6443/api/v1/pods";
    assert_eq!(curl(&[pods]), "401");
    assert_eq!(curl(&["-H", "Authorization: Bearer abcdef.0123456789", pods]), "401");
    assert_eq!(curl(&["https://127.0.0.1:6443/readyz"]), "200");
    assert_eq!(curl(&["https://127.0.0.1:6443/version"]), "200");
    let dots = "https://127.0.0.1:6443/api/v1/namespaces/../pods";
    assert_ne!(curl(&["--path-as-is", dots]), "200");
    // A node's own server lets only the API server in.
    assert_ne!(curl(&["https://10.99.0.11:10250/pods"]), "200");
}

fn second_server(cluster: &Cluster) {
    let dir = cluster.data_dir().display().to_string();
    let rkube = env!("CARGO_BIN_EXE_rkube");
    let args = ["server", "--no-agent", "--secure-port", "7443", "--data-dir", &dir];
    let answer = run("timeout", &[&[("20"), rkube][..], &args[..]].concat()).fails();
    assert!(answer.contains(&dir), "{answer}");
    let free = tempfile::tempdir().unwrap();
    let free = free.path().display().to_string();
    let args = ["20", rkube, "server", "--no-agent", "--data-dir", &free];
    let answer = run("timeout", &args).fails();
    assert!(answer.contains("6443"), "the port is taken: {answer}");
}

fn unreachable(cluster: &Cluster) {
    let answer = cluster.rkubectl(&["get", "pods", "--server", "https://127.0.0.1:1"]).fails();
    assert!(answer.contains("127.0.0.1:1"), "{answer}");
}

fn killed_and_started(cluster: &Cluster) {
    cluster.rkubectl(&["create", "configmap", "kept", "--from-literal=a=b"]).ok();
    let before = cluster.get(&["configmap", "kept"], "{.metadata.uid} {.metadata.resourceVersion}");
    cluster.node("kill", "control-plane");
    cluster.node("start", "control-plane");
    let after = eventually("the configmap is back", 20, || {
        let now =
            cluster.get(&["configmap", "kept"], "{.metadata.uid} {.metadata.resourceVersion}");
        (!now.is_empty()).then_some(now)
    });
    assert_eq!(before, after);
    cluster.rkubectl(&["delete", "configmap", "kept"]).ok();
}

fn wrong_token(_: &Cluster) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display().to_string();
    let token = format!("aaaaaa.{}:sha256:{}", "b".repeat(32), "0".repeat(64));
    let rkube = env!("CARGO_BIN_EXE_rkube");
    let server = "https://127.0.0.1:6443";
    let args = ["20", rkube, "agent", "--server", server, "--token", &token, "--data-dir", &dir];
    let answer = run("timeout", &args).fails();
    assert!(answer.contains("certificate authority"), "{answer}");
}
