//! Every real kubectl from 1.27 on that this machine has.

use crate::Test;
use crate::cluster::{Cluster, eventually, run};

pub const TESTS: &[Test] = &[
    ("every_kubectl_applies_and_deletes", every_kubectl),
    ("every_kubectl_runs_commands_in_a_container", every_exec),
    ("rkubectl_prints_what_kubectl_prints", same_output),
];

/// Minor version and path of every kubectl that is a target.
pub fn kubectls() -> Vec<(u32, String)> {
    let find =
        "ls /usr/bin/kubectl* /usr/local/bin/kubectl* /usr/lib/*/bin/kubectl* 2>/dev/null; true";
    let listed = run("sh", &["-c", find]).ok();
    let mut found: Vec<(u32, String)> = Vec::new();
    for path in listed.lines() {
        let version = run(path, &["version", "--client", "-o", "json"]);
        let Ok(json) = serde_json::from_str::<serde_json::Value>(&version.stdout) else { continue };
        let minor = json["clientVersion"]["minor"].as_str().unwrap_or("0");
        let minor: u32 = minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
        if minor >= 27 && !found.iter().any(|(m, _)| *m == minor) {
            found.push((minor, path.into()));
        }
    }
    assert!(
        !found.is_empty(),
        "no kubectl of 1.27 or newer on this machine: install one, any will do"
    );
    found
}

fn every_kubectl(cluster: &Cluster) {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/deploy.yaml");
    for (minor, kubectl) in kubectls() {
        let namespace = cluster.namespace(&format!("k{minor}"));
        let ns = namespace.name.as_str();
        let k = |args: &[&str]| cluster.kubectl(&kubectl, &[&["-n", ns], args].concat());
        let applied = k(&["apply", "-f", manifest]).ok();
        assert!(applied.contains("deployment.apps/web created"), "{minor}: {applied}");
        k(&["rollout", "status", "deploy/web", "--timeout=90s"]).ok();
        let again = k(&["apply", "-f", manifest]).ok();
        assert!(again.contains("deployment.apps/web unchanged"), "{minor}: {again}");
        k(&["diff", "-f", manifest]).ok();
        k(&["apply", "--server-side", "--force-conflicts", "-f", manifest]).ok();
        k(&["scale", "deploy/web", "--replicas=1"]).ok();
        k(&["set", "image", "deploy/web", "web=registry.rkube.local/web:2"]).ok();
        k(&["rollout", "status", "deploy/web", "--timeout=90s"]).ok();
        k(&["rollout", "undo", "deploy/web"]).ok();
        k(&["label", "deploy/web", "x=y"]).ok();
        k(&["annotate", "deploy/web", "x=y"]).ok();
        k(&["patch", "deploy/web", "-p", "{\"spec\":{\"minReadySeconds\":0}}"]).ok();
        k(&["create", "configmap", "made", "--from-literal=a=b"]).ok();
        k(&["create", "deployment", "made", "--image=registry.rkube.local/web:1"]).ok();
        k(&["wait", "--for=condition=Available", "deploy/made", "--timeout=90s"]).ok();
        assert!(k(&["get", "pods", "-o", "wide"]).ok().contains("NODE"));
        assert!(k(&["get", "all"]).ok().contains("deployment.apps/web"));
        assert!(k(&["describe", "deploy/web"]).ok().contains("ScalingReplicaSet"));
        assert!(k(&["explain", "deployment.spec.replicas"]).ok().contains("replicas"));
        assert!(k(&["api-resources"]).ok().contains("deployments"));
        assert!(k(&["auth", "can-i", "create", "pods"]).ok().contains("yes"));
        let bad = k(&["create", "deployment", "Bad_Name", "--image=x"]).fails();
        assert!(bad.contains("RFC 1123"), "{minor}: {bad}");
        k(&["delete", "-f", manifest]).ok();
        assert_eq!(k(&["get", "deploy", "web", "--ignore-not-found"]).ok(), "");
    }
}

fn every_exec(cluster: &Cluster) {
    let namespace = cluster.namespace("exec");
    let ns = namespace.name.as_str();
    let web = "registry.rkube.local/web:1";
    cluster.rkubectl(&["-n", ns, "run", "web", "--image", web]).ok();
    cluster.rkubectl(&["-n", ns, "wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]).ok();
    for (minor, kubectl) in kubectls() {
        let k = |args: &[&str], input: &str| {
            cluster.kubectl_with(&kubectl, &[&["-n", ns], args].concat(), input)
        };
        let echoed = k(&["exec", "-i", "web", "--", "cat"], "typed by hand").ok();
        assert_eq!(echoed, "typed by hand", "{minor}");
        assert_eq!(k(&["exec", "web", "--", "sh", "-c", "exit 7"], "").code, 7, "{minor}");
        eventually("a logged request", 10, || {
            k(&["exec", "web", "--", "wget", "-qO-", "http://127.0.0.1:8080/"], "").ok();
            k(&["logs", "web"], "").ok().contains("response:200").then_some(())
        });
    }
}

fn same_output(cluster: &Cluster) {
    let namespace = cluster.namespace("same");
    let ns = namespace.name.as_str();
    cluster.rkubectl(&["-n", ns, "create", "configmap", "x", "--from-literal=a=b"]).ok();
    let (_, newest) = kubectls().into_iter().max().unwrap();
    let commands: &[&[&str]] = &[
        &["get", "configmaps"],
        &["get", "configmap", "x", "-o", "yaml"],
        &["get", "configmap", "x", "-o", "json"],
        &["get", "configmap", "x", "-o", "name"],
        &["get", "nodes", "-o", "wide"],
        &["get", "configmap", "x", "-o", "jsonpath={.data.a}"],
        &["get", "configmap", "x", "-o", "custom-columns=N:.metadata.name,V:.data.a"],
        &["get", "configmap", "nothing"],
        &["get", "nothing"],
        &["api-versions"],
        &["describe", "configmap", "x"],
    ];
    for command in commands {
        let args = [&["-n", ns], *command].concat();
        // Ages move on while we look: one of three looks has to agree.
        let same = (0..3).any(|_| {
            let ours = cluster.rkubectl(&args);
            let theirs = cluster.kubectl(&newest, &args);
            (ours.code, &ours.stdout) == (theirs.code, &theirs.stdout)
        });
        let ours = cluster.rkubectl(&args);
        let theirs = cluster.kubectl(&newest, &args);
        assert!(same, "{command:?}\nours: {ours:?}\ntheirs: {theirs:?}");
    }
}
