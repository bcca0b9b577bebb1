//! Decide, then do: the pure half of every component.

use jiff::Timestamp;
use std::time::Duration;

/// A rule that says what to do about a view. It is pure and can't fail: bad input becomes a
/// condition or an event among the actions.
pub trait Reconcile {
    /// What is desired and what is observed, at one instant, from the caches.
    type View;
    /// What can be done about it.
    type Action;

    /// The actions that bring what is observed nearer to what is desired, in order.
    fn reconcile(&self, view: &Self::View, now: Timestamp) -> Plan<Self::Action>;
}

/// What to do now, and when to look again though nothing changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan<A> {
    /// Carried out in order; the first failure drops the rest.
    pub actions: Vec<A>,
    /// Look again after this long even if no object changes.
    pub recheck_after: Option<Duration>,
}

impl<A> Default for Plan<A> {
    fn default() -> Self {
        Plan { actions: Vec::new(), recheck_after: None }
    }
}

impl<A> Plan<A> {
    /// Nothing to do.
    pub fn none() -> Self {
        Self::default()
    }

    /// These actions and no later look.
    pub fn of(actions: Vec<A>) -> Self {
        Plan { actions, recheck_after: None }
    }

    /// Appends an action.
    pub fn push(&mut self, action: A) {
        self.actions.push(action);
    }

    /// Looks again after `delay` at the latest.
    pub fn recheck(&mut self, delay: Duration) {
        self.recheck_after = Some(self.recheck_after.map_or(delay, |d| d.min(delay)));
    }

    /// Looks again at `at`, at once if that has passed.
    pub fn recheck_at(&mut self, at: Timestamp, now: Timestamp) {
        self.recheck(Duration::try_from(at.duration_since(now)).unwrap_or_default());
    }
}
