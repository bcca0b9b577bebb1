//! What several controllers need: owners, conditions of pods, names, patches. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::api::Patch;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The uid, empty if it has none yet.
pub fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or("")
}

/// The name, empty if it has none yet.
pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or("")
}

/// The namespace, empty for objects of the cluster.
pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or("")
}

/// The owner that controls the object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// An annotation's value.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// A reference that makes `owner` the controller of an object.
pub fn controlled_by(owner: &ObjectMeta, api_version: &str, kind: &str) -> OwnerReference {
    OwnerReference {
        api_version: api_version.into(),
        kind: kind.into(),
        name: name(owner).into(),
        uid: uid(owner).into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whole seconds, as the API's times are.
pub fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The duration of a number of seconds that a spec names.
pub fn spec_seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

/// `at` plus `by`, at the end of time at the latest.
pub fn after(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// The condition of a pod.
pub fn pod_condition<'a>(pod: &'a Pod, condition: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == condition)
}

/// A pod's phase, empty before the kubelet or the API server has set one.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

/// Whether the pod has ended.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as a replica: neither ended nor going away.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether the pod is going away and has not ended yet.
pub fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod serves.
pub fn is_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// When a ready pod counts as available: once it has been ready for `min_ready_seconds`. None if it
/// is not ready.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let ready = pod_condition(pod, "Ready").filter(|c| c.status == "True")?;
    if min_ready_seconds == 0 {
        return Some(Timestamp::MIN);
    }
    let since = ready.last_transition_time.as_ref()?.0;
    Some(after(since, spec_seconds(min_ready_seconds.into())))
}

/// The status patch that says why the control plane ends a pod, and gives it `phase` if there is
/// nobody else to.
pub fn disrupted(
    pod: &Pod,
    (reason, message): (&str, &str),
    phase: Option<&str>,
    now: Timestamp,
) -> Patch<Value> {
    let mut status = json!({ "conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": seconds(now),
    }] });
    if let Some(phase) = phase {
        status["phase"] = phase.into();
    }
    Patch::Strategic(json!({ "metadata": { "uid": pod.metadata.uid }, "status": status }))
}

/// 32-bit FNV-1a.
pub fn fnv32<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let bytes = parts.into_iter().flatten();
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The letters of generated names: no vowels, so that no words come out, nothing that looks alike.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A number in letters that suit a name, at most ten of them.
pub fn letters_of(number: u32) -> String {
    number
        .to_string()
        .bytes()
        .map(|b| char::from(LETTERS[usize::from(b) % LETTERS.len()]))
        .collect()
}

/// Five letters that follow from a number, as API servers append to generated names.
pub fn suffix_of(mut number: u32) -> String {
    let mut suffix = String::with_capacity(5);
    for _ in 0..5 {
        suffix.push(char::from(LETTERS[(number % 27) as usize]));
        number /= 27;
    }
    suffix
}

/// `base` with a suffix, cut so that the whole is a DNS label.
pub fn generated_name(base: &str, suffix: &str) -> String {
    let room = 63 - 1 - suffix.len();
    let cut = base.char_indices().map(|(i, _)| i).find(|i| *i >= room).unwrap_or(base.len());
    format!("{}-{suffix}", base[..cut].trim_end_matches(['-', '.']))
}

/// The JSON merge patch that turns `old` into `new`.
pub fn merge_diff(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        match old.get(key) {
            Some(before) if before == value => {}
            Some(before) => {
                patch.insert(key.clone(), merge_diff(before, value));
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

/// The merge patch between two typed values; none if they are equal.
pub fn typed_diff<T: Serialize>(old: Option<&T>, new: &T) -> Option<Value> {
    // Typed API structs have string keys and finite numbers, so they always serialize.
    let json = |value: &T| serde_json::to_value(value).unwrap_or_default();
    let old = old.map(json).unwrap_or_else(|| Value::Object(Map::new()));
    let patch = merge_diff(&old, &json(new));
    patch.as_object().is_some_and(|fields| !fields.is_empty()).then_some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_diff_names_only_what_changed() {
        let old = json!({"a": 1, "b": {"c": 1, "d": 2}, "e": [1], "gone": 1});
        let new = json!({"a": 1, "b": {"c": 1, "d": 3}, "e": [1, 2], "n": 0});
        let patch = merge_diff(&old, &new);
        assert_eq!(patch, json!({"b": {"d": 3}, "e": [1, 2], "gone": null, "n": 0}));
    }

    #[test]
    fn names_fit_a_label_and_are_spelt_without_vowels() {
        let name = generated_name(&"a".repeat(80), "bcdfg");
        assert_eq!(name.len(), 63);
        assert_eq!(generated_name("web-1-", "xx"), "web-1-xx");
        assert_eq!(letters_of(4_294_967_295).len(), 10);
        assert!(!suffix_of(123_456).contains(['a', 'e', 'i', 'o', 'u']));
        assert_ne!(suffix_of(1), suffix_of(2));
    }

    #[test]
    fn fnv_is_the_known_function() {
        assert_eq!(fnv32([b"foobar".as_slice()]), 0xbf9c_f968);
        assert_eq!(fnv32([b"foo".as_slice(), b"bar".as_slice()]), 0xbf9c_f968);
    }
}
