//! The work queue's rules, without I/O.
//!
//! A key is in one or more of these states:
//! - *ready*: waits to be taken; a key is ready once, however often it is added;
//! - *in flight*: taken and not yet done; it is not handed out again meanwhile;
//! - *dirty*: added while in flight; becomes ready when it is done;
//! - *delayed*: becomes ready at a time; the earliest of several adds counts.
//!
//! Each key's failures in a row are counted until it is forgotten. Time is the caller's: a duration
//! since a start of the caller's choosing, never going back.

use crate::backoff::Exponential;
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
    time::Duration,
};

/// See the module.
#[derive(Debug)]
pub struct Queue<K> {
    backoff: Exponential,
    ready: VecDeque<(K, Duration)>,
    waiting: HashSet<K>,
    in_flight: HashSet<K>,
    delayed: BTreeSet<(Duration, u64)>,
    delayed_keys: HashMap<u64, K>,
    delayed_at: HashMap<K, (Duration, u64)>,
    failures: HashMap<K, u32>,
    sequence: u64,
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// An empty queue whose keys back off so.
    pub fn new(backoff: Exponential) -> Self {
        Queue {
            backoff,
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            in_flight: HashSet::new(),
            delayed: BTreeSet::new(),
            delayed_keys: HashMap::new(),
            delayed_at: HashMap::new(),
            failures: HashMap::new(),
            sequence: 0,
        }
    }

    /// Makes a key ready, or dirty if it is in flight. Says whether that is news.
    pub fn add(&mut self, key: K, now: Duration) -> bool {
        if !self.waiting.insert(key.clone()) {
            return false;
        }
        if !self.in_flight.contains(&key) {
            self.ready.push_back((key, now));
        }
        true
    }

    /// Makes a key ready at `at`; an earlier delayed add of the same key stays.
    pub fn add_at(&mut self, key: K, at: Duration) {
        if let Some(old) = self.delayed_at.get(&key).copied() {
            if old.0 <= at {
                return;
            }
            self.delayed.remove(&old);
            self.delayed_keys.remove(&old.1);
        }
        self.sequence += 1;
        let entry = (at, self.sequence);
        self.delayed.insert(entry);
        self.delayed_keys.insert(entry.1, key.clone());
        self.delayed_at.insert(key, entry);
    }

    /// Moves what has become due to ready and takes the first ready key: it is in flight until
    /// [`done`](Self::done). The duration is how long it was ready.
    pub fn take(&mut self, now: Duration) -> Option<(K, Duration)> {
        self.move_due(now);
        let (key, since) = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.in_flight.insert(key.clone());
        Some((key, now.saturating_sub(since)))
    }

    /// The key is no longer in flight; if it is dirty it is ready.
    pub fn done(&mut self, key: &K, now: Duration) {
        self.in_flight.remove(key);
        if self.waiting.contains(key) {
            self.ready.push_back((key.clone(), now));
        }
    }

    /// Counts a failure and adds the key after its back-off, which is returned.
    pub fn retry(&mut self, key: K, now: Duration) -> Duration {
        let failures = self.failures.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        let delay = self.backoff.delay(*failures);
        self.add_at(key, now + delay);
        delay
    }

    /// Forgets a key's failures.
    pub fn forget(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// How often a key failed in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.failures.get(key).copied().unwrap_or(0)
    }

    /// When the next delayed key becomes due.
    pub fn next_due(&self) -> Option<Duration> {
        self.delayed.first().map(|(at, _)| *at)
    }

