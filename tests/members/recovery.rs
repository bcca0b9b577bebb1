//! After a disaster: the state in a file, and one member out of three.

use crate::Test;
use crate::cluster::Cluster;
use crate::load::revision_of;
use crate::run::{eventually, run};
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("a snapshot is a new cluster", a_snapshot_is_a_new_cluster),
    ("one of three is made a cluster of its own", one_of_three_is_recovered),
];

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// The revision of a cluster as a member tells it.
fn revision(cluster: &Cluster, member: usize) -> u64 {
    let client = cluster.client(member, &[member]);
    let list = cluster.get(&client, MAPS, Duration::from_secs(5)).expect("a list");
    assert_eq!(list.code, 200, "{list:?}");
    revision_of(&list.body)
}

fn make(cluster: &Cluster, member: usize, name: &str) {
    cluster.rkubectl(member, &["create", "configmap", name, "--from-literal=a=b"]).ok();
}

fn a_snapshot_is_a_new_cluster() {
    let cluster = Cluster::start(3);
    make(&cluster, 1, "saved");
    let file = cluster.path("state.snapshot");
    let saved = cluster.rkube(2, &["snapshot", "save", &file]).ok();
    let rkube = crate::cluster::RKUBE;
    let status = run(rkube, &["snapshot", "status", &file]).ok();
    assert_eq!(saved, status, "what is saved is what is checked");
    make(&cluster, 0, "unsaved");
    let before = revision(&cluster, 0);
    (0..3).for_each(|member| cluster.stop(member));

    let bad = cluster.path("bad.snapshot");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&bad, &bytes).unwrap();
    run(rkube, &["snapshot", "status", &bad]).fails();
    let aside = cluster.data_dir(0).with_extension("aside");
    std::fs::rename(cluster.data_dir(0), &aside).unwrap();
    cluster.rkube(0, &["snapshot", "restore", &bad]).fails();
    assert!(!cluster.data_dir(0).join("server").exists(), "a bad file leaves nothing behind");
    let said = cluster.rkube(0, &["snapshot", "restore", &file]).ok();
    assert!(said.contains("restored"), "{said}");
    let again = cluster.rkube(0, &["snapshot", "restore", &file]).fails();
    assert!(again.contains("holds a member already"), "{again}");

    cluster.found(0);
    cluster.rkubectl(0, &["get", "configmap", "saved"]).ok();
    cluster.rkubectl(0, &["get", "configmap", "unsaved"]).fails();
    let after = revision(&cluster, 0);
    assert!(after > before, "revision {after} after {before}");
    // What watched the lost cluster begins anew.
    let client = cluster.client(0, &[0]);
    let watch = format!("{MAPS}?watch=1&resourceVersion={before}&timeoutSeconds=1");
    let answer = cluster.get(&client, &watch, Duration::from_secs(5)).expect("an answer");
    let code =
        if answer.code == 200 { answer.body["object"]["code"].clone() } else { answer.code.into() };
    assert_eq!(code, 410, "{answer:?}");

    // It grows again by new members in empty directories.
    for member in 1..3 {
        std::fs::remove_dir_all(cluster.data_dir(member)).unwrap();
    }
    cluster.join_all(1..3);
    cluster.rkubectl(2, &["get", "configmap", "saved"]).ok();
}

fn one_of_three_is_recovered() {
    let cluster = Cluster::start(3);
    make(&cluster, 0, "kept");
    let before = revision(&cluster, 0);
    let said = cluster.rkube(1, &["member", "recover", "--yes"]).fails();
    assert!(!said.is_empty(), "a running member can't be recovered");
    (0..3).for_each(|member| cluster.kill(member));
    let said = cluster.rkube(1, &["member", "recover"]).fails();
    assert!(said.contains("--yes"), "{said}");
    let said = cluster.rkube(1, &["member", "recover", "--yes"]).ok();
    assert!(said.contains("this one") && said.matches("unreachable").count() == 2, "{said}");
    assert!(said.contains("with one member"), "{said}");

    cluster.found(1);
    assert_eq!(cluster.await_voters(1), 1);
    cluster.rkubectl(1, &["get", "configmap", "kept"]).ok();
    assert!(revision(&cluster, 1) >= before);
    make(&cluster, 1, "new");

    // The old ones come back, together a quorum of the old cluster, and the new one is not harmed.
    cluster.spawn(0, &[]);
    cluster.spawn(2, &[]);
    // Its certificate has another cluster's name, so they don't even get to speak.
    let fenced =
        |member: usize| cluster.log(member).contains("TLS handshake: invalid peer certificate");
    eventually("old and new members keep apart", 20, || (fenced(0) && fenced(2)).then_some(()));
    cluster.rkubectl(1, &["get", "configmap", "new"]).ok();
    let list = cluster.rkube(1, &["member", "list"]).ok();
    assert_eq!(list.lines().count(), 2, "{list}");
    for member in [0, 2] {
        cluster.kill(member);
        std::fs::remove_dir_all(cluster.data_dir(member)).unwrap();
    }
    let token = cluster.token(1, &[]);
    for member in [0, 2] {
        cluster.spawn(member, &["--join", &cluster.url(1), "--token", &token]);
        cluster.await_ready(member);
    }
    cluster.await_voters(3);
    cluster.rkubectl(0, &["get", "configmap", "new"]).ok();
}
