//! The server as a service in the same process: no socket, no TLS, the identity given.

use crate::authn::Identity;
use crate::body::{Body, BoxError};
use crate::server::ApiServer;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The header in which a component of the control plane names the leader's term that it writes in
/// (`rkube_runtime::client::LEADER_TERM`). It counts in this process alone: to whom a request came
/// over the network it means nothing.
pub const LEADER_TERM: &str = "rkube-leader-term";

/// The leader's term of a request, as an extension of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaderTerm(pub u64);

impl LeaderTerm {
    /// What a request from inside says. A term that can't be read is over.
    fn of<B>(request: &Request<B>) -> Option<Self> {
        let value = request.headers().get(LEADER_TERM)?;
        Some(LeaderTerm(value.to_str().ok().and_then(|v| v.parse().ok()).unwrap_or(0)))
    }
}

/// A tower service that hands requests to the API server as one identity. It fits under
/// `kube::Client::new`.
#[derive(Clone)]
pub struct LocalService {
    server: Arc<ApiServer>,
    identity: Identity,
    term: Option<LeaderTerm>,
}

impl LocalService {
    pub(crate) fn new(server: Arc<ApiServer>, identity: Identity) -> Self {
        LocalService { server, identity, term: None }
    }

    /// The same in a leader's term: once it is over, writes are refused with 409. A request's own
    /// header [`LEADER_TERM`] comes first.
    pub fn with_term(self, term: u64) -> Self {
        LocalService { term: Some(LeaderTerm(term)), ..self }
    }
}

impl<B> tower::Service<Request<B>> for LocalService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = Arc::clone(&self.server);
        let identity = self.identity.clone();
        let term = LeaderTerm::of(&request).or(self.term);
        let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        if let Some(term) = term {
            request.extensions_mut().insert(term);
        }
        Box::pin(async move { Ok(server.handle(identity, request).await) })
    }
}
