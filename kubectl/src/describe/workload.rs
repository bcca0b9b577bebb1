//! Deployments and replica sets.

use super::{Page, controller, date, list, number, plain, pod, selector_text, text};
use serde_json::Value;

/// A deployment with the replica sets that it owns.
pub fn deployment(page: &mut Page, d: &Value, replica_sets: &[Value], events: Option<&[Value]>) {
    let (metadata, spec, status) = (&d["metadata"], &d["spec"], &d["status"]);
    page.field(0, "Name", text(&metadata["name"]));
    page.field(0, "Namespace", text(&metadata["namespace"]));
    page.field(0, "CreationTimestamp", date(&metadata["creationTimestamp"]));
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    page.field(0, "Selector", selector_text(&spec["selector"]));
    let replicas = format!(
        "{} desired | {} updated | {} total | {} available | {} unavailable",
        number(&spec["replicas"]),
        number(&status["updatedReplicas"]),
        number(&status["replicas"]),
        number(&status["availableReplicas"]),
        number(&status["unavailableReplicas"])
    );
    page.field(0, "Replicas", replicas);
    page.field(0, "StrategyType", text(&spec["strategy"]["type"]));
    page.field(0, "MinReadySeconds", number(&spec["minReadySeconds"]).to_string());
    let rolling = &spec["strategy"]["rollingUpdate"];
    if rolling.is_object() {
        let (unavailable, surge) = (plain(&rolling["maxUnavailable"]), plain(&rolling["maxSurge"]));
        page.field(
            0,
            "RollingUpdateStrategy",
            format!("{unavailable} max unavailable, {surge} max surge"),
        );
    }
    pod::template(page, &spec["template"]);
    conditions(page, &status["conditions"]);
    let (new, old): (Vec<&Value>, Vec<&Value>) =
        replica_sets.iter().partition(|rs| is_newest(d, rs, replica_sets));
    page.field(0, "OldReplicaSets", sets(&old));
    page.field(0, "NewReplicaSet", sets(&new));
    page.events(events);
}

/// The replica set with the deployment's revision, else the highest.
pub fn is_newest(deployment: &Value, rs: &Value, all: &[Value]) -> bool {
    let own = revision(deployment);
    let wanted = match all.iter().any(|rs| revision(rs) == own) {
        true => own,
        false => all.iter().map(revision).max().unwrap_or(0),
    };
    revision(rs) == wanted
}

/// The revision that a deployment gives its replica sets.
pub fn revision(object: &Value) -> i64 {
    text(&object["metadata"]["annotations"]["deployment.kubernetes.io/revision"])
        .parse()
        .unwrap_or(0)
}

fn sets(sets: &[&Value]) -> String {
    if sets.is_empty() {
        return "<none>".into();
    }
    let mut sets = sets.to_vec();
    sets.sort_by_key(|rs| revision(rs));
    let shown: Vec<String> = sets
        .iter()
        .map(|rs| {
            let (have, want) = (number(&rs["status"]["replicas"]), number(&rs["spec"]["replicas"]));
            format!("{} ({have}/{want} replicas created)", text(&rs["metadata"]["name"]))
        })
        .collect();
    shown.join(", ")
}

fn conditions(page: &mut Page, conditions: &Value) {
    let conditions = list(conditions);
    if conditions.is_empty() {
        return;
    }
    page.line(0, "Conditions:");
    page.line(1, "Type\tStatus\tReason");
    page.line(1, "----\t------\t------");
    for c in conditions {
        page.line(
            1,
            format!("{} \t{}\t{}", text(&c["type"]), text(&c["status"]), text(&c["reason"])),
        );
    }
}

/// A replica set with the pods that it owns.
pub fn replica_set(page: &mut Page, rs: &Value, pods: &[Value], events: Option<&[Value]>) {
    let (metadata, spec) = (&rs["metadata"], &rs["spec"]);
    page.field(0, "Name", text(&metadata["name"]));
    page.field(0, "Namespace", text(&metadata["namespace"]));
    page.field(0, "Selector", selector_text(&spec["selector"]));
    page.labels("Labels", &metadata["labels"]);
    page.annotations("Annotations", &metadata["annotations"]);
    if let Some(owner) = controller(rs) {
        page.field(0, "Controlled By", owner);
    }
    let (have, want) = (number(&rs["status"]["replicas"]), number(&spec["replicas"]));
    page.field(0, "Replicas", format!("{have} current / {want} desired"));
    let count = |phase: &str| pods.iter().filter(|p| p["status"]["phase"] == phase).count();
    page.field(
        0,
        "Pods Status",
        format!(
            "{} Running / {} Waiting / {} Succeeded / {} Failed",
            count("Running"),
            count("Pending"),
            count("Succeeded"),
            count("Failed")
        ),
    );
    pod::template(page, &spec["template"]);
    conditions(page, &rs["status"]["conditions"]);
    page.events(events);
}
