//! A Deployment's status and the conditions that tell of its progress.

use super::plan::{Action, Work, available_of, size_of};
use crate::common::{after, name, seconds, spec_seconds, typed_diff};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetStatus,
};
use serde_json::Value;
use std::time::Duration;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const PAUSED: &str = "DeploymentPaused";

/// Whether the status says that the rollout is done.
pub(super) fn is_complete(work: &Work, status: &DeploymentStatus) -> bool {
    let all = Some(work.replicas());
    let count = |n: Option<i32>| Some(n.unwrap_or(0));
    count(status.updated_replicas) == all
        && count(status.replicas) == all
        && count(status.available_replicas) == all
        && status.observed_generation >= work.deployment.metadata.generation
}

/// Notes that the Deployment is paused, or is no more, so that the time does not count as lack of
/// progress.
pub(super) fn note_pause(work: &mut Work) {
    if deadline(work).is_none() {
        return;
    }
    let reason = condition(&work.status, PROGRESSING).and_then(|c| c.reason.clone());
    let reason = reason.as_deref().unwrap_or("");
    let paused = work.spec.paused == Some(true);
    if reason == TIMED_OUT || paused == (reason == PAUSED) {
        return;
    }
    let (reason, message) = match paused {
        true => (PAUSED, "Deployment is paused"),
        false => ("DeploymentResumed", "Deployment is resumed"),
    };
    set(&mut work.status, PROGRESSING, "Unknown", reason, message.into(), work.now);
}

/// Plans the patch that brings the status up to date; `progress` estimates the rollout's.
pub(super) fn sync(work: &mut Work, progress: bool) {
    let mut status = counted(work);
    let min_available = work.replicas() - work.bounds().max_unavailable;
    let (now, enough) = (work.now, status.available_replicas.unwrap_or(0) >= min_available);
    match enough {
        true => {
            let message = "Deployment has minimum availability.".into();
            set(&mut status, AVAILABLE, "True", "MinimumReplicasAvailable", message, now);
        }
        false => {
            let message = "Deployment does not have minimum availability.".into();
            set(&mut status, AVAILABLE, "False", "MinimumReplicasUnavailable", message, now);
        }
    }
    if progress {
        estimate(work, &mut status);
        report_failures(work, &mut status);
    }
    watch_deadline(work, &status);
    let patch = typed_diff(work.deployment.status.as_ref(), &status);
    work.plan.actions.extend(patch.map(Action::PatchStatus));
}

