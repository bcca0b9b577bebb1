//! A Deployment's life as a newcomer sees it.

use crate::Test;
use crate::cluster::{Cluster, eventually, run};

pub const TESTS: &[Test] = &[
    ("a_deployment_runs_answers_scales_and_rolls", deployment),
    ("a_deleted_pod_is_replaced", replaced),
    ("pods_reach_each_other_across_nodes", across_nodes),
    ("port_forward_answers", port_forward),
    ("an_image_that_does_not_exist_says_so", no_image),
    ("a_pod_that_fits_nowhere_says_why", fits_nowhere),
    ("deleting_a_namespace_empties_it", namespace_deleted),
    ("a_watch_shows_what_happens", watch),
];

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/deploy.yaml");

fn deployment(cluster: &Cluster) {
    let k = |args: &[&str]| cluster.rkubectl(args);
    let applied = k(&["apply", "-f", MANIFEST]).ok();
    assert!(applied.contains("deployment.apps/web created"), "{applied}");
    k(&["rollout", "status", "deploy/web", "--timeout=90s"]).ok();
    let nodes = cluster.get(&["pods", "-l", "app=web"], "{.items[*].spec.nodeName}");
    let mut nodes: Vec<&str> = nodes.split_whitespace().collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["node-1", "node-2", "node-3"]);
    let ip = cluster.get(&["pods", "-l", "app=web"], "{.items[0].status.podIP}");
    let page = run("curl", &["-s", "--max-time", "5", &format!("http://{ip}:8080/")]).ok();
    assert!(page.starts_with("Hello from rkube from web-"), "{page}");

    k(&["scale", "deploy/web", "--replicas=10"]).ok();
    k(&["rollout", "status", "deploy/web", "--timeout=90s"]).ok();
    assert_eq!(cluster.get(&["deploy", "web"], "{.status.readyReplicas}"), "10");
    k(&["scale", "deploy/web", "--replicas=2"]).ok();
    eventually("8 pods gone", 60, || {
        let names = cluster.get(&["pods", "-l", "app=web"], "{.items[*].metadata.name}");
        (names.split_whitespace().count() == 2).then_some(())
    });

    k(&["set", "image", "deploy/web", "web=registry.rkube.local/web:2"]).ok();
    k(&["rollout", "status", "deploy/web", "--timeout=90s"]).ok();
    let history = k(&["rollout", "history", "deploy/web"]).ok();
    assert!(history.contains('2'), "{history}");
    k(&["rollout", "undo", "deploy/web"]).ok();
    k(&["rollout", "status", "deploy/web", "--timeout=90s"]).ok();
    let image = cluster.get(&["deploy", "web"], "{.spec.template.spec.containers[0].image}");
    assert_eq!(image, "registry.rkube.local/web:1");
    let described = k(&["describe", "deploy/web"]).ok();
    assert!(described.contains("Scaled up replica set"), "{described}");
    k(&["delete", "-f", MANIFEST]).ok();
    eventually("all pods gone", 60, || {
        cluster
            .get(&["pods", "-l", "app=web"], "{.items[*].metadata.name}")
            .is_empty()
            .then_some(())
    });
}

fn replaced(cluster: &Cluster) {
    let namespace = cluster.namespace("replaced");
    let ns = namespace.name.as_str();
    cluster
        .rkubectl(&["-n", ns, "create", "deployment", "d", "--image=registry.rkube.local/web:1"])
        .ok();
    let ready = || {
        let names = cluster
            .get(&["-n", ns, "pods"], "{.items[?(@.status.phase=='Running')].metadata.name}");
        (names.split_whitespace().count() == 1).then_some(names)
    };
    let first = eventually("a pod runs", 60, ready);
    cluster.rkubectl(&["-n", ns, "delete", "pod", &first, "--wait=false"]).ok();
    eventually("another pod runs", 60, || ready().filter(|name| *name != first));
}

