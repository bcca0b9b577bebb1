//! A change of a Deployment's size amid a rollout, or while it is paused: each set gets its share,
//! so that the change does not hasten the rollout.

use super::{
    plan::{Work, age_of, available_of, size_of},
    revision::{DESIRED, MAX},
};
use crate::common::annotation;
use k8s_openapi::api::apps::v1::ReplicaSet;
use std::{cmp::Reverse, sync::Arc};

/// Whether the Deployment's size has changed since its sets were last sized.
pub(super) fn is_scaling(work: &Work) -> bool {
    let mut active = work.sets().filter(|set| size_of(set) > 0);
    active.any(|set| number(set, DESIRED).is_some_and(|desired| desired != work.replicas()))
}

fn number(set: &ReplicaSet, key: &str) -> Option<i32> {
    annotation(&set.metadata, key)?.parse().ok()
}

/// Brings the sets to the Deployment's size.
pub(super) fn scale(work: &mut Work) {
    let replicas = work.replicas();
    let mut active: Vec<_> = work.sets().filter(|set| size_of(set) > 0).cloned().collect();
    if active.len() <= 1 {
        let newest = || work.new.clone().or_else(|| work.old.last().cloned());
        if let Some(set) = active.pop().or_else(newest) {
            work.resize(&set, replicas);
        }
        return;
    }
    if work.new.as_ref().is_some_and(|set| is_saturated(work, set)) {
        let old: Vec<_> = work.old.iter().filter(|set| size_of(set) > 0).cloned().collect();
        return old.iter().for_each(|set| work.resize(set, 0));
    }
    if work.strategy() != "Recreate" {
        for (set, size) in shares(work, active) {
            work.resize(&set, size);
        }
    }
}

/// Whether the new set alone is what is wanted.
fn is_saturated(work: &Work, set: &ReplicaSet) -> bool {
    let replicas = work.replicas();
    size_of(set) == replicas
        && number(set, DESIRED) == Some(replicas)
        && available_of(set) == replicas
}

/// Each set's size after the change: in proportion, larger sets first, the rest to the largest.
fn shares(work: &Work, mut sets: Vec<Arc<ReplicaSet>>) -> Vec<(Arc<ReplicaSet>, i32)> {
    let replicas = work.replicas();
    let allowed = if replicas > 0 { replicas + work.bounds().max_surge } else { 0 };
    let add = allowed - sets.iter().map(|set| size_of(set)).sum::<i32>();
    // Of two sets of one size the newer grows first and the older shrinks first.
    match add > 0 {
        true => sets.sort_by_key(|s| (Reverse(size_of(s)), Reverse(owned_age(s)))),
        false => sets.sort_by_key(|s| (Reverse(size_of(s)), owned_age(s))),
    }
    let mut left = add;
    let mut shares: Vec<_> = sets
        .into_iter()
        .map(|set| {
            let share = fraction(work, &set);
            let share = if add > 0 { share.clamp(0, left) } else { share.clamp(left, 0) };
            left -= share;
            let size = size_of(&set) + share;
            (set, size)
        })
        .collect();
    if let Some((_, largest)) = shares.first_mut() {
        *largest = (*largest + left).max(0);
    }
    shares
}

fn owned_age(set: &ReplicaSet) -> (jiff::Timestamp, String) {
    let (created, name) = age_of(set);
    (created, name.to_owned())
}

/// How much a set would change if it kept its share of the whole.
fn fraction(work: &Work, set: &ReplicaSet) -> i32 {
    let size = size_of(set);
    if work.replicas() == 0 {
        return -size;
    }
    let most = i64::from(work.replicas() + work.bounds().max_surge);
    let before = number(set, MAX).filter(|n| *n > 0).or(work.status.replicas).unwrap_or(0);
    if before == 0 {
        return 0;
    }
    let before = i64::from(before);
    let share = (i64::from(size) * most * 2 + before) / (2 * before);
    i32::try_from(share).unwrap_or(i32::MAX) - size
}
