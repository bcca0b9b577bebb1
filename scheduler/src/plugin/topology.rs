//! Wishes about other pods: affinity, anti-affinity and spread over domains.
//!
//! [`Topology::of`] counts once for a pod what its terms select in each domain; filter and score
//! then only look counts up. Where nobody has such wishes nothing is counted. Preferences of pods
//! that run already do not count; their required anti-affinity does.

use super::{affinity, taints};
use crate::pod::{PodInfo, PodTerm, Spread, TopologyWishes};
use crate::reason::Reason;
use crate::snapshot::{NodeState, Snapshot};
use std::collections::HashMap;
use std::sync::Arc;

/// Counts of pods by the value of a label of their nodes.
type Domains = HashMap<String, i64>;

/// What a pod's wishes and those of others mean for each domain.
#[derive(Debug, Default)]
pub struct Topology {
    affinity: Vec<(String, Domains)>,
    /// Nobody is there to be near to, and the pod is one of those itself: it is the first.
    first_of_its_kind: bool,
    anti_affinity: Vec<(String, Domains)>,
    kept_away: Vec<(String, Domains)>,
    preferred: Vec<(String, Domains)>,
    spread: Vec<SpreadState>,
}

#[derive(Debug)]
struct SpreadState {
    wish: Spread,
    domains: Domains,
    emptiest: i64,
    counts_itself: i64,
}

impl Topology {
    /// Counts; None if there is nothing to count.
    pub fn of(pod: &PodInfo, snapshot: &Snapshot) -> Option<Topology> {
        if pod.topology.is_none() && !snapshot.has_keeping_away() {
            return None;
        }
        let mut out = Topology::default();
        if snapshot.has_keeping_away() {
            out.count_keeping_away(pod, snapshot);
        }
        if let Some(wishes) = &pod.topology {
            out.count_near(pod, wishes, snapshot);
            out.anti_affinity = count_each(&wishes.anti_affinity, snapshot);
            for (weight, term) in &wishes.preferred {
                let domains = count(snapshot, &term.topology_key, |p| {
                    if selects(term, p, snapshot) { *weight } else { 0 }
                });
                out.preferred.push((term.topology_key.clone(), domains));
            }
            out.spread = wishes
                .spread
                .iter()
                .map(|wish| spread_state(pod, wish, wishes, snapshot))
                .collect();
        }
        Some(out)
    }

    /// Refuses a node where a required wish does not hold, the pod's or another's.
    pub fn filter(&self, node: &NodeState) -> Result<(), Reason> {
        self.affinity.iter().try_for_each(|(key, domains)| match node.labels.get(key) {
            Some(value) if self.first_of_its_kind || at(domains, value) > 0 => Ok(()),
            _ => Err(Reason::PodAffinity { topology_key: key.clone() }),
        })?;
        if let Some(topology_key) = occupied(&self.anti_affinity, node) {
            return Err(Reason::PodAntiAffinity { topology_key });
        }
        if let Some(topology_key) = occupied(&self.kept_away, node) {
            return Err(Reason::ExistingAntiAffinity { topology_key });
        }
        self.spread.iter().filter(|s| s.wish.required).try_for_each(|s| s.filter(node))
    }

    /// Weights of preferred pods in the node's domains, minus the pods that even spreading wants
    /// elsewhere.
    pub fn score(&self, node: &NodeState) -> i64 {
        let here = |(key, domains): &(String, Domains)| {
            node.labels.get(key).map_or(0, |value| at(domains, value))
        };
        let near: i64 = self.preferred.iter().map(here).sum();
        let crowd: i64 =
            self.spread.iter().filter(|s| !s.wish.required).map(|s| s.score(node)).sum();
        near - crowd
    }

    fn count_near(&mut self, pod: &PodInfo, wishes: &TopologyWishes, snapshot: &Snapshot) {
        let near = |p: &PodInfo| wishes.affinity.iter().all(|t| selects(t, p, snapshot));
        for term in &wishes.affinity {
            let domains = count(snapshot, &term.topology_key, |p| i64::from(near(p)));
            self.affinity.push((term.topology_key.clone(), domains));
        }
        let nobody = self.affinity.iter().all(|(_, domains)| domains.values().all(|n| *n == 0));
        self.first_of_its_kind = !self.affinity.is_empty() && nobody && near(pod);
    }

