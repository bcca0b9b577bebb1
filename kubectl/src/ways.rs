//! The servers of one cluster, and the one in use among them.
//!
//! A kubeconfig names one server. Our own name the other members of the control plane in an
//! extension of the cluster's entry, in the order in which they are tried:
//!
//! ```yaml
//! clusters:
//! - name: rkube
//!   cluster:
//!     server: https://192.0.2.1:6443
//!     extensions:
//!     - name: rkube.dev/members
//!       extension: {servers: ["https://192.0.2.2:6443", "https://192.0.2.3:6443"]}
//! ```

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::Value;
use std::error::Error as StdError;

/// The name of the extension.
const MEMBERS: &str = "rkube.dev/members";
/// A server that refuses this often in a row for want of a leader is left.
const REFUSALS: u32 = 2;

/// The servers beside the one that a cluster's entry names.
pub fn members(cluster: &Value) -> Vec<String> {
    let extensions = cluster["extensions"].as_array().into_iter().flatten();
    let found = extensions.filter(|e| e["name"] == MEMBERS);
    let servers = found.filter_map(|e| e["extension"]["servers"].as_array()).flatten();
    servers.filter_map(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// The ways to one cluster, tried in turn.
pub struct Ways {
    clients: Vec<kube::Client>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: usize,
    refusals: u32,
}

impl Ways {
    /// Over these clients, the first one first; there must be one.
    pub fn new(clients: Vec<kube::Client>) -> Self {
        Ways { clients, state: Mutex::default() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// The one in use.
    pub fn client(&self) -> kube::Client {
        self.clients[self.state.lock().current].clone()
    }

    /// Sends a request to the first server that can be reached. A write that may have arrived at one
    /// is not sent to another.
    ///
    /// # Errors
    /// Of the last server that was tried.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let mut left = self.clients.len();
        loop {
            left -= 1;
            let at = self.state.lock().current;
            let copy = if left > 0 { copy_of(&request) } else { None };
            match self.clients[at].send(request).await {
                Ok(answer) => {
                    self.answered(at, answer.status());
                    return Ok(answer);
                }
                Err(error) => {
                    self.leave(at);
                    match copy.filter(|copy| may_repeat(copy.method(), &error)) {
                        Some(copy) => request = copy,
                        None => return Err(error),
                    }
                }
            }
        }
    }

    fn answered(&self, at: usize, status: StatusCode) {
        let refusals = {
            let mut state = self.state.lock();
            let refused = status == StatusCode::SERVICE_UNAVAILABLE;
            state.refusals = if refused { state.refusals + 1 } else { 0 };
            state.refusals
        };
        if refusals >= REFUSALS {
            self.leave(at);
        }
    }

    fn leave(&self, at: usize) {
        let mut state = self.state.lock();
        if state.current == at {
            *state = State { current: (at + 1) % self.clients.len(), refusals: 0 };
        }
    }
}

/// The request once more, if its body is at hand.
fn copy_of(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn may_repeat(method: &Method, error: &kube::Error) -> bool {
    matches!(*method, Method::GET | Method::HEAD) || was_not_sent(error)
}

/// Whether no connection came about.
fn was_not_sent(error: &kube::Error) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<hyper_util::client::legacy::Error>() {
            return error.is_connect();
        }
        next = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;
    use tower::BoxError;

    #[test]
    fn members_stand_in_an_extension() {
        let cluster = json!({"server": "https://a", "extensions": [
            {"name": "other", "extension": {"servers": ["x"]}},
            {"name": "rkube.dev/members", "extension": {"servers": ["https://b", "", "https://c"]}},
        ]});
        assert_eq!(members(&cluster), ["https://b", "https://c"]);
        assert_eq!(members(&json!({"extensions": "x"})), [""; 0]);
        assert_eq!(members(&json!({})), [""; 0]);
    }

    fn server(
        name: &'static str,
        code: Option<u16>,
        log: &Arc<Mutex<Vec<&'static str>>>,
    ) -> kube::Client {
        let log = Arc::clone(log);
        let answer = move |_: Request<Body>| {
            log.lock().push(name);
            async move {
                let code = code.ok_or_else(|| BoxError::from("broken off"))?;
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::from_u16(code)?;
                Ok::<_, BoxError>(response)
            }
        };
        kube::Client::new(tower::service_fn(answer), "default")
    }

    fn request(method: Method) -> Request<Body> {
        Request::builder().method(method).uri("/api").body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn reads_go_on_at_the_next_server_and_unclear_writes_do_not() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let ways = Ways::new(vec![server("a", None, &log), server("b", Some(200), &log)]);
        assert!(ways.send(request(Method::POST)).await.is_err());
        assert!(ways.send(request(Method::POST)).await.is_ok());
        ways.leave(1);
        assert!(ways.send(request(Method::GET)).await.is_ok());
        assert_eq!(*log.lock(), ["a", "b", "a", "b"]);
    }

    #[tokio::test]
    async fn a_server_without_a_leader_is_left() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let ways = Ways::new(vec![server("a", Some(503), &log), server("b", Some(200), &log)]);
        for expected in [503, 503, 200, 200] {
            assert_eq!(ways.send(request(Method::GET)).await.unwrap().status(), expected);
        }
        assert_eq!(*log.lock(), ["a", "a", "b", "b"]);
    }
}
