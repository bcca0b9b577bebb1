//! Counters under the names that Kubernetes' dashboards know.

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

/// All metrics of the runtime; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    depth: Family<QueueName, Gauge>,
    in_flight: Family<QueueName, Gauge>,
    adds: Family<QueueName, Counter>,
    retries: Family<QueueName, Counter>,
    waited: Family<QueueName, Histogram, fn() -> Histogram>,
    worked: Family<QueueName, Histogram, fn() -> Histogram>,
    requests: Family<Request, Counter>,
    request_seconds: Family<Verb, Histogram, fn() -> Histogram>,
    reconciles: Family<Outcome, Counter>,
    restarts: Family<QueueName, Counter>,
    leader: Family<QueueName, Gauge>,
    events_dropped: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueName {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    code: String,
    method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    controller: String,
    result: String,
}

impl Default for Metrics {
    /// Counts without a registry; tests use it.
    fn default() -> Self {
        // From 10 µs to about 10 s, as client-go's buckets.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(1e-5, 10.0, 7));
        Metrics {
            depth: Family::default(),
            in_flight: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            waited: Family::new_with_constructor(histogram),
            worked: Family::new_with_constructor(histogram),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(histogram),
            reconciles: Family::default(),
            restarts: Family::default(),
            leader: Family::default(),
            events_dropped: Counter::default(),
        }
    }
}

impl Metrics {
    /// Metrics that `registry` exposes. Call it once per registry.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Metrics::default();
        registry.register("workqueue_depth", "Keys that wait", m.depth.clone());
        registry.register("workqueue_in_flight", "Keys at work", m.in_flight.clone());
        registry.register("workqueue_adds", "Keys added", m.adds.clone());
        registry.register(
            "workqueue_retries",
            "Keys added again after a failure",
            m.retries.clone(),
        );
        registry.register(
            "workqueue_queue_duration_seconds",
            "How long a key waits before it is taken",
            m.waited.clone(),
        );
        registry.register(
            "workqueue_work_duration_seconds",
            "How long a key's work takes",
            m.worked.clone(),
        );
        registry.register(
            "rest_client_requests",
            "Requests to the API server by status code and method",
            m.requests.clone(),
        );
        registry.register(
            "rest_client_request_duration_seconds",
            "How long requests to the API server take until their headers are back",
            m.request_seconds.clone(),
        );
        registry.register(
            "controller_runtime_reconcile",
            "Reconciles by controller and result",
            m.reconciles.clone(),
        );
        registry.register(
            "rkube_task_restarts",
            "Tasks taken up again after they fell",
            m.restarts.clone(),
        );
        registry.register(
            "leader_election_master_status",
            "1 where this process leads",
            m.leader.clone(),
        );
        registry.register(
            "rkube_events_dropped",
            "Events not recorded because the recorder was behind or the object's share was used up",
            m.events_dropped.clone(),
        );
        m
    }

    pub(crate) fn queue(&self, name: &str) -> QueueMetrics {
        let name = QueueName { name: name.into() };
        QueueMetrics {
            depth: self.depth.get_or_create_owned(&name),
            in_flight: self.in_flight.get_or_create_owned(&name),
            adds: self.adds.get_or_create_owned(&name),
            retries: self.retries.get_or_create_owned(&name),
            waited: self.waited.get_or_create_owned(&name),
            worked: self.worked.get_or_create_owned(&name),
        }
    }

    pub(crate) fn request(&self, method: &str, code: &str, seconds: f64) {
        let request = Request { code: code.into(), method: method.into() };
        self.requests.get_or_create(&request).inc();
        self.request_seconds.get_or_create(&Verb { verb: method.into() }).observe(seconds);
    }

    pub(crate) fn reconciled(&self, controller: &str, result: &str) {
        let outcome = Outcome { controller: controller.into(), result: result.into() };
        self.reconciles.get_or_create(&outcome).inc();
    }

    pub(crate) fn restarted(&self, task: &str) {
        self.restarts.get_or_create(&QueueName { name: task.into() }).inc();
    }

    pub(crate) fn leads(&self, scope: &str, leads: bool) {
        self.leader.get_or_create(&QueueName { name: scope.into() }).set(leads.into());
    }

    pub(crate) fn event_dropped(&self) {
        self.events_dropped.inc();
    }
}

/// One queue's share of the metrics.
pub(crate) struct QueueMetrics {
    pub depth: Gauge,
    pub in_flight: Gauge,
    pub adds: Counter,
    pub retries: Counter,
    pub waited: Histogram,
    pub worked: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kubernetes() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.queue("deployment").adds.inc();
        metrics.request("GET", "200", 0.1);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("workqueue_adds_total{name=\"deployment\"} 1"), "{text}");
        assert!(
            text.contains("rest_client_requests_total{code=\"200\",method=\"GET\"} 1"),
            "{text}"
        );
    }
}
