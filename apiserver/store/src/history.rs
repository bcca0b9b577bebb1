//! The shared history of events: watchers are cursors into it, not queues of their own.
//!
//! Each resource has a ring of batches, one batch for each revision, so a revision is delivered
//! whole or not at all. The history is bounded by bytes and by age over all resources; a cursor
//! behind the oldest event that was dropped from its resource has missed something and its watch
//! must end. Invariants: an event is in its ring before `revision` reaches its revision, and
//! watchers are woken after that.

use crate::error::WatchError;
use crate::event::Event;
use crate::object::{Key, Scope};
use crate::watch::Watch;
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch as signal;

/// Bytes that an event holds beside its objects' JSON: the structs, keys and headers.
const EVENT_OVERHEAD: usize = 512;

/// The history of one store.
pub(crate) struct History {
    max_bytes: usize,
    max_age: Duration,
    revision: AtomicU64,
    rings: RwLock<HashMap<Arc<str>, Arc<Ring>>>,
    kept: Mutex<Kept>,
    /// A resource without a ring has had no event since this revision.
    base: AtomicU64,
}

/// What is kept over all resources, oldest first.
struct Kept {
    batches: VecDeque<KeptBatch>,
    bytes: usize,
    /// The newest revision of which an event was dropped.
    dropped: u64,
}

struct KeptBatch {
    revision: u64,
    bytes: usize,
    at: Instant,
    rings: Vec<Arc<Ring>>,
}

/// The events of one resource.
pub(crate) struct Ring {
    events: RwLock<RingEvents>,
    topics: RwLock<HashMap<Topic, Arc<TopicState>>>,
}

/// What the watchers of one topic share.
pub(crate) struct TopicState {
    /// The newest revision of an event of this topic that was dropped.
    dropped: AtomicU64,
    signal: signal::Sender<u64>,
}

impl TopicState {
    pub(crate) fn subscribe(&self) -> signal::Receiver<u64> {
        self.signal.subscribe()
    }
}

#[derive(Default)]
struct RingEvents {
    batches: VecDeque<Batch>,
    /// The newest revision that was dropped from this ring.
    dropped: u64,
}

#[derive(Clone)]
struct Batch {
    revision: u64,
    events: Arc<[Arc<Event>]>,
}

/// Whom an event wakes: the scopes within a resource.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Topic {
    namespace: Option<Arc<str>>,
    name: Option<Arc<str>>,
}

impl Topic {
    fn of(scope: &Scope) -> Self {
        Self { namespace: scope.namespace.clone(), name: scope.name.clone() }
    }

    /// The topics of an event on this key.
    fn all(key: &Key) -> [Self; 4] {
        let (namespace, name) = (Some(key.namespace.clone()), Some(key.name.clone()));
        [
            Self { namespace: None, name: None },
            Self { namespace: None, name: name.clone() },
            Self { namespace: namespace.clone(), name: None },
            Self { namespace, name },
        ]
    }
}

impl History {
    /// An empty history that begins after `base`.
    pub(crate) fn new(max_bytes: usize, max_age: Duration, base: u64) -> Self {
        Self {
            max_bytes,
            max_age,
            revision: AtomicU64::new(base),
            rings: RwLock::default(),
            kept: Mutex::new(Kept { batches: VecDeque::new(), bytes: 0, dropped: base }),
            base: AtomicU64::new(base),
        }
    }

    /// The last revision that watchers can have seen.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Every event of every resource after this revision is still here.
    pub(crate) fn complete_since(&self) -> u64 {
        self.kept.lock().dropped
    }

    /// Adds the events of `revisions` (ascending, each with its events), wakes who waits for
    /// them, and drops what is too much or too old.
    pub(crate) fn publish(&self, revisions: Vec<Vec<Arc<Event>>>, now: Instant) {
        let Some(last) = revisions.last().and_then(|events| events.first()) else { return };
        let last = last.revision;
        let mut woken = HashMap::<Arc<str>, Vec<Arc<Event>>>::new();
        for events in revisions {
            self.append(events, now, &mut woken);
        }
        self.revision.store(last, Ordering::Release);
        for (resource, events) in woken {
            self.ring(&resource).wake(&events, last);
        }
        self.trim(now);
    }

