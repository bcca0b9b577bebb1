//! What scheduling reads of a pod, taken out of it once.

use crate::resources::{self, Resources};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint,
};
use rkube_api::selector::{LabelSelector, Operator, Requirement};
use rkube_runtime::ObjectKey;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A pod as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// Namespace and name.
    pub key: ObjectKey,
    /// What tells it from an earlier pod of that name.
    pub uid: Arc<str>,
    /// Higher goes first.
    pub priority: i32,
    /// Of two with one priority the older goes first.
    pub created: Timestamp,
    /// Its labels.
    pub labels: Labels,
    /// It is going away.
    pub terminating: bool,
    /// Where it is bound.
    pub node: Option<Arc<str>>,
    /// What it asks for.
    pub requests: Resources,
    /// Cpu and memory that count when nodes are compared.
    pub weight: (i64, i64),
    /// Ports of the node that it takes.
    pub ports: Vec<HostPort>,
    /// Labels that its node must have.
    pub node_selector: Vec<(String, String)>,
    /// One of these must hold of its node; None where the pod does not say.
    pub required_nodes: Option<Vec<NodeTerm>>,
    /// Nodes that it would like, each with a weight.
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    /// Taints that it bears.
    pub tolerations: Vec<Toleration>,
    /// What it belongs to: pods of one group are spread over the nodes.
    pub group: Option<Arc<str>>,
    /// Its wishes about other pods, if it has any.
    pub topology: Option<Box<TopologyWishes>>,
    /// Names of what holds it back until somebody removes it.
    pub gates: Vec<String>,
    /// What it asks for and this scheduler can't place, as sentences.
    pub unsupported: Vec<String>,
    /// Reason and message of its condition `PodScheduled` where that is False.
    pub refused: Option<(String, String)>,
}

/// A port of the node's own addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `0.0.0.0` takes the port on all addresses.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`
    pub protocol: String,
    /// The number.
    pub port: i32,
}

/// Conditions on a node that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTerm {
    /// On its labels.
    pub labels: Vec<Requirement>,
    /// On its name.
    pub name: Vec<Requirement>,
}

/// What a pod wants of the pods around it.
#[derive(Clone, Debug, Default)]
pub struct TopologyWishes {
    /// Pods that must be near.
    pub affinity: Vec<PodTerm>,
    /// Pods that must not be near.
    pub anti_affinity: Vec<PodTerm>,
    /// Pods that should be near, or not (negative weights).
    pub preferred: Vec<(i64, PodTerm)>,
    /// How evenly pods are spread.
    pub spread: Vec<Spread>,
}

/// A set of pods, near or not by a label of their nodes.
#[derive(Clone, Debug)]
pub struct PodTerm {
    /// The pods' labels.
    pub selector: LabelSelector,
    /// Nodes with one value of this label are one place.
    pub topology_key: String,
    /// The pods' namespaces.
    pub namespaces: Vec<String>,
    /// … or those whose labels it selects.
    pub namespace_selector: Option<LabelSelector>,
}

/// A topology spread constraint.
#[derive(Clone, Debug)]
pub struct Spread {
    /// Pods of the same namespace that are counted.
    pub selector: LabelSelector,
    /// Nodes with one value of this label are one domain.
    pub topology_key: String,
    /// How many more a domain may have than the emptiest.
    pub max_skew: i64,
    /// With fewer domains than this the emptiest counts as having none.
    pub min_domains: i64,
    /// Else it is a wish.
    pub required: bool,
    /// Nodes that the pod's selectors exclude don't count.
    pub honor_affinity: bool,
    /// Nodes with taints that the pod does not bear don't count.
    pub honor_taints: bool,
}

impl PodInfo {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let labels = meta.labels.clone().unwrap_or_default();
        let key = ObjectKey::of(meta);
        let affinity = spec.affinity.as_ref();
        let owner = meta.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        PodInfo {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            priority: spec.priority.unwrap_or(0),
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            terminating: meta.deletion_timestamp.is_some(),
            node: spec.node_name.as_deref().filter(|n| !n.is_empty()).map(Into::into),
            requests: Resources::of_pod(spec),
            weight: resources::weight(spec),
            ports: host_ports(spec),
            node_selector: spec
                .node_selector
                .iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            required_nodes: required_nodes(affinity),
            preferred_nodes: preferred_nodes(affinity),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            group: owner.map(|o| o.uid.as_str().into()),
            topology: topology_wishes(spec, &labels, &key.namespace),
            gates: spec.scheduling_gates.iter().flatten().map(|g| g.name.clone()).collect(),
            unsupported: unsupported(spec),
            refused: refused(pod),
            labels,
            key,
        }
    }
}

impl NodeTerm {
    /// None if an operator is unknown: such a term holds of no node.
    fn of(term: &NodeSelectorTerm) -> Option<Self> {
        let read = |list: &Option<Vec<k8s_openapi::api::core::v1::NodeSelectorRequirement>>| {
            list.iter().flatten().map(requirement).collect::<Option<Vec<_>>>()
        };
        let (labels, name) = (read(&term.match_expressions)?, read(&term.match_fields)?);
        let empty = labels.is_empty() && name.is_empty();
        (!empty).then_some(NodeTerm { labels, name })
    }

    /// Whether it holds of a node.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.labels.iter().all(|r| r.matches(labels.get(&r.key).map(String::as_str)))
            && self.name.iter().all(|r| r.key == "metadata.name" && r.matches(Some(name)))
    }
}

fn requirement(r: &k8s_openapi::api::core::v1::NodeSelectorRequirement) -> Option<Requirement> {
    let operator = match r.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return None,
    };
    Some(Requirement { key: r.key.clone(), operator, values: r.values.clone().unwrap_or_default() })
}

