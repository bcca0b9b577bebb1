//! Addresses and ports of Services.
//!
//! There is no table of what is taken: the Services themselves are it. A free one is drawn at
//! random from the view, and the write carries the condition that nobody has it, so two writers
//! can't both win; the loser draws again.

use crate::config::ApiServerConfig;
use rkube_api::meta::metadata_str;
use rkube_api::{ApiError, FieldError};
use rkube_store::{Precondition, View};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

const RESOURCE: &str = "services";
/// How often a free address is looked for by drawing before all are walked.
const DRAWS: usize = 32;

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    base: u32,
    size: u32,
}

impl Range {
    /// From `10.43.0.0/16`.
    pub fn parse(cidr: &str) -> Option<Self> {
        let (base, bits) = cidr.split_once('/')?;
        let bits: u32 = bits.parse().ok().filter(|b| (1..=30).contains(b))?;
        let size = 1u32 << (32 - bits);
        let base = u32::from(base.parse::<Ipv4Addr>().ok()?) & !(size - 1);
        Some(Range { base, size })
    }

    /// The address at an offset.
    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base + offset)
    }

    /// Whether the address may be given out: in the range, but not its first or last one.
    fn contains(self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(self.base);
        (1..self.size - 1).contains(&offset)
    }

    /// The offsets for drawn addresses. The lower part is left to those who ask for an address,
    /// as upstream: a sixteenth, between 16 and 256.
    fn drawn(self) -> std::ops::Range<u32> {
        let reserved = (self.size / 16).clamp(16, 256).min(self.size / 2);
        reserved.max(1)..self.size - 1
    }
}

/// The address of the Service `kubernetes`.
pub fn first_address(cidr: &str) -> Option<Ipv4Addr> {
    Range::parse(cidr).map(|r| r.at(1))
}

/// Gives a Service the addresses and ports that it needs and lacks, and checks those it asks for.
///
/// # Errors
/// 422 for an address or port that is taken or out of range.
pub fn allocate(
    config: &ApiServerConfig,
    view: &View,
    service: &mut Value,
    old: Option<&Value>,
    attempt: usize,
) -> Result<Vec<Precondition>, ApiError> {
    let name = metadata_str(service, "name").to_owned();
    let invalid = |fault: FieldError| ApiError::invalid("", "Service", &name, &[fault]);
    let mut wanted = Vec::new();
    let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
    if !service["spec"].is_object() || kind == "ExternalName" {
        return Ok(wanted);
    }
    address(config, view, service, old, attempt, &mut wanted).map_err(invalid)?;
    let ports = kind == "NodePort"
        || kind == "LoadBalancer"
            && service["spec"]["allocateLoadBalancerNodePorts"] != Value::Bool(false);
    if ports {
        node_ports(config, view, service, old, attempt, &mut wanted).map_err(invalid)?;
    }
    Ok(wanted)
}

fn free(view: &View, term: &str) -> bool {
    view.indexed(RESOURCE, term).next().is_none()
}

fn none_has(term: String) -> Precondition {
    Precondition::NoneIndexed { resource: RESOURCE.into(), term: term.into() }
}

fn address(
    config: &ApiServerConfig,
    view: &View,
    service: &mut Value,
    old: Option<&Value>,
    attempt: usize,
    wanted: &mut Vec<Precondition>,
) -> Result<(), FieldError> {
    let range = Range::parse(&config.service_cidr);
    let spec = &mut service["spec"];
    let asked = spec["clusterIP"]
        .as_str()
        .filter(|a| !a.is_empty())
        .or_else(|| spec["clusterIPs"][0].as_str())
        .unwrap_or("")
        .to_owned();
    if asked == "None" {
        spec["clusterIP"] = "None".into();
        spec["clusterIPs"] = json!(["None"]);
        return Ok(());
    }
    if old.is_some_and(|old| !asked.is_empty() && old["spec"]["clusterIP"] == asked.as_str()) {
        return Ok(());
    }
    let address = if asked.is_empty() {
        draw_address(range, view, attempt)?
    } else {
        check_address(range, config, view, &asked)?
    };
    spec["clusterIP"] = address.clone().into();
    spec["clusterIPs"] = json!([address]);
    if !spec["ipFamilies"].is_array() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    if !spec["ipFamilyPolicy"].is_string() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
    wanted.push(none_has(format!("clusterIP={address}")));
    Ok(())
}

fn address_fault(asked: &str, why: String) -> FieldError {
    FieldError::Invalid {
        path: "spec.clusterIPs".into(),
        value: json!([asked]),
        detail: format!("failed to allocate IP {asked}: {why}"),
    }
}

