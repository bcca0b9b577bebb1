//! From the old template's pods to the new one's.

use super::{
    plan::{Work, age_of, available_of, size_of},
    revision, status,
};
use crate::common::{controller_of, is_terminal};
use k8s_openapi::api::apps::v1::ReplicaSet;
use std::sync::Arc;

/// Ends every old pod, then begins with the new ones.
pub(super) fn recreate(work: &mut Work) {
    let active: Vec<_> = work.old.iter().filter(|set| size_of(set) > 0).cloned().collect();
    if !active.is_empty() {
        return active.iter().for_each(|set| work.resize(set, 0));
    }
    if old_pods_run(work) {
        return;
    }
    let replicas = work.replicas();
    match work.new.clone() {
        None => revision::create(work, replicas),
        Some(set) => work.resize(&set, replicas),
    }
    clean_up_if_complete(work);
}

fn old_pods_run(work: &Work) -> bool {
    let new = work.new.as_ref().and_then(|set| set.metadata.uid.as_deref());
    let of_old = |owner: &str| Some(owner) != new;
    let mut pods = work.view.pods.iter().filter(|pod| !is_terminal(pod));
    pods.any(|pod| controller_of(&pod.metadata).is_some_and(|owner| of_old(&owner.uid)))
}

/// Grows the new set as far as the surge allows, else shrinks the old ones as far as availability
/// allows.
pub(super) fn rolling(work: &mut Work) {
    if work.new.is_none() {
        let replicas = grown(work, 0);
        revision::create(work, replicas);
        // After a collision there is no new set before the next look.
        if work.new.is_none() {
            return;
        }
    }
    let Some(new) = work.new.clone() else { return };
    let size = size_of(&new);
    let target = if size > work.replicas() { work.replicas() } else { grown(work, size) };
    if target != size {
        return work.resize(&new, target);
    }
    if !shrink_old(work, &new) {
        clean_up_if_complete(work);
    }
}

/// The size that the new set may have, being `size` now. What counts is the pods that there are, not
/// those that there shall be: an old set that has not been seen to shrink holds up the new one, so
/// the surge is kept to the pod.
fn grown(work: &Work, size: i32) -> i32 {
    if work.old.iter().any(|set| !is_observed(set)) {
        return size;
    }
    let most = work.replicas().saturating_add(work.bounds().max_surge);
    let total: i32 = work.sets().map(|set| size_of(set).max(pods_of(set))).sum();
    let room = most.saturating_sub(total).max(0);
    size + room.min(work.replicas() - size).max(0)
}

/// Shrinks the old sets, pods that are not available first. Says whether it did.
fn shrink_old(work: &mut Work, new: &ReplicaSet) -> bool {
    let mut old: Vec<_> = work.old.iter().filter(|set| size_of(set) > 0).cloned().collect();
    if old.is_empty() {
        return false;
    }
    old.sort_by(|a, b| age_of(a).cmp(&age_of(b)));
    let min_available = work.replicas() - work.bounds().max_unavailable;
    let total: i32 = work.sets().map(|set| size_of(set)).sum();
    let unavailable_new = size_of(new) - available_within(new);
    // What is taken away must leave enough even if no new pod comes up.
    let mut budget = total - min_available - unavailable_new;
    if budget <= 0 {
        return false;
    }
    let mut sizes: Vec<i32> = old.iter().map(|set| size_of(set)).collect();
    for (set, size) in old.iter().zip(&mut sizes) {
        let unhealthy = (*size - available_within(set)).clamp(0, budget);
        *size -= unhealthy;
        budget -= unhealthy;
    }
    // Whatever is left of the budget now is what is available beyond the minimum.
    for size in &mut sizes {
        let taken = budget.clamp(0, *size);
        *size -= taken;
        budget -= taken;
    }
    let changed: Vec<(Arc<ReplicaSet>, i32)> =
        old.into_iter().zip(sizes).filter(|(set, size)| size_of(set) != *size).collect();
    changed.iter().for_each(|(set, size)| work.resize(set, *size));
    !changed.is_empty()
}

/// Whether the set's status is of its present size.
fn is_observed(set: &ReplicaSet) -> bool {
    let observed = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
    observed >= set.metadata.generation.unwrap_or(0)
}

fn pods_of(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

/// A set's available pods; of a status that has not caught up with a smaller size no more than that.
fn available_within(set: &ReplicaSet) -> i32 {
    available_of(set).min(size_of(set))
}

fn clean_up_if_complete(work: &mut Work) {
    if status::is_complete(work, &work.status) {
        revision::clean_up(work);
    }
}
