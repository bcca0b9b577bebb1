//! The decision: which pod goes where.

use crate::plugin::{self, topology::Topology};
use crate::pod::PodInfo;
use crate::reason::Refusal;
use crate::snapshot::{NodeState, Snapshot};
use std::sync::Arc;

/// What is to be done about a pod.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Bind it; the snapshot already assumes it there.
    Bind {
        /// The pod.
        pod: Arc<PodInfo>,
        /// Its node.
        node: Arc<str>,
    },
    /// Tell why it waits.
    Refuse {
        /// The pod.
        pod: Arc<PodInfo>,
        /// Why.
        refusal: Refusal,
    },
}

/// How hard a cycle searches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Of all nodes, how many in a hundred that fit are compared (upstream's
    /// `percentageOfNodesToScore`).
    pub percentage_of_nodes_to_score: u8,
    /// At least so many.
    pub min_nodes_to_score: usize,
}

impl Default for Tuning {
    /// All of a small cluster, 100 nodes and a twentieth of a large one: each search begins where
    /// the last one ended, so that all nodes get their turn.
    fn default() -> Self {
        Tuning { percentage_of_nodes_to_score: 5, min_nodes_to_score: 100 }
    }
}

impl Tuning {
    fn wanted(&self, nodes: usize) -> usize {
        let share = nodes * usize::from(self.percentage_of_nodes_to_score.min(100)) / 100;
        share.max(self.min_nodes_to_score.max(1))
    }
}

/// Decides about pods in turn. Each that gets a node is assumed there before the next is looked at.
pub fn cycle(snapshot: &mut Snapshot, batch: &[Arc<PodInfo>], tuning: Tuning) -> Vec<Decision> {
    let mut scratch = Vec::new();
    batch.iter().map(|pod| decide(snapshot, pod, tuning, &mut scratch)).collect()
}

/// A node that fits, with its raw scores.
struct Candidate {
    node: usize,
    raw: [i64; SCORES],
}

fn decide(
    snapshot: &mut Snapshot,
    pod: &Arc<PodInfo>,
    tuning: Tuning,
    candidates: &mut Vec<Candidate>,
) -> Decision {
    if !pod.unsupported.is_empty() {
        let refusal = Refusal { pod: pod.unsupported.clone(), nodes: Vec::new() };
        return Decision::Refuse { pod: pod.clone(), refusal };
    }
    candidates.clear();
    let topology = Topology::of(pod, snapshot);
    let mut refusal = Refusal::default();
    let wanted = tuning.wanted(snapshot.known());
    let nodes = snapshot.nodes();
    let start = snapshot.next;
    let mut seen = 0;
    for i in 0..nodes.len() {
        let index = (start + i) % nodes.len();
        let node = &nodes[index];
        seen += 1;
        if !node.known {
            continue;
        }
        let fits = plugin::filter(pod, node)
            .and_then(|()| topology.as_ref().map_or(Ok(()), |t| t.filter(node)));
        match fits {
            Ok(()) => candidates.push(Candidate { node: index, raw: scores(pod, node, &topology) }),
            Err(reason) if candidates.is_empty() => refusal.nodes.push((node.name.clone(), reason)),
            Err(_) => {}
        }
        if candidates.len() == wanted {
            break;
        }
    }
    let best = best(candidates).map(|i| nodes[i].name.clone());
    snapshot.next = if nodes.is_empty() { 0 } else { (start + seen) % snapshot.nodes().len() };
    match best {
        Some(node) => {
            snapshot.assume(pod.clone(), &node);
            Decision::Bind { pod: pod.clone(), node }
        }
        None => {
            refusal.nodes.sort_by(|a, b| a.0.cmp(&b.0));
            Decision::Refuse { pod: pod.clone(), refusal }
        }
    }
}

const SCORES: usize = 5;
/// Weights of the scores, as upstream's: room, soft taints, node affinity, spread, other pods.
const WEIGHTS: [i64; SCORES] = [1, 3, 2, 2, 2];
/// The score of the best node before weighing.
const FULL: i64 = 100;

fn scores(pod: &PodInfo, node: &NodeState, topology: &Option<Topology>) -> [i64; SCORES] {
    [
        plugin::fit::score(pod, node),
        plugin::taints::score(pod, node),
        plugin::affinity::score(pod, node),
        plugin::spread::score(pod, node),
        topology.as_ref().map_or(0, |t| t.score(node)),
    ]
}

/// The candidate with the highest weighed sum; the first of equals. Room counts as it is, the
/// others are stretched so that the worst candidate has 0 and the best 100.
fn best(candidates: &[Candidate]) -> Option<usize> {
    let mut low = [i64::MAX; SCORES];
    let mut high = [i64::MIN; SCORES];
    for candidate in candidates {
        for (k, raw) in candidate.raw.iter().enumerate() {
            low[k] = low[k].min(*raw);
            high[k] = high[k].max(*raw);
        }
    }
    let total = |candidate: &Candidate| {
        let mut sum = candidate.raw[0] * WEIGHTS[0];
        for k in 1..SCORES {
            if high[k] > low[k] {
                sum += WEIGHTS[k] * (candidate.raw[k] - low[k]) * FULL / (high[k] - low[k]);
            }
        }
        sum
    };
    let mut best: Option<(i64, usize)> = None;
    for candidate in candidates {
        let sum = total(candidate);
        if best.is_none_or(|(highest, _)| sum > highest) {
            best = Some((sum, candidate.node));
        }
    }
    best.map(|(_, node)| node)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