fn check_address(
    range: Option<Range>,
    config: &ApiServerConfig,
    view: &View,
    asked: &str,
) -> Result<String, FieldError> {
    let inside = asked.parse().ok().zip(range).is_some_and(|(a, r)| r.contains(a));
    if !inside {
        let why = format!(
            "the provided IP ({asked}) is not in the valid range. The range of valid IPs is {}",
            config.service_cidr
        );
        return Err(address_fault(asked, why));
    }
    if !free(view, &format!("clusterIP={asked}")) {
        return Err(address_fault(asked, "provided IP is already allocated".into()));
    }
    Ok(asked.into())
}

fn draw_address(range: Option<Range>, view: &View, attempt: usize) -> Result<String, FieldError> {
    use rand::Rng;
    let full = || FieldError::Invalid {
        path: "spec.clusterIPs".into(),
        value: Value::Null,
        detail: "failed to allocate a serviceIP: range is full".into(),
    };
    let range = range.ok_or_else(full)?;
    let is_free = |offset: &u32| free(view, &format!("clusterIP={}", range.at(*offset)));
    let mut rng = rand::rng();
    let drawn = (0..DRAWS * attempt).map(|_| rng.random_range(range.drawn())).find(is_free);
    let offset = drawn
        .or_else(|| range.drawn().find(is_free))
        .or_else(|| (1..range.drawn().start).find(is_free));
    offset.map(|o| range.at(o).to_string()).ok_or_else(full)
}

fn node_ports(
    config: &ApiServerConfig,
    view: &View,
    service: &mut Value,
    old: Option<&Value>,
    attempt: usize,
    wanted: &mut Vec<Precondition>,
) -> Result<(), FieldError> {
    let had: Vec<u64> = old.map(ports_of).unwrap_or_default();
    let mut own: Vec<u64> = ports_of(service);
    let Some(ports) = service["spec"]["ports"].as_array_mut() else { return Ok(()) };
    let mut conditions: Vec<u64> = Vec::new();
    for (i, port) in ports.iter_mut().enumerate() {
        let asked = port["nodePort"].as_u64().unwrap_or(0);
        if asked == 0 {
            let drawn = draw_port(config, view, &own, attempt)?;
            port["nodePort"] = drawn.into();
            own.push(drawn);
            conditions.push(drawn);
        } else if !had.contains(&asked) && !conditions.contains(&asked) {
            check_port(config, view, asked, i)?;
            conditions.push(asked);
        }
    }
    wanted.extend(conditions.into_iter().map(|p| none_has(format!("nodePort={p}"))));
    Ok(())
}

fn ports_of(service: &Value) -> Vec<u64> {
    let ports = service["spec"]["ports"].as_array();
    ports.into_iter().flatten().filter_map(|p| p["nodePort"].as_u64()).filter(|p| *p > 0).collect()
}

fn check_port(
    config: &ApiServerConfig,
    view: &View,
    asked: u64,
    i: usize,
) -> Result<(), FieldError> {
    let (first, last) = config.node_ports;
    let fault = |detail: String| FieldError::Invalid {
        path: format!("spec.ports[{i}].nodePort"),
        value: asked.into(),
        detail,
    };
    if !(u64::from(first)..=u64::from(last)).contains(&asked) {
        return Err(fault(format!(
            "provided port is not in the valid range. The range of valid ports is {first}-{last}"
        )));
    }
    if !free(view, &format!("nodePort={asked}")) {
        return Err(fault("provided port is already allocated".into()));
    }
    Ok(())
}

fn draw_port(
    config: &ApiServerConfig,
    view: &View,
    own: &[u64],
    attempt: usize,
) -> Result<u64, FieldError> {
    use rand::Rng;
    let (first, last) = (u64::from(config.node_ports.0), u64::from(config.node_ports.1));
    let is_free = |port: &u64| !own.contains(port) && free(view, &format!("nodePort={port}"));
    let mut rng = rand::rng();
    (0..DRAWS * attempt)
        .map(|_| rng.random_range(first..=last))
        .find(is_free)
        .or_else(|| (first..=last).find(is_free))
        .ok_or_else(|| FieldError::Invalid {
            path: "spec.ports".into(),
            value: Value::Null,
            detail: "failed to allocate a nodePort: range is full".into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = Range::parse("10.43.0.0/16").unwrap();
        assert_eq!(range.at(1), Ipv4Addr::new(10, 43, 0, 1));
        assert!(range.contains(Ipv4Addr::new(10, 43, 255, 254)));
        for outside in ["10.43.0.0", "10.43.255.255", "10.44.0.1", "1.2.3.4"] {
            assert!(!range.contains(outside.parse().unwrap()), "{outside}");
        }
        assert_eq!(range.drawn(), 256..65535);
        for bad in ["10.43.0.0", "x/16", "10.0.0.0/33", "10.0.0.0/31"] {
            assert_eq!(Range::parse(bad), None, "{bad}");
        }
    }
}