fn required_nodes(affinity: Option<&Affinity>) -> Option<Vec<NodeTerm>> {
    let node = affinity?.node_affinity.as_ref()?;
    let required = node.required_during_scheduling_ignored_during_execution.as_ref()?;
    Some(required.node_selector_terms.iter().filter_map(NodeTerm::of).collect())
}

fn preferred_nodes(affinity: Option<&Affinity>) -> Vec<(i64, NodeTerm)> {
    let node = affinity.and_then(|a| a.node_affinity.as_ref());
    let preferred =
        node.and_then(|n| n.preferred_during_scheduling_ignored_during_execution.as_ref());
    preferred
        .into_iter()
        .flatten()
        .filter_map(|p| Some((i64::from(p.weight), NodeTerm::of(&p.preference)?)))
        .collect()
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter(|p| p.host_port.is_some_and(|port| port > 0))
        .map(|p| HostPort {
            ip: p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0".into()),
            protocol: p.protocol.clone().unwrap_or("TCP".into()),
            port: p.host_port.unwrap_or(0),
        })
        .collect()
}

fn topology_wishes(
    spec: &PodSpec,
    labels: &Labels,
    namespace: &str,
) -> Option<Box<TopologyWishes>> {
    let affinity = spec.affinity.as_ref();
    let near = affinity.and_then(|a| a.pod_affinity.as_ref());
    let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let term = |t: &PodAffinityTerm| pod_term(t, labels, namespace);
    let near_required =
        near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let far_required =
        far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let near_preferred =
        near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let far_preferred =
        far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let near_preferred = near_preferred
        .into_iter()
        .flatten()
        .map(|w| (i64::from(w.weight), term(&w.pod_affinity_term)));
    let far_preferred = far_preferred
        .into_iter()
        .flatten()
        .map(|w| (-i64::from(w.weight), term(&w.pod_affinity_term)));
    let wishes = TopologyWishes {
        affinity: near_required.into_iter().flatten().map(term).collect(),
        anti_affinity: far_required.into_iter().flatten().map(term).collect(),
        preferred: near_preferred.chain(far_preferred).collect(),
        spread: spec
            .topology_spread_constraints
            .iter()
            .flatten()
            .map(|c| spread(c, labels))
            .collect(),
    };
    let none = wishes.affinity.is_empty()
        && wishes.anti_affinity.is_empty()
        && wishes.preferred.is_empty()
        && wishes.spread.is_empty();
    (!none).then(|| Box::new(wishes))
}

fn pod_term(term: &PodAffinityTerm, labels: &Labels, namespace: &str) -> PodTerm {
    let mut selector = selector(term.label_selector.as_ref());
    for (keys, operator) in
        [(&term.match_label_keys, Operator::In), (&term.mismatch_label_keys, Operator::NotIn)]
    {
        selector = and_own(selector, keys.iter().flatten(), operator, labels);
    }
    let mut namespaces = term.namespaces.clone().unwrap_or_default();
    let namespace_selector = term
        .namespace_selector
        .as_ref()
        .map(|s| LabelSelector::from_typed(s).unwrap_or(LabelSelector::nothing()));
    if namespaces.is_empty() && namespace_selector.is_none() {
        namespaces.push(namespace.into());
    }
    PodTerm { selector, topology_key: term.topology_key.clone(), namespaces, namespace_selector }
}

fn spread(constraint: &TopologySpreadConstraint, labels: &Labels) -> Spread {
    let own = constraint.match_label_keys.iter().flatten();
    let selector = selector(constraint.label_selector.as_ref());
    Spread {
        selector: and_own(selector, own, Operator::In, labels),
        topology_key: constraint.topology_key.clone(),
        max_skew: i64::from(constraint.max_skew),
        min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
        required: constraint.when_unsatisfiable != "ScheduleAnyway",
        honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
    }
}

fn selector(
    typed: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
) -> LabelSelector {
    let parsed = typed.map(LabelSelector::from_typed);
    parsed.and_then(Result::ok).unwrap_or(LabelSelector::nothing())
}

/// Adds a condition with the pod's own value for each of these labels that it has.
fn and_own<'k>(
    selector: LabelSelector,
    keys: impl Iterator<Item = &'k String>,
    operator: Operator,
    labels: &Labels,
) -> LabelSelector {
    keys.filter_map(|key| Some((key, labels.get(key)?))).fold(selector, |selector, (key, value)| {
        selector.and(Requirement { key: key.clone(), operator, values: vec![value.clone()] })
    })
}

/// Kinds that place volumes and devices are not served, so such pods would wait for ever: they are
/// told so.
fn unsupported(spec: &PodSpec) -> Vec<String> {
    let claims = spec.volumes.iter().flatten().filter_map(|v| {
        let name = match (&v.persistent_volume_claim, &v.ephemeral) {
            (Some(claim), _) => &claim.claim_name,
            (None, Some(_)) => &v.name,
            (None, None) => return None,
        };
        Some(format!(
            "persistentvolumeclaim {name:?} can't be bound: volumes with a claim are not supported"
        ))
    });
    let devices = spec.resource_claims.iter().flatten();
    let devices = devices.map(|c| {
        format!("resource claim {:?} can't be allocated: claims are not supported", c.name)
    });
    claims.chain(devices).collect()
}

fn refused(pod: &Pod) -> Option<(String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    Some((
        condition.reason.clone().unwrap_or_default(),
        condition.message.clone().unwrap_or_default(),
    ))
}

#[cfg(test)]
pub(crate) fn info(value: serde_json::Value) -> Arc<PodInfo> {
    Arc::new(PodInfo::of(&serde_json::from_value(value).expect("a pod")))
}
