//! Tests of whole cycles.

use super::*;
use crate::pod::info;
use crate::snapshot::tests::{node, pod, set};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;

fn cluster(nodes: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, cpu) in nodes {
        set(&mut snapshot, node(name, cpu));
    }
    snapshot
}

fn zoned(zones: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, zone) in zones {
        let mut n = node(name, "4");
        n["metadata"]["labels"]["zone"] = (*zone).into();
        set(&mut snapshot, n);
    }
    snapshot
}

fn run(snapshot: &mut Snapshot, pods: Vec<Value>) -> Vec<String> {
    let batch: Vec<_> = pods.into_iter().map(info).collect();
    let shown = |decision| match decision {
        Decision::Bind { node, .. } => node.to_string(),
        Decision::Refuse { refusal, .. } => refusal.message(),
    };
    cycle(snapshot, &batch, Tuning::default()).into_iter().map(shown).collect()
}

fn owned(name: &str) -> Value {
    let mut p = pod(name, "10m");
    p["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "rs", "controller": true}]);
    p
}

fn labelled(name: &str, app: &str, spec: Value) -> Value {
    let mut p = pod(name, "10m");
    p["metadata"]["labels"] = json!({ "app": app });
    p["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    p
}

fn term(app: &str, key: &str) -> Value {
    json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key}])
}

fn near(app: &str, key: &str) -> Value {
    json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term(app, key)}}})
}

fn away(app: &str, key: &str) -> Value {
    json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term(app, key)}}})
}

fn even(app: &str, key: &str, when: &str) -> Value {
    json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": app}}}]})
}

#[test]
fn a_batch_fills_nodes_and_says_what_is_missing() {
    let mut s = cluster(&[("a", "1"), ("b", "1")]);
    let placed = run(&mut s, (0..3).map(|i| pod(&format!("p{i}"), "800m")).collect());
    assert_eq!(
        placed,
        [
            "a",
            "b",
            "0/2 nodes are available: 2 Insufficient cpu. a: cpu short by 600m, b: cpu short by 600m"
        ]
    );
    assert!(s.forget("p0"), "its binding failed");
    assert_eq!(run(&mut s, vec![pod("p2", "800m")]), ["a"]);
}

#[test]
fn every_node_has_its_own_reason() {
    let mut s = cluster(&[("cpu", "1")]);
    let mut tainted = node("tainted", "4");
    tainted["spec"] = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
    let mut cordoned = node("cordoned", "4");
    cordoned["spec"] = json!({"unschedulable": true});
    set(&mut s, tainted);
    set(&mut s, cordoned);
    s.place(info(pod("x", "100m")), "gone");
    assert_eq!(
        run(&mut s, vec![pod("p", "1250m")]),
        [
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. \
          cordoned: cordoned, cpu: cpu short by 250m, tainted: untolerated taint {k: v}"
        ]
    );
    assert_eq!(
        run(&mut Snapshot::default(), vec![pod("p", "1")]),
        ["no nodes available to schedule pods"]
    );
}

#[test]
fn pods_of_one_set_are_spread() {
    let mut s = cluster(&[("a", "4"), ("b", "4"), ("c", "4")]);
    let mut count: HashMap<String, usize> = HashMap::new();
    for name in run(&mut s, (0..9).map(|i| owned(&format!("p{i}"))).collect()) {
        *count.entry(name).or_default() += 1;
    }
    assert_eq!(count.values().copied().collect::<Vec<_>>(), [3, 3, 3]);
}

#[test]
fn preferences_choose() {
    let mut s = cluster(&[("a", "4"), ("b", "4")]);
    let mut soft = node("a", "4");
    soft["spec"] = json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]});
    set(&mut s, soft);
    assert_eq!(run(&mut s, vec![pod("p", "100m"), pod("q", "100m")]), ["b", "b"]);
    let wish = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}}]}}});
    let mut s = cluster(&[("a", "4"), ("b", "4")]);
    assert_eq!(run(&mut s, vec![labelled("r", "r", wish)]), ["b"]);
}

#[test]
fn host_ports_are_taken_once() {
    let port = |name: &str| {
        let mut p = pod(name, "10m");
        p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 8080}]);
        p
    };
    let mut s = cluster(&[("a", "4")]);
    assert_eq!(
        run(&mut s, vec![port("p"), port("q")]),
        [
            "a",
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports. a: host port 8080 taken"
        ]
    );
}

#[test]
fn pods_keep_near_and_away() {
    let mut s = zoned(&[("a1", "a"), ("a2", "a"), ("b1", "b")]);
    let first = run(&mut s, vec![labelled("p", "web", near("web", "zone"))]);
    assert_eq!(first, ["a1"], "the first of its kind goes anywhere");
    let more = run(
        &mut s,
        (0..3).map(|i| labelled(&format!("q{i}"), "web", near("web", "zone"))).collect(),
    );
    assert!(more.iter().all(|n| n.starts_with('a')), "{more:?}");
    let none = run(&mut s, vec![labelled("r", "x", near("absent", "zone"))]);
    assert!(none[0].contains("3 node(s) didn't match pod affinity rules"), "{none:?}");
    let far = run(
        &mut s,
        vec![
            labelled("s", "lone", away("web", "zone")),
            labelled("t", "lone", away("lone", "zone")),
        ],
    );
    assert_eq!(far[0], "b1");
    assert!(far[1].starts_with('a'), "{far:?}");
    let refused = run(&mut s, vec![labelled("u", "web", json!({"nodeSelector": {"zone": "b"}}))]);
    assert!(
        refused[0].contains("1 node(s) didn't satisfy existing pods anti-affinity rules"),
        "{refused:?}"
    );
}

