//! One watcher: a cursor into the shared history.

use crate::error::Lagged;
use crate::event::Event;
use crate::history::{Ahead, History, Ring, TopicState};
use crate::object::Scope;
use std::sync::Arc;
use tokio::sync::watch as signal;

/// About how many events a batch has; a revision is never split.
const BATCH_EVENTS: usize = 256;

/// A cursor into the history of one scope. It holds no events: a watcher that does not ask costs
/// nothing, and one that asks too late is told so.
pub struct Watch {
    history: Arc<History>,
    ring: Arc<Ring>,
    scope: Scope,
    /// Everything in scope up to this revision has been delivered.
    at: u64,
    /// None only while the watch is dropped.
    topic: Option<Arc<TopicState>>,
    signal: signal::Receiver<u64>,
}

impl Watch {
    pub(crate) fn new(
        history: Arc<History>,
        ring: Arc<Ring>,
        topic: Arc<TopicState>,
        scope: Scope,
        at: u64,
    ) -> Self {
        let signal = topic.subscribe();
        Self { history, ring, scope, at, topic: Some(topic), signal }
    }

    /// The next events in order, whole revisions, at least one event. Waits until there are any;
    /// cancelling loses nothing. [`Lagged`] is final: the stream must end.
    pub async fn next_batch(&mut self) -> Result<Vec<Arc<Event>>, Lagged> {
        loop {
            self.signal.borrow_and_update();
            let events = self.try_batch()?;
            if !events.is_empty() {
                return Ok(events);
            }
            self.wait().await;
        }
    }

    /// Like [`Watch::next_batch`], but empty when there is nothing yet.
    pub fn try_batch(&mut self) -> Result<Vec<Arc<Event>>, Lagged> {
        match self.ahead(BATCH_EVENTS) {
            Ahead::Dropped { oldest } => Err(Lagged { at: self.at, oldest }),
            Ahead::Events { events, to } => {
                self.at = to;
                Ok(events)
            }
        }
    }

    /// A revision up to which everything in scope was delivered: what a bookmark may say. It goes
    /// ahead with the store while nothing in scope happens.
    pub fn progress(&mut self) -> u64 {
        if let Ahead::Events { events, to } = self.ahead(1)
            && events.is_empty()
        {
            self.at = to;
        }
        self.at
    }

    /// What is watched.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    fn ahead(&self, limit: usize) -> Ahead {
        let until = self.history.revision().max(self.at);
        match &self.topic {
            Some(topic) => self.ring.ahead(&self.scope, topic, self.at, until, limit),
            None => Ahead::Events { events: Vec::new(), to: self.at },
        }
    }

    async fn wait(&mut self) {
        if self.signal.changed().await.is_err() {
            // The topic lives as long as the watch, so the sender does too.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.topic = None;
        self.ring.unsubscribe(&self.scope);
    }
}