    fn count_keeping_away(&mut self, pod: &PodInfo, snapshot: &Snapshot) {
        let mut by_key: HashMap<&str, Domains> = HashMap::new();
        for node in snapshot.nodes() {
            for other in node.pods.values() {
                let terms = other.topology.iter().flat_map(|t| &t.anti_affinity);
                for term in terms.filter(|t| selects(t, pod, snapshot)) {
                    if let Some(value) = node.labels.get(&term.topology_key) {
                        *by_key
                            .entry(&term.topology_key)
                            .or_default()
                            .entry(value.clone())
                            .or_default() += 1;
                    }
                }
            }
        }
        self.kept_away =
            by_key.into_iter().map(|(key, domains)| (key.to_string(), domains)).collect();
    }
}

impl SpreadState {
    fn filter(&self, node: &NodeState) -> Result<(), Reason> {
        let topology_key = self.wish.topology_key.clone();
        let Some(value) = node.labels.get(&topology_key) else {
            return Err(Reason::MissingTopologyKey { topology_key });
        };
        let skew = at(&self.domains, value) + self.counts_itself - self.emptiest;
        if skew > self.wish.max_skew {
            return Err(Reason::Skew { topology_key, skew, max: self.wish.max_skew });
        }
        Ok(())
    }

    /// The pods in the node's domain; a node outside all domains is the worst.
    fn score(&self, node: &NodeState) -> i64 {
        let most = || self.domains.values().max().map_or(1, |n| n + 1);
        node.labels.get(&self.wish.topology_key).map_or_else(most, |value| at(&self.domains, value))
    }
}

fn spread_state(
    pod: &PodInfo,
    wish: &Spread,
    wishes: &TopologyWishes,
    snapshot: &Snapshot,
) -> SpreadState {
    let all_keys = |node: &NodeState| {
        wishes
            .spread
            .iter()
            .filter(|s| s.required == wish.required)
            .all(|s| node.labels.contains_key(&s.topology_key))
    };
    let counted = |p: &Arc<PodInfo>| {
        !p.terminating && p.key.namespace == pod.key.namespace && wish.selector.matches(&p.labels)
    };
    let mut domains = Domains::new();
    for node in snapshot.nodes().iter().filter(|n| n.known && all_keys(n)) {
        let out = (wish.honor_affinity && !affinity::matches(pod, node))
            || (wish.honor_taints && taints::filter(pod, node).is_err());
        if let (false, Some(value)) = (out, node.labels.get(&wish.topology_key)) {
            let count = node.pods.values().filter(|p| counted(p)).count() as i64;
            *domains.entry(value.clone()).or_default() += count;
        }
    }
    let few = (domains.len() as i64) < wish.min_domains;
    let emptiest = if few { 0 } else { domains.values().copied().min().unwrap_or(0) };
    let counts_itself = i64::from(wish.selector.matches(&pod.labels));
    SpreadState { wish: wish.clone(), domains, emptiest, counts_itself }
}

fn count_each(terms: &[PodTerm], snapshot: &Snapshot) -> Vec<(String, Domains)> {
    let one = |term: &PodTerm| {
        let domains =
            count(snapshot, &term.topology_key, |p| i64::from(selects(term, p, snapshot)));
        (term.topology_key.clone(), domains)
    };
    terms.iter().map(one).collect()
}

/// Sums a weight of each pod by its node's value of a label.
fn count(snapshot: &Snapshot, topology_key: &str, weigh: impl Fn(&PodInfo) -> i64) -> Domains {
    let mut domains = Domains::new();
    for node in snapshot.nodes() {
        let Some(value) = node.labels.get(topology_key) else { continue };
        let sum: i64 = node.pods.values().map(|p| weigh(p)).sum();
        if sum != 0 {
            *domains.entry(value.clone()).or_default() += sum;
        }
    }
    domains
}

fn selects(term: &PodTerm, pod: &PodInfo, snapshot: &Snapshot) -> bool {
    let namespace = &pod.key.namespace;
    let by_labels = |s| {
        snapshot
            .namespace(namespace)
            .is_some_and(|labels| rkube_api::selector::LabelSelector::matches(s, labels))
    };
    (term.namespaces.contains(namespace) || term.namespace_selector.as_ref().is_some_and(by_labels))
        && term.selector.matches(&pod.labels)
}

fn occupied(terms: &[(String, Domains)], node: &NodeState) -> Option<String> {
    let here = |(key, domains): &&(String, Domains)| {
        node.labels.get(key).is_some_and(|v| at(domains, v) > 0)
    };
    terms.iter().find(here).map(|(key, _)| key.clone())
}

fn at(domains: &Domains, value: &str) -> i64 {
    domains.get(value).copied().unwrap_or(0)
}