    /// How many keys are ready or dirty.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no key is ready or dirty.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many keys are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn move_due(&mut self, now: Duration) {
        while let Some(entry) = self.delayed.first().copied().filter(|(at, _)| *at <= now) {
            self.delayed.remove(&entry);
            if let Some(key) = self.delayed_keys.remove(&entry.1) {
                self.delayed_at.remove(&key);
                self.add(key, entry.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::PER_KEY;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_key_is_handed_out_once_and_again_if_added_in_flight() {
        let mut q = Queue::new(PER_KEY);
        assert!(q.add("a", ms(0)));
        assert!(!q.add("a", ms(0)));
        q.add("b", ms(1));
        assert_eq!(q.take(ms(3)), Some(("a", ms(3))));
        assert!(q.add("a", ms(3)));
        assert_eq!(q.take(ms(3)).map(|t| t.0), Some("b"));
        assert_eq!(q.take(ms(3)), None);
        q.done(&"a", ms(4));
        assert_eq!(q.take(ms(5)), Some(("a", ms(1))));
        q.done(&"a", ms(6));
        assert_eq!((q.take(ms(9)), q.len(), q.in_flight()), (None, 0, 1));
    }

    #[test]
    fn the_earliest_delayed_add_counts() {
        let mut q = Queue::new(PER_KEY);
        q.add_at("a", ms(50));
        q.add_at("a", ms(20));
        q.add_at("a", ms(70));
        assert_eq!(q.next_due(), Some(ms(20)));
        assert_eq!(q.take(ms(19)), None);
        assert_eq!(q.take(ms(20)).map(|t| t.0), Some("a"));
        q.done(&"a", ms(20));
        assert_eq!((q.take(ms(100)), q.next_due()), (None, None));
    }

    #[test]
    fn failures_back_off_until_forgotten() {
        let mut q = Queue::new(PER_KEY);
        assert_eq!(q.retry("a", ms(0)), ms(5));
        assert_eq!(q.retry("a", ms(0)), ms(10));
        assert_eq!(q.failures(&"a"), 2);
        q.forget(&"a");
        assert_eq!(q.retry("a", ms(0)), ms(5));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u8),
        AddAfter(u8, u64),
        Take,
        DoneOldest,
        RetryOldest,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..6).prop_map(Step::Add),
            (0u8..6, 0u64..50).prop_map(|(k, d)| Step::AddAfter(k, d)),
            Just(Step::Take),
            Just(Step::DoneOldest),
            Just(Step::RetryOldest),
            (0u64..40).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever happens, a key is never in flight twice, and after the last add of a key it is
        /// handed out at least once more.
        #[test]
        fn no_key_is_lost_or_doubled(steps in prop::collection::vec(step(), 0..200)) {
            let mut q = Queue::new(PER_KEY);
            let (mut now, mut flying, mut owed) = (0u64, Vec::<u8>::new(), HashSet::<u8>::new());
            for step in steps {
                match step {
                    Step::Add(k) => { q.add(k, ms(now)); owed.insert(k); }
                    Step::AddAfter(k, d) => { q.add_at(k, ms(now + d)); owed.insert(k); }
                    Step::Take => if let Some((k, _)) = q.take(ms(now)) {
                        prop_assert!(!flying.contains(&k), "{k} is in flight twice");
                        prop_assert!(owed.contains(&k) , "{k} was never added");
                        flying.push(k);
                        owed.remove(&k);
                        if q.delayed_at.contains_key(&k) { owed.insert(k); }
                    },
                    Step::DoneOldest => if !flying.is_empty() {
                        let k = flying.remove(0); q.forget(&k); q.done(&k, ms(now));
                    },
                    Step::RetryOldest => if !flying.is_empty() {
                        let k = flying.remove(0); q.retry(k, ms(now)); owed.insert(k); q.done(&k, ms(now));
                    },
                    Step::Wait(d) => now += d,
                }
            }
            for k in flying.drain(..) { q.done(&k, ms(now)); }
            now += 2_000_000;
            while let Some((k, _)) = q.take(ms(now)) { owed.remove(&k); q.done(&k, ms(now)); }
            prop_assert!(owed.is_empty(), "never handed out: {owed:?}");
            prop_assert!(q.is_empty() && q.in_flight() == 0 && q.next_due().is_none());
        }
    }
}
