//! Probes: counting results (pure) and asking (I/O).
//!
//! A probe of one container instance lives from its start to its end. A startup probe comes first;
//! until it has succeeded the others are not asked. The first result of a probe counts against the
//! thresholds as every later one.

use super::prober::Prober;
use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::time::Duration;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Holds the others back until the application is up; restarts it when that takes too long.
    Startup,
    /// Restarts the container.
    Liveness,
    /// Takes the pod out of its services.
    Readiness,
}

impl Kind {
    /// The word in events.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }

    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
            Kind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// Consecutive results of one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    success: bool,
    run: i32,
}

impl Count {
    /// Counts a result; gives the verdict when it reaches its threshold.
    pub fn add(&mut self, success: bool, probe: &Probe) -> Option<bool> {
        self.run =
            if self.run > 0 && self.success == success { self.run.saturating_add(1) } else { 1 };
        self.success = success;
        let threshold = match success {
            true => probe.success_threshold.unwrap_or(1),
            false => probe.failure_threshold.unwrap_or(3),
        };
        (self.run >= threshold.max(1)).then_some(success)
    }
}

/// What a probe asks, with everything resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Run a command in the container.
    Exec(Vec<String>),
    /// Get a URL.
    Http {
        /// Host to connect to.
        host: String,
        /// Port to connect to.
        port: u16,
        /// With TLS, whatever the certificate.
        https: bool,
        /// Path and query.
        path: String,
        /// Headers to send.
        headers: Vec<(String, String)>,
    },
    /// Connect.
    Tcp {
        /// Host to connect to.
        host: String,
        /// Port to connect to.
        port: u16,
    },
    /// Ask the gRPC health service.
    Grpc {
        /// Host to connect to.
        host: String,
        /// Port to connect to.
        port: u16,
        /// The service's name.
        service: String,
    },
}

/// What `probe` of `container` asks in a pod with address `ip`; the error says what is wrong with it.
pub fn check(probe: &Probe, container: &Container, ip: &str) -> Result<Check, String> {
    if let Some(ExecAction { command }) = &probe.exec {
        return Ok(Check::Exec(command.clone().unwrap_or_default()));
    }
    if let Some(http) = &probe.http_get {
        return http_check(http, container, ip);
    }
    if let Some(TCPSocketAction { host, port }) = &probe.tcp_socket {
        let host = host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| ip.to_owned());
        return Ok(Check::Tcp { host, port: port_of(port, container)? });
    }
    if let Some(GRPCAction { port, service }) = &probe.grpc {
        let port = u16::try_from(*port).map_err(|_| format!("invalid port number: {port}"))?;
        let service = service.clone().unwrap_or_default();
        return Ok(Check::Grpc { host: ip.to_owned(), port, service });
    }
    Err("missing probe handler".to_owned())
}

/// What an httpGet action asks.
pub fn http_check(http: &HTTPGetAction, container: &Container, ip: &str) -> Result<Check, String> {
    let headers = http.http_headers.iter().flatten();
    let path = http.path.clone().unwrap_or_default();
    Ok(Check::Http {
        host: http.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| ip.to_owned()),
        port: port_of(&http.port, container)?,
        https: http.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        headers: headers.map(|h| (h.name.clone(), h.value.clone())).collect(),
    })
}

/// A port by number or by name of one of the container's ports.
pub fn port_of(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => named_port(name, container)?,
        },
    };
    u16::try_from(number)
        .ok()
        .filter(|p| *p > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

fn named_port(name: &str, container: &Container) -> Result<i32, String> {
    let mut ports = container.ports.iter().flatten();
    ports
        .find(|port| port.name.as_deref() == Some(name))
        .map(|port| port.container_port)
        .ok_or_else(|| format!("couldn't find port: {name}"))
}

/// Asks once; the text says what the answer was.
pub async fn ask(
    prober: &Prober,
    check: &Check,
    container_id: &str,
    timeout: Duration,
) -> Result<String, String> {
    let asked = async {
        match check {
            Check::Exec(command) => prober.exec(container_id, command, timeout).await,
            Check::Http { host: to, port, https, path, headers } => {
                prober.http_get(to, *port, *https, path, headers).await
            }
            Check::Tcp { host: to, port } => prober.connect(to, *port).await,
            Check::Grpc { host: to, port, service } => prober.grpc_health(to, *port, service).await,
        }
    };
    // A command's own time limit is kept by the runtime; this one is for a runtime that hangs.
    let limit =
        if matches!(check, Check::Exec(_)) { timeout + Duration::from_secs(2) } else { timeout };
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("command timed out after {} s", timeout.as_secs())),
    }
}

/// A probe's timings with the API's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Before the first question.
    pub initial_delay: Duration,
    /// Between questions.
    pub period: Duration,
    /// For an answer.
    pub timeout: Duration,
}

impl From<&Probe> for Timing {
    fn from(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, least: i32, default: i32| {
            let value = value.unwrap_or(default).max(least);
            Duration::from_secs(u64::try_from(value).unwrap_or(1))
        };
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 1, 10),
            timeout: seconds(probe.timeout_seconds, 1, 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ContainerPort;

    #[test]
    fn thresholds_count_runs() {
        let probe =
            Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut count = Count::default();
        let results = [true, true, false, true, false, false, false, false];
        let verdicts: Vec<_> = results.iter().map(|r| count.add(*r, &probe)).collect();
        let none = None;
        assert_eq!(verdicts, [none, Some(true), none, none, none, none, Some(false), Some(false)]);
    }

    #[test]
    fn ports_by_number_and_name() {
        let port =
            ContainerPort { name: Some("web".into()), container_port: 80, ..Default::default() };
        let container = Container { ports: Some(vec![port]), ..Container::default() };
        let named = |n: &str| port_of(&IntOrString::String(n.into()), &container);
        assert_eq!(named("web"), Ok(80));
        assert_eq!(named("8080"), Ok(8080));
        assert_eq!(named("api"), Err("couldn't find port: api".into()));
        assert!(port_of(&IntOrString::Int(70_000), &container).is_err());
    }
}
