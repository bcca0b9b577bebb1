//! A thousand simulated nodes in a process of their own, five thousand pods.

use crate::connection::Credentials;
use crate::process::{Server, cpu_us, load, resident_mb, rkube};
use crate::{Figure, Target};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NODES: usize = 1000;
const PODS: usize = 5000;

/// From the first create to the last binding.
pub fn hollow() -> Vec<Figure> {
    let (server, _) = Server::start();
    let began = Instant::now();
    let mut nodes = start_nodes(&server);
    wait_for_nodes(&server);
    let registered = began.elapsed().as_secs_f64();
    let (before, nodes_before) = (cpu_us(server.pid()), cpu_us(nodes.id()));
    let numbers = load(&server.kubeconfig(), &["binds", &PODS.to_string()]);
    let cpu = (cpu_us(server.pid()) - before) / PODS as f64;
    let nodes_cpu = (cpu_us(nodes.id()) - nodes_before) / PODS as f64;
    let memory = resident_mb(nodes.id());
    // A child of ours: the id is its own until it was waited for.
    let _ = nodes.kill();
    let _ = nodes.wait();
    server.stop();
    vec![Figure {
        name: "pods from create to bound, 1,000 nodes",
        value: numbers[0],
        unit: "/s",
        target: Target::Above(2000.0),
        note: format!(
            "5,000 created in {:.1} s; CPU a pod: server {cpu:.0} µs, nodes {nodes_cpu:.0} µs; \
             nodes registered in {registered:.1} s, {memory:.0} MB",
            numbers[1]
        ),
    }]
}

fn start_nodes(server: &Server) -> Child {
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", rkube(), "hollow", "--log", "warn"])
        .args(["--nodes", &NODES.to_string(), "--kubeconfig"])
        .arg(server.kubeconfig())
        .stdin(Stdio::null())
        .spawn()
        .expect("rkube hollow")
}

/// Returns once every node is there and the scheduler may use it.
fn wait_for_nodes(server: &Server) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let credentials = Credentials::read(&server.kubeconfig()).expect("a kubeconfig");
        let mut connection = credentials.connect().await;
        loop {
            let (status, body) = connection.get("/api/v1/nodes").await.expect("an answer");
            assert_eq!(status, 200);
            let list: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            let nodes = list["items"].as_array().expect("nodes");
            let usable = nodes.iter().filter(|node| node["spec"]["taints"].is_null()).count();
            if usable == NODES {
                return;
            }
            assert!(Instant::now() < deadline, "{usable} of {} nodes are usable", nodes.len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}