/// The numbers, from the sets' own statuses.
fn counted(work: &Work) -> DeploymentStatus {
    let sum = |field: fn(&ReplicaSetStatus) -> i32| -> i32 {
        work.sets().filter_map(|set| set.status.as_ref()).map(field).sum()
    };
    let some = |n: i32| (n > 0).then_some(n);
    let available: i32 = work.sets().map(|set| available_of(set)).sum();
    let wanted: i32 = work.sets().map(|set| size_of(set)).sum();
    let updated = work.new.as_ref().and_then(|set| set.status.as_ref()).map_or(0, |s| s.replicas);
    // Unknown as long as a set whose status is known has not counted its own.
    let terminating = |set: &ReplicaSet| match &set.status {
        Some(status) if status.observed_generation.is_some() => status.terminating_replicas,
        _ => Some(0),
    };
    DeploymentStatus {
        observed_generation: work.deployment.metadata.generation,
        replicas: some(sum(|s| s.replicas)),
        updated_replicas: some(updated),
        ready_replicas: some(sum(|s| s.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some(wanted - available),
        terminating_replicas: work.sets().map(|set| terminating(set)).sum(),
        collision_count: work.status.collision_count,
        conditions: work.status.conditions.clone(),
    }
}

fn estimate(work: &Work, status: &mut DeploymentStatus) {
    if deadline(work).is_none() {
        return remove(status, PROGRESSING);
    }
    let current = condition(&work.status, PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|c| c.reason.as_deref()).unwrap_or("");
    if reason == NEW_AVAILABLE && status.replicas == status.updated_replicas && !created(work) {
        return;
    }
    let subject = match &work.new {
        Some(set) => format!("ReplicaSet \"{}\"", name(&set.metadata)),
        None => format!("Deployment \"{}\"", name(&work.deployment.metadata)),
    };
    if created(work) {
        let name = work.new.as_ref().map_or("", |set| name(&set.metadata));
        let message = format!("Created new replica set \"{name}\"");
        set(status, PROGRESSING, "True", "NewReplicaSetCreated", message, work.now);
    } else if current.is_none() && work.new.is_some() {
        let name = work.new.as_ref().map_or("", |set| name(&set.metadata));
        let message = format!("Found new replica set \"{name}\"");
        set(status, PROGRESSING, "True", "FoundNewReplicaSet", message, work.now);
    } else if is_complete(work, status) {
        let message = format!("{subject} has successfully progressed.");
        set(status, PROGRESSING, "True", NEW_AVAILABLE, message, work.now);
    } else if has_progressed(work, status) {
        progressed(status, current, format!("{subject} is progressing."), work.now);
    } else if timed_out(work) {
        let message = format!("{subject} has timed out progressing.");
        set(status, PROGRESSING, "False", TIMED_OUT, message, work.now);
    }
}

/// Whether this plan creates the new set.
fn created(work: &Work) -> bool {
    work.plan.actions.iter().any(|action| matches!(action, Action::CreateSet(_)))
}

/// Progress renews the condition's time even if nothing else of it changes.
fn progressed(
    status: &mut DeploymentStatus,
    current: Option<DeploymentCondition>,
    message: String,
    now: Timestamp,
) {
    let since = current.filter(|c| c.status == "True").and_then(|c| c.last_transition_time);
    remove(status, PROGRESSING);
    set(status, PROGRESSING, "True", "ReplicaSetUpdated", message, now);
    if let (Some(since), Some(new)) = (since, status.conditions.iter_mut().flatten().last()) {
        new.last_transition_time = Some(since);
    }
}

fn has_progressed(work: &Work, new: &DeploymentStatus) -> bool {
    let old = work.deployment.status.clone().unwrap_or_default();
    let n = |count: Option<i32>| count.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(&old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn timed_out(work: &Work) -> bool {
    let current = condition(&work.status, PROGRESSING);
    match current.and_then(|c| c.reason.as_deref()) {
        Some(TIMED_OUT) => true,
        Some(NEW_AVAILABLE) | None => false,
        _ => expiry(work, &work.status).is_some_and(|at| at < work.now),
    }
}

/// When a rollout without further progress has failed.
fn expiry(work: &Work, status: &DeploymentStatus) -> Option<Timestamp> {
    let updated = condition(status, PROGRESSING)?.last_update_time.as_ref()?.0;
    Some(after(updated, spec_seconds(deadline(work)?.into())))
}

/// Looks again when the deadline will have passed.
fn watch_deadline(work: &mut Work, status: &DeploymentStatus) {
    let reason = condition(status, PROGRESSING).and_then(|c| c.reason.as_deref());
    let over = is_complete(work, status) || matches!(reason, Some(TIMED_OUT | PAUSED) | None);
    if let Some(at) = expiry(work, status).filter(|_| !over) {
        work.plan.recheck_at(at, work.now);
        // A second more, since the API's times are whole seconds.
        work.plan.recheck_after = work.plan.recheck_after.map(|d| d + Duration::from_secs(1));
    }
}

/// The deadline in seconds; the largest number there is means none.
fn deadline(work: &Work) -> Option<i32> {
    work.spec.progress_deadline_seconds.filter(|s| *s != i32::MAX)
}

/// Carries a set's failure over, the new set's before those of the old.
fn report_failures(work: &Work, status: &mut DeploymentStatus) {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == FAILURE).cloned()
    };
    let sets = work.new.iter().chain(&work.old);
    match sets.filter_map(|set| failure(set)).next() {
        None => remove(status, FAILURE),
        Some(c) => {
            let (reason, message) = (c.reason.unwrap_or_default(), c.message.unwrap_or_default());
            let at = c.last_transition_time.map_or(work.now, |t| t.0);
            set(status, FAILURE, &c.status, &reason, message, at);
        }
    }
}

/// The patch that reports that a set could not be created.
pub(super) fn creation_failed(
    deployment: &Deployment,
    message: &str,
    now: Timestamp,
) -> Option<Value> {
    let mut status = deployment.status.clone().unwrap_or_default();
    set(&mut status, PROGRESSING, "False", "ReplicaSetCreateError", message.into(), now);
    typed_diff(deployment.status.as_ref(), &status)
}

fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
    }
    status.conditions.take_if(|conditions| conditions.is_empty());
}

/// Sets a condition; one that says the same already stays as it is.
fn set(
    status: &mut DeploymentStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let current = condition(status, kind).filter(|c| c.status == value);
    if current.is_some_and(|c| c.reason.as_deref() == Some(reason)) {
        return;
    }
    let since = current.and_then(|c| c.last_transition_time.clone());
    let new = DeploymentCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(seconds(now)),
        last_transition_time: Some(since.unwrap_or_else(|| seconds(now))),
    };
    remove(status, kind);
    status.conditions.get_or_insert_default().push(new);
}
