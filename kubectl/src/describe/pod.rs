//! Pods, and the pod templates of what makes them.

use super::{Page, controller, date, list, number, or_none, plain, sorted_pairs, text};
use rkube_api::quantity::Quantity;
use serde_json::Value;

/// A pod.
pub fn pod(page: &mut Page, pod: &Value, events: Option<&[Value]>) {
    header(page, pod);
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let init = list(&spec["initContainers"]);
    if !init.is_empty() {
        containers(page, "Init Containers", init, Some(&status["initContainerStatuses"]), pod, "");
    }
    let own = list(&spec["containers"]);
    containers(page, "Containers", own, Some(&status["containerStatuses"]), pod, "");
    let conditions = list(&status["conditions"]);
    if !conditions.is_empty() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus");
        for c in conditions {
            page.line(1, format!("{} \t{} ", text(&c["type"]), text(&c["status"])));
        }
    }
    volumes(page, list(&spec["volumes"]), "");
    let class = match text(&status["qosClass"]) {
        "" => "BestEffort",
        class => class,
    };
    page.field(0, "QoS Class", class);
    page.labels("Node-Selectors", &spec["nodeSelector"]);
    tolerations(page, "Tolerations", &spec["tolerations"]);
    page.events(events);
}

fn header(page: &mut Page, pod: &Value) {
    let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
    page.field(0, "Name", text(&metadata["name"]));
    page.field(0, "Namespace", text(&metadata["namespace"]));
    if let Some(priority) = spec["priority"].as_i64() {
        page.field(0, "Priority", priority.to_string());
    }
    optional(page, 0, "Priority Class Name", &spec["priorityClassName"]);
    optional(page, 0, "Runtime Class Name", &spec["runtimeClassName"]);
    optional(page, 0, "Service Account", &spec["serviceAccountName"]);
    match text(&spec["nodeName"]) {
        "" => page.field(0, "Node", "<none>"),
        node => page.field(0, "Node", format!("{node}/{}", text(&status["hostIP"]))),
    }
    if status["startTime"].is_string() {
        page.field(0, "Start Time", date(&status["startTime"]));
    }
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    let phase = text(&status["phase"]);
    if metadata["deletionTimestamp"].is_string() && !matches!(phase, "Failed" | "Succeeded") {
        let since = page.age(&metadata["deletionTimestamp"]);
        page.field(0, "Status", format!("Terminating (lasts {since})"));
        let grace = number(&metadata["deletionGracePeriodSeconds"]);
        page.field(0, "Termination Grace Period", format!("{grace}s"));
    } else {
        page.field(0, "Status", phase);
    }
    optional(page, 0, "Reason", &status["reason"]);
    optional(page, 0, "Message", &status["message"]);
    optional(page, 0, "SeccompProfile", &spec["securityContext"]["seccompProfile"]["type"]);
    page.field(0, "IP", text(&status["podIP"]));
    let ips = list(&status["podIPs"]);
    if ips.is_empty() {
        page.field(0, "IPs", "<none>");
    } else {
        page.line(0, "IPs:");
        ips.iter().for_each(|ip| page.field(1, "IP", text(&ip["ip"])));
    }
    if let Some(owner) = controller(pod) {
        page.field(0, "Controlled By", owner);
    }
    optional(page, 0, "NominatedNodeName", &status["nominatedNodeName"]);
}

fn optional(page: &mut Page, level: usize, name: &str, value: &Value) {
    if !text(value).is_empty() {
        page.field(level, name, text(value));
    }
}

/// The template of a workload.
pub fn template(page: &mut Page, template: &Value) {
    page.line(0, "Pod Template:");
    let spec = &template["spec"];
    page.labels("  Labels", &template["metadata"]["labels"]);
    if !sorted_pairs(&template["metadata"]["annotations"]).is_empty() {
        page.annotations("  Annotations", &template["metadata"]["annotations"]);
    }
    optional(page, 1, "Service Account", &spec["serviceAccountName"]);
    let init = list(&spec["initContainers"]);
    if !init.is_empty() {
        containers(page, "Init Containers", init, None, &Value::Null, "  ");
    }
    containers(page, "Containers", list(&spec["containers"]), None, &Value::Null, "  ");
    volumes(page, list(&spec["volumes"]), "  ");
    optional(page, 1, "Priority Class Name", &spec["priorityClassName"]);
    page.labels("  Node-Selectors", &spec["nodeSelector"]);
    tolerations(page, "  Tolerations", &spec["tolerations"]);
}

