//! What to do about a Deployment.

use super::{revision, rollout, scale, status};
use crate::{claim::claim, common::name};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet},
        core::v1::Pod,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use rkube_api::selector::LabelSelector;
use rkube_runtime::{Plan, Reconcile};
use serde_json::Value;
use std::{collections::HashSet, sync::Arc};

/// A Deployment with the sets and pods that concern it.
#[derive(Debug)]
pub struct View {
    /// The Deployment.
    pub deployment: Arc<Deployment>,
    /// The sets of its namespace that it owns or that nobody controls.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// The pods of the sets that it owns.
    pub pods: Vec<Arc<Pod>>,
    /// The names of the namespace's other sets.
    pub taken: HashSet<String>,
}

/// What can be done.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Make a set its own.
    Adopt(Arc<ReplicaSet>),
    /// Let a set go.
    Release(Arc<ReplicaSet>),
    /// Create the set of the present template.
    CreateSet(Box<ReplicaSet>),
    /// Change a set's number of replicas.
    Scale {
        /// The set as it was seen.
        set: Arc<ReplicaSet>,
        /// How many it shall have.
        replicas: i32,
        /// Annotations that change with it.
        annotations: Value,
    },
    /// Merge this into a set.
    PatchSet {
        /// The set as it was seen.
        set: Arc<ReplicaSet>,
        /// A merge patch.
        patch: Value,
    },
    /// Delete a set that history no longer needs.
    DeleteSet(Arc<ReplicaSet>),
    /// Merge this into the Deployment's annotations.
    Annotate(Value),
    /// Merge this into the Deployment's status.
    PatchStatus(Value),
    /// Tell users what is wrong.
    Warn {
        /// In one word.
        reason: &'static str,
        /// For people.
        message: String,
    },
}

/// The rule.
#[derive(Debug)]
pub struct Rule;

impl Reconcile for Rule {
    type View = View;
    type Action = Action;

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan<Action> {
        let Some(spec) = &view.deployment.spec else { return Plan::none() };
        // A selector that does not parse selects nothing; the API server lets none pass.
        let selector =
            LabelSelector::from_typed(&spec.selector).unwrap_or_else(|_| LabelSelector::nothing());
        if selector.selects_everything() {
            return selects_everything(&view.deployment);
        }
        let claimed = claim(&view.deployment.metadata, &selector, &view.sets);
        if !claimed.adopt.is_empty() || !claimed.release.is_empty() {
            // The sets as they are afterwards bring the next look.
            let adopt = claimed.adopt.into_iter().map(Action::Adopt);
            let release = claimed.release.into_iter().map(Action::Release);
            return Plan::of(adopt.chain(release).collect());
        }
        let mut work = Work::new(view, spec, claimed.owned, now);
        work.decide();
        work.plan
    }
}

fn selects_everything(deployment: &Deployment) -> Plan<Action> {
    let seen = deployment.status.as_ref().and_then(|s| s.observed_generation);
    if seen == deployment.metadata.generation {
        return Plan::none();
    }
    let message = "This deployment is selecting all pods. A non-empty selector is required.";
    let status = serde_json::json!({ "observedGeneration": deployment.metadata.generation });
    Plan::of(vec![
        Action::Warn { reason: "SelectingAll", message: message.into() },
        Action::PatchStatus(status),
    ])
}

/// A reconcile under way: the sets as they will be once the plan so far is carried out.
pub(super) struct Work<'a> {
    pub view: &'a View,
    pub deployment: &'a Deployment,
    pub spec: &'a DeploymentSpec,
    /// The set of the present template.
    pub new: Option<Arc<ReplicaSet>>,
    /// The other sets, oldest first.
    pub old: Vec<Arc<ReplicaSet>>,
    /// The status with the conditions that were decided so far.
    pub status: DeploymentStatus,
    pub plan: Plan<Action>,
    pub now: Timestamp,
}

impl<'a> Work<'a> {
    fn new(
        view: &'a View,
        spec: &'a DeploymentSpec,
        mut sets: Vec<Arc<ReplicaSet>>,
        now: Timestamp,
    ) -> Self {
        sets.sort_by(|a, b| age_of(a).cmp(&age_of(b)));
        let at = sets.iter().position(|set| revision::is_of_template(set, &spec.template));
        let new = at.map(|at| sets.remove(at));
        let status = view.deployment.status.clone().unwrap_or_default();
        let deployment = view.deployment.as_ref();
        Work { view, deployment, spec, new, old: sets, status, plan: Plan::none(), now }
    }

