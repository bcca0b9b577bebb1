//! The pods that wait for a node.
//!
//! States of a pod here: active (to be tried next, by priority, then age), backing off (tried in
//! vain, to be tried again at a time), unschedulable (waits for an event that may help), gated
//! (somebody must remove its scheduling gates), or taken (in a cycle, or its binding under way).
//! Invariants: a pod is in one state; an event that may help and comes while a pod is taken is not
//! lost; nobody waits longer than [`LONGEST_WAIT`] untried.

use crate::pod::PodInfo;
use crate::reason::Kinds;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After the first failure.
pub const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// After many.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// An unschedulable pod is tried again after this even if nothing happened.
pub const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The queue. It reads no clock.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<Arc<str>, Entry>,
    active: BTreeSet<(Reverse<i32>, jiff::Timestamp, Arc<str>)>,
    /// Backing off and unschedulable pods by the time of their next try.
    timed: BTreeSet<(Instant, Arc<str>)>,
    /// Kinds of events since each cycle began, for the pods that it took.
    events: u64,
    log: Vec<(u64, Kinds)>,
    taken: usize,
    pending: Pending,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    state: State,
    failures: u32,
    last_failure: Option<Instant>,
    added: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Active,
    Backoff(Instant),
    Unschedulable(Instant, Kinds),
    Gated,
    /// With the number of events that had happened when it was taken.
    Taken(u64),
}

/// How many pods are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// To be tried next.
    pub active: usize,
    /// Tried in vain lately.
    pub backoff: usize,
    /// Waiting for something to change.
    pub unschedulable: usize,
    /// Held back by scheduling gates.
    pub gated: usize,
}

impl Queue {
    /// A pod without a node is there or has changed. What changed may be what was in the way, so a
    /// pod that was unschedulable is tried again, in its back-off.
    pub fn put(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        let gated = !pod.gates.is_empty();
        let Some(entry) = self.pods.get_mut(&uid) else {
            let state = if gated { State::Gated } else { State::Active };
            let entry = Entry { pod, state, failures: 0, last_failure: None, added: now };
            self.pods.insert(uid.clone(), entry);
            return self.enter(&uid, state);
        };
        let (state, changed) = (entry.state, differs(&entry.pod, &pod));
        if matches!(state, State::Taken(_)) {
            entry.pod = pod;
            return;
        }
        self.leave(&uid);
        if let Some(entry) = self.pods.get_mut(&uid) {
            entry.pod = pod;
        }
        let next = match state {
            _ if gated => State::Gated,
            State::Gated => State::Active,
            State::Unschedulable(..) if changed => self.after_backoff(&uid, now),
            other => other,
        };
        self.enter(&uid, next);
    }

    /// The pod is gone or has a node.
    pub fn remove(&mut self, uid: &str) {
        self.leave(uid);
        self.pods.remove(uid);
    }

    /// Takes the next pods, at most `most`.
    pub fn take(&mut self, most: usize) -> Vec<Arc<PodInfo>> {
        let mut batch = Vec::with_capacity(most.min(self.active.len()));
        while batch.len() < most
            && let Some((_, _, uid)) = self.active.pop_first()
        {
            let events = self.events;
            if let Some(entry) = self.pods.get_mut(&uid) {
                entry.state = State::Taken(events);
                self.taken += 1;
                self.pending.active -= 1;
                batch.push(entry.pod.clone());
            }
        }
        batch
    }

    /// A taken pod fits nowhere; events of these kinds may help. If one came meanwhile the pod is
    /// tried again after its back-off.
    pub fn refused(&mut self, uid: &str, kinds: Kinds, now: Instant) {
        let Some(State::Taken(since)) = self.pods.get(uid).map(|e| e.state) else { return };
        let helped = self.log.iter().any(|(n, event)| *n > since && event.meets(kinds));
        self.leave(uid);
        self.fail(uid, now);
        let next = match helped {
            true => self.after_backoff(uid, now),
            false => State::Unschedulable(now + LONGEST_WAIT, kinds),
        };
        self.enter(uid, next);
    }