fn containers(
    page: &mut Page,
    label: &str,
    containers: &[Value],
    statuses: Option<&Value>,
    pod: &Value,
    space: &str,
) {
    let none = if containers.is_empty() { " <none>" } else { "" };
    page.line(0, format!("{space}{label}:{none}"));
    for c in containers {
        let statuses = list(statuses.unwrap_or(&Value::Null));
        let status = statuses.iter().find(|s| s["name"] == c["name"]);
        let indent = if space.is_empty() { "" } else { " " };
        page.line(1, format!("{indent}{}:", text(&c["name"])));
        basics(page, c, status);
        arguments(page, c);
        if let Some(status) = status {
            states(page, status);
        }
        resources(page, &c["resources"]);
        for (name, field) in [
            ("Liveness", "livenessProbe"),
            ("Readiness", "readinessProbe"),
            ("Startup", "startupProbe"),
        ] {
            if c[field].is_object() {
                page.field(2, name, probe(&c[field]));
            }
        }
        environment(page, c, pod);
        mounts(page, c);
    }
}

fn basics(page: &mut Page, c: &Value, status: Option<&Value>) {
    if let Some(status) = status {
        page.field(2, "Container ID", text(&status["containerID"]));
    }
    page.field(2, "Image", text(&c["image"]));
    if let Some(status) = status {
        page.field(2, "Image ID", text(&status["imageID"]));
    }
    for (one, many, field) in
        [("Port", "Ports", "containerPort"), ("Host Port", "Host Ports", "hostPort")]
    {
        let ports: Vec<String> = list(&c["ports"])
            .iter()
            .map(|p| {
                let protocol =
                    if text(&p["protocol"]).is_empty() { "TCP" } else { text(&p["protocol"]) };
                let port = number(&p[field]);
                format!("{port}/{protocol}")
            })
            .collect();
        let shown = ports.join(", ");
        page.field(2, if ports.len() > 1 { many } else { one }, or_none(&shown));
    }
    optional(page, 2, "SeccompProfile", &c["securityContext"]["seccompProfile"]["type"]);
}

fn arguments(page: &mut Page, c: &Value) {
    for (title, field) in [("Command", "command"), ("Args", "args")] {
        let arguments = list(&c[field]);
        if arguments.is_empty() {
            continue;
        }
        page.line(2, format!("{title}:"));
        for line in arguments.iter().flat_map(|a| text(a).split('\n')) {
            page.line(3, line);
        }
    }
}

fn states(page: &mut Page, status: &Value) {
    state(page, "State", &status["state"]);
    if status["lastState"]["terminated"].is_object() {
        state(page, "Last State", &status["lastState"]);
    }
    page.field(2, "Ready", if status["ready"] == true { "True" } else { "False" });
    page.field(2, "Restart Count", number(&status["restartCount"]).to_string());
}

fn state(page: &mut Page, title: &str, state: &Value) {
    if state["running"].is_object() {
        page.field(2, title, "Running");
        page.field(3, "Started", date(&state["running"]["startedAt"]));
    } else if state["terminated"].is_object() {
        let t = &state["terminated"];
        page.field(2, title, "Terminated");
        optional(page, 3, "Reason", &t["reason"]);
        optional(page, 3, "Message", &t["message"]);
        page.field(3, "Exit Code", number(&t["exitCode"]).to_string());
        if number(&t["signal"]) > 0 {
            page.field(3, "Signal", number(&t["signal"]).to_string());
        }
        page.field(3, "Started", date(&t["startedAt"]));
        page.field(3, "Finished", date(&t["finishedAt"]));
    } else {
        page.field(2, title, "Waiting");
        optional(page, 3, "Reason", &state["waiting"]["reason"]);
    }
}

fn resources(page: &mut Page, resources: &Value) {
    for (title, field) in [("Limits", "limits"), ("Requests", "requests")] {
        let amounts = sorted_pairs(&resources[field]);
        if amounts.is_empty() {
            continue;
        }
        page.line(2, format!("{title}:"));
        amounts.iter().for_each(|(name, amount)| page.field(3, name, amount));
    }
}

