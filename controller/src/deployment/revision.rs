//! Templates, their sets and the revisions that number them.

use super::plan::{Action, Work, size_of};
use crate::common::{
    annotation, controlled_by, fnv32, generated_name, letters_of, merge_diff, name, namespace,
};
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

pub(super) const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How many bytes of old revisions a set remembers.
const HISTORY_BYTES: usize = 2000;

/// Whether the set was made from this template.
pub(super) fn is_of_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let own = set.spec.as_ref().and_then(|s| s.template.as_ref());
    own.is_some_and(|own| without_hash(own) == without_hash(template))
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let metadata = template.metadata.get_or_insert_default();
    let mut labels = metadata.labels.take().unwrap_or_default();
    labels.remove(HASH_LABEL);
    metadata.labels = (!labels.is_empty()).then_some(labels);
    template
}

/// The hash that names the set of a template; collisions change it.
fn hash_of(template: &PodTemplateSpec, collisions: i32) -> String {
    // A template has string keys and finite numbers, so it always serializes.
    let bytes = serde_json::to_vec(template).unwrap_or_default();
    let collided = collisions.to_le_bytes();
    let salt: &[u8] = if collisions > 0 { &collided } else { &[] };
    letters_of(fnv32([bytes.as_slice(), salt]))
}

fn revision_of(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// Brings the annotations of the present template's set, and the Deployment's revision, up to date.
/// A set that is taken up again gets a new revision and remembers its old one.
pub(super) fn sync(work: &mut Work) {
    let Some(set) = work.new.clone() else { return };
    let newest = work.old.iter().map(|s| revision_of(&s.metadata)).max().unwrap_or(0) + 1;
    let old = set.metadata.annotations.clone().unwrap_or_default();
    let annotations = annotations_of(work, &old, newest);
    let min_ready = work.spec.min_ready_seconds.unwrap_or(0);
    let spec = set.spec.as_ref();
    let changed_min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0) != min_ready;
    if annotations != old || changed_min_ready {
        let mut patch = json!({ "metadata": { "annotations": diff(&old, &annotations) } });
        if changed_min_ready {
            patch["spec"] = json!({ "minReadySeconds": min_ready });
        }
        let mut after = set.as_ref().clone();
        after.metadata.annotations = Some(annotations);
        work.plan.push(Action::PatchSet { set, patch });
        work.new = Some(Arc::new(after));
    }
    let revision = work.new.as_ref().map_or(0, |s| revision_of(&s.metadata));
    annotate(work, revision);
}

fn annotate(work: &mut Work, revision: i64) {
    let revision = revision.to_string();
    if annotation(&work.deployment.metadata, REVISION) != Some(revision.as_str()) {
        work.plan.push(Action::Annotate(json!({ REVISION: revision })));
    }
}

/// A set's annotations: the Deployment's own and the revision.
fn annotations_of(
    work: &Work,
    old: &BTreeMap<String, String>,
    newest: i64,
) -> BTreeMap<String, String> {
    let mut annotations = old.clone();
    let inherited = work.deployment.metadata.annotations.iter().flatten();
    let inherited = inherited.filter(|(k, _)| is_inherited(k));
    annotations.extend(inherited.map(|(k, v)| (k.clone(), v.clone())));
    let had = old.get(REVISION).and_then(|r| r.parse::<i64>().ok());
    if had.unwrap_or(0) < newest {
        annotations.insert(REVISION.into(), newest.to_string());
        if let Some(had) = had {
            let history = old.get(HISTORY).map_or("", String::as_str);
            annotations.insert(HISTORY.into(), remember(history, had));
        }
    }
    annotations
}

fn is_inherited(key: &str) -> bool {
    key != LAST_APPLIED && !key.starts_with("deployment.kubernetes.io/")
}

/// Appends a revision to the history; the oldest go when it gets long.
fn remember(history: &str, revision: i64) -> String {
    let mut revisions: Vec<&str> = history.split(',').filter(|r| !r.is_empty()).collect();
    let newest = revision.to_string();
    revisions.push(&newest);
    while revisions.len() > 1 && revisions.join(",").len() > HISTORY_BYTES {
        revisions.remove(0);
    }
    revisions.join(",")
}

/// The annotations that tell of the Deployment's size, as far as the set's differ.
pub(super) fn size_annotations(work: &Work, set: &ReplicaSet) -> Option<Value> {
    let old = set.metadata.annotations.clone().unwrap_or_default();
    let mut new = old.clone();
    new.extend(sizes(work));
    (new != old).then(|| diff(&old, &new))
}

fn sizes(work: &Work) -> [(String, String); 2] {
    let desired = work.replicas();
    let max = desired.saturating_add(work.bounds().max_surge);
    [(DESIRED.into(), desired.to_string()), (MAX.into(), max.to_string())]
}

fn diff(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Value {
    merge_diff(&json!(old), &json!(new))
}

/// Creates the set of the present template, as large as a rollout may begin. A set of another owner
/// that has the name counts as a collision, which gives the next attempt another name.
pub(super) fn create(work: &mut Work, replicas: i32) {
    let collisions = work.status.collision_count.unwrap_or(0);
    let hash = hash_of(&work.spec.template, collisions);
    let set_name = generated_name(name(&work.deployment.metadata), &hash);
    if work.view.taken.contains(&set_name) {
        work.status.collision_count = Some(collisions + 1);
        return;
    }
    let revision = work.old.iter().map(|s| revision_of(&s.metadata)).max().unwrap_or(0) + 1;
    let mut annotations = annotations_of(work, &BTreeMap::new(), revision);
    annotations.extend(sizes(work));
    let set = new_set(work, set_name, &hash, annotations, replicas);
    work.plan.push(Action::CreateSet(Box::new(set.clone())));
    annotate(work, revision);
    work.new = Some(Arc::new(set));
}

fn new_set(
    work: &Work,
    set_name: String,
    hash: &str,
    annotations: BTreeMap<String, String>,
    replicas: i32,
) -> ReplicaSet {
    let label = || (HASH_LABEL.to_owned(), hash.to_owned());
    let mut template = work.spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.extend([label()]);
    let labels = labels.clone();
    let mut selector: LabelSelector = work.spec.selector.clone();
    selector.match_labels.get_or_insert_default().extend([label()]);
    let owner = &work.deployment.metadata;
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(set_name),
            namespace: Some(namespace(owner).into()),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![controlled_by(owner, "apps/v1", "Deployment")]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: work.spec.min_ready_seconds.filter(|s| *s != 0),
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// Deletes the oldest sets beyond the history limit, as far as they are empty and seen to be so.
pub(super) fn clean_up(work: &mut Work) {
    let Some(limit) = work.spec.revision_history_limit else { return };
    let gone: Vec<_> =
        work.old.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).cloned().collect();
    let surplus = gone.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    let mut oldest = gone;
    oldest.sort_by_key(|set| revision_of(&set.metadata));
    for set in oldest.into_iter().take(surplus).filter(|set| is_settled_empty(set)) {
        work.plan.push(Action::DeleteSet(set));
    }
}

fn is_settled_empty(set: &ReplicaSet) -> bool {
    let status = set.status.clone().unwrap_or_default();
    let observed = status.observed_generation.unwrap_or(0);
    size_of(set) == 0 && status.replicas == 0 && observed >= set.metadata.generation.unwrap_or(0)
}
