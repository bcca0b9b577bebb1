//! The store as the server uses it: its errors as refusals, and the rules for nodes as look-ups.

use crate::authz::NodeGraph;
use crate::config::ApiServerConfig;
use rkube_api::{ApiError, Reason};
use rkube_store::{
    Command, Key, Outcome, Precondition, Scope, Store, StoreConfig, StoreError, View, ViewError,
    Watch, WatchError, Write,
};
use serde_json::Value;

/// The store.
#[derive(Clone)]
pub struct Storage {
    store: Store,
}

impl Storage {
    /// Opens the store below the data directory.
    ///
    /// # Errors
    /// What the store says.
    pub async fn open(
        config: &ApiServerConfig,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let settings = StoreConfig::new(config.store_dir());
        let store = tokio::task::spawn_blocking(move || Store::open(settings)).await??;
        Ok(Storage { store })
    }

    /// Everything as this member knows it.
    pub fn view(&self) -> View {
        self.store.view()
    }

    /// Everything, with every write that was acknowledged before the call.
    ///
    /// # Errors
    /// 503 without a leader.
    pub async fn fresh_view(&self) -> Result<View, ApiError> {
        self.store.read_barrier().await.map_err(|e| store_error(&e))?;
        Ok(self.store.view())
    }

    /// A resource as it was at a revision.
    ///
    /// # Errors
    /// If it is gone or in the future.
    pub async fn view_at(&self, revision: u64, resource: &str) -> Result<View, ViewError> {
        self.store.view_at(revision, resource).await
    }

    /// Waits until a revision was reached.
    pub async fn reach(&self, revision: u64) {
        let mut pause = std::time::Duration::from_millis(1);
        while self.store.view().revision() < revision {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(std::time::Duration::from_millis(50));
        }
    }

    /// All changes of a scope after a revision.
    ///
    /// # Errors
    /// If the history does not go back that far or the revision has not come yet.
    pub fn watch(&self, scope: Scope, revision: u64) -> Result<Watch, WatchError> {
        self.store.watch(scope, revision)
    }

    /// Proposes writes under preconditions.
    ///
    /// # Errors
    /// 503 and the like if the store can't; a refusal is an outcome, not an error.
    pub async fn propose(
        &self,
        preconditions: Vec<Precondition>,
        writes: Vec<Write>,
    ) -> Result<Outcome, ApiError> {
        let command =
            Command { request_id: crate::ids::request_id(), term: None, preconditions, writes };
        let outcome = self.store.propose(command).await.map_err(|e| store_error(&e))?;
        if let Outcome::Applied { revision, .. } = &outcome {
            tracing::Span::current().record("revision", revision);
        }
        Ok(outcome)
    }

    /// How many objects a resource has.
    pub fn count(&self, resource: &str) -> usize {
        self.store.view().count(&Scope::all(resource))
    }

    /// Why the store has stopped, if it has.
    pub fn fault(&self) -> Option<String> {
        self.store.failure().map(|e| e.to_string())
    }

    /// Closes the store.
    pub async fn shutdown(&self) {
        if let Err(error) = self.store.shutdown().await {
            tracing::error!(%error, "closing the store failed");
        }
    }

    /// What the rules for nodes look at.
    pub fn graph(&self) -> Graph {
        Graph(self.view())
    }
}

fn store_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::TooLarge { .. } => ApiError::new(
            Reason::RequestEntityTooLarge,
            format!("etcdserver: request is too large: {error}"),
        ),
        StoreError::NotLeader { .. } | StoreError::Closed | StoreError::DiskFull { .. } => {
            let mut refusal = ApiError::new(Reason::ServiceUnavailable, error.to_string());
            refusal.retry_after_seconds = Some(1);
            refusal
        }
        _ => ApiError::internal(error),
    }
}

/// Which pods are bound to which node and what they refer to, at one revision.
pub struct Graph(View);

impl NodeGraph for Graph {
    fn is_bound(&self, node: &str, namespace: &str, pod: &str) -> bool {
        let term = format!("node={node}");
        self.0
            .get(&Key::new("pods", namespace, pod))
            .is_some_and(|pod| pod.header.index.iter().any(|t| **t == *term))
    }

    fn is_referenced(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let term = format!("node={node}");
        let quoted = format!("\"{name}\"");
        let bound = self.0.indexed("pods", &term);
        let mut near = bound.filter(|p| &*p.key.namespace == namespace);
        near.any(|pod| {
            // Most pods don't hold the name at all, and looking for it is cheaper than parsing.
            contains(&pod.json, quoted.as_bytes())
                && serde_json::from_slice::<Value>(&pod.json)
                    .is_ok_and(|pod| refers(&pod["spec"], resource, name))
        })
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// Whether a pod's spec refers to an object.
fn refers(spec: &Value, resource: &str, name: &str) -> bool {
    match resource {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "secrets" => {
            let pulls = spec["imagePullSecrets"].as_array();
            pulls.into_iter().flatten().any(|s| s["name"] == name)
                || any_reference(
                    spec,
                    &[
                        ("secretRef", "name"),
                        ("secretKeyRef", "name"),
                        ("secret", "secretName"),
                        ("secret", "name"),
                    ],
                    name,
                )
        }
        "configmaps" => any_reference(
            spec,
            &[("configMapRef", "name"), ("configMapKeyRef", "name"), ("configMap", "name")],
            name,
        ),
        _ => false,
    }
}

/// Whether an object under one of these keys, at any depth, has the name in its field.
fn any_reference(value: &Value, keys: &[(&str, &str)], name: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, inner)| {
            keys.iter().any(|(k, field)| k == key && inner[*field] == name)
                || any_reference(inner, keys, name)
        }),
        Value::Array(list) => list.iter().any(|inner| any_reference(inner, keys, name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references() {
        let spec = json!({
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "decoy", "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}},
                {"name": "B", "value": "decoy"}],
                "envFrom": [{"configMapRef": {"name": "env"}}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "vol"}},
                {"name": "w", "projected": {"sources": [{"configMap": {"name": "proj"}}]}}],
        });
        for (resource, name) in [
            ("serviceaccounts", "sa"),
            ("secrets", "pull"),
            ("secrets", "key"),
            ("secrets", "vol"),
            ("configmaps", "env"),
            ("configmaps", "proj"),
        ] {
            assert!(refers(&spec, resource, name), "{resource}/{name}");
        }
        assert!(!refers(&spec, "secrets", "decoy"));
        assert!(!refers(&spec, "configmaps", "key"));
    }
}
