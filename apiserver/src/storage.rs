//! The store as the server uses it: its errors as refusals, and the rules for nodes as look-ups.

use crate::authz::NodeGraph;
use rkube_api::{ApiError, Reason};
use rkube_store::{
    Command, Key, Leadership, Member, MemberChange, Object, Outcome, Precondition, Progress, Scope,
    Status, Store, StoreConfig, StoreError, View, ViewError, Watch, WatchError, Write,
};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The store.
#[derive(Clone)]
pub struct Storage {
    store: Store,
    leadership: watch::Receiver<Leadership>,
}

impl Storage {
    /// Opens the store.
    ///
    /// # Errors
    /// What the store says.
    pub async fn open(
        settings: StoreConfig,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let store = tokio::task::spawn_blocking(move || Store::open(settings)).await??;
        let leadership = store.leadership();
        Ok(Storage { store, leadership })
    }

    /// The store itself.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Everything as this member knows it.
    pub fn view(&self) -> View {
        self.store.view()
    }

    /// Everything, with every write that was acknowledged before the call.
    ///
    /// # Errors
    /// 503 without a leader, after a while.
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
        self.store.wait_revision(revision).await;
    }

    /// All changes of a scope after a revision.
    ///
    /// # Errors
    /// If the history does not go back that far or the revision has not come yet.
    pub fn watch(&self, scope: Scope, revision: u64) -> Result<Watch, WatchError> {
        self.store.watch(scope, revision)
    }

    /// Proposes writes under preconditions, in a leader's term if one is given.
    ///
    /// # Errors
    /// 409 if the term is over, 503 and the like if the store can't; that a precondition does not
    /// hold is no error.
    pub async fn propose(
        &self,
        term: Option<u64>,
        preconditions: Vec<Precondition>,
        writes: Vec<Write>,
    ) -> Result<Settled, ApiError> {
        if term == Some(0) {
            // Raft's terms begin at 1, and to the store 0 is no term at all.
            return Err(term_is_over(0, self.store.status().term));
        }
        let request_id = crate::ids::request_id();
        let command = Command { request_id, term, preconditions, writes };
        match self.store.propose(command).await.map_err(|e| write_error(&e))? {
            Outcome::Applied { revision, objects } => {
                tracing::Span::current().record("revision", revision);
                Ok(Settled::Applied(objects))
            }
            Outcome::Refused { precondition, current } => {
                Ok(Settled::Refused { precondition, current })
            }
            Outcome::Fenced { term: now } => Err(term_is_over(term.unwrap_or(0), now)),
        }
    }

    /// Who leads, now and later.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// This member.
    pub fn identity(&self) -> rkube_store::Identity {
        self.store.identity()
    }

    /// The members as applied here, by id.
    pub fn members(&self) -> Vec<Member> {
        self.store.members()
    }

    /// Where the store stands.
    pub fn status(&self) -> Status {
        self.store.status()
    }

    /// How far each member has the log, as the leader knows it; empty elsewhere.
    pub fn progress(&self) -> Vec<Progress> {
        self.store.progress()
    }

    /// Changes the members.
    ///
    /// # Errors
    /// 409 if the change makes no sense, 503 without a leader.
    pub async fn change_members(&self, change: MemberChange) -> Result<(), ApiError> {
        self.store.change_members(change).await.map_err(|e| store_error(&e))
    }

    /// How long ago this member last heard from a leader.
    pub fn leader_contact(&self) -> Duration {
        self.store.leader_contact()
    }

    /// Waits until the members are others than these.
    pub async fn members_changed(&self, known: &[Member]) {
        let mut members = self.store.watch_members();
        if members.wait_for(|members| members != known).await.is_err() {
            // The store has stopped; nothing changes any more.
            std::future::pending::<()>().await;
        }
    }

    /// This member's name, or its id if it has none.
    pub fn own_name(&self) -> String {
        let id = self.store.identity().member_id;
        let members = self.store.members();
        let own = members.into_iter().find(|m| m.id == id);
        own.map(|m| m.info.name).filter(|n| !n.is_empty()).unwrap_or_else(|| format!("{id:x}"))
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

/// What came of a proposal.
pub enum Settled {
    /// It was applied: for each write the object put, or the one removed.
    Applied(Vec<Option<Arc<Object>>>),
    /// A precondition did not hold; nothing has changed.
    Refused {
        /// Its place among the preconditions.
        precondition: usize,
        /// What stands at its key.
        current: Option<Arc<Object>>,
    },
}

/// 503 with a word on when to try again.
fn unavailable(why: &str) -> ApiError {
    let mut refusal = ApiError::new(Reason::ServiceUnavailable, why);
    refusal.retry_after_seconds = Some(1);
    refusal
}

fn term_is_over(term: u64, now: u64) -> ApiError {
    ApiError::new(
        Reason::Conflict,
        format!("the leader's term {term} is over, the term is {now} now: nothing was written"),
    )
}

/// A failure of what surely changed nothing.
fn store_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::TooLarge { .. } => ApiError::new(
            Reason::RequestEntityTooLarge,
            format!("etcdserver: request is too large: {error}"),
        ),
        // The store has waited for an election already: who is told so can act on it, instead of a
        // client that tries again on its own.
        StoreError::NoQuorum { .. } => ApiError::new(Reason::ServiceUnavailable, error.to_string()),
        StoreError::Removed | StoreError::Closed | StoreError::DiskFull { .. } => {
            unavailable(&error.to_string())
        }
        StoreError::Members(_) => ApiError::new(Reason::Conflict, error.to_string()),
        _ => ApiError::internal(error),
    }
}

/// A failure of a write. One whose outcome is unknown must not be repeated blindly, so it has no
/// word on when to try again.
fn write_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::Unknown => {
            ApiError::new(Reason::Timeout, format!("etcdserver: request timed out: {error}"))
        }
        _ => store_error(error),
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
