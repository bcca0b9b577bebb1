//! EndpointSlice.

use super::access::{default_to, get, int, items, items_mut, len, name_cell, text};
use super::age::age_cell;
use super::builder::define;
use super::fault::{Faults, Path};
use super::print::a_few;
use super::{Kind, Strategy, Target, metadata, names};
use crate::error::FieldError;
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::net::IpAddr;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const ADDRESS_TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// The entries of this module.
pub(super) fn entries() -> Vec<Kind> {
    let slice = define("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
        .namespaced()
        .columns(&[
            ("Name", "string", 0),
            ("AddressType", "string", 0),
            ("Ports", "string", 0),
            ("Endpoints", "string", 0),
            ("Age", "string", 0),
        ])
        .generation()
        .build(EndpointSliceRules);
    vec![slice]
}

struct EndpointSliceRules;

fn body(faults: &mut Faults, object: &Value) {
    let kind = text(object, "addressType");
    if kind.is_empty() {
        faults.required(&Path::root("addressType"), "");
    } else if !ADDRESS_TYPES.contains(&kind) {
        faults.not_supported(&Path::root("addressType"), kind, ADDRESS_TYPES);
    }
    let list = Path::root("endpoints");
    too_many(faults, &list, len(object, "endpoints"), MAX_ENDPOINTS);
    for (index, endpoint) in items(object, "endpoints") {
        self::endpoint(faults, &list.index(index), endpoint, kind);
    }
    ports(faults, object);
}

fn too_many(faults: &mut Faults, path: &Path<'_>, actual: usize, max: usize) {
    if actual > max {
        faults.0.push(FieldError::TooMany { path: path.to_string(), actual, max });
    }
}

fn endpoint(faults: &mut Faults, path: &Path<'_>, endpoint: &Value, kind: &str) {
    let list = path.field("addresses");
    let count = len(endpoint, "addresses");
    if count == 0 {
        faults.required(&list, "must contain at least 1 address");
    }
    too_many(faults, &list, count, MAX_ADDRESSES);
    for (index, address) in items(endpoint, "addresses") {
        self::address(faults, &list.index(index), address.as_str().unwrap_or(""), kind);
    }
    let rules: [(&str, metadata::NameRule); 2] =
        [("nodeName", names::dns_subdomain), ("hostname", names::dns_label)];
    for (key, rule) in rules {
        let name = text(endpoint, key);
        if !name.is_empty() {
            faults.each(&path.field(key), name, rule(name));
        }
    }
}

fn address(faults: &mut Faults, path: &Path<'_>, address: &str, kind: &str) {
    let parsed = address.parse::<IpAddr>();
    match (kind, &parsed) {
        ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {}
        ("IPv4", Ok(_)) => faults.invalid(path, address, "must be an IPv4 address"),
        ("IPv6", Ok(_)) => faults.invalid(path, address, "must be an IPv6 address"),
        ("IPv4" | "IPv6", Err(_)) => faults.each(path, address, names::ip(address)),
        ("FQDN", _) => faults.each(path, address, names::dns_subdomain(address)),
        _ => {}
    }
    if let ("IPv4" | "IPv6", Ok(ip)) = (kind, parsed) {
        special(faults, path, address, ip);
    }
}

/// Addresses that no endpoint can have.
fn special(faults: &mut Faults, path: &Path<'_>, shown: &str, ip: IpAddr) {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let detail = if ip.is_unspecified() {
        format!("may not be unspecified ({shown})")
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into()
    } else {
        return;
    };
    faults.invalid(path, shown, detail);
}

fn ports(faults: &mut Faults, object: &Value) {
    let list = Path::root("ports");
    too_many(faults, &list, len(object, "ports"), MAX_PORTS);
    let mut seen = Vec::new();
    for (index, port) in items(object, "ports") {
        let path = list.index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            faults.each(&path.field("name"), name, names::dns_label(name));
        }
        if seen.contains(&name) {
            faults.duplicate(&path.field("name"), name);
        }
        seen.push(name);
        faults.one_of(&path.field("protocol"), text(port, "protocol"), PROTOCOLS);
        if let Some(number) = int(port, "port") {
            faults.within(&path.field("port"), number, 1, 65535);
        }
    }
}

impl Strategy for EndpointSliceRules {
    fn default(&self, object: &mut Value) {
        for endpoint in items_mut(object, "endpoints") {
            default_to(endpoint, "conditions", Map::new());
        }
        for port in items_mut(object, "ports") {
            default_to(port, "name", "");
            default_to(port, "protocol", "TCP");
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate(object, names::dns_subdomain);
        body(&mut faults, object);
        faults.0
    }

    fn validate_update(&self, _target: Target, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = metadata::validate_update(new, old);
        body(&mut faults, new);
        let path = Path::root("addressType");
        faults.immutable(&path, get(new, "addressType"), get(old, "addressType"));
        faults.0
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let port = |port: &Value| match (int(port, "port"), text(port, "name")) {
            (Some(number), _) => number.to_string(),
            (None, "") => "*".into(),
            (None, name) => name.into(),
        };
        let ports = items(object, "ports").map(|(_, p)| port(p));
        let addresses = items(object, "endpoints")
            .flat_map(|(_, e)| items(e, "addresses"))
            .map(|(_, a)| a.as_str().unwrap_or("").to_owned());
        vec![
            name_cell(object),
            text(object, "addressType").into(),
            a_few(ports).into(),
            a_few(addresses).into(),
            age_cell(object, now),
        ]
    }

    fn validate_name(&self, name: &str) -> Option<String> {
        names::first(names::dns_subdomain(name))
    }
}