fn across_nodes(cluster: &Cluster) {
    let namespace = cluster.namespace("across");
    let ns = namespace.name.as_str();
    for node in ["node-1", "node-2"] {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: on-{node}, namespace: {ns}}}\nspec:\n  \
             nodeName: {node}\n  containers:\n  - {{name: c, image: 'registry.rkube.local/web:1', \
             ports: [{{containerPort: 8080, hostPort: 8088}}]}}\n"
        ));
    }
    let wait = ["-n", ns, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"];
    cluster.rkubectl(&wait).ok();
    let ip = cluster.get(&["-n", ns, "pod", "on-node-2"], "{.status.podIP}");
    let fetch = |url: &str| {
        let args = ["-n", ns, "exec", "on-node-1", "--", "wget", "-qO-", url];
        eventually(url, 20, || {
            let ran = cluster.rkubectl(&args);
            (ran.code == 0).then_some(ran.stdout)
        })
    };
    assert!(fetch(&format!("http://{ip}:8080/")).contains("on-node-2"));
    // A host port: from this machine, from a pod of another node, from its own node's pods.
    let page = run("curl", &["-s", "--max-time", "5", "http://10.99.0.12:8088/"]).ok();
    assert!(page.contains("on-node-2"), "{page}");
    assert!(fetch("http://10.99.0.12:8088/").contains("on-node-2"));
    assert!(fetch("http://10.99.0.11:8088/").contains("on-node-1"));
}

fn port_forward(cluster: &Cluster) {
    let namespace = cluster.namespace("forward");
    let ns = namespace.name.as_str();
    cluster.rkubectl(&["-n", ns, "run", "web", "--image=registry.rkube.local/web:1"]).ok();
    cluster.rkubectl(&["-n", ns, "wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]).ok();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_rkubectl"))
        .args(["-n", ns, "port-forward", "pod/web", "18080:8080"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("rkubectl");
    let page = eventually("an answer through the tunnel", 20, || {
        let ran = run("curl", &["-s", "--max-time", "2", "http://127.0.0.1:18080/"]);
        (ran.code == 0).then_some(ran.stdout)
    });
    let _ = child.kill();
    let _ = child.wait();
    assert!(page.contains("from web"), "{page}");
}

fn no_image(cluster: &Cluster) {
    let namespace = cluster.namespace("noimage");
    let ns = namespace.name.as_str();
    cluster.rkubectl(&["-n", ns, "run", "x", "--image=registry.rkube.local/missing:1"]).ok();
    eventually("the image's failure is told", 60, || {
        let reason = cluster
            .get(&["-n", ns, "pod", "x"], "{.status.containerStatuses[0].state.waiting.reason}");
        ["ErrImagePull", "ImagePullBackOff"].contains(&reason.as_str()).then_some(())
    });
    let described = cluster.rkubectl(&["-n", ns, "describe", "pod", "x"]).ok();
    assert!(described.contains("not found"), "the registry's answer: {described}");
}

fn fits_nowhere(cluster: &Cluster) {
    let namespace = cluster.namespace("nowhere");
    let ns = namespace.name.as_str();
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: big, namespace: {ns}}}\nspec:\n  containers:\n  \
         - {{name: c, image: 'registry.rkube.local/web:1', resources: {{requests: {{cpu: '1000'}}}}}}\n"
    ));
    let message = eventually("a condition", 20, || {
        let path = "{.status.conditions[?(@.type=='PodScheduled')].message}";
        Some(cluster.get(&["-n", ns, "pod", "big"], path)).filter(|m| !m.is_empty())
    });
    assert!(message.starts_with("0/3 nodes are available"), "{message}");
    assert!(message.contains("node-2") && message.contains("cpu"), "{message}");
}

fn namespace_deleted(cluster: &Cluster) {
    let namespace = cluster.namespace("emptied");
    let ns = namespace.name.as_str();
    cluster
        .rkubectl(&["-n", ns, "create", "deployment", "d", "--image=registry.rkube.local/web:1"])
        .ok();
    cluster.rkubectl(&["delete", "namespace", ns, "--timeout=90s"]).ok();
    assert_eq!(cluster.rkubectl(&["get", "all", "-n", ns]).stdout, "");
}

fn watch(cluster: &Cluster) {
    let namespace = cluster.namespace("watched");
    let ns = namespace.name.as_str();
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_rkubectl"))
        .args(["-n", ns, "get", "pods", "-w"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdout(out.reopen().unwrap())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("rkubectl");
    cluster.rkubectl(&["-n", ns, "run", "web", "--image=registry.rkube.local/web:1"]).ok();
    let seen = || std::fs::read_to_string(out.path()).unwrap();
    eventually("Running is seen", 60, || seen().contains("Running").then_some(()));
    cluster.rkubectl(&["-n", ns, "delete", "pod", "web"]).ok();
    eventually("Terminating is seen", 20, || seen().contains("Terminating").then_some(()));
    let _ = child.kill();
    let _ = child.wait();
    let text = seen();
    let states = ["Pending", "Running", "Terminating"];
    assert!(states.iter().all(|state| text.contains(state)), "{text}");
}
