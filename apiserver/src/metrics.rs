//! `/metrics`, with upstream's names.

use crate::body::Body;
use crate::companions::Companions;
use crate::response;
use http::{Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Labels of a request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    /// `GET`, `LIST`, …
    pub verb: String,
    /// The group.
    pub group: String,
    /// The version.
    pub version: String,
    /// The plural.
    pub resource: String,
    /// The subresource.
    pub subresource: String,
    /// The HTTP status.
    pub code: u16,
}

/// Labels of a latency.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct LatencyLabels {
    /// `GET`, `LIST`, …
    pub verb: String,
    /// The group.
    pub group: String,
    /// The plural.
    pub resource: String,
}

/// Labels of a kind of request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct FlightLabels {
    /// `mutating` or `readOnly`
    pub request_kind: &'static str,
}

/// Labels of a watched resource.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabels {
    /// The group.
    pub group: String,
    /// The plural.
    pub resource: String,
}

/// What the server counts.
pub struct Metrics {
    registry: Registry,
    /// Requests by outcome.
    pub requests: Family<RequestLabels, Counter>,
    /// Seconds a request took.
    pub durations: Family<LatencyLabels, Histogram>,
    /// Requests being served.
    pub inflight: Family<FlightLabels, Gauge>,
    /// Watches and other streams being served.
    pub long_running: Family<KindLabels, Gauge>,
    /// Events sent to watchers.
    pub watch_events: Family<KindLabels, Counter>,
    /// Objects in the store.
    pub objects: Family<KindLabels, Gauge>,
}

const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let durations = Family::new_with_constructor(histogram as fn() -> Histogram);
        let requests = Family::<RequestLabels, Counter>::default();
        let inflight = Family::<FlightLabels, Gauge>::default();
        let long_running = Family::<KindLabels, Gauge>::default();
        let watch_events = Family::<KindLabels, Counter>::default();
        let objects = Family::<KindLabels, Gauge>::default();
        registry.register(
            "apiserver_request",
            "Requests by verb, group, version, resource and code",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "How long requests took",
            durations.clone(),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests being served",
            inflight.clone(),
        );
        registry.register(
            "apiserver_longrunning_requests",
            "Watches and other streams being served",
            long_running.clone(),
        );
        registry.register(
            "apiserver_watch_events",
            "Events sent to watchers",
            watch_events.clone(),
        );
        registry.register("apiserver_storage_objects", "Objects in the store", objects.clone());
        registry.register_collector(Box::new(Process));
        Metrics { registry, requests, durations, inflight, long_running, watch_events, objects }
    }

    /// The text that Prometheus reads; the companions' metrics stand first.
    pub fn answer(&self, companions: &Companions) -> Response<Body> {
        let encoded = companions.metrics().and_then(|mut text| {
            prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
            Ok(text)
        });
        let text = match encoded {
            Ok(text) => text,
            Err(error) => {
                return response::text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("metrics: {error}\n"),
                );
            }
        };
        response::bytes(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            text,
        )
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// `process_*`, read when asked.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(stat) = ProcessStat::read() else { return Ok(()) };
        let cpu = ConstCounter::<f64>::new(stat.cpu_seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            "User and system CPU time",
            None,
            cpu.metric_type(),
        )?)?;
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory", stat.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory", stat.virtual_bytes),
            ("process_open_fds", "Open file descriptors", stat.open_files),
            ("process_start_time_seconds", "Start since 1970", stat.start_seconds),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::<f64>::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

struct ProcessStat {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    open_files: f64,
    start_seconds: f64,
}

/// Linux counts in hundredths of a second on every architecture that it reports them for.
const TICKS: f64 = 100.0;
const PAGE: f64 = 4096.0;

impl ProcessStat {
    fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The second field, the command in brackets, may hold spaces.
        let fields: Vec<f64> = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .skip(1)
            .filter_map(|f| f.parse().ok())
            .collect();
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = boot.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(ProcessStat {
            cpu_seconds: (fields.get(10)? + fields.get(11)?) / TICKS,
            start_seconds: boot + fields.get(18)? / TICKS,
            virtual_bytes: *fields.get(19)?,
            resident_bytes: fields.get(20)? * PAGE,
            open_files: std::fs::read_dir("/proc/self/fd").map_or(0.0, |d| d.count() as f64),
        })
    }
}

/// Counts down when dropped.
pub struct Flight(Gauge);

impl Flight {
    /// Counts up.
    pub fn start(gauge: Gauge) -> Self {
        gauge.inc();
        Flight(gauge)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        let metrics = Metrics::new();
        metrics
            .requests
            .get_or_create(&RequestLabels {
                verb: "GET".into(),
                group: String::new(),
                version: "v1".into(),
                resource: "pods".into(),
                subresource: String::new(),
                code: 200,
            })
            .inc();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry).unwrap();
        assert!(text.contains("apiserver_request_total{verb=\"GET\""), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
        assert!(text.contains("process_cpu_seconds_total"), "{text}");
    }
}
