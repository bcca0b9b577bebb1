//! Who joins, who is refused, who has to go.

use crate::Test;
use crate::cluster::{Cluster, RKUBECTL};
use crate::run::eventually;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("members join and any of them serves", members_join_and_any_serves),
    ("who must not join is refused", who_must_not_join_is_refused),
    ("members are removed and replaced", members_are_removed_and_replaced),
];

/// Where a real kubectl may be found.
const THEIRS: &str = "/usr/lib/google-cloud-sdk/bin/kubectl";

/// Our kubectl, and theirs where there is one.
fn kubectls() -> Vec<PathBuf> {
    let theirs = Some(PathBuf::from(THEIRS)).filter(|path| path.exists());
    theirs.into_iter().chain([Path::new(RKUBECTL).into()]).collect()
}

/// The cells of a table, each row cut at its blanks.
fn rows(table: &str) -> Vec<Vec<String>> {
    table.lines().skip(1).map(|l| l.split_whitespace().map(str::to_owned).collect()).collect()
}

fn members_join_and_any_serves() {
    let cluster = Cluster::machines(3);
    cluster.found(0);
    assert_eq!(cluster.await_voters(1), 0);
    let made = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "before"}});
    let file = cluster.path("before.json");
    std::fs::write(&file, made.to_string()).unwrap();
    cluster.rkubectl(0, &["apply", "-f", &file]).ok();
    cluster.join_all(1..3);
    assert!(cluster.log(1).contains("the cluster has two voting members"), "no honest warning");
    for member in 0..3 {
        roles_are_shown(&cluster, member);
        cluster.rkubectl(member, &["get", "configmap", "before"]).ok();
    }
    everybody_reads_at_once(&cluster);
}

/// Everywhere one leader and two voters are shown, none of them behind.
fn roles_are_shown(cluster: &Cluster, member: usize) {
    let check = |table: &str, role: usize, lag: usize| {
        let rows = rows(table);
        let mut roles: Vec<&str> = rows.iter().map(|row| &*row[role]).collect();
        roles.sort_unstable();
        assert_eq!(roles, ["leader", "voter", "voter"], "{table}");
        assert!(rows.iter().all(|row| row[lag] == "0"), "{table}");
        assert!(rows.iter().all(|row| row.last().is_some_and(|health| health == "Ok")), "{table}");
    };
    check(&cluster.rkube(member, &["member", "list"]).ok(), 2, 5);
    for program in kubectls() {
        let program = program.display().to_string();
        check(&cluster.kubectl(&program, member, &["get", "members"]).ok(), 1, 4);
    }
}

/// What is written to any member is read from any other as soon as it is acknowledged.
fn everybody_reads_at_once(cluster: &Cluster) {
    for program in kubectls() {
        let program = program.display().to_string();
        let kind = if program == RKUBECTL { "ours" } else { "theirs" };
        for writer in 0..3 {
            let name = format!("{kind}-{writer}");
            let make = ["create", "configmap", &name, "--from-literal=a=b"];
            cluster.kubectl(&program, writer, &make).ok();
            let reader = (writer + 1) % 3;
            let read = ["get", "configmap", &name, "-o", "jsonpath={.data.a}"];
            assert_eq!(cluster.kubectl(&program, reader, &read).ok(), "b");
        }
    }
    let maps: Vec<kube::Api<k8s_openapi::api::core::v1::ConfigMap>> =
        (0..3).map(|m| kube::Api::default_namespaced(cluster.client(0, &[m]))).collect();
    cluster.block_on(async {
        for n in 0..30 {
            let map = serde_json::from_value(json!({"metadata": {"name": format!("n{n}")}}));
            maps[n % 3].create(&Default::default(), &map.unwrap()).await.expect("a create");
            for reader in &maps {
                reader.get(&format!("n{n}")).await.expect("what was acknowledged");
            }
        }
    });
}

