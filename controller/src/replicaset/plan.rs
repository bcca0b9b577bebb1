//! What to do about a ReplicaSet.

use super::rank::victims;
use crate::{
    claim::claim,
    common::{
        available_at, controlled_by, fnv32, generated_name, is_active, is_ready, is_terminating,
        name, seconds, suffix_of, typed_diff, uid,
    },
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use rkube_api::selector::LabelSelector;
use rkube_runtime::{Plan, Reconcile};
use serde_json::Value;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// So many pods are created or deleted at most in one go; the rest follows when these are there.
const BURST: usize = 500;

/// A set and the pods that might be its own.
#[derive(Debug)]
pub struct View {
    /// The set.
    pub set: Arc<ReplicaSet>,
    /// The pods of its namespace that it owns or that nobody controls.
    pub pods: Vec<Arc<Pod>>,
    /// Active pods per node, of this set and of the sets with the same owner.
    pub on_node: HashMap<String, usize>,
    /// Names of pods of the namespace, whoever's they are.
    pub taken: HashSet<String>,
}

/// What can be done.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Make a pod its own.
    Adopt(Arc<Pod>),
    /// Let a pod go.
    Release(Arc<Pod>),
    /// Create pods, all at once.
    Create(Vec<Pod>),
    /// Delete pods, all at once.
    Delete(Vec<Arc<Pod>>),
    /// Merge this into the status.
    PatchStatus(Value),
}

/// The rule.
#[derive(Debug)]
pub struct Rule;

impl Reconcile for Rule {
    type View = View;
    type Action = Action;

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan<Action> {
        let Some(spec) = &view.set.spec else { return Plan::none() };
        // A selector that does not parse selects nothing; the API server lets none pass.
        let selector =
            LabelSelector::from_typed(&spec.selector).unwrap_or_else(|_| LabelSelector::nothing());
        let claimed = claim(&view.set.metadata, &selector, &view.pods);
        let mut plan = Plan::none();
        claimed.adopt.iter().cloned().for_each(|pod| plan.push(Action::Adopt(pod)));
        claimed.release.into_iter().for_each(|pod| plan.push(Action::Release(pod)));
        let owned: Vec<_> = claimed.owned.into_iter().chain(claimed.adopt).collect();
        let active: Vec<_> = owned.iter().filter(|pod| is_active(pod)).cloned().collect();
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        let scale = match view.set.metadata.deletion_timestamp {
            Some(_) => None,
            None => scale(view, &owned, &active, wanted),
        };
        match scale {
            // The pods that come or go bring the next look, and with it the status.
            Some(action) => plan.push(action),
            None => status(&mut plan, view, &owned, &active, now),
        }
        plan
    }
}

fn scale(view: &View, owned: &[Arc<Pod>], active: &[Arc<Pod>], wanted: usize) -> Option<Action> {
    if active.len() < wanted {
        let count = (wanted - active.len()).min(BURST);
        return Some(Action::Create(new_pods(view, owned, count)));
    }
    let surplus = (active.len() - wanted).min(BURST);
    (surplus > 0).then(|| Action::Delete(victims(active, &view.on_node, surplus)))
}

/// Pods from the template. Their names follow from the set and the pods it has.
fn new_pods(view: &View, owned: &[Arc<Pod>], count: usize) -> Vec<Pod> {
    let mut uids: Vec<&str> = owned.iter().map(|pod| uid(&pod.metadata)).collect();
    uids.sort_unstable();
    let set = view.set.as_ref();
    let seed = fnv32([uid(&set.metadata)].into_iter().chain(uids).map(str::as_bytes));
    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    let mut taken = view.taken.clone();
    (0u32..)
        .map(|n| suffix_of(fnv32([&seed.to_le_bytes()[..], &n.to_le_bytes()[..]])))
        .map(|suffix| generated_name(name(&set.metadata), &suffix))
        .filter(|name| taken.insert(name.clone()))
        .take(count)
        .map(|name| new_pod(set, &template, name))
        .collect()
}

fn new_pod(set: &ReplicaSet, template: &PodTemplateSpec, pod_name: String) -> Pod {
    let of_template = template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        name: Some(pod_name),
        generate_name: Some(format!("{}-", name(&set.metadata))),
        namespace: set.metadata.namespace.clone(),
        labels: of_template.labels,
        annotations: of_template.annotations,
        finalizers: of_template.finalizers,
        owner_references: Some(vec![controlled_by(&set.metadata, "apps/v1", "ReplicaSet")]),
        ..Default::default()
    };
    Pod { metadata, spec: template.spec.clone(), status: None }
}

