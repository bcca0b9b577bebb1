//! Counters under upstream's names.

use crate::queue::Pending;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// The scheduler's metrics; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    attempts: Family<Attempt, Counter>,
    pending: Family<QueueName, Gauge>,
    attempt_seconds: Histogram,
    waited_seconds: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempt {
    profile: String,
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueName {
    queue: String,
}

impl Default for Metrics {
    /// Counts without a registry.
    fn default() -> Self {
        Metrics {
            attempts: Family::default(),
            pending: Family::default(),
            // From 10 µs to about 0.3 s for a decision, from 1 ms to about 1 h for a pod.
            attempt_seconds: Histogram::new(exponential_buckets(1e-5, 2.0, 16)),
            waited_seconds: Histogram::new(exponential_buckets(1e-3, 4.0, 12)),
        }
    }
}

impl Metrics {
    /// Metrics that `registry` exposes. Call it once per registry.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Metrics::default();
        registry.register(
            "scheduler_schedule_attempts",
            "Attempts to schedule pods, by result",
            m.attempts.clone(),
        );
        registry.register("scheduler_pending_pods", "Pods that wait, by queue", m.pending.clone());
        registry.register(
            "scheduler_scheduling_attempt_duration_seconds",
            "How long a pod's share of a cycle takes",
            m.attempt_seconds.clone(),
        );
        registry.register(
            "scheduler_pod_scheduling_sli_duration_seconds",
            "From a pod's first sight to its binding",
            m.waited_seconds.clone(),
        );
        m
    }

    pub(crate) fn attempt(&self, profile: &str, result: &str) {
        let attempt = Attempt { profile: profile.into(), result: result.into() };
        self.attempts.get_or_create(&attempt).inc();
    }

    pub(crate) fn decided(&self, seconds: f64) {
        self.attempt_seconds.observe(seconds);
    }

    pub(crate) fn bound(&self, waited_seconds: f64) {
        self.waited_seconds.observe(waited_seconds);
    }

    pub(crate) fn pending(&self, pending: Pending) {
        for (queue, count) in [
            ("active", pending.active),
            ("backoff", pending.backoff),
            ("unschedulable", pending.unschedulable),
            ("gated", pending.gated),
        ] {
            let name = QueueName { queue: queue.into() };
            self.pending.get_or_create(&name).set(count as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.attempt("default-scheduler", "scheduled");
        metrics.pending(Pending { gated: 2, ..Pending::default() });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"scheduled\"} 1",
            "scheduler_pending_pods{queue=\"gated\"} 2",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
