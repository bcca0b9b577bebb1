//! Why a pod does not fit, for programs (which events may help), in upstream's words (the summary),
//! and for a person (each node with numbers).

use rkube_api::quantity::Quantity;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// Nodes that a message names one by one: what a terminal's line or two can hold.
const NAMED_NODES: usize = 10;
/// Where a message ends: events hold 1,024 characters.
const MESSAGE_BYTES: usize = 1000;

/// Why a pod does not fit a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `spec.unschedulable` (cordoned).
    Unschedulable,
    /// A taint that the pod does not bear.
    Taint {
        /// Its key.
        key: String,
        /// Its value, maybe empty.
        value: String,
    },
    /// `nodeSelector` or required node affinity does not hold.
    NodeAffinity,
    /// Host ports that others have taken.
    HostPorts(Vec<i32>),
    /// Resources of which too little is left: each with how much is missing.
    Short(Vec<(Arc<str>, Quantity)>),
    /// The node runs as many pods as it may.
    TooManyPods {
        /// As many.
        max: i64,
    },
    /// No pod of those that must be near is.
    PodAffinity {
        /// By this label.
        topology_key: String,
    },
    /// A pod that must not be near is.
    PodAntiAffinity {
        /// By this label.
        topology_key: String,
    },
    /// A pod that is here does not want this one near.
    ExistingAntiAffinity {
        /// By this label.
        topology_key: String,
    },
    /// The domain would have too many more pods than the emptiest.
    Skew {
        /// By this label.
        topology_key: String,
        /// So many more than the emptiest, with the pod.
        skew: i64,
        /// So many may be.
        max: i64,
    },
    /// The node lacks the label that a spread constraint goes by.
    MissingTopologyKey {
        /// This one.
        topology_key: String,
    },
}

/// A set of kinds of reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    /// Taints, selectors and what else is a property of nodes.
    pub const NODE: Kinds = Kinds(1);
    /// Room for resources, ports and pods.
    pub const ROOM: Kinds = Kinds(2);
    /// Other pods are missing.
    pub const PODS_MISSING: Kinds = Kinds(4);
    /// Other pods are in the way.
    pub const PODS_IN_THE_WAY: Kinds = Kinds(8);
    /// All.
    pub const ALL: Kinds = Kinds(15);

    /// Either.
    pub fn or(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    /// Whether they have something in common.
    pub fn meets(self, other: Kinds) -> bool {
        self.0 & other.0 != 0
    }
}

impl Reason {
    /// Which kind of event may help.
    pub fn kinds(&self) -> Kinds {
        match self {
            Reason::HostPorts(_) | Reason::Short(_) | Reason::TooManyPods { .. } => Kinds::ROOM,
            Reason::PodAffinity { .. } => Kinds::PODS_MISSING,
            Reason::PodAntiAffinity { .. } | Reason::ExistingAntiAffinity { .. } => {
                Kinds::PODS_IN_THE_WAY
            }
            // An added pod can raise the emptiest domain, a deleted one lower the fullest.
            Reason::Skew { .. } => Kinds::PODS_MISSING.or(Kinds::PODS_IN_THE_WAY),
            _ => Kinds::NODE,
        }
    }

    /// The words by which upstream counts nodes.
    fn summaries(&self, count: &mut BTreeMap<String, usize>) {
        let mut add = |text: &str| *count.entry(text.to_string()).or_default() += 1;
        match self {
            Reason::Unschedulable => add("node(s) were unschedulable"),
            Reason::Taint { .. } => add("node(s) had untolerated taint(s)"),
            Reason::NodeAffinity => add("node(s) didn't match Pod's node affinity/selector"),
            Reason::HostPorts(_) => {
                add("node(s) didn't have free ports for the requested pod ports");
            }
            Reason::Short(list) => {
                list.iter().for_each(|(name, _)| add(&format!("Insufficient {name}")));
            }
            Reason::TooManyPods { .. } => add("Too many pods"),
            Reason::PodAffinity { .. } => add("node(s) didn't match pod affinity rules"),
            Reason::PodAntiAffinity { .. } => add("node(s) didn't match pod anti-affinity rules"),
            Reason::ExistingAntiAffinity { .. } => {
                add("node(s) didn't satisfy existing pods anti-affinity rules");
            }
            Reason::Skew { .. } => add("node(s) didn't match pod topology spread constraints"),
            Reason::MissingTopologyKey { .. } => {
                add(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            }
        }
    }
}

impl std::fmt::Display for Reason {
    /// For a person, with numbers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::Unschedulable => f.write_str("cordoned"),
            Reason::Taint { key, value } => write!(f, "untolerated taint {{{key}: {value}}}"),
            Reason::NodeAffinity => f.write_str("node selector or affinity does not match"),
            Reason::HostPorts(ports) => {
                let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                write!(f, "host port {} taken", ports.join(", "))
            }
            Reason::Short(list) => {
                for (i, (name, by)) in list.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{name} short by {by}")?;
                }
                Ok(())
            }
            Reason::TooManyPods { max } => write!(f, "runs {max} pods, its most"),
            Reason::PodAffinity { topology_key } => {
                write!(f, "no pod to be near to by {topology_key}")
            }
            Reason::PodAntiAffinity { topology_key } => {
                write!(f, "a pod to keep away from by {topology_key}")
            }
            Reason::ExistingAntiAffinity { topology_key } => {
                write!(f, "a pod there keeps away from this one by {topology_key}")
            }
            Reason::Skew { topology_key, skew, max } => {
                write!(f, "skew by {topology_key} would be {skew}, may be {max}")
            }
            Reason::MissingTopologyKey { topology_key } => {
                write!(f, "lacks label {topology_key}")
            }
        }
    }
}

