//! Things die; the cluster goes on.

use crate::Test;
use crate::cluster::{Cluster, eventually, run};

pub const TESTS: &[Test] = &[
    ("a_killed_process_is_back", killed_process),
    ("a_killed_agent_disturbs_no_container", killed_agent),
    ("a_killed_control_plane_disturbs_no_container", killed_control_plane),
    ("a_killed_node_is_replaced_and_comes_back_clean", killed_node),
    ("all_killed_and_started_again", all_killed),
];

const WEB: &str = "--image=registry.rkube.local/web:1";

/// Container ids, restart counts and Ready transition times of a namespace's pods.
fn lives(cluster: &Cluster, ns: &str) -> String {
    let path = "{range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} \
        {.status.containerStatuses[0].restartCount} \
        {.status.conditions[?(@.type=='Ready')].status} \
        {.status.conditions[?(@.type=='Ready')].lastTransitionTime}{\"\\n\"}{end}";
    cluster.get(&["-n", ns, "pods"], path)
}

fn start(cluster: &Cluster, ns: &str, replicas: &str) {
    let replicas = format!("--replicas={replicas}");
    cluster.rkubectl(&["-n", ns, "create", "deployment", "d", WEB, &replicas]).ok();
    cluster.rkubectl(&["-n", ns, "rollout", "status", "deploy/d", "--timeout=90s"]).ok();
}

fn killed_process(cluster: &Cluster) {
    let namespace = cluster.namespace("killed");
    let ns = namespace.name.as_str();
    cluster.rkubectl(&["-n", ns, "run", "p", WEB]).ok();
    cluster.rkubectl(&["-n", ns, "wait", "--for=condition=Ready", "pod/p", "--timeout=60s"]).ok();
    cluster.rkubectl(&["-n", ns, "exec", "p", "--", "sh", "-c", "kill -TERM 1"]);
    eventually("it is back", 30, || {
        let path =
            "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
        (cluster.get(&["-n", ns, "pod", "p"], path) == "1 true").then_some(())
    });
    let described = cluster.rkubectl(&["-n", ns, "describe", "pod", "p"]).ok();
    assert!(described.contains("Last State:") && described.contains("Exit Code:"), "{described}");
}

fn killed_agent(cluster: &Cluster) {
    let namespace = cluster.namespace("agent");
    let ns = namespace.name.as_str();
    start(cluster, ns, "3");
    let before = lives(cluster, ns);
    run("pkill", &["-KILL", "-f", "rkube agent.*--node-name=node-2"]);
    eventually("its death is seen", 10, || {
        cluster.up_log().contains("the agent of node-2 ended").then_some(())
    });
    cluster.node("start", "node-2");
    eventually("the node posts again", 30, || {
        let path = "{.status.conditions[?(@.type=='Ready')].status}";
        (cluster.get(&["node", "node-2"], path) == "True").then_some(())
    });
    // The agent has taken over what runs once it answers for it.
    eventually("logs of every pod", 20, || {
        let ran = cluster.rkubectl(&["-n", ns, "logs", "-l", "app=d"]);
        (ran.code == 0).then_some(())
    });
    assert_eq!(lives(cluster, ns), before);
}

fn killed_control_plane(cluster: &Cluster) {
    let namespace = cluster.namespace("control");
    let ns = namespace.name.as_str();
    start(cluster, ns, "3");
    let before = lives(cluster, ns);
    cluster.node("kill", "control-plane");
    cluster.node("start", "control-plane");
    let after = eventually("it answers", 20, || Some(lives(cluster, ns)).filter(|l| !l.is_empty()));
    assert_eq!(after, before);
    cluster.rkubectl(&["-n", ns, "scale", "deploy/d", "--replicas=4"]).ok();
    cluster.rkubectl(&["-n", ns, "rollout", "status", "deploy/d", "--timeout=60s"]).ok();
}

fn killed_node(cluster: &Cluster) {
    let namespace = cluster.namespace("node");
    let ns = namespace.name.as_str();
    start(cluster, ns, "3");
    // At once started again, it is as if it had been away for a moment.
    cluster.node("kill", "node-3");
    cluster.node("start", "node-3");
    cluster.node("kill", "node-3");
    eventually("NotReady", 60, || {
        let path = "{.status.conditions[?(@.type=='Ready')].status}";
        (cluster.get(&["node", "node-3"], path) == "Unknown").then_some(())
    });
    eventually("three run elsewhere", 90, || {
        let path = "{range .items[?(@.status.phase=='Running')]}{.spec.nodeName} {end}";
        let nodes = cluster.get(&["-n", ns, "pods"], path);
        let elsewhere = nodes.split_whitespace().filter(|n| *n != "node-3").count();
        (elsewhere == 3).then_some(())
    });
    cluster.node("start", "node-3");
    eventually("Ready again, without taints", 60, || {
        let ready =
            cluster.get(&["node", "node-3"], "{.status.conditions[?(@.type=='Ready')].status}");
        let taints = cluster.get(&["node", "node-3"], "{.spec.taints}");
        (ready == "True" && taints.is_empty()).then_some(())
    });
    eventually("nothing runs twice", 60, || {
        let names = cluster.get(&["-n", ns, "pods"], "{.items[*].metadata.name}");
        (names.split_whitespace().count() == 3).then_some(())
    });
}

fn all_killed(cluster: &Cluster) {
    let namespace = cluster.namespace("all");
    let ns = namespace.name.as_str();
    start(cluster, ns, "2");
    cluster.kill_up();
    let alive = || run("pgrep", &["-r", "DRSt", "-af", "rkube (agent|server)|containerd"]).stdout;
    let began = std::time::Instant::now();
    while !alive().is_empty() {
        assert!(began.elapsed().as_secs() < 20, "still alive: {}", alive());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    cluster.up();
    eventually("its pods run again", 90, || {
        let path = "{.status.readyReplicas}";
        (cluster.get(&["-n", ns, "deploy", "d"], path) == "2").then_some(())
    });
}
