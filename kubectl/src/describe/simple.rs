//! Kinds with little to say: services, config maps, secrets, namespaces, service accounts.

use super::{Page, list, map_text, number, or_none, plain, sorted_pairs, text};
use serde_json::Value;

/// A service with the endpoint slices that carry its name.
pub fn service(page: &mut Page, service: &Value, slices: &[Value], events: Option<&[Value]>) {
    let spec = &service["spec"];
    page.header(service, true);
    page.field(0, "Selector", map_text(&spec["selector"]));
    page.field(0, "Type", text(&spec["type"]));
    if spec["ipFamilyPolicy"].is_string() {
        page.field(0, "IP Family Policy", text(&spec["ipFamilyPolicy"]));
    }
    let join = |v: &Value| list(v).iter().map(text).collect::<Vec<_>>().join(",");
    if !list(&spec["ipFamilies"]).is_empty() {
        page.field(0, "IP Families", join(&spec["ipFamilies"]));
    } else {
        page.field(0, "IP Families", "<none>");
    }
    page.field(0, "IP", text(&spec["clusterIP"]));
    if !list(&spec["clusterIPs"]).is_empty() {
        page.field(0, "IPs", join(&spec["clusterIPs"]));
    } else {
        page.field(0, "IPs", "<none>");
    }
    for (title, value) in [
        ("External IPs", join(&spec["externalIPs"])),
        ("External Name", plain(&spec["externalName"])),
        ("Desired LoadBalancer IP", plain(&spec["loadBalancerIP"])),
    ] {
        if !value.is_empty() {
            page.field(0, title, value);
        }
    }
    let ingress: Vec<String> = list(&service["status"]["loadBalancer"]["ingress"])
        .iter()
        .map(|i| if text(&i["ip"]).is_empty() { plain(&i["hostname"]) } else { plain(&i["ip"]) })
        .collect();
    if !ingress.is_empty() {
        page.field(0, "LoadBalancer Ingress", ingress.join(", "));
    }
    for port in list(&spec["ports"]) {
        self::port(page, port, slices);
    }
    page.field(0, "Session Affinity", text(&spec["sessionAffinity"]));
    for (title, field) in [
        ("External Traffic Policy", "externalTrafficPolicy"),
        ("Internal Traffic Policy", "internalTrafficPolicy"),
    ] {
        if !text(&spec[field]).is_empty() {
            page.field(0, title, text(&spec[field]));
        }
    }
    page.events(events);
}

fn port(page: &mut Page, port: &Value, slices: &[Value]) {
    let name = if text(&port["name"]).is_empty() { "<unset>" } else { text(&port["name"]) };
    let protocol = text(&port["protocol"]);
    page.line(0, format!("Port:\t{name}\t{}/{protocol}", number(&port["port"])));
    page.field(0, "TargetPort", format!("{}/{protocol}", plain(&port["targetPort"])));
    if number(&port["nodePort"]) != 0 {
        page.line(0, format!("NodePort:\t{name}\t{}/{protocol}", number(&port["nodePort"])));
    }
    page.field(0, "Endpoints", endpoints(text(&port["name"]), slices));
}

/// The first three addresses that are ready, and how many more there are.
fn endpoints(port_name: &str, slices: &[Value]) -> String {
    let mut all = Vec::new();
    for slice in slices {
        for port in list(&slice["ports"]).iter().filter(|p| text(&p["name"]) == port_name) {
            for endpoint in list(&slice["endpoints"]) {
                if endpoint["conditions"]["ready"] == false {
                    continue;
                }
                for address in list(&endpoint["addresses"]) {
                    all.push(match text(address) {
                        a if a.contains(':') => format!("[{a}]:{}", number(&port["port"])),
                        a => format!("{a}:{}", number(&port["port"])),
                    });
                }
            }
        }
    }
    let more = all.len().saturating_sub(3);
    all.truncate(3);
    match more {
        0 => all.join(","),
        _ => format!("{} + {more} more...", all.join(",")),
    }
}

/// A config map.
pub fn config_map(page: &mut Page, object: &Value, events: Option<&[Value]>) {
    page.header(object, true);
    page.line(0, "\nData\n====");
    for (key, value) in sorted_pairs(&object["data"]) {
        page.line(0, format!("{key}:\n----\n{value}\n"));
    }
    page.line(0, "\nBinaryData\n====");
    for (key, value) in sorted_pairs(&object["binaryData"]) {
        page.line(0, format!("{key}: {} bytes", decoded_length(&value)));
    }
    page.line(0, "");
    page.events(events);
}

/// A secret, without its contents.
pub fn secret(page: &mut Page, object: &Value) {
    page.header(object, true);
    page.line(0, "");
    page.field(0, "Type", text(&object["type"]));
    page.line(0, "\nData\n====");
    for (key, value) in sorted_pairs(&object["data"]) {
        page.field(0, &key, format!("{} bytes", decoded_length(&value)));
    }
}

fn decoded_length(base64: &str) -> usize {
    let packed = base64.bytes().filter(|b| !b.is_ascii_whitespace() && *b != b'=').count();
    packed * 3 / 4
}

/// A namespace; quotas and limits are None where the server knows no such thing.
pub fn namespace(
    page: &mut Page,
    object: &Value,
    quotas: Option<&[Value]>,
    limits: Option<&[Value]>,
) {
    page.header(object, false);
    page.field(0, "Status", text(&object["status"]["phase"]));
    let conditions = list(&object["status"]["conditions"]);
    if !conditions.is_empty() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus\tLastTransitionTime\tReason\tMessage");
        page.line(1, "----\t------\t------------------\t------\t-------");
        for c in conditions {
            page.line(
                1,
                format!(
                    "{}\t{}\t{}\t{}\t{}",
                    text(&c["type"]),
                    text(&c["status"]),
                    super::date(&c["lastTransitionTime"]),
                    text(&c["reason"]),
                    text(&c["message"])
                ),
            );
        }
    }
    for (found, none, title) in [
        (quotas, "No resource quota.", "Resource Quotas"),
        (limits, "No LimitRange resource.", "Resource Limits"),
    ] {
        match found {
            None => {}
            Some([]) => page.line(0, format!("\n{none}")),
            Some(some) => {
                page.line(0, format!("\n{title}"));
                some.iter().for_each(|q| page.field(1, "Name", text(&q["metadata"]["name"])));
            }
        }
    }
}

/// A service account.
pub fn service_account(page: &mut Page, object: &Value, events: Option<&[Value]>) {
    page.header(object, true);
    let names = |v: &Value| {
        let all: Vec<&str> = list(v).iter().map(|s| text(&s["name"])).collect();
        or_none(&all.join("\n                     ")).to_owned()
    };
    page.field(0, "Image pull secrets", names(&object["imagePullSecrets"]));
    page.field(0, "Mountable secrets", names(&object["secrets"]));
    page.field(0, "Tokens", "<none>");
    page.events(events);
}
