//! Tests of the queue's states.

use super::*;
use crate::pod::info;
use crate::snapshot::tests::pod;
use serde_json::{Value, json};

fn with(name: &str, change: impl Fn(&mut Value)) -> Arc<PodInfo> {
    let mut p = pod(name, "1");
    change(&mut p);
    info(p)
}

fn names(batch: &[Arc<PodInfo>]) -> Vec<&str> {
    batch.iter().map(|p| p.key.name.as_str()).collect()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn priority_comes_first_then_age() {
    let (mut q, now) = (Queue::default(), Instant::now());
    let at = |p: &mut Value, time: &str| p["metadata"]["creationTimestamp"] = time.into();
    q.put(with("late", |p| at(p, "2026-01-02T00:00:00Z")), now);
    q.put(with("early", |p| at(p, "2026-01-01T00:00:00Z")), now);
    q.put(
        with("important", |p| {
            at(p, "2026-01-03T00:00:00Z");
            p["spec"]["priority"] = 5.into();
        }),
        now,
    );
    assert_eq!(names(&q.take(2)), ["important", "early"]);
    assert_eq!(names(&q.take(9)), ["late"]);
    assert_eq!(q.pending(), Pending::default());
}

#[test]
fn a_refused_pod_waits_for_what_may_help() {
    let (mut q, now) = (Queue::default(), Instant::now());
    q.put(with("a", |_| {}), now);
    q.take(1);
    q.refused("a", Kinds::ROOM, now);
    assert_eq!(q.pending().unschedulable, 1);
    q.event(Kinds::PODS_MISSING, now);
    assert_eq!(q.pending().unschedulable, 1, "no help");
    q.event(Kinds::ROOM, now);
    assert_eq!(q.pending().backoff, 1, "it failed just now");
    q.advance(now + FIRST_BACKOFF / 2);
    assert!(!q.has_active());
    assert_eq!(q.next_wake(), Some(now + FIRST_BACKOFF));
    q.advance(now + FIRST_BACKOFF);
    assert_eq!(names(&q.take(1)), ["a"]);
    q.refused("a", Kinds::ROOM, now);
    q.event(Kinds::ALL, now + seconds(60));
    assert!(q.has_active(), "its back-off is over");
}

#[test]
fn backoff_doubles_up_to_its_end() {
    let lengths: Vec<u64> = (1..7).map(|n| backoff(n).as_secs()).collect();
    assert_eq!(lengths, [1, 2, 4, 8, 10, 10]);
    assert_eq!(backoff(u32::MAX), LONGEST_BACKOFF);
}

#[test]
fn help_that_comes_during_the_cycle_is_not_lost() {
    let (mut q, now) = (Queue::default(), Instant::now());
    q.event(Kinds::ALL, now);
    q.put(with("a", |_| {}), now);
    q.put(with("b", |_| {}), now);
    q.take(2);
    q.refused("b", Kinds::ROOM, now);
    assert_eq!(q.pending().unschedulable, 1, "that was before it was taken");
    q.event(Kinds::ROOM, now);
    q.refused("a", Kinds::ROOM, now);
    assert_eq!((q.pending().unschedulable, q.pending().backoff), (0, 2));
}

#[test]
fn nobody_is_forgotten() {
    let (mut q, now) = (Queue::default(), Instant::now());
    q.put(with("a", |_| {}), now);
    q.take(1);
    q.refused("a", Kinds::NODE, now);
    q.advance(now + LONGEST_WAIT);
    assert_eq!(names(&q.take(1)), ["a"]);
    q.failed("a", now);
    assert_eq!(q.pending().backoff, 1);
    q.remove("a");
    assert_eq!((q.pending(), q.next_wake()), (Pending::default(), None));
    q.failed("a", now);
    q.refused("a", Kinds::ALL, now);
    assert_eq!(q.pending(), Pending::default(), "the dead stay dead");
}

#[test]
fn gates_hold_until_they_are_removed() {
    let (mut q, now) = (Queue::default(), Instant::now());
    q.put(with("a", |p| p["spec"]["schedulingGates"] = json!([{"name": "g"}])), now);
    assert!(!q.has_active());
    assert_eq!(q.pending().gated, 1);
    q.event(Kinds::ALL, now);
    q.put(with("a", |_| {}), now);
    assert_eq!((names(&q.take(1)), q.pending().gated), (vec!["a"], 0));
}

#[test]
fn a_changed_pod_is_tried_again_and_a_new_status_is_no_change() {
    let (mut q, now) = (Queue::default(), Instant::now());
    q.put(with("a", |_| {}), now);
    q.take(1);
    q.refused("a", Kinds::NODE, now);
    let told = |p: &mut Value| p["status"] = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "m"}]});
    q.put(with("a", told), now + seconds(30));
    assert_eq!(q.pending().unschedulable, 1);
    q.put(
        with("a", |p| p["spec"]["tolerations"] = json!([{"operator": "Exists"}])),
        now + seconds(30),
    );
    assert!(q.has_active());
}
