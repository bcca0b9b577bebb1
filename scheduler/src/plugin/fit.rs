//! Room for what the pod asks for.

use crate::pod::PodInfo;
use crate::reason::Reason;
use crate::snapshot::NodeState;
use rkube_api::quantity::Quantity;
use std::sync::Arc;

/// Refuses a node that lacks room; the reason has every resource that is short, and by how much.
pub fn filter(pod: &PodInfo, node: &NodeState) -> Result<(), Reason> {
    if node.pods.len() as i64 >= node.max_pods {
        return Err(Reason::TooManyPods { max: node.max_pods });
    }
    if fits(pod, node) {
        return Ok(());
    }
    Err(Reason::Short(shortages(pod, node)))
}

/// How much of cpu and memory would be left, in hundredths of what the node has, on average.
pub fn score(pod: &PodInfo, node: &NodeState) -> i64 {
    let left = |used: i64, asked: i64, has: i64| match has - used - asked {
        left if has > 0 && left > 0 => left.saturating_mul(100) / has,
        _ => 0,
    };
    let cpu = left(node.weight.0, pod.weight.0, node.allocatable.cpu_milli);
    let memory = left(node.weight.1, pod.weight.1, node.allocatable.memory);
    (cpu + memory) / 2
}

fn short(asked: i64, used: i64, has: i64) -> i64 {
    if asked > 0 { asked.saturating_add(used).saturating_sub(has) } else { 0 }
}

fn fits(pod: &PodInfo, node: &NodeState) -> bool {
    let (asked, used, has) = (&pod.requests, &node.used, &node.allocatable);
    short(asked.cpu_milli, used.cpu_milli, has.cpu_milli) <= 0
        && short(asked.memory, used.memory, has.memory) <= 0
        && short(asked.ephemeral_storage, used.ephemeral_storage, has.ephemeral_storage) <= 0
        && asked
            .extended
            .iter()
            .all(|(name, n)| short(*n, used.extended(name), has.extended(name)) <= 0)
}

fn shortages(pod: &PodInfo, node: &NodeState) -> Vec<(Arc<str>, Quantity)> {
    let (asked, used, has) = (&pod.requests, &node.used, &node.allocatable);
    let bytes = |n: i64| {
        Quantity::parse(&format!("{}Ki", (n + 1023) / 1024)).unwrap_or(Quantity::from_i64(n))
    };
    let mut out: Vec<(Arc<str>, Quantity)> = Vec::new();
    let mut note = |name: Arc<str>, by: i64, show: &dyn Fn(i64) -> Quantity| {
        if by > 0 {
            out.push((name, show(by)));
        }
    };
    note(
        "cpu".into(),
        short(asked.cpu_milli, used.cpu_milli, has.cpu_milli),
        &Quantity::from_milli,
    );
    note("memory".into(), short(asked.memory, used.memory, has.memory), &bytes);
    let ephemeral = short(asked.ephemeral_storage, used.ephemeral_storage, has.ephemeral_storage);
    note("ephemeral-storage".into(), ephemeral, &bytes);
    for (name, n) in &asked.extended {
        note(name.clone(), short(*n, used.extended(name), has.extended(name)), &Quantity::from_i64);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::info;
    use crate::snapshot::{Snapshot, tests as fixture};
    use serde_json::json;

    #[test]
    fn room_and_what_is_missing() {
        let mut s = Snapshot::default();
        fixture::set(&mut s, fixture::node("n", "1"));
        s.place(info(fixture::pod("a", "750m")), "n");
        let node = s.node("n").unwrap();
        assert_eq!(filter(&info(fixture::pod("b", "250m")), node), Ok(()));
        let reason = filter(&info(fixture::pod("b", "500m")), node).unwrap_err();
        assert_eq!(reason.to_string(), "cpu short by 250m");
        let mut big = fixture::pod("c", "2");
        big["spec"]["containers"][0]["resources"]["requests"] =
            json!({"cpu": "2", "memory": "9Gi", "example.com/gpu": "1"});
        let reason = filter(&info(big), node).unwrap_err();
        assert_eq!(
            reason.to_string(),
            "cpu short by 1750m, memory short by 1Gi, example.com/gpu short by 1"
        );
    }

    #[test]
    fn a_pod_that_asks_for_nothing_fits_a_full_node() {
        let mut s = Snapshot::default();
        fixture::set(&mut s, fixture::node("n", "1"));
        s.place(info(fixture::pod("a", "2")), "n");
        assert_eq!(filter(&info(fixture::pod("b", "0")), s.node("n").unwrap()), Ok(()));
        for i in 0..9 {
            s.place(info(fixture::pod(&format!("p{i}"), "0")), "n");
        }
        let full = filter(&info(fixture::pod("b", "0")), s.node("n").unwrap());
        assert_eq!(full, Err(Reason::TooManyPods { max: 10 }));
    }

    #[test]
    fn emptier_scores_higher() {
        let mut s = Snapshot::default();
        fixture::set(&mut s, fixture::node("a", "4"));
        fixture::set(&mut s, fixture::node("b", "4"));
        s.place(info(fixture::pod("p", "2")), "a");
        let pod = info(fixture::pod("q", "1"));
        assert!(score(&pod, s.node("b").unwrap()) > score(&pod, s.node("a").unwrap()));
    }
}
