//! Without a quorum: what is refused, and what is served nevertheless.

use crate::Test;
use crate::cluster::Cluster;
use crate::run::eventually;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[("one of three is left", one_of_three_is_left)];

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Within which a request is refused.
const REFUSED_WITHIN: Duration = Duration::from_secs(8);

fn one_of_three_is_left() {
    let cluster = Cluster::start(3);
    cluster.rkubectl(0, &["create", "configmap", "kept", "--from-literal=a=b"]).ok();
    let leader = cluster.await_voters(3);
    let left = (leader + 1) % 3;
    let other = (leader + 2) % 3;
    cluster.kill(other);
    cluster.kill(leader);
    let (gone, also) = (cluster.name(leader), cluster.name(other));
    let names_them = |text: &str| text.contains(&gone) && text.contains(&also);

    let client = cluster.client(left, &[left]);
    for path in [MAPS.to_owned(), format!("{MAPS}/kept"), format!("{MAPS}?resourceVersion=0")] {
        let began = Instant::now();
        let answer = cluster.get(&client, &path, REFUSED_WITHIN).expect("an answer in time");
        let message = answer.body["message"].as_str().unwrap_or_default();
        assert_eq!(answer.code, 503, "{path}: {answer:?}");
        assert!(names_them(message), "{path}: who is missing is not said: {message}");
        eprintln!("{path}: refused after {:.1?}: {message}", began.elapsed());
    }
    let began = Instant::now();
    let said = cluster.rkubectl(left, &["create", "configmap", "refused"]).fails();
    assert!(names_them(&said), "{said}");
    assert!(began.elapsed() < 2 * REFUSED_WITHIN, "{:?}", began.elapsed());

    for path in [format!("{MAPS}?allowStale=true"), format!("{MAPS}/kept?allowStale=true")] {
        let answer = cluster.get(&client, &path, Duration::from_secs(2)).expect("an answer");
        assert_eq!(answer.code, 200, "{answer:?}");
        let warning = answer.warning.as_deref().unwrap_or_default();
        assert!(warning.starts_with("299 - \"may be stale"), "{warning}");
        assert!(answer.body.to_string().contains("\"kept\""), "{answer:?}");
    }
    let listed = cluster.rkube(left, &["member", "list"]);
    assert!(listed.stderr.contains("No quorum: 1 of 3 voting members answer"), "{listed:?}");
    assert!(names_them(&listed.stderr), "{listed:?}");
    let unreachable = listed.ok().matches("Unreachable").count();
    assert_eq!(unreachable, 2);
    let table = cluster.rkubectl(left, &["get", "members"]).ok();
    assert_eq!(table.matches("Unreachable").count(), 2, "{table}");

    cluster.spawn(other, &[]);
    let create = || {
        let ran = cluster.rkubectl(left, &["create", "configmap", "after"]);
        (ran.code == 0).then_some(())
    };
    eventually("writes go on once there is a quorum", 10, create);
    cluster.rkubectl(left, &["get", "configmap", "kept"]).ok();
    let said = cluster.rkubectl(left, &["get", "configmap", "refused"]).fails();
    assert!(said.contains("not found"), "{said}");
    cluster.spawn(leader, &[]);
    cluster.await_voters(3);
}
