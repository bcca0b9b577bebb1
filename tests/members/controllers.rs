//! Controllers and nodes across a change of leader.

use crate::Test;
use crate::cluster::{Cluster, RKUBE};
use crate::run::eventually;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use serde_json::json;
use std::process::{Child, Command, Stdio};

pub const TESTS: &[Test] = &[
    ("nothing is made twice when the leader dies", nothing_is_made_twice),
    ("a node goes on when its server dies", a_node_goes_on),
];

const REPLICAS: usize = 60;

fn deployment(replicas: usize) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "registry.rkube.local/web:1"}]},
            },
        },
    }))
    .expect("a deployment")
}

fn count<K>(cluster: &Cluster, api: &Api<K>) -> Option<usize>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let listed = async { api.list(&Default::default()).await.ok() };
    cluster.block_on(listed).map(|list| list.items.len())
}

/// The leader dies while it makes a Deployment's pods; another goes on from what is there.
fn nothing_is_made_twice() {
    let cluster = Cluster::start(3);
    let leader = cluster.await_voters(3);
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let client = cluster.client(others[0], &others);
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let sets: Api<ReplicaSet> = Api::default_namespaced(client.clone());
    let deployments: Api<Deployment> = Api::default_namespaced(client);
    let make = async { deployments.create(&Default::default(), &deployment(REPLICAS)).await };
    cluster.block_on(make).expect("a deployment");
    let made = eventually("the first pods", 10, || count(&cluster, &pods).filter(|n| *n > 0));
    cluster.kill(leader);
    eprintln!("the leader died when {made} of {REPLICAS} pods were made");

    eventually("all pods", 20, || count(&cluster, &pods).filter(|n| *n >= REPLICAS));
    let status = || {
        let deployment = cluster.block_on(async { deployments.get("web").await.ok() })?;
        let (status, generation) = (deployment.status?, deployment.metadata.generation);
        let seen = status.observed_generation == generation;
        (seen && status.replicas == Some(REPLICAS as i32)).then_some(())
    };
    eventually("the deployment's status", 20, status);
    cluster.spawn(leader, &[]);
    cluster.await_voters(3);
    assert_eq!(count(&cluster, &pods), Some(REPLICAS));
    assert_eq!(count(&cluster, &sets), Some(1));
    let scopes: Vec<usize> = (0..3)
        .map(|member| cluster.log(member).matches("leading scope=\"control-plane\"").count())
        .collect();
    assert!(scopes.iter().sum::<usize>() >= 2, "the leader scope did not move: {scopes:?}");
}

/// A program that ends when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A simulated node that knows the members by its kubeconfig, on a machine of its own.
fn a_node_goes_on() {
    let cluster = Cluster::start(3);
    let log = cluster.log_file("hollow");
    let _node = Running(
        Command::new(RKUBE)
            .args(["hollow", "--nodes", "1", "--kubeconfig", &cluster.kubeconfig(0)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("rkube hollow"),
    );
    let client = cluster.client(1, &[1, 2]);
    let (nodes, pods): (Api<Node>, Api<Pod>) =
        (Api::all(client.clone()), Api::default_namespaced(client.clone()));
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    eventually("the node is registered", 10, || {
        let leases = count(&cluster, &leases)?;
        (leases == 1 && count(&cluster, &nodes)? == 1).then_some(())
    });
    cluster.kill(0);
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let made = || {
        let make = async { deployments.create(&Default::default(), &deployment(3)).await.ok() };
        cluster.block_on(make)
    };
    eventually("a deployment", 10, made);
    let running = || {
        let list = cluster.block_on(async { pods.list(&Default::default()).await.ok() })?;
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
        let running = list.iter().filter(|pod| phase(pod).as_deref() == Some("Running")).count();
        (running == 3).then_some(())
    };
    eventually("the node runs pods by another member", 30, running);
    let renewed = || {
        let lease = cluster.block_on(async { leases.get("hollow-0").await.ok() })?;
        lease.spec?.renew_time
    };
    let before = eventually("a lease", 20, renewed);
    eventually("the lease is renewed by another member", 30, || {
        renewed().filter(|now| *now != before)
    });
}
