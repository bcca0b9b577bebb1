//! What to do about a namespace that goes away.

use crate::common::seconds;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use rkube_runtime::{Plan, Reconcile};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// The finalizer that this controller removes.
pub(super) const FINALIZER: &str = "kubernetes";
/// Content is counted again at this pace while it goes away.
const RECHECK: Duration = Duration::from_secs(2);

/// A namespace and what is in it.
#[derive(Clone, Debug)]
pub struct View {
    /// The namespace.
    pub namespace: Arc<Namespace>,
    /// One for each kind of which something is left.
    pub content: Vec<Content>,
}

/// What is left of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// The index of the kind.
    pub kind: usize,
    /// `pods.`, `deployments.apps`
    pub resource: String,
    /// How many objects.
    pub count: usize,
    /// How many of them are not being deleted yet.
    pub staying: usize,
    /// The finalizers that hold them, with how many objects each.
    pub finalizers: BTreeMap<String, usize>,
}

/// What can be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Delete all objects of a kind.
    DeleteAll(usize),
    /// Write the conditions.
    PatchConditions(Value),
    /// Delete what the caches don't cover, make sure at the API server that nothing is left, and
    /// remove the finalizer.
    Finalize,
}

/// The rule.
#[derive(Debug)]
pub struct Rule;

impl Reconcile for Rule {
    type View = View;
    type Action = Action;

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan<Action> {
        let namespace = &view.namespace;
        let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.as_ref());
        let ours = finalizers.is_some_and(|f| f.iter().any(|f| f == FINALIZER));
        if namespace.metadata.deletion_timestamp.is_none() || !ours {
            return Plan::none();
        }
        let mut plan = Plan::none();
        let pods_left = view.content.iter().any(|c| c.resource == "pods.");
        // Pods go first, so that nothing that they use goes before them.
        let turn = view.content.iter().filter(|c| !pods_left || c.resource == "pods.");
        let due = turn.filter(|c| c.staying > 0);
        plan.actions.extend(due.map(|c| Action::DeleteAll(c.kind)));
        if view.content.is_empty() {
            plan.push(Action::Finalize);
            return plan;
        }
        plan.actions.extend(conditions(view, now).map(Action::PatchConditions));
        plan.recheck(RECHECK);
        plan
    }
}

/// The conditions if they say something new.
fn conditions(view: &View, now: Timestamp) -> Option<Value> {
    let resources: Vec<_> = view
        .content
        .iter()
        .map(|c| format!("{} has {} resource instances", c.resource, c.count))
        .collect();
    let mut held = BTreeMap::<&str, usize>::new();
    for (finalizer, count) in view.content.iter().flat_map(|c| &c.finalizers) {
        *held.entry(finalizer).or_default() += count;
    }
    let held: Vec<_> =
        held.iter().map(|(f, count)| format!("{f} in {count} resource instances")).collect();
    let remaining = (!resources.is_empty())
        .then(|| format!("Some resources are remaining: {}", resources.join(", ")));
    let finalizing =
        (!held.is_empty()).then(|| format!("Some finalizers are remaining: {}", held.join(", ")));
    let removed = "All content successfully removed";
    let deleted = "All content successfully deleted, may be waiting on finalization";
    let old = view.namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let new = [
        (
            "NamespaceDeletionDiscoveryFailure",
            None,
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        ("NamespaceDeletionContentFailure", None, "ContentDeleted", deleted),
        (
            "NamespaceContentRemaining",
            remaining.map(|m| ("SomeResourcesRemain", m)),
            "ContentRemoved",
            removed,
        ),
        (
            "NamespaceFinalizersRemaining",
            finalizing.map(|m| ("SomeFinalizersRemain", m)),
            "ContentRemoved",
            removed,
        ),
    ]
    .map(|(kind, wrong, reason, message)| match wrong {
        Some((reason, message)) => condition(&old, kind, "True", reason, &message, now),
        None => condition(&old, kind, "False", reason, message, now),
    });
    (old != new).then(|| json!(new))
}

fn condition(
    old: &[NamespaceCondition],
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> NamespaceCondition {
    let same = old.iter().find(|c| c.type_ == kind && c.status == status);
    NamespaceCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: same
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(seconds(now))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn view(content: Vec<Content>) -> View {
        let namespace = serde_json::from_value(json!({
            "metadata": {"name": "t", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"finalizers": ["kubernetes"]},
        }));
        View { namespace: Arc::new(namespace.unwrap()), content }
    }

    fn content(kind: usize, resource: &str, staying: usize) -> Content {
        let finalizers = BTreeMap::from([("example.com/x".to_owned(), 1)]);
        Content { kind, resource: resource.into(), count: 2, staying, finalizers }
    }

    #[test]
    fn pods_go_first_then_the_rest_then_the_finalizer() {
        let both = view(vec![content(0, "configmaps.", 2), content(1, "pods.", 2)]);
        let plan = Rule.reconcile(&both, at(1));
        assert_eq!(plan.actions[0], Action::DeleteAll(1));
        let Action::PatchConditions(conditions) = &plan.actions[1] else { panic!() };
        let message = "Some resources are remaining: configmaps. has 2 resource instances, \
                       pods. has 2 resource instances";
        assert_eq!(conditions[3]["message"], message);
        let held = "Some finalizers are remaining: example.com/x in 2 resource instances";
        assert_eq!(conditions[4]["message"], held);
        assert_eq!((plan.actions.len(), plan.recheck_after), (2, Some(RECHECK)));
        let rest = Rule.reconcile(&view(vec![content(0, "configmaps.", 2)]), at(1));
        assert_eq!(rest.actions[0], Action::DeleteAll(0));
        let waiting = Rule.reconcile(&view(vec![content(0, "configmaps.", 0)]), at(1));
        assert!(matches!(waiting.actions[..], [Action::PatchConditions(_)]));
        assert_eq!(Rule.reconcile(&view(vec![]), at(1)).actions, [Action::Finalize]);
    }

    #[test]
    fn a_living_namespace_is_left_alone() {
        let mut view = view(vec![content(0, "configmaps.", 2)]);
        let mut namespace = view.namespace.as_ref().clone();
        namespace.metadata.deletion_timestamp = None;
        view.namespace = Arc::new(namespace);
        assert_eq!(Rule.reconcile(&view, at(1)), Plan::none());
    }
}