/// `http-get http://:80/ delay=0s timeout=1s period=10s #success=1 #failure=3`
fn probe(p: &Value) -> String {
    let or = |field: &str, default: i64| p[field].as_i64().unwrap_or(default);
    let timing = format!(
        "delay={}s timeout={}s period={}s #success={} #failure={}",
        or("initialDelaySeconds", 0),
        or("timeoutSeconds", 1),
        or("periodSeconds", 10),
        or("successThreshold", 1),
        or("failureThreshold", 3)
    );
    if p["exec"].is_object() {
        let command: Vec<&str> = list(&p["exec"]["command"]).iter().map(text).collect();
        return format!("exec [{}] {timing}", command.join(" "));
    }
    if p["httpGet"].is_object() {
        let h = &p["httpGet"];
        let scheme = match text(&h["scheme"]) {
            "" => "http".to_owned(),
            s => s.to_lowercase(),
        };
        let path = text(&h["path"]);
        let slash = if path.starts_with('/') || path.is_empty() { "" } else { "/" };
        return format!(
            "http-get {scheme}://{}:{}{slash}{path} {timing}",
            text(&h["host"]),
            plain(&h["port"])
        );
    }
    if p["tcpSocket"].is_object() {
        let t = &p["tcpSocket"];
        return format!("tcp-socket {}:{} {timing}", text(&t["host"]), plain(&t["port"]));
    }
    if p["grpc"].is_object() {
        return format!(
            "grpc <pod>:{} {} {timing}",
            number(&p["grpc"]["port"]),
            text(&p["grpc"]["service"])
        );
    }
    format!("unknown {timing}")
}

fn environment(page: &mut Page, c: &Value, pod: &Value) {
    let from = list(&c["envFrom"]);
    if !from.is_empty() {
        page.line(2, "Environment Variables from:");
    }
    for source in from {
        let (kind, field) = if source["configMapRef"].is_object() {
            ("ConfigMap", &source["configMapRef"])
        } else {
            ("Secret", &source["secretRef"])
        };
        let prefix = match text(&source["prefix"]) {
            "" => String::new(),
            p => format!(" with prefix '{p}'"),
        };
        let optional = field["optional"] == true;
        page.line(3, format!("{}\t{kind}{prefix}\tOptional: {optional}", text(&field["name"])));
    }
    let variables = list(&c["env"]);
    if variables.is_empty() {
        return page.line(2, "Environment:\t<none>");
    }
    page.line(2, "Environment:");
    for v in variables {
        variable(page, v, c, pod);
    }
}

fn variable(page: &mut Page, v: &Value, container: &Value, pod: &Value) {
    let name = text(&v["name"]);
    let from = &v["valueFrom"];
    if !from.is_object() {
        for (i, line) in text(&v["value"]).split('\n').enumerate() {
            page.line(3, if i == 0 { format!("{name}:\t{line}") } else { format!("\t{line}") });
        }
        return;
    }
    let shown = if from["fieldRef"].is_object() {
        let r = &from["fieldRef"];
        let path = text(&r["fieldPath"]);
        let version = if text(&r["apiVersion"]).is_empty() { "v1" } else { text(&r["apiVersion"]) };
        format!("{} ({version}:{path})", field_of(pod, path))
    } else if from["resourceFieldRef"].is_object() {
        let r = &from["resourceFieldRef"];
        format!("{} ({})", resource_of(container, r), text(&r["resource"]))
    } else {
        let (r, kind) = match from["secretKeyRef"].is_object() {
            true => (&from["secretKeyRef"], "in secret"),
            false => (&from["configMapKeyRef"], "of config map"),
        };
        let (key, name, optional) = (text(&r["key"]), text(&r["name"]), r["optional"] == true);
        format!("<set to the key '{key}' {kind} '{name}'>\tOptional: {optional}")
    };
    page.line(3, format!("{name}:\t{shown}"));
}

/// The amount that the downward API gives for a resource, in units of the divisor, rounded up.
fn resource_of(container: &Value, r: &Value) -> String {
    let amount = text(&r["resource"])
        .split_once('.')
        .and_then(|(field, name)| Quantity::from_value(&container["resources"][field][name]).ok());
    let divisor = Quantity::from_value(&r["divisor"]).map(|d| d.as_milli()).unwrap_or(0);
    let divisor = if divisor == 0 { 1000 } else { divisor };
    match amount {
        Some(amount) => amount
            .as_milli()
            .div_euclid(divisor)
            .saturating_add(i64::from(amount.as_milli() % divisor != 0))
            .to_string(),
        None => String::new(),
    }
}

/// The value that the downward API gives for a path.
fn field_of(pod: &Value, path: &str) -> String {
    if let Some((base, rest)) = path.split_once('[') {
        let key = rest.trim_end_matches(']').trim_matches(['\'', '"']);
        return base.split('.').fold(pod, |v, k| &v[k])[key].as_str().unwrap_or("").to_owned();
    }
    plain(path.split('.').fold(pod, |v, k| &v[k]))
}

