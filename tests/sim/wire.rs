//! The way from components to the API server of the moment: requests get lost on it, answers too,
//! and each acknowledged write is noted.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use parking_lot::{Mutex, RwLock};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rkube_apiserver::body::{Body, BoxError};
use rkube_apiserver::{ApiServer, Identity};
use serde_json::Value;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_util::task::TaskTracker;
use tower::Service as _;

/// A write that the API server has acknowledged, as the answer told it.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    pub what: String,
    pub kind: String,
    pub uid: String,
    pub revision: u64,
}

/// The API server of the moment and what happens on the way to it.
pub struct Wire {
    server: RwLock<Option<Arc<ApiServer>>>,
    faulty: AtomicBool,
    rng: Mutex<StdRng>,
    acknowledged: Mutex<Vec<Acknowledged>>,
}

/// What becomes of a request.
enum Fate {
    Passes,
    IsLate(Duration),
    IsLost,
    LosesItsAnswer,
}

impl Wire {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Wire {
            server: RwLock::new(None),
            faulty: AtomicBool::new(false),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            acknowledged: Mutex::default(),
        })
    }

    pub fn set_server(&self, server: Option<Arc<ApiServer>>) {
        *self.server.write() = server;
    }

    pub fn set_faulty(&self, faulty: bool) {
        self.faulty.store(faulty, Ordering::SeqCst);
    }

    pub fn acknowledged(&self) -> Vec<Acknowledged> {
        self.acknowledged.lock().clone()
    }

    /// An administrator's client that no fault touches but the API server's absence.
    pub fn client(self: &Arc<Self>, user: &str) -> kube::Client {
        let identity = Identity::new(user, [rkube_apiserver::authn::MASTERS.to_owned()]);
        self.link(identity, false, &TaskTracker::new())
    }

    /// A client whose requests are tasks of `tracker`: dropping the caller does not undo them.
    pub fn link(
        self: &Arc<Self>,
        identity: Identity,
        touched: bool,
        tracker: &TaskTracker,
    ) -> kube::Client {
        let link = Link { wire: self.clone(), identity, touched, tracker: tracker.clone() };
        kube::Client::new(link, "default")
    }

    fn fate(&self) -> Fate {
        let mut rng = self.rng.lock();
        match rng.random_range(0..100) {
            0..3 => Fate::IsLost,
            3..7 => Fate::LosesItsAnswer,
            7..15 => Fate::IsLate(Duration::from_millis(rng.random_range(0..150))),
            _ => Fate::Passes,
        }
    }

    fn note(&self, what: String, body: &[u8]) {
        let Ok(object) = serde_json::from_slice::<Value>(body) else { return };
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let (meta, kind) = (&object["metadata"], text(&object["kind"]));
        let Ok(revision) = text(&meta["resourceVersion"]).parse() else { return };
        let uid = text(&meta["uid"]);
        if !uid.is_empty() {
            self.acknowledged.lock().push(Acknowledged { what, kind, uid, revision });
        }
    }
}

/// One component's way to the API server.
#[derive(Clone)]
struct Link {
    wire: Arc<Wire>,
    identity: Identity,
    touched: bool,
    tracker: TaskTracker,
}

impl Link {
    async fn pass(self, request: Request<kube::client::Body>) -> Result<Response<Body>, BoxError> {
        let is_watch = request.uri().query().is_some_and(|q| q.contains("watch="));
        let is_write = matches!(*request.method(), Method::POST | Method::PATCH | Method::PUT);
        let what = format!("{} {}", request.method(), request.uri());
        let faulty = self.touched && !is_watch && self.wire.faulty.load(Ordering::SeqCst);
        let fate = if faulty { self.wire.fate() } else { Fate::Passes };
        match fate {
            Fate::IsLost => return Err("the request was lost".into()),
            Fate::IsLate(by) => tokio::time::sleep(by).await,
            _ => {}
        }
        let server = self.wire.server.read().clone().ok_or("connection refused")?;
        let Ok(answer) = server.local(self.identity).call(request).await;
        let answer = match is_write && answer.status().is_success() {
            true => self.wire.read_noting(what, answer).await?,
            false => answer,
        };
        match fate {
            Fate::LosesItsAnswer => Err("the answer was lost".into()),
            _ => Ok(answer),
        }
    }
}

impl Wire {
    async fn read_noting(
        &self,
        what: String,
        answer: Response<Body>,
    ) -> Result<Response<Body>, BoxError> {
        let (parts, body) = answer.into_parts();
        let bytes: Bytes = body.collect().await?.to_bytes();
        if parts.status == StatusCode::OK || parts.status == StatusCode::CREATED {
            self.note(what, &bytes);
        }
        Ok(Response::from_parts(parts, Body::from(bytes)))
    }
}

impl tower::Service<Request<kube::client::Body>> for Link {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let task = self.tracker.spawn(self.clone().pass(request));
        Box::pin(async move { task.await? })
    }
}