    fn append(
        &self,
        events: Vec<Arc<Event>>,
        now: Instant,
        woken: &mut HashMap<Arc<str>, Vec<Arc<Event>>>,
    ) {
        let Some(revision) = events.first().map(|event| event.revision) else { return };
        let bytes = events.iter().map(|event| event_bytes(event)).sum();
        let mut rings = Vec::with_capacity(1);
        for (resource, events) in by_resource(events) {
            let ring = self.ring(&resource);
            woken.entry(resource).or_default().extend(events.iter().cloned());
            ring.events.write().batches.push_back(Batch { revision, events: events.into() });
            rings.push(ring);
        }
        let mut kept = self.kept.lock();
        kept.bytes += bytes;
        kept.batches.push_back(KeptBatch { revision, bytes, at: now, rings });
    }

    /// Begins anew at `revision`: nobody here knows what happened before it. Every watcher that
    /// stands before it is woken and told so.
    pub(crate) fn restart(&self, revision: u64) {
        let mut kept = self.kept.lock();
        *kept = Kept { batches: VecDeque::new(), bytes: 0, dropped: revision };
        self.base.store(revision, Ordering::Relaxed);
        let rings: Vec<_> = self.rings.read().values().cloned().collect();
        rings.iter().for_each(|ring| ring.restart(revision));
        self.revision.store(revision, Ordering::Release);
        rings.iter().for_each(|ring| ring.wake_all(revision));
    }

    /// Drops what is beyond the bounds.
    pub(crate) fn trim(&self, now: Instant) {
        let mut kept = self.kept.lock();
        let (max_bytes, max_age) = (self.max_bytes, self.max_age);
        loop {
            let full = kept.bytes > max_bytes;
            let oldest = kept
                .batches
                .pop_front_if(|batch| full || now.saturating_duration_since(batch.at) > max_age);
            let Some(batch) = oldest else { return };
            kept.bytes -= batch.bytes;
            kept.dropped = batch.revision;
            for ring in &batch.rings {
                ring.drop_through(batch.revision);
            }
        }
    }

    /// The ring of the resource, made if it is new.
    fn ring(&self, resource: &Arc<str>) -> Arc<Ring> {
        if let Some(ring) = self.rings.read().get(resource) {
            return ring.clone();
        }
        let dropped = self.base.load(Ordering::Relaxed);
        let mut rings = self.rings.write();
        rings.entry(resource.clone()).or_insert_with(|| Arc::new(Ring::new(dropped))).clone()
    }

    /// A cursor that stands right after `from`.
    pub(crate) fn watch(
        self: &Arc<Self>,
        scope: Scope,
        from: u64,
        current: u64,
    ) -> Result<Watch, WatchError> {
        if from > current {
            return Err(WatchError::Future { current });
        }
        let ring = self.ring(&scope.resource);
        let topic = ring.topic(Topic::of(&scope));
        let watch = Watch::new(self.clone(), ring, topic.clone(), scope, from);
        let oldest = topic.dropped.load(Ordering::Acquire);
        match from < oldest {
            true => Err(WatchError::Compacted { oldest }),
            false => Ok(watch),
        }
    }

    /// The events of one resource after `revision` and not after `until`, to walk back from the
    /// state at `until`; None if some are gone.
    pub(crate) fn between(
        &self,
        resource: &Arc<str>,
        revision: u64,
        until: u64,
    ) -> Option<Vec<Arc<Event>>> {
        let ring = self.ring(resource);
        let ring = ring.events.read();
        let from = ring.batches.partition_point(|batch| batch.revision <= revision);
        let batches = ring.batches.range(from..).take_while(|batch| batch.revision <= until);
        let events = batches.flat_map(|batch| batch.events.iter().cloned()).collect();
        (revision >= ring.dropped).then_some(events)
    }
}

fn event_bytes(event: &Event) -> usize {
    // The previous object's bytes are kept alive by the event as well.
    let previous = event.previous.as_ref().map_or(0, |object| object.json.len());
    event.object.json.len() + previous + EVENT_OVERHEAD
}

