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

/// A tower service that hands requests to the API server as one identity. It fits under
/// `kube::Client::new`.
#[derive(Clone)]
pub struct LocalService {
    server: Arc<ApiServer>,
    identity: Identity,
}

impl LocalService {
    pub(crate) fn new(server: Arc<ApiServer>, identity: Identity) -> Self {
        LocalService { server, identity }
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
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        Box::pin(async move { Ok(server.handle(identity, request).await) })
    }
}
