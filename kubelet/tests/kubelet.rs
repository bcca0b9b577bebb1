//! A whole kubelet against an API in memory and a fake runtime.

mod support;

use rkube_cri::{Call, FakeRuntime};
use rkube_kubelet::{KubeletConfig, NoHostPorts, run};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use support::Api;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Node {
    api: Api,
    runtime: Arc<FakeRuntime>,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Node {
    async fn start() -> Self {
        let (api, runtime) = (Api::new(), Arc::new(FakeRuntime::default()));
        let dir = tempfile::tempdir().unwrap();
        let mut node = Self { api, runtime, dir, stop: CancellationToken::new(), task: None };
        node.run();
        node
    }

    fn run(&mut self) {
        let config = KubeletConfig {
            node_name: "n1".into(),
            node_ip: Some(IpAddr::from([192, 0, 2, 1])),
            data_dir: self.dir.path().to_owned(),
            // The machine's cgroups are none of this test's business.
            cgroup_root: String::new(),
            cluster_id: "c1".into(),
            ..KubeletConfig::default()
        };
        self.stop = CancellationToken::new();
        let (client, runtime, stop) = (self.api.client(), self.runtime.clone(), self.stop.clone());
        self.task = Some(tokio::spawn(async move {
            run(config, client, runtime, Arc::new(NoHostPorts), stop).await.unwrap();
        }));
    }

    async fn restart(&mut self) {
        self.stop.cancel();
        self.task.take().unwrap().await.unwrap();
        self.run();
    }

    fn pod(&self, name: &str, spec: Value) -> String {
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        let mut spec = spec;
        spec["nodeName"] = "n1".into();
        let status =
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]});
        self.api.put(&path, json!({"metadata": {"generation": 1}, "spec": spec, "status": status}));
        path
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn phase(object: Option<&Value>) -> &str {
    object.and_then(|pod| pod["status"]["phase"].as_str()).unwrap_or_default()
}

fn condition(object: Option<&Value>, name: &str) -> String {
    let conditions = object.and_then(|pod| pod["status"]["conditions"].as_array());
    let found = conditions.into_iter().flatten().find(|c| c["type"] == name);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned()
}

fn container(object: Option<&Value>, at: usize) -> &Value {
    static NULL: Value = Value::Null;
    object.map_or(&NULL, |pod| &pod["status"]["containerStatuses"][at])
}