/// Why a pod fits nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Each node with its reason, in the order of names.
    pub nodes: Vec<(Arc<str>, Reason)>,
    /// What makes the pod fit no node at all, as sentences.
    pub pod: Vec<String>,
}

impl Refusal {
    /// Which kinds of events may help.
    pub fn kinds(&self) -> Kinds {
        if self.nodes.is_empty() || !self.pod.is_empty() {
            return Kinds::NODE;
        }
        self.nodes.iter().fold(Kinds::default(), |kinds, (_, r)| kinds.or(r.kinds()))
    }

    /// The message of condition and event: upstream's summary, then node by node, as far as there
    /// is room.
    pub fn message(&self) -> String {
        if !self.pod.is_empty() {
            return self.pod.join("; ");
        }
        if self.nodes.is_empty() {
            return "no nodes available to schedule pods".into();
        }
        let mut count = BTreeMap::new();
        self.nodes.iter().for_each(|(_, reason)| reason.summaries(&mut count));
        let mut summary: Vec<String> =
            count.iter().map(|(text, n)| format!("{n} {text}")).collect();
        summary.sort();
        let mut out =
            format!("0/{} nodes are available: {}.", self.nodes.len(), summary.join(", "));
        for (i, (name, reason)) in self.nodes.iter().enumerate() {
            let next = format!("{name}: {reason}");
            if i == NAMED_NODES || out.len() + next.len() > MESSAGE_BYTES {
                // Writing to a string can't fail.
                let _ = write!(out, ", and {} more", self.nodes.len() - i);
                break;
            }
            out.push_str(if i == 0 { " " } else { ", " });
            out.push_str(&next);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(by: &str) -> Reason {
        Reason::Short(vec![("cpu".into(), Quantity::parse(by).unwrap())])
    }

    #[test]
    fn messages_have_a_summary_and_each_node() {
        let taint = Reason::Taint { key: "k".into(), value: "v".into() };
        let refusal = Refusal {
            nodes: vec![
                ("node-1".into(), taint),
                ("node-2".into(), short("250m")),
                ("node-3".into(), short("1")),
            ],
            pod: vec![],
        };
        assert_eq!(
            refusal.message(),
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu. \
             node-1: untolerated taint {k: v}, node-2: cpu short by 250m, node-3: cpu short by 1"
        );
        assert!(refusal.kinds().meets(Kinds::ROOM) && refusal.kinds().meets(Kinds::NODE));
        assert!(!refusal.kinds().meets(Kinds::PODS_MISSING));
    }

    #[test]
    fn many_nodes_are_bounded() {
        let nodes = (0..5000).map(|i| (format!("n{i}").into(), short("1"))).collect();
        let message = Refusal { nodes, pod: vec![] }.message();
        assert!(message.starts_with(
            "0/5000 nodes are available: 5000 Insufficient cpu. n0: cpu short by 1, n1"
        ));
        assert!(message.ends_with(", and 4990 more"), "{message}");
        let nodes =
            (0..9).map(|i| (format!("{}{i}", "x".repeat(250)).into(), short("1"))).collect();
        assert!(Refusal { nodes, pod: vec![] }.message().len() < 1024);
        assert_eq!(Refusal::default().message(), "no nodes available to schedule pods");
    }
}