    /// A taken pod's binding failed: it is tried again after its back-off.
    pub fn failed(&mut self, uid: &str, now: Instant) {
        if !matches!(self.pods.get(uid).map(|e| e.state), Some(State::Taken(_))) {
            return;
        }
        self.leave(uid);
        self.fail(uid, now);
        let next = self.after_backoff(uid, now);
        self.enter(uid, next);
    }

    /// Something happened that may help pods which were refused for these kinds of reasons.
    pub fn event(&mut self, kinds: Kinds, now: Instant) {
        self.events += 1;
        if self.taken > 0 {
            self.note(kinds);
        }
        let helped: Vec<Arc<str>> = self
            .timed
            .iter()
            .filter(|(_, uid)| {
                matches!(self.pods.get(uid).map(|e| e.state), Some(State::Unschedulable(_, k)) if k.meets(kinds))
            })
            .map(|(_, uid)| uid.clone())
            .collect();
        for uid in helped {
            self.leave(&uid);
            let next = self.after_backoff(&uid, now);
            self.enter(&uid, next);
        }
    }

    /// Makes those active whose time has come.
    pub fn advance(&mut self, now: Instant) {
        while let Some((at, uid)) = self.timed.first().cloned()
            && at <= now
        {
            self.leave(&uid);
            self.enter(&uid, State::Active);
        }
    }

    /// When [`advance`](Self::advance) has something to do next.
    pub fn next_wake(&self) -> Option<Instant> {
        self.timed.first().map(|(at, _)| *at)
    }

    /// Whether a pod can be taken.
    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// When the pod was first seen.
    pub fn added(&self, uid: &str) -> Option<Instant> {
        self.pods.get(uid).map(|e| e.added)
    }

    /// How many pods wait, by state.
    pub fn pending(&self) -> Pending {
        self.pending
    }

    /// Keeps one line for each kind: what matters is the latest of each.
    fn note(&mut self, kinds: Kinds) {
        self.log.retain(|(_, old)| *old != kinds);
        self.log.push((self.events, kinds));
    }

    fn fail(&mut self, uid: &str, now: Instant) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.failures = entry.failures.saturating_add(1);
            entry.last_failure = Some(now);
        }
    }

    fn after_backoff(&self, uid: &str, now: Instant) -> State {
        let entry = self.pods.get(uid);
        let until = entry.and_then(|e| Some(e.last_failure? + backoff(e.failures)));
        match until {
            Some(at) if at > now => State::Backoff(at),
            _ => State::Active,
        }
    }

    fn enter(&mut self, uid: &str, state: State) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.state = state;
        let uid = entry.pod.uid.clone();
        match state {
            State::Active => {
                self.active.insert((Reverse(entry.pod.priority), entry.pod.created, uid));
                self.pending.active += 1;
            }
            State::Backoff(at) | State::Unschedulable(at, _) => {
                self.timed.insert((at, uid));
                match state {
                    State::Backoff(_) => self.pending.backoff += 1,
                    _ => self.pending.unschedulable += 1,
                }
            }
            State::Gated => self.pending.gated += 1,
            State::Taken(_) => self.taken += 1,
        }
    }

    fn leave(&mut self, uid: &str) {
        let Some(entry) = self.pods.get(uid) else { return };
        let uid = entry.pod.uid.clone();
        match entry.state {
            State::Active => {
                self.active.remove(&(Reverse(entry.pod.priority), entry.pod.created, uid));
                self.pending.active -= 1;
            }
            State::Backoff(at) | State::Unschedulable(at, _) => {
                self.timed.remove(&(at, uid));
                match entry.state {
                    State::Backoff(_) => self.pending.backoff -= 1,
                    _ => self.pending.unschedulable -= 1,
                }
            }
            State::Gated => self.pending.gated -= 1,
            State::Taken(_) => {
                self.taken -= 1;
                if self.taken == 0 {
                    self.log.clear();
                }
            }
        }
    }
}

fn backoff(failures: u32) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(10));
    doubled.min(LONGEST_BACKOFF)
}

/// Whether something changed that scheduling looks at; a new status, such as the condition that
/// the scheduler itself writes, does not count.
fn differs(old: &PodInfo, new: &PodInfo) -> bool {
    old.labels != new.labels
        || old.requests != new.requests
        || old.tolerations != new.tolerations
        || old.node_selector != new.node_selector
        || old.required_nodes != new.required_nodes
        || old.gates != new.gates
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