fn by_resource(events: Vec<Arc<Event>>) -> Vec<(Arc<str>, Vec<Arc<Event>>)> {
    let mut groups: Vec<(Arc<str>, Vec<Arc<Event>>)> = Vec::with_capacity(1);
    for event in events {
        let resource = &event.object.key.resource;
        match groups.iter_mut().find(|(name, _)| name == resource) {
            Some((_, group)) => group.push(event),
            None => groups.push((resource.clone(), vec![event])),
        }
    }
    groups
}

/// What a cursor finds when it looks ahead.
pub(crate) enum Ahead {
    /// Events of whole revisions; everything through `to` has been looked at.
    Events { events: Vec<Arc<Event>>, to: u64 },
    /// The ring dropped events that the cursor had not seen.
    Dropped { oldest: u64 },
}

impl Ring {
    fn new(dropped: u64) -> Self {
        let events = RwLock::new(RingEvents { batches: VecDeque::new(), dropped });
        Self { events, topics: RwLock::default() }
    }

    fn drop_through(&self, revision: u64) {
        let mut ring = self.events.write();
        let topics = self.topics.read();
        while let Some(batch) = ring.batches.pop_front_if(|batch| batch.revision <= revision) {
            for_topics(&topics, &batch.events, |topic| {
                topic.dropped.fetch_max(batch.revision, Ordering::AcqRel);
            });
        }
        ring.dropped = ring.dropped.max(revision);
    }

    fn restart(&self, revision: u64) {
        let mut ring = self.events.write();
        ring.batches.clear();
        ring.dropped = revision;
        for topic in self.topics.read().values() {
            topic.dropped.fetch_max(revision, Ordering::AcqRel);
        }
    }

    fn wake_all(&self, revision: u64) {
        for topic in self.topics.read().values() {
            topic.signal.send_replace(revision);
        }
    }

    /// The events of the scope after `after` and not after `until`, at least one revision and
    /// at most about `limit` events.
    pub(crate) fn ahead(
        &self,
        scope: &Scope,
        topic: &TopicState,
        after: u64,
        until: u64,
        limit: usize,
    ) -> Ahead {
        let ring = self.events.read();
        let oldest = topic.dropped.load(Ordering::Acquire);
        if after < oldest {
            return Ahead::Dropped { oldest };
        }
        let from = ring.batches.partition_point(|batch| batch.revision <= after);
        let mut events = Vec::new();
        for batch in ring.batches.range(from..).take_while(|batch| batch.revision <= until) {
            events.extend(batch.events.iter().filter(|e| scope.contains(&e.object.key)).cloned());
            if events.len() >= limit {
                return Ahead::Events { events, to: batch.revision };
            }
        }
        Ahead::Events { events, to: until }
    }

    /// The shared part of all watches on this topic. What the ring has dropped before counts as
    /// dropped from a new topic.
    fn topic(&self, topic: Topic) -> Arc<TopicState> {
        let ring = self.events.read();
        let new = || {
            let (signal, _) = signal::channel(0);
            Arc::new(TopicState { dropped: AtomicU64::new(ring.dropped), signal })
        };
        self.topics.write().entry(topic).or_insert_with(new).clone()
    }

    /// Forgets the scope's topic if nobody waits on it any more.
    pub(crate) fn unsubscribe(&self, scope: &Scope) {
        let mut topics = self.topics.write();
        let topic = Topic::of(scope);
        if topics.get(&topic).is_some_and(|state| Arc::strong_count(state) == 1) {
            topics.remove(&topic);
        }
    }

    fn wake(&self, events: &[Arc<Event>], revision: u64) {
        // Several events of one publication wake a topic once.
        for_topics(&self.topics.read(), events, |topic| {
            topic.signal.send_if_modified(|seen| std::mem::replace(seen, revision) < revision);
        });
    }
}

fn for_topics(
    topics: &HashMap<Topic, Arc<TopicState>>,
    events: &[Arc<Event>],
    mut act: impl FnMut(&TopicState),
) {
    if topics.is_empty() {
        return;
    }
    let all = events.iter().flat_map(|event| Topic::all(&event.object.key));
    all.filter_map(|topic| topics.get(&topic)).for_each(|state| act(state));
}
