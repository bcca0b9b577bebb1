//! Which objects a controller owns, adopts and lets go: an object that its selector matches and
//! nobody controls is adopted, one that it controls and its selector no longer matches is released.

use crate::common::{controller_of, uid};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::Patch;
use rkube_api::selector::LabelSelector;
use rkube_runtime::{ClientError, Stored};
use serde_json::{Value, json};
use std::sync::Arc;

/// A controller's share of the objects that it might own.
#[derive(Debug)]
pub struct Claim<K> {
    /// Its own.
    pub owned: Vec<Arc<K>>,
    /// To be made its own.
    pub adopt: Vec<Arc<K>>,
    /// To be let go.
    pub release: Vec<Arc<K>>,
}

/// Sorts `candidates` for `owner`. An owner that is going away adopts nothing.
pub fn claim<K: Stored>(
    owner: &ObjectMeta,
    selector: &LabelSelector,
    candidates: &[Arc<K>],
) -> Claim<K> {
    let mut claim = Claim { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    for object in candidates {
        let meta = object.object_meta();
        let matches = selector.matches(&meta.labels);
        let going = meta.deletion_timestamp.is_some() || owner.deletion_timestamp.is_some();
        match controller_of(meta) {
            Some(controller) if controller.uid != uid(owner) => {}
            Some(_) if matches || going => claim.owned.push(object.clone()),
            Some(_) => claim.release.push(object.clone()),
            None if matches && !going => claim.adopt.push(object.clone()),
            None => {}
        }
    }
    claim
}

/// The patch that makes an object `owner`'s, if it still is the object that was seen.
pub fn adoption(object_uid: &str, owner: &OwnerReference) -> Patch<Value> {
    Patch::Strategic(json!({ "metadata": { "uid": object_uid, "ownerReferences": [owner] } }))
}

/// The patch that takes an owner away from an object.
pub fn release(object_uid: &str, owner_uid: &str) -> Patch<Value> {
    Patch::Strategic(json!({ "metadata": {
        "uid": object_uid,
        "ownerReferences": [{ "$patch": "delete", "uid": owner_uid }],
    } }))
}

/// The merge patch as one of the object that was seen: a later object of its name stays untouched.
pub fn of_seen(meta: &ObjectMeta, mut patch: Value) -> Patch<Value> {
    patch["metadata"]["uid"] = uid(meta).into();
    Patch::Merge(patch)
}

/// That an object is gone already is as good as having changed it.
pub fn unless_gone<T>(done: Result<T, ClientError>) -> Result<(), ClientError> {
    match done {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use std::collections::BTreeMap;

    fn pod(name: &str, app: &str, owner: Option<&str>) -> Arc<Pod> {
        let owner = owner.map(|uid| OwnerReference {
            uid: uid.into(),
            controller: Some(true),
            ..Default::default()
        });
        let metadata = ObjectMeta {
            name: Some(name.into()),
            labels: Some(BTreeMap::from([("app".into(), app.into())])),
            owner_references: owner.map(|o| vec![o]),
            ..Default::default()
        };
        Arc::new(Pod { metadata, ..Default::default() })
    }

    #[test]
    fn a_patch_of_what_was_seen_names_it() {
        let seen = ObjectMeta { uid: Some("me".into()), ..Default::default() };
        let whole = |patch| match of_seen(&seen, patch) {
            Patch::Merge(patch) => patch,
            other => panic!("{other:?}"),
        };
        let status = json!({ "status": { "replicas": 1 } });
        let expected = json!({ "metadata": { "uid": "me" }, "status": { "replicas": 1 } });
        assert_eq!(whole(status), expected);
        let notes = json!({ "metadata": { "annotations": { "a": null } } });
        let expected = json!({ "metadata": { "annotations": { "a": null }, "uid": "me" } });
        assert_eq!(whole(notes), expected);
    }

    #[test]
    fn orphans_are_adopted_and_strays_released() {
        let owner = ObjectMeta { uid: Some("me".into()), ..Default::default() };
        let selector = LabelSelector::from_map([("app", "web")]);
        let pods = [
            pod("mine", "web", Some("me")),
            pod("stray", "db", Some("me")),
            pod("orphan", "web", None),
            pod("yours", "web", Some("you")),
            pod("other", "db", None),
        ];
        let claimed = claim(&owner, &selector, &pods);
        let names = |pods: &[Arc<Pod>]| -> Vec<String> {
            pods.iter().filter_map(|p| p.metadata.name.clone()).collect()
        };
        assert_eq!(names(&claimed.owned), ["mine"]);
        assert_eq!(names(&claimed.adopt), ["orphan"]);
        assert_eq!(names(&claimed.release), ["stray"]);
    }
}
