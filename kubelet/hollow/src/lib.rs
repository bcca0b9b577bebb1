//! Simulated nodes that run pods instantly: thousands in one process, for scale tests.
//!
//! Each node is an object with a lease that is renewed; nothing else of it is kept. One watch
//! serves all nodes. Whatever has to be done about a pod is told by the pod itself as it was last
//! seen ([`pod::decide`]), so no pod is kept either, and a restart has nothing to recover.

mod fleet;
mod node;
mod nodes;
mod pod;
mod pods;
mod send;

pub use send::HollowError;

use fleet::Fleet;
use kube::Client;
use tokio_util::sync::CancellationToken;

/// How many nodes and what they are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HollowConfig {
    /// How many nodes.
    pub nodes: usize,
    /// Node `n` (from 0) is called `<prefix><n>`.
    pub prefix: String,
    /// How many requests are in flight at most, for each of: registrations, leases, pods.
    pub parallel_requests: usize,
}

impl HollowConfig {
    /// So many nodes of that prefix, with little enough in flight to leave the server its CPU.
    pub fn new(nodes: usize, prefix: impl Into<String>) -> Self {
        HollowConfig { nodes, prefix: prefix.into(), parallel_requests: 16 }
    }
}

/// Registers the nodes, then keeps their leases and runs their pods until `shutdown`. Nodes and
/// pods stay behind in the API as those of machines that were switched off.
///
/// # Errors
/// A node that can't be registered. Later failures are logged and tried again.
pub async fn run(
    config: HollowConfig,
    client: Client,
    shutdown: CancellationToken,
) -> Result<(), HollowError> {
    let fleet = Fleet::new(config, client);
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        outcome = simulate(&fleet) => outcome,
    }
}

async fn simulate(fleet: &Fleet) -> Result<(), HollowError> {
    nodes::register_all(fleet).await?;
    tracing::info!(nodes = fleet.config.nodes, "simulated nodes are registered");
    tokio::join!(nodes::renew_leases(fleet), pods::run(fleet));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Request, Response, StatusCode};
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use std::convert::Infallible;
    use std::sync::Arc;
    use tokio::sync::Notify;

    /// An API server that knows one bound pod and one that ends, and that `hollow-1` exists.
    #[derive(Clone, Default)]
    struct Fake {
        seen: Arc<Mutex<Vec<(String, Value)>>>,
        news: Arc<Notify>,
    }

    impl Fake {
        fn client(&self) -> Client {
            let fake = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let fake = fake.clone();
                async move { Ok::<_, Infallible>(fake.answer(request).await) }
            });
            Client::new(service, "default")
        }

        async fn answer(&self, request: Request<Body>) -> Response<Body> {
            let line = format!("{} {}", request.method(), request.uri());
            let post = request.method() == Method::POST;
            let body = request.into_body().collect_bytes().await.unwrap_or_default();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            if line.contains("&watch=true") {
                std::future::pending::<()>().await;
            }
            let taken = post && body["metadata"]["name"] == "hollow-1" && body["kind"] == "Node";
            let answer = match line.starts_with("GET ") {
                true => pods(),
                false => json!({"metadata": {"uid": "node-uid"}}),
            };
            self.seen.lock().push((line, body));
            self.news.notify_one();
            let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
            if taken {
                *response.status_mut() = StatusCode::CONFLICT;
            }
            response
        }

        /// The body of the request that begins so, as soon as it was made.
        async fn body(&self, line: &str) -> Value {
            loop {
                let found =
                    self.seen.lock().iter().find(|(l, _)| l == line).map(|(_, b)| b.clone());
                match found {
                    Some(body) => return body,
                    None => self.news.notified().await,
                }
            }
        }
    }

    fn pods() -> Value {
        let pod = |name: &str, node: &str, ends: bool| {
            let mut metadata = json!({"namespace": "ns", "name": name, "uid": name});
            if ends {
                metadata["deletionTimestamp"] = "2026-11-21T10:00:00Z".into();
                metadata["deletionGracePeriodSeconds"] = 30.into();
            }
            json!({"metadata": metadata, "spec": {"nodeName": node}})
        };
        json!({"metadata": {"resourceVersion": "7"}, "items": [
            pod("other", "node-1", false), pod("new", "hollow-0", false), pod("old", "hollow-1", true),
        ]})
    }

    #[tokio::test]
    async fn nodes_are_registered_and_their_pods_run() {
        let (fake, stop) = (Fake::default(), CancellationToken::new());
        let running = run(HollowConfig::new(2, "hollow-"), fake.client(), stop.clone());
        let (outcome, ()) = tokio::join!(running, async {
            look(&fake).await;
            stop.cancel();
        });
        outcome.unwrap();
    }

    async fn look(fake: &Fake) {
        let status = fake.body("PATCH /api/v1/nodes/hollow-1/status").await;
        assert_eq!(status["status"]["capacity"]["cpu"], "8");
        let lease = "PATCH /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/hollow-0";
        assert!(fake.body(lease).await["spec"]["renewTime"].is_string());
        let report = fake.body("PATCH /api/v1/namespaces/ns/pods/new/status").await;
        assert_eq!(report["status"]["phase"], "Running");
        let removal = fake.body("DELETE /api/v1/namespaces/ns/pods/old").await;
        assert_eq!(removal["preconditions"]["uid"], "old");
        assert!(!fake.seen.lock().iter().any(|(line, _)| line.contains("pods/other")));
    }
}
