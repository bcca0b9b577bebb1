//! The work queue's shell: [`Queue`] behind a lock, with a clock, sleepers and metrics.

use crate::{
    Change, Store, Stored,
    backoff::PER_KEY,
    metrics::{Metrics, QueueMetrics},
    queue::Queue,
};
use parking_lot::Mutex;
use std::{
    hash::Hash,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// A queue of keys that several workers share; clones are the same queue.
///
/// It is bounded by the number of keys: a key waits in it once.
pub struct WorkQueue<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        WorkQueue { shared: self.shared.clone() }
    }
}

struct Shared<K> {
    queue: Mutex<Queue<K>>,
    wake: Notify,
    start: Instant,
    metrics: QueueMetrics,
}

/// A queue that may be gone.
pub struct WeakQueue<K> {
    shared: Weak<Shared<K>>,
}

impl<K> WeakQueue<K> {
    /// The queue, if it is still there.
    pub fn upgrade(&self) -> Option<WorkQueue<K>> {
        self.shared.upgrade().map(|shared| WorkQueue { shared })
    }
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    /// An empty queue; `name` labels its metrics.
    pub fn new(name: &str, metrics: &Metrics) -> Self {
        let shared = Shared {
            queue: Mutex::new(Queue::new(PER_KEY)),
            wake: Notify::new(),
            start: Instant::now(),
            metrics: metrics.queue(name),
        };
        WorkQueue { shared: Arc::new(shared) }
    }

    /// Adds a key; at once if it is not there yet.
    pub fn add(&self, key: K) {
        let mut queue = self.shared.queue.lock();
        if queue.add(key, self.now()) {
            self.shared.metrics.adds.inc();
            self.measure(&queue);
            self.shared.wake.notify_one();
        }
    }

    /// Adds a key later; an earlier add of the same key counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.shared.queue.lock().add_at(key, self.now() + delay);
        self.shared.wake.notify_one();
    }

    /// Waits for a key; it is in flight until [`done`](Self::done).
    pub async fn take(&self) -> K {
        loop {
            let (taken, due) = {
                let mut queue = self.shared.queue.lock();
                let taken = queue.take(self.now());
                self.measure(&queue);
                (taken, queue.next_due())
            };
            if let Some((key, waited)) = taken {
                self.shared.metrics.waited.observe(waited.as_secs_f64());
                // Another worker may find a second key that became due with this one.
                self.shared.wake.notify_one();
                return key;
            }
            let notified = self.shared.wake.notified();
            match due {
                Some(at) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(self.shared.start + at) => {}
                },
                None => notified.await,
            }
        }
    }

    /// The key's work ended after `worked`.
    pub fn done(&self, key: &K, worked: Duration) {
        let mut queue = self.shared.queue.lock();
        queue.done(key, self.now());
        self.measure(&queue);
        self.shared.metrics.worked.observe(worked.as_secs_f64());
        self.shared.wake.notify_one();
    }

    /// Adds the key after its back-off, which is returned.
    pub fn retry(&self, key: K) -> Duration {
        self.shared.metrics.retries.inc();
        let delay = self.shared.queue.lock().retry(key, self.now());
        self.shared.wake.notify_one();
        delay
    }

    /// Forgets the key's failures.
    pub fn forget(&self, key: &K) {
        self.shared.queue.lock().forget(key);
    }

    /// Adds the keys that `keys_of` finds in every object of `store` and from then on in every
    /// change, until the queue is dropped.
    pub fn feed<S: Stored>(
        &self,
        store: &Store<S>,
        keys_of: impl Fn(&Change<S>) -> Vec<K> + Send + Sync + 'static,
    ) where
        K: Send + Sync + 'static,
    {
        let queue = self.downgrade();
        store.on_change(move |change| {
            let Some(queue) = queue.upgrade() else { return false };
            keys_of(change).into_iter().for_each(|key| queue.add(key));
            true
        });
    }

    /// A handle that does not keep the queue alive; handlers of stores hold one.
    pub fn downgrade(&self) -> WeakQueue<K> {
        WeakQueue { shared: Arc::downgrade(&self.shared) }
    }

    fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    fn measure(&self, queue: &Queue<K>) {
        self.shared.metrics.depth.set(queue.len() as i64);
        self.shared.metrics.in_flight.set(queue.in_flight() as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_delayed_key_wakes_a_waiting_worker() {
        let queue = WorkQueue::new("test", &Metrics::default());
        let start = Instant::now();
        queue.add_after("late", Duration::from_millis(200));
        queue.add_after("soon", Duration::from_millis(20));
        assert_eq!(queue.take().await, "soon");
        assert!(start.elapsed() >= Duration::from_millis(20));
        queue.retry("soon");
        queue.done(&"soon", Duration::ZERO);
        assert_eq!(queue.take().await, "soon");
        assert!(start.elapsed() >= Duration::from_millis(25));
        assert_eq!(queue.take().await, "late");
        assert!(start.elapsed() >= Duration::from_millis(200));
    }

    #[tokio::test]
    async fn workers_share_the_keys() {
        let queue = WorkQueue::new("test", &Metrics::default());
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.take().await })
            })
            .collect();
        (0..4).for_each(|n| queue.add(n));
        let mut got = Vec::new();
        for worker in workers {
            got.push(worker.await.unwrap());
        }
        got.sort();
        assert_eq!(got, [0, 1, 2, 3]);
    }
}