#[tokio::test]
async fn a_node_registers_and_is_ready_once_it_has_addresses() {
    let node = Node::start().await;
    let path = "/api/v1/nodes/n1";
    let seen = node.api.until(path, "registered", |n| condition(n, "Ready") == "False").await;
    assert_eq!(seen["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    assert_eq!(seen["status"]["addresses"][0]["address"], "192.0.2.1");
    let mut with_range = node.api.until(path, "listed", |n| n.is_some()).await;
    with_range["spec"]["podCIDR"] = "10.42.0.0/24".into();
    node.api.put(path, with_range);
    node.api.until(path, "Ready", |n| condition(n, "Ready") == "True").await;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    node.api.until(lease, "there", |lease| lease.is_some()).await;
}

#[tokio::test]
async fn a_pod_runs_with_one_write_and_goes_when_deleted() {
    let node = Node::start().await;
    node.runtime.add_image("web:1");
    let path = node.pod("web", json!({"containers": [{"name": "app", "image": "web:1"}]}));
    let pod = node.api.until(&path, "running", |pod| phase(pod) == "Running").await;
    assert_eq!(condition(Some(&pod), "Ready"), "True");
    assert_eq!(condition(Some(&pod), "PodScheduled"), "True", "others' conditions stay");
    assert_eq!(pod["status"]["hostIP"], "192.0.2.1");
    assert_eq!(pod["status"]["containerStatuses"][0]["ready"], true);
    assert_eq!(node.api.writes("pods/web/status").len(), 1);
    assert_eq!(
        node.runtime.calls(),
        [
            Call::RunSandbox("web".into(), 0),
            Call::Create("app".into(), 0),
            Call::Start("app".into())
        ]
    );
    node.api.delete(&path, 30);
    node.api.until(&path, "gone", |pod| pod.is_none()).await;
    let reports = node.api.writes("pods/web/status");
    let last = reports.last().unwrap();
    assert_eq!(last["status"]["phase"], "Failed", "143 is no success: {last}");
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    let left = node.dir.path().join("pods").join(uid);
    tokio::time::timeout(Duration::from_secs(10), async {
        while left.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let reasons = node.api.reasons();
    for reason in ["Pulled", "Created", "Started", "Killing"] {
        assert!(reasons.iter().any(|r| r == reason), "{reason} in {reasons:?}");
    }
}

#[tokio::test]
async fn a_missing_image_is_told_in_the_registrys_words() {
    let node = Node::start().await;
    node.runtime.script(|script| {
        script.missing_images.insert("none:1".into());
    });
    let path = node.pod("web", json!({"containers": [{"name": "app", "image": "none:1"}]}));
    let waiting = |pod: Option<&Value>| container(pod, 0)["state"]["waiting"].clone();
    let pod =
        node.api.until(&path, "failing", |pod| waiting(pod)["reason"] == "ErrImagePull").await;
    assert!(waiting(Some(&pod))["message"].as_str().unwrap().contains("none:1: not found"));
    node.api.delete(&path, 30);
    node.api.until(&path, "gone", |pod| pod.is_none()).await;
}

#[tokio::test]
async fn a_crash_restarts_at_once_and_then_waits() {
    let node = Node::start().await;
    node.runtime.add_image("web:1");
    let path = node.pod("web", json!({"containers": [{"name": "app", "image": "web:1"}]}));
    let first = node.api.until(&path, "running", |pod| phase(pod) == "Running").await;
    let id = |pod: &Value| {
        let full = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
        full.trim_start_matches("containerd://").to_owned()
    };
    node.runtime.exit(&id(&first), 3, "Error");
    let again = |pod: Option<&Value>| {
        container(pod, 0)["restartCount"] == 1 && !container(pod, 0)["state"]["running"].is_null()
    };
    let second = node.api.until(&path, "restarted", again).await;
    assert_eq!(second["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    node.runtime.exit(&id(&second), 4, "Error");
    let waits =
        |pod: Option<&Value>| container(pod, 0)["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let third = node.api.until(&path, "backing off", waits).await;
    let status = &third["status"]["containerStatuses"][0];
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 4);
    let message = status["state"]["waiting"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("back-off 10s restarting failed container=app pod=web_default("),
        "{message}"
    );
}

#[tokio::test]
async fn a_restarted_kubelet_adopts_and_changes_nothing() {
    let mut node = Node::start().await;
    node.runtime.add_image("web:1");
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    let path = node.pod(
        "web",
        json!({"containers": [
        {"name": "app", "image": "web:1", "readinessProbe": probe}]}),
    );
    node.api.until(&path, "ready", |pod| condition(pod, "Ready") == "True").await;
    let changing = |calls: Vec<Call>| calls.iter().filter(|c| !matches!(c, Call::Exec(..))).count();
    let before = changing(node.runtime.calls());
    let reports = node.api.writes("pods/web/status").len();
    node.restart().await;
    // A second pod shows that the new kubelet is at work.
    let other = node.pod("other", json!({"containers": [{"name": "app", "image": "web:1"}]}));
    node.api.until(&other, "running", |pod| phase(pod) == "Running").await;
    assert_eq!(changing(node.runtime.calls()), before + 3);
    assert_eq!(node.api.writes("pods/web/status").len(), reports, "there is nothing new to tell");
}

#[tokio::test]
async fn what_runs_without_a_pod_is_ended() {
    let mut node = Node::start().await;
    node.runtime.add_image("web:1");
    let path = node.pod("web", json!({"containers": [{"name": "app", "image": "web:1"}]}));
    node.api.until(&path, "running", |pod| phase(pod) == "Running").await;
    node.stop.cancel();
    node.task.take().unwrap().await.unwrap();
    node.api.delete(&path, 0);
    node.run();
    tokio::time::timeout(Duration::from_secs(10), async {
        while !node.runtime.calls().iter().any(|c| matches!(c, Call::RemoveSandbox(_))) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn init_containers_run_one_after_the_other() {
    let node = Node::start().await;
    node.runtime.add_image("web:1");
    node.runtime.script(|script| {
        script.exits.insert("one".into(), 0);
        script.exits.insert("two".into(), 0);
    });
    let path = node.pod(
        "web",
        json!({
        "initContainers": [
            {"name": "one", "image": "web:1"},
            {"name": "side", "image": "web:1", "restartPolicy": "Always"},
            {"name": "two", "image": "web:1"}],
        "containers": [{"name": "app", "image": "web:1"}]}),
    );
    node.api.until(&path, "running", |pod| condition(pod, "Ready") == "True").await;
    let starts: Vec<String> = node
        .runtime
        .calls()
        .into_iter()
        .filter_map(|call| match call {
            Call::Start(name) => Some(name),
            _ => None,
        })
        .collect();
    assert_eq!(starts, ["one", "side", "two", "app"]);
    node.api.delete(&path, 30);
    node.api.until(&path, "gone", |pod| pod.is_none()).await;
    let stops: Vec<String> = node
        .runtime
        .calls()
        .into_iter()
        .filter_map(|call| match call {
            Call::Stop(name, _) => Some(name),
            _ => None,
        })
        .collect();
    assert_eq!(stops, ["app", "side"], "sidecars last");
}

#[tokio::test]
async fn a_failing_liveness_probe_restarts() {
    let node = Node::start().await;
    node.runtime.add_image("web:1");
    node.runtime.script(|script| {
        script.exec_codes.insert("check".into(), 1);
    });
    let probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 1});
    let path = node.pod(
        "web",
        json!({"containers": [
        {"name": "app", "image": "web:1", "livenessProbe": probe}]}),
    );
    node.api.until(&path, "restarted", |pod| container(pod, 0)["restartCount"] == 1).await;
    let reasons = node.api.reasons();
    assert!(reasons.iter().any(|r| r == "Unhealthy") && reasons.iter().any(|r| r == "Killing"));
}

#[tokio::test]
async fn a_pod_that_ends_by_itself_has_succeeded() {
    let node = Node::start().await;
    node.runtime.add_image("web:1");
    node.runtime.script(|script| {
        script.exits.insert("app".into(), 0);
    });
    let path = node.pod(
        "job",
        json!({"restartPolicy": "Never",
        "containers": [{"name": "app", "image": "web:1"}]}),
    );
    let pod = node.api.until(&path, "done", |pod| phase(pod) == "Succeeded").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
}

#[tokio::test]
async fn variables_and_volumes_come_from_objects() {
    let node = Node::start().await;
    node.runtime.add_image("web:1");
    let map = "/api/v1/namespaces/default/configmaps/settings";
    let path = node.pod("web", json!({
        "volumes": [{"name": "v", "configMap": {"name": "settings"}}],
        "containers": [{"name": "app", "image": "web:1", "args": ["$(COLOR)"],
            "env": [{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}));
    tokio::time::timeout(Duration::from_secs(10), async {
        while !node.api.reasons().iter().any(|r| r == "FailedMount") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    node.api.put(map, json!({"data": {"color": "blue"}}));
    let pod = node.api.until(&path, "running", |pod| phase(pod) == "Running").await;
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let config = node.runtime.config_of(id.trim_start_matches("containerd://")).unwrap();
    assert_eq!(config.args, ["blue"]);
    let mount = config.mounts.iter().find(|m| m.container_path == "/v").unwrap();
    let file = std::path::Path::new(&mount.host_path).join("color");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "blue");
    node.api.put(map, json!({"data": {"color": "red"}}));
    tokio::time::timeout(Duration::from_secs(10), async {
        while std::fs::read_to_string(&file).unwrap_or_default() != "red" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}
