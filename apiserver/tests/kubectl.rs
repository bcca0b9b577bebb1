//! Every real kubectl on this machine against the server. Without one the test fails and says so:
//! `kubectl` must be in PATH, or a list of binaries in `RKUBE_TEST_KUBECTL` (colon-separated).

mod common;

use common::Harness;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  replicas: 2
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec: {containers: [{name: c, image: "a:1", ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {type: NodePort, selector: {app: d}, ports: [{port: 80}]}
"#;

/// `kubectl`, `kubectl.1.27`, … in the folders of PATH, beside what `kubectl` links to, and named
/// by the environment.
fn kubectls() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let targets: Vec<PathBuf> =
        dirs.iter().filter_map(|d| d.join("kubectl").canonicalize().ok()).collect();
    dirs.extend(targets.iter().filter_map(|t| Some(t.parent()?.to_owned())));
    let named = std::env::var_os("RKUBE_TEST_KUBECTL").unwrap_or_default();
    let mut found: Vec<PathBuf> = std::env::split_paths(&named).filter(|p| p.is_file()).collect();
    for dir in dirs {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "kubectl" || name.starts_with("kubectl.1.") {
                found.extend(entry.path().canonicalize());
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

struct Kubectl<'a> {
    binary: &'a Path,
    home: &'a Path,
    kubeconfig: PathBuf,
    namespace: String,
}

impl Kubectl<'_> {
    async fn run(&self, arguments: &[&str]) -> std::process::Output {
        let command = Command::new(self.binary)
            .env_clear()
            .env("HOME", self.home)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["-n", &self.namespace])
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        tokio::time::timeout(Duration::from_secs(60), command)
            .await
            .unwrap_or_else(|_| panic!("{} {arguments:?} did not end", self.binary.display()))
            .unwrap()
    }

    /// Runs a line of words; it must succeed.
    async fn ok(&self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = self.run(&words).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {line}: {text}{errors}", self.binary.display());
        text
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kubectl_finds_what_it_expects() {
    let binaries = kubectls();
    assert!(!binaries.is_empty(), "no kubectl found: put one into PATH to run this test");
    let h = Harness::start().await;
    let manifest = h.dir.path().join("manifest.yaml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    for (i, binary) in binaries.iter().enumerate() {
        let home = h.dir.path().join(format!("home{i}"));
        std::fs::create_dir(&home).unwrap();
        let kubectl = Kubectl {
            binary,
            home: &home,
            kubeconfig: h.dir.path().join("admin.kubeconfig"),
            namespace: format!("k{i}"),
        };
        drive(&kubectl, &manifest.display().to_string()).await;
    }
    h.stop().await;
}

async fn drive(k: &Kubectl<'_>, manifest: &str) {
    k.ok(&format!("create namespace {}", k.namespace)).await;
    let text = k.ok(&format!("apply -f {manifest}")).await;
    assert!(text.contains("deployment.apps/d created"), "{text}");
    let text = k.ok(&format!("apply -f {manifest}")).await;
    assert!(text.contains("deployment.apps/d unchanged"), "{text}");
    k.ok(&format!("diff -f {manifest}")).await;
    let text = k.ok("get deployments,services -o wide").await;
    assert!(text.contains("CONTAINERS") && text.contains("NodePort"), "{text}");
    for line in [
        "scale deployment d --replicas=3",
        "set image deployment/d c=a:2",
        "rollout restart deployment/d",
        "annotate deployment d x=y",
        "label deployment d x=y",
        "patch deployment d --type=json -p [{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":1}]",
        "create deployment e --image=a:1",
        "expose deployment e --port=80",
        "create configmap m --from-literal=a=b",
        "create secret generic s --from-literal=a=b",
        "create serviceaccount a",
        "run p --image=a:1",
        "describe pod p",
        "describe deployment d",
        "get all",
        "get events",
        "explain deployment.spec.strategy",
        "api-resources",
        "api-versions",
        "auth can-i create pods",
        "create deployment f --image=a:1 --dry-run=server -o yaml",
        "delete pod p",
        "delete configmap --all",
    ] {
        k.ok(line).await;
    }
    k.ok(&format!("apply --server-side --force-conflicts -f {manifest}")).await;
    let replicas = k.ok("get deployment d -o jsonpath={.spec.replicas}").await;
    assert_eq!(replicas, "2");
    k.ok(&format!("delete -f {manifest}")).await;
    let missing = k.run(&["get", "pod", "none"]).await;
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(text.contains("Error from server (NotFound): pods \"none\" not found"), "{text}");
    k.ok(&format!("delete namespace {} --wait=false", k.namespace)).await;
}
