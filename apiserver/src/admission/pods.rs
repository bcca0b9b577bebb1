//! What every pod gets.

use crate::config::ApiServerConfig;
use rkube_api::ApiError;
use rkube_store::{Key, View};
use serde_json::{Value, json};

/// Fills the service account, the priority and the tolerations of a new pod. No volume for a
/// token is added: tokens are not issued yet.
pub fn complete(config: &ApiServerConfig, pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or("").is_empty() {
        spec.insert("serviceAccountName".into(), "default".into());
    }
    // The old name of the same field is kept in step, as upstream does.
    let account = spec["serviceAccountName"].clone();
    spec.insert("serviceAccount".into(), account);
    spec.entry("priority").or_insert(0.into());
    spec.entry("preemptionPolicy").or_insert("PreemptLowerPriority".into());
    tolerate(spec, "node.kubernetes.io/not-ready", config.default_not_ready_toleration_seconds);
    tolerate(spec, "node.kubernetes.io/unreachable", config.default_unreachable_toleration_seconds);
}

/// Adds a toleration of `NoExecute` for a time, unless the pod has one for the key or for all.
fn tolerate(spec: &mut serde_json::Map<String, Value>, key: &str, seconds: i64) {
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    let tolerated = list.iter().any(|t| {
        let own = t["key"].as_str().unwrap_or("");
        let effect = t["effect"].as_str().unwrap_or("");
        (own == key || own.is_empty()) && matches!(effect, "" | "NoExecute")
    });
    if !tolerated {
        list.push(json!({
            "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
        }));
    }
}

/// A service account that a pod names must exist. The default one is made with every namespace,
/// so a pod that comes right behind its namespace is not refused for it.
///
/// # Errors
/// 403 in upstream's words.
pub fn check_service_account(view: &View, namespace: &str, pod: &Value) -> Result<(), ApiError> {
    let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or("");
    let known = account == "default"
        || view.get(&Key::new("serviceaccounts", namespace, account)).is_some();
    if known {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "",
        "pods",
        rkube_api::meta::metadata_str(pod, "name"),
        format!(
            "error looking up service account {namespace}/{account}: serviceaccount {account:?} not found"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_pod_is_completed() {
        let config = ApiServerConfig::new("/nowhere");
        let mut pod = json!({"spec": {"containers": []}});
        complete(&config, &mut pod);
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
        assert_eq!(pod["spec"]["tolerations"][0]["tolerationSeconds"], 300);
        let done = pod.clone();
        complete(&config, &mut pod);
        assert_eq!(pod, done);
    }

    #[test]
    fn own_tolerations_stand() {
        let config = ApiServerConfig::new("/nowhere");
        let mut pod = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        complete(&config, &mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 1);
        let own = json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let mut pod = json!({"spec": {"tolerations": [own]}});
        complete(&config, &mut pod);
        let list = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!((list.len(), &list[0]["tolerationSeconds"]), (2, &json!(5)));
    }
}