fn status(
    plan: &mut Plan<Action>,
    view: &View,
    owned: &[Arc<Pod>],
    active: &[Arc<Pod>],
    now: Timestamp,
) {
    let min_ready = view.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let (mut available, mut next) = (0, None::<Timestamp>);
    for at in active.iter().filter_map(|pod| available_at(pod, min_ready)) {
        if at <= now {
            available += 1;
        } else {
            next = Some(next.map_or(at, |n| n.min(at)));
        }
    }
    let count = |pods: &[Arc<Pod>], test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(pods.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let some = |n: i32| (n > 0).then_some(n);
    let template = view.set.spec.as_ref().and_then(|s| s.template.as_ref()?.metadata.as_ref());
    let labels = template.and_then(|m| m.labels.clone()).unwrap_or_default();
    let labeled = |pod: &Pod| {
        labels
            .iter()
            .all(|(k, v)| pod.metadata.labels.as_ref().is_some_and(|l| l.get(k) == Some(v)))
    };
    let old = view.set.status.as_ref();
    let new = ReplicaSetStatus {
        replicas: count(active, &|_| true),
        fully_labeled_replicas: some(count(active, &labeled)),
        ready_replicas: some(count(active, &is_ready)),
        available_replicas: some(available),
        terminating_replicas: Some(count(owned, &is_terminating)),
        observed_generation: view.set.metadata.generation,
        // The number of pods is right, so creating or deleting did not fail (any more).
        conditions: without_failure(old),
    };
    plan.actions.extend(typed_diff(old, &new).map(Action::PatchStatus));
    if let Some(at) = next {
        plan.recheck_at(at, now);
    }
}

fn without_failure(status: Option<&ReplicaSetStatus>) -> Option<Vec<ReplicaSetCondition>> {
    let conditions = status?.conditions.iter().flatten();
    let kept: Vec<_> = conditions.filter(|c| c.type_ != "ReplicaFailure").cloned().collect();
    (!kept.is_empty()).then_some(kept)
}

/// The merge patch that reports that creating or deleting pods failed; none if that is reported.
pub(super) fn failure(
    set: &ReplicaSet,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Option<Value> {
    let old = set.status.clone().unwrap_or_default();
    let reported = old.conditions.iter().flatten();
    if reported
        .into_iter()
        .any(|c| c.type_ == "ReplicaFailure" && c.reason.as_deref() == Some(reason))
    {
        return None;
    }
    let mut new = old.clone();
    new.observed_generation = set.metadata.generation;
    let mut conditions = without_failure(Some(&old)).unwrap_or_default();
    conditions.push(ReplicaSetCondition {
        type_: "ReplicaFailure".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(seconds(now)),
    });
    new.conditions = Some(conditions);
    typed_diff(Some(&old), &new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, pod_of, ready, set};
    use serde_json::json;

    fn reconcile(set: &ReplicaSet, pods: Vec<Pod>) -> Plan<Action> {
        let pods = pods.into_iter().map(Arc::new).collect();
        let view = View {
            set: Arc::new(set.clone()),
            pods,
            on_node: HashMap::new(),
            taken: HashSet::new(),
        };
        Rule.reconcile(&view, at(100))
    }

    #[test]
    fn missing_pods_are_created_from_the_template_under_names_that_repeat() {
        let set = set("web", 3);
        let pods = vec![pod_of(&set, "a")];
        let [Action::Create(first)] = &reconcile(&set, pods.clone()).actions[..] else { panic!() };
        let [Action::Create(again)] = &reconcile(&set, pods).actions[..] else { panic!() };
        assert_eq!(first, again);
        let names: HashSet<_> = first.iter().map(|p| name(&p.metadata)).collect();
        assert_eq!(names.len(), 2);
        assert!(names.iter().all(|n| n.starts_with("web-") && n.len() == 9), "{names:?}");
        assert_eq!(first[0].metadata.generate_name.as_deref(), Some("web-"));
        let [Action::Create(other)] = &reconcile(&set, vec![pod_of(&set, "b")]).actions[..] else {
            panic!()
        };
        assert!(other.iter().all(|p| !names.contains(name(&p.metadata))));
    }

    #[test]
    fn surplus_pods_are_deleted_and_ended_ones_replaced() {
        let set = set("web", 1);
        let (kept, mut ended) = (ready(pod_of(&set, "kept"), 1), pod_of(&set, "ended"));
        ended.status.get_or_insert_default().phase = Some("Failed".into());
        let extra = pod_of(&set, "extra");
        let plan = reconcile(&set, vec![kept, extra.clone(), ended.clone()]);
        assert_eq!(plan.actions, [Action::Delete(vec![Arc::new(extra)])]);
        let plan = reconcile(&set, vec![ended]);
        assert!(matches!(&plan.actions[..], [Action::Create(pods)] if pods.len() == 1));
    }

    #[test]
    fn the_status_counts_and_min_ready_seconds_are_waited_for() {
        let mut set = set("web", 2);
        set.spec.as_mut().unwrap().min_ready_seconds = Some(10);
        let pods = vec![ready(pod_of(&set, "a"), 50), ready(pod_of(&set, "b"), 95)];
        let plan = reconcile(&set, pods);
        let status = json!({
            "availableReplicas": 1, "fullyLabeledReplicas": 2, "observedGeneration": 1,
            "readyReplicas": 2, "replicas": 2, "terminatingReplicas": 0,
        });
        assert_eq!(plan.actions, [Action::PatchStatus(status)]);
        assert_eq!(plan.recheck_after, Some(std::time::Duration::from_secs(5)));
    }

    #[test]
    fn an_orphan_that_fits_is_adopted_and_counts() {
        let set = set("web", 1);
        let mut orphan = pod_of(&set, "a");
        orphan.metadata.owner_references = None;
        let plan = reconcile(&set, vec![orphan.clone()]);
        assert_eq!(plan.actions[0], Action::Adopt(Arc::new(orphan)));
        assert!(matches!(plan.actions[1], Action::PatchStatus(_)));
        assert_eq!(plan.actions.len(), 2);
    }

    #[test]
    fn a_failure_is_reported_once_and_withdrawn() {
        let mut set = set("web", 1);
        let patch = failure(&set, "FailedCreate", "quota", at(1)).unwrap();
        assert_eq!(patch["conditions"][0]["message"], "quota");
        set.status = Some(
            serde_json::from_value(json!({
                "replicas": 0, "conditions": patch["conditions"],
            }))
            .unwrap(),
        );
        assert_eq!(failure(&set, "FailedCreate", "quota", at(2)), None);
        let plan = reconcile(&set, vec![pod_of(&set, "a")]);
        let [Action::PatchStatus(patch)] = &plan.actions[..] else { panic!() };
        assert_eq!(patch["conditions"], Value::Null);
    }
}