#[test]
fn domains_are_kept_even() {
    let mut s = zoned(&[("a1", "a"), ("a2", "a"), ("b1", "b")]);
    let pods = (0..4)
        .map(|i| labelled(&format!("p{i}"), "web", even("web", "zone", "DoNotSchedule")))
        .collect();
    let placed = run(&mut s, pods);
    assert_eq!(placed.iter().filter(|n| *n == "b1").count(), 2, "{placed:?}");
    let mut wish = even("web", "zone", "DoNotSchedule");
    wish["nodeSelector"] = json!({"zone": "a"});
    wish["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = "Ignore".into();
    let placed = run(&mut s, vec![labelled("q", "web", wish.clone()), labelled("r", "web", wish)]);
    assert!(placed[0].starts_with('a'), "{placed:?}");
    assert!(placed[1].contains("a1: skew by zone would be 2, may be 1"), "{placed:?}");
    let lacking = run(&mut s, vec![labelled("t", "web", even("web", "rack", "DoNotSchedule"))]);
    assert!(lacking[0].contains("(missing required label)"), "{lacking:?}");
    let anyway = run(&mut s, vec![labelled("u", "web", even("web", "rack", "ScheduleAnyway"))]);
    assert_eq!(anyway.len(), 1);
}

#[test]
fn what_can_not_be_placed_says_so() {
    let mut s = cluster(&[("a", "4")]);
    let volume =
        json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
    let refused = run(&mut s, vec![labelled("p", "x", volume)]);
    assert_eq!(
        refused,
        ["persistentvolumeclaim \"data\" can't be bound: volumes with a claim are not supported"]
    );
}

#[test]
fn a_large_cluster_is_searched_in_turns() {
    let mut s = Snapshot::default();
    for i in 0..1000 {
        set(&mut s, node(&format!("n{i:03}"), "4"));
    }
    let placed = run(&mut s, (0..1000).map(|i| owned(&format!("p{i}"))).collect());
    let mut count: HashMap<&String, usize> = HashMap::new();
    placed.iter().for_each(|n| *count.entry(n).or_default() += 1);
    assert!(count.values().all(|n| *n == 1), "at most one each: {}", count.values().max().unwrap());
}

fn arbitrary_node() -> impl Strategy<Value = Value> {
    (0_u32..4, any::<bool>(), 0_u32..3, 0_u32..4).prop_map(|(cpu, cordoned, taint, pods)| {
        let mut n = node("", &cpu.to_string());
        n["status"]["allocatable"]["pods"] = pods.to_string().into();
        n["metadata"]["labels"]["zone"] = format!("z{}", cpu % 2).into();
        n["spec"] = json!({"unschedulable": cordoned && taint == 0});
        if taint == 1 {
            n["spec"]["taints"] = json!([{"key": "k", "effect": "NoExecute"}]);
        }
        n
    })
}

fn arbitrary_pod() -> impl Strategy<Value = Value> {
    let wish = prop_oneof![
        Just(json!({})),
        Just(json!({"tolerations": [{"operator": "Exists"}]})),
        Just(json!({"nodeSelector": {"zone": "z1"}})),
        Just(away("web", "zone")),
        Just(even("web", "zone", "DoNotSchedule")),
    ];
    (0_u32..1500, wish, 0..3).prop_map(|(milli, wish, port)| {
        let mut p = labelled("", "web", wish);
        p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = format!("{milli}m").into();
        if port > 0 {
            p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 1, "hostPort": port}]);
        }
        p
    })
}

proptest! {
    #[test]
    fn never_over_committed_and_always_feasible(
        nodes in prop::collection::vec(arbitrary_node(), 0..5),
        pods in prop::collection::vec(arbitrary_pod(), 0..12),
    ) {
        let mut s = Snapshot::default();
        for (i, mut n) in nodes.into_iter().enumerate() {
            n["metadata"]["name"] = format!("n{i}").into();
            set(&mut s, n);
        }
        for (i, mut p) in pods.into_iter().enumerate() {
            p["metadata"]["uid"] = format!("p{i}").into();
            p["metadata"]["name"] = format!("p{i}").into();
            let pod = info(p);
            let topology = Topology::of(&pod, &s);
            let feasible: Vec<Arc<str>> = s.nodes().iter()
                .filter(|n| plugin::filter(&pod, n).is_ok() && topology.as_ref().is_none_or(|t| t.filter(n).is_ok()))
                .map(|n| n.name.clone())
                .collect();
            match &cycle(&mut s, std::slice::from_ref(&pod), Tuning::default())[0] {
                Decision::Bind { node, .. } => prop_assert!(feasible.contains(node)),
                Decision::Refuse { refusal, .. } => {
                    prop_assert!(feasible.is_empty());
                    prop_assert_eq!(refusal.nodes.len(), s.known());
                }
            }
        }
        for node in s.nodes() {
            let asked: i64 = node.pods.values().map(|p| p.requests.cpu_milli).sum();
            prop_assert_eq!(asked, node.used.cpu_milli);
            prop_assert!(asked <= node.allocatable.cpu_milli);
            prop_assert!(node.pods.len() as i64 <= node.max_pods);
            let ports: Vec<i32> = node.ports.iter().map(|p| p.port).collect();
            let mut once = ports.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert_eq!(once.len(), ports.len());
        }
    }
}