fn mounts(page: &mut Page, c: &Value) {
    let mut mounts: Vec<&Value> = list(&c["volumeMounts"]).iter().collect();
    if mounts.is_empty() {
        return page.line(2, "Mounts:\t<none>");
    }
    page.line(2, "Mounts:");
    mounts.sort_by_key(|m| text(&m["mountPath"]));
    for m in mounts {
        let mut flags = vec![if m["readOnly"] == true { "ro".to_owned() } else { "rw".to_owned() }];
        if !text(&m["subPath"]).is_empty() {
            flags.push(format!("path={:?}", text(&m["subPath"])));
        }
        page.line(
            3,
            format!("{} from {} ({})", text(&m["mountPath"]), text(&m["name"]), flags.join(",")),
        );
    }
}

fn volumes(page: &mut Page, volumes: &[Value], space: &str) {
    if volumes.is_empty() {
        return page.line(0, format!("{space}Volumes:\t<none>"));
    }
    page.line(0, format!("{space}Volumes:"));
    for v in volumes {
        let indent = if space.is_empty() { "" } else { " " };
        page.line(1, format!("{indent}{}:", text(&v["name"])));
        volume(page, v);
    }
}

fn volume(page: &mut Page, v: &Value) {
    let yes = |v: &Value| (*v == true).to_string();
    if let Some(h) = v.get("hostPath") {
        page.field(2, "Type", "HostPath (bare host directory volume)");
        page.field(2, "Path", text(&h["path"]));
        page.field(2, "HostPathType", text(&h["type"]));
    } else if let Some(e) = v.get("emptyDir") {
        page.field(2, "Type", "EmptyDir (a temporary directory that shares a pod's lifetime)");
        page.field(2, "Medium", text(&e["medium"]));
        let limit = plain(&e["sizeLimit"]);
        page.field(2, "SizeLimit", if limit.is_empty() { "<unset>" } else { &limit });
    } else if let Some(s) = v.get("secret") {
        page.field(2, "Type", "Secret (a volume populated by a Secret)");
        page.field(2, "SecretName", text(&s["secretName"]));
        page.field(2, "Optional", yes(&s["optional"]));
    } else if let Some(c) = v.get("configMap") {
        page.field(2, "Type", "ConfigMap (a volume populated by a ConfigMap)");
        page.field(2, "Name", text(&c["name"]));
        page.field(2, "Optional", yes(&c["optional"]));
    } else if let Some(p) = v.get("persistentVolumeClaim") {
        page.field(
            2,
            "Type",
            "PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)",
        );
        page.field(2, "ClaimName", text(&p["claimName"]));
        page.field(2, "ReadOnly", yes(&p["readOnly"]));
    } else if let Some(d) = v.get("downwardAPI") {
        page.field(2, "Type", "DownwardAPI (a volume populated by information about the pod)");
        page.line(2, "Items:");
        for item in list(&d["items"]) {
            let path = text(&item["fieldRef"]["fieldPath"]);
            page.line(3, format!("{path} -> {}", text(&item["path"])));
        }
    } else if let Some(p) = v.get("projected") {
        page.field(
            2,
            "Type",
            "Projected (a volume that contains injected data from multiple sources)",
        );
        list(&p["sources"]).iter().for_each(|s| projected(page, s));
    } else {
        page.line(2, "<unknown>");
    }
}

fn projected(page: &mut Page, source: &Value) {
    let yes = |v: &Value| (*v == true).to_string();
    if let Some(s) = source.get("secret") {
        page.field(2, "SecretName", text(&s["name"]));
        page.field(2, "Optional", yes(&s["optional"]));
    } else if source.get("downwardAPI").is_some() {
        page.field(2, "DownwardAPI", "true");
    } else if let Some(c) = source.get("configMap") {
        page.field(2, "ConfigMapName", text(&c["name"]));
        page.field(2, "Optional", yes(&c["optional"]));
    } else if let Some(t) = source.get("serviceAccountToken") {
        page.field(2, "TokenExpirationSeconds", plain(&t["expirationSeconds"]));
    }
}

/// `key=value:Effect op=Exists for 300s` lines.
fn tolerations(page: &mut Page, title: &str, tolerations: &Value) {
    let mut sorted: Vec<&Value> = list(tolerations).iter().collect();
    sorted.sort_by_key(|t| text(&t["key"]));
    let lines = sorted.into_iter().map(|t| {
        let (key, value, effect) = (text(&t["key"]), text(&t["value"]), text(&t["effect"]));
        let mut line = key.to_owned();
        if !value.is_empty() {
            line.push_str(&format!("={value}"));
        }
        if !effect.is_empty() {
            line.push_str(&format!(":{effect}"));
        }
        if t["operator"] == "Exists" && value.is_empty() {
            line.push_str(if line.is_empty() { "op=Exists" } else { " op=Exists" });
        }
        if let Some(seconds) = t["tolerationSeconds"].as_i64() {
            line.push_str(&format!(" for {seconds}s"));
        }
        line
    });
    page.lines(title, lines.collect());
}