fn who_must_not_join_is_refused() {
    let cluster = Cluster::start(3);
    let url = cluster.url(0);
    let token = cluster.token(0, &[]);
    let refused = |member: usize, more: &[&str]| {
        let said = cluster.server_ends(member, more).fails();
        said.lines().last().unwrap_or_default().to_owned()
    };
    cluster.stop(2);
    let dir = cluster.data_dir(2);
    let aside = cluster.data_dir(2).with_extension("aside");
    std::fs::rename(&dir, &aside).unwrap();

    let said = refused(2, &["--join", &url, "--token", &token]);
    assert!(said.contains("member m3 exists; if its disk is lost remove it first"), "{said}");
    assert!(said.contains("rkube member remove m3"), "{said}");
    let (_, hash) = token.split_once(':').unwrap();
    let wrong = format!("abcdef.{}:{hash}", "0".repeat(32));
    let said = refused(2, &["--node-name", "m4", "--join", &url, "--token", &wrong]);
    assert!(said.contains("the token is unknown or at its end"), "{said}");
    let for_nodes = cluster.token(0, &["--role", "node"]);
    let said = refused(2, &["--node-name", "m4", "--join", &url, "--token", &for_nodes]);
    assert!(said.contains("this token is for nodes only"), "{said}");
    let nobody = format!("https://{}:1", cluster.net.address(0));
    let said = refused(2, &["--node-name", "m4", "--join", &nobody, "--token", &token]);
    assert!(said.contains(&nobody) && said.contains("Connection refused"), "{said}");
    assert!(!dir.exists(), "a refused member leaves nothing behind");

    // The disk is back: it goes on as who it was, though it is told to join.
    std::fs::rename(&aside, &dir).unwrap();
    cluster.spawn(2, &["--join", &url, "--token", &token]);
    cluster.await_voters(3);
    assert!(cluster.log(2).contains("--join is skipped"), "{}", cluster.log(2));
}

fn members_are_removed_and_replaced() {
    let cluster = Cluster::machines(5);
    cluster.found(0);
    cluster.join_all(1..5);

    // A lost disk: out with the old member, in with a new one under its name.
    cluster.kill(4);
    std::fs::remove_dir_all(cluster.data_dir(4)).unwrap();
    let said = cluster.rkube(0, &["member", "remove", "m5"]).ok();
    assert!(said.starts_with("member m5 (") && said.ends_with("removed\n"), "{said}");
    let token = cluster.token(1, &[]);
    cluster.spawn(4, &["--join", &cluster.url(1), "--token", &token]);
    cluster.await_ready(4);

    // Whoever leads, and one that follows.
    let leader = cluster.await_voters(5);
    let asked = (leader + 1) % 5;
    goes_for_good(&cluster, leader, asked);
    cluster.await_voters(4);
    let follower = (leader + 2) % 5;
    goes_for_good(&cluster, follower, asked);
    cluster.await_voters(3);
    let name = cluster.name(follower);
    let said = cluster.rkube(asked, &["member", "remove", &name]).fails();
    assert!(said.contains(&format!("no member has the name or id {name:?}")), "{said}");
    let list = cluster.rkube(asked, &["member", "list"]).ok();
    assert_eq!(rows(&list).len(), 3, "{list}");
    cluster.rkubectl(asked, &["create", "configmap", "after"]).ok();
}

/// A removed member ends, says why, and does so again when it is started again.
fn goes_for_good(cluster: &Cluster, member: usize, asked: usize) {
    cluster.rkube(asked, &["member", "remove", &cluster.name(member)]).ok();
    let status = cluster.await_end(member);
    let said = cluster.log(member);
    assert!(!status.success(), "{status}");
    let why = "was removed from its cluster and can't come back";
    assert!(last_line(&said).contains(why), "{said}");
    let again = cluster.server_ends(member, &[]).fails();
    assert!(last_line(&again).contains(why), "{again}");
    let client = cluster.client(asked, &[asked]);
    eventually("the others go on", 10, || {
        let path = "/api/v1/namespaces/default/configmaps";
        cluster.get(&client, path, Duration::from_secs(5)).filter(|a| a.code == 200)
    });
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}