    fn decide(&mut self) {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            return status::sync(self, false);
        }
        status::note_pause(self);
        revision::sync(self);
        if self.spec.paused == Some(true) || scale::is_scaling(self) {
            scale::scale(self);
            return status::sync(self, false);
        }
        if self.strategy() == "Recreate" {
            rollout::recreate(self)
        } else {
            rollout::rolling(self)
        }
        status::sync(self, true);
    }

    /// Every set, old and new.
    pub fn sets(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(self.new.iter())
    }

    /// How many replicas are wanted.
    pub fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    pub fn strategy(&self) -> &str {
        let strategy = self.spec.strategy.as_ref().and_then(|s| s.type_.as_deref());
        strategy.unwrap_or("RollingUpdate")
    }

    /// How many replicas there may be beyond those wanted, and how many may be unavailable.
    pub fn bounds(&self) -> Bounds {
        bounds(self.spec)
    }

    /// Plans a change of a set's size and counts on it from then on.
    pub fn resize(&mut self, set: &Arc<ReplicaSet>, replicas: i32) {
        let annotations = revision::size_annotations(self, set);
        if size_of(set) == replicas && annotations.is_none() {
            return;
        }
        let mut after = set.as_ref().clone();
        after.spec.get_or_insert_default().replicas = Some(replicas);
        let slots = self.old.iter_mut().chain(self.new.iter_mut());
        slots.filter(|slot| slot.metadata.uid == set.metadata.uid).for_each(|slot| {
            *slot = Arc::new(after.clone());
        });
        let annotations = annotations.unwrap_or_default();
        self.plan.push(Action::Scale { set: set.clone(), replicas, annotations });
    }
}

/// What a rolling update may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub max_surge: i32,
    pub max_unavailable: i32,
}

/// Percentages of the wanted replicas, surge rounded up and unavailable down; not both zero.
fn bounds(spec: &DeploymentSpec) -> Bounds {
    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return Bounds { max_surge: 0, max_unavailable: 0 };
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let replicas = spec.replicas.unwrap_or(1);
    let surge = rolling.and_then(|r| r.max_surge.as_ref());
    let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref());
    let max_surge = resolve(surge, replicas, true);
    let max_unavailable = resolve(unavailable, replicas, false);
    match (max_surge, max_unavailable) {
        (0, 0) => Bounds { max_surge: 0, max_unavailable: 1.min(replicas) },
        _ => Bounds { max_surge, max_unavailable: max_unavailable.min(replicas) },
    }
}

/// A number, or a percentage of `total`; a quarter where nothing is said.
fn resolve(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    let percent = match value {
        Some(IntOrString::Int(n)) => return (*n).max(0),
        Some(IntOrString::String(s)) => s.trim_end_matches('%').parse::<i64>().unwrap_or(0),
        None => 25,
    };
    let product = percent.saturating_mul(total.into()).max(0);
    let rounded = if up { product.saturating_add(99) / 100 } else { product / 100 };
    i32::try_from(rounded).unwrap_or(i32::MAX)
}

/// How many replicas a set is to have.
pub(super) fn size_of(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// How many of a set's pods are available.
pub(super) fn available_of(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// Orders sets by age, then name.
pub(super) fn age_of(set: &ReplicaSet) -> (Timestamp, &str) {
    let created = set.metadata.creation_timestamp.as_ref();
    (created.map_or(Timestamp::MAX, |t| t.0), name(&set.metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::deployment;
    use serde_json::json;

    #[test]
    fn percentages_are_rounded_away_from_trouble() {
        let cases = [
            (10, json!("25%"), json!("25%"), 3, 2),
            (3, json!("25%"), json!("25%"), 1, 0),
            (1, json!("25%"), json!("25%"), 1, 0),
            (4, json!(0), json!("10%"), 0, 1),
            (4, json!(2), json!(9), 2, 4),
            (5, json!("100%"), json!(0), 5, 0),
            (0, json!("25%"), json!("25%"), 0, 0),
        ];
        for (replicas, surge, unavailable, max_surge, max_unavailable) in cases {
            let d = deployment(replicas, surge, unavailable);
            let bounds = bounds(d.spec.as_ref().unwrap());
            assert_eq!(bounds, Bounds { max_surge, max_unavailable }, "{replicas}");
        }
    }
}
