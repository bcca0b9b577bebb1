//! The server: opened, served, shut down.
//!
//! States: starting (the store and the PKI are open, the objects that every cluster has are being
//! made), ready, stopping (not ready, watches end, requests in flight finish), stopped.

use crate::authn::{Identity, unauthorized};
use crate::authz::{self, Attributes};
use crate::body::{Body, RequestBody};
use crate::companions::Companions;
use crate::config::ApiServerConfig;
use crate::contact::Contact;
use crate::context::Cx;
use crate::discovery::Discovery;
use crate::health::{CATCH_UP, CaughtUp, Check};
use crate::join::TokenRole;
use crate::local::LeaderTerm;
use crate::member_file::{HexId, MemberFile};
use crate::members::PeerStatuses;
use crate::metrics::{Flight, FlightLabels, KindLabels, LatencyLabels, Metrics, RequestLabels};
use crate::negotiate::{self, PLAIN};
use crate::openapi::OpenApi;
use crate::pki::{Pki, PkiError};
use crate::query::Query;
use crate::request_info::{self, RequestInfo};
use crate::storage::Storage;
use crate::{
    LocalService, bootstrap, connection, gzip, ids, join, leading, member_requests, response, rest,
    snapshot, store_setup, tls,
};
use futures::FutureExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use jiff::Timestamp;
use rkube_api::registry::Registry;
use rkube_api::schema::Schema;
use rkube_api::{ApiError, Reason};
use rkube_store::{Leadership, Store};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// What the version endpoint says.
pub const GIT_VERSION: &str = concat!("v1.36.0+rkube.", env!("CARGO_PKG_VERSION"));

/// Between two looks for parts of the OpenAPI documents that nobody asks for.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Why an API server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Keys or certificates.
    #[error("opening the cluster's keys and certificates")]
    Pki(#[from] PkiError),
    /// The store.
    #[error("opening the store")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An object that every cluster has could not be made.
    #[error("making the cluster's first objects: {0}")]
    Bootstrap(ApiError),
    /// The member was removed from its cluster.
    #[error(
        "this member ({id}) was removed from its cluster and can't come back; to make this machine \
         a member anew, remove {dir} and join: rkube server --join URL --token TOKEN"
    )]
    Removed {
        /// Its id.
        id: HexId,
        /// The data directory.
        dir: PathBuf,
    },
    /// The address to listen on.
    #[error("listening on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// An API server and the store behind it.
pub struct ApiServer {
    config: ApiServerConfig,
    /// The keys and certificates.
    pub(crate) pki: Pki,
    /// TLS towards kubelets.
    pub(crate) kubelet_tls: Arc<rustls::ClientConfig>,
    tls: tls::ServerTls,
    /// The store.
    pub(crate) storage: Storage,
    /// The kinds.
    pub(crate) registry: &'static Registry,
    /// The types.
    pub(crate) schema: &'static Schema,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// Components of the same process.
    companions: Companions,
    /// Cancelled when watches must end.
    pub(crate) stopping: CancellationToken,
    discovery: Discovery,
    /// The OpenAPI documents.
    pub(crate) openapi: OpenApi,
    /// Whether this member hears of a leader.
    pub(crate) contact: Contact,
    /// The term while this member leads.
    terms: watch::Receiver<Option<u64>>,
    caught_up: CaughtUp,
    /// How other members are asked, once there is a way.
    peers: OnceLock<Arc<dyn PeerStatuses>>,
    tasks: TaskTracker,
}

impl ApiServer {
    /// Opens the store and the PKI; a member that leads at once makes the objects that every cluster
    /// has, any other starts without a leader and tells by `/readyz` when it has caught up. The server
    /// answers [`ApiServer::local`] from here on; [`ApiServer::serve`] opens it to the network.
    ///
    /// # Errors
    /// What could not be opened or made.
    pub async fn start(config: ApiServerConfig) -> Result<Arc<Self>, StartError> {
        // The store's lock comes first: a second server must not touch the first one's files.
        let settings = store_setup::settings(&config)?;
        let storage = Storage::open(settings).await.map_err(StartError::Store)?;
        snapshot::remove_leftovers(&config);
        let pki = Pki::open(&config, SystemTime::now())?;
        let registry = rkube_api::registry::builtin();
        let address = crate::pki::authority(config.advertise_address, config.secure_port);
        let leadership = storage.leadership();
        let (told, terms) = watch::channel(None);
        let server = Arc::new(ApiServer {
            kubelet_tls: tls::kubelet_client_config(&pki)?,
            tls: tls::ServerTls::new(&pki)?,
            pki,
            storage,
            registry,
            schema: rkube_api::schema::builtin(),
            metrics: Metrics::new(),
            companions: Companions::default(),
            stopping: CancellationToken::new(),
            discovery: Discovery::new(registry, &address),
            openapi: OpenApi::new(),
            contact: Contact::default(),
            terms,
            caught_up: CaughtUp::default(),
            peers: OnceLock::new(),
            tasks: TaskTracker::new(),
            config,
        });
        let leads = leading::term_of(&leadership.borrow());
        if let Some(term) = leads {
            // The only member of its cluster, most likely: nobody else would make them.
            bootstrap::make_first_objects(&server, term).await.map_err(StartError::Bootstrap)?;
            server.caught_up.catch_up(&server.storage).await;
        }
        server.spawn_tasks(leadership, told);
        Ok(server)
    }

    fn spawn_tasks(
        self: &Arc<Self>,
        leadership: watch::Receiver<Leadership>,
        told: watch::Sender<Option<u64>>,
    ) {
        let until_stopped = |work: Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stopping = self.stopping.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = stopping.cancelled() => {}
                    () = work => {}
                }
            });
        };
        until_stopped(Box::pin(leading::tell(leadership, told)));
        until_stopped(Box::pin(leading::run(Arc::clone(self), self.terms.clone())));
        let server = Arc::clone(self);
        until_stopped(Box::pin(async move { server.caught_up.catch_up(&server.storage).await }));
        let server = Arc::clone(self);
        until_stopped(Box::pin(async move {
            server.contact.keep(|| server.storage.leader_contact()).await;
        }));
        let server = Arc::clone(self);
        until_stopped(Box::pin(async move { server.tell_the_admin().await }));
        let server = Arc::clone(self);
        until_stopped(Box::pin(async move {
            loop {
                tokio::time::sleep(FORGET_EVERY).await;
                server.openapi.forget_unused();
            }
        }));
    }

    /// Keeps the members in the admin's kubeconfig.
    async fn tell_the_admin(&self) {
        let mut told: Vec<String> = Vec::new();
        loop {
            let members = self.storage.members();
            let own = self.storage.identity().member_id;
            let others = members.iter().filter(|m| m.id != own && !m.info.api_url.is_empty());
            let others: Vec<String> = others.map(|m| m.info.api_url.clone()).collect();
            if others != told {
                match self.pki.write_admin_kubeconfig(&self.config, &others) {
                    Ok(()) => told = others,
                    Err(error) => tracing::warn!(%error, "writing the admin's kubeconfig failed"),
                }
            }
            self.storage.members_changed(&members).await;
        }
    }

    /// The term of this member whenever it leads: what a leader scope waits for.
    pub fn terms(&self) -> watch::Receiver<Option<u64>> {
        self.terms.clone()
    }

    /// Tells how to ask other members how they are; once.
    pub fn ask_peers_by(&self, peers: Arc<dyn PeerStatuses>) {
        if self.peers.set(peers).is_err() {
            tracing::warn!("the way to other members was given before");
        }
    }

    pub(crate) fn peers(&self) -> Option<&Arc<dyn PeerStatuses>> {
        self.peers.get()
    }

    /// The settings.
    pub fn config(&self) -> &ApiServerConfig {
        &self.config
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.pki.ca_pem()
    }

    /// The keys and certificates of the cluster.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Where components of the same process show their metrics and faults.
    pub fn companions(&self) -> &Companions {
        &self.companions
    }

    /// A service in this process that acts as `identity`.
    pub fn local(self: &Arc<Self>, identity: Identity) -> LocalService {
        LocalService::new(Arc::clone(self), identity)
    }

    /// Whether the server takes requests.
    pub fn ready(&self) -> bool {
        self.caught_up.is_done() && !self.stopping.is_cancelled()
    }

    /// A listener on the configured address.
    ///
    /// # Errors
    /// If the address is taken.
    pub async fn listen(&self) -> Result<TcpListener, StartError> {
        let address = SocketAddr::new(self.config.bind_address, self.config.secure_port);
        TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
    }

    /// Serves HTTPS until `shutdown`; then stops accepting, ends watches and waits for the
    /// requests in flight, at most for the configured grace. The store stays open.
    pub async fn serve(self: &Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let stop = shutdown.clone();
        let server = Arc::clone(self);
        let watcher = tokio::spawn(async move {
            stop.cancelled().await;
            server.stopping.cancel();
        });
        let grace = self.config.shutdown_grace;
        connection::serve(Arc::clone(self), listener, self.tls.clone(), shutdown, grace).await;
        watcher.abort();
    }

    /// Ends watches and background tasks and closes the store; everything acknowledged is on
    /// disk.
    pub async fn shutdown(&self) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(self.config.shutdown_grace, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "background tasks did not end");
        }
        self.storage.shutdown().await;
    }

    /// Makes a token with which nodes join.
    ///
    /// # Errors
    /// If it can't be stored.
    pub async fn create_token(self: &Arc<Self>, life: Duration) -> Result<String, ApiError> {
        join::create_token(self, life, "", TokenRole::Node).await
    }

    /// The store, for who carries its frames to the other members.
    pub fn store(&self) -> &Store {
        self.storage.store()
    }

    /// Waits until the store has stopped after a fatal error, for ever if all goes well: the process
    /// must end then. If the member was removed, its directory says so from now on.
    pub async fn failed(&self) -> StartError {
        let error = self.storage.store().failed().await;
        if !member_requests::is_removal(&error) {
            return StartError::Store(Box::new(error));
        }
        let identity = self.storage.identity();
        if let Err(error) = MemberFile::mark_removed(&self.config.store_dir(), identity) {
            tracing::error!(%error, "noting that this member was removed failed");
        }
        let (id, dir) = (HexId(identity.member_id), self.config.data_dir.clone());
        StartError::Removed { id, dir }
    }

    /// Answers one request.
    pub async fn handle(
        self: &Arc<Self>,
        identity: Identity,
        request: Request<RequestBody>,
    ) -> Response<Body> {
        let started = Instant::now();
        let audit_id = audit_id(&request);
        let method = request.method().clone();
        let query = Query::parse(request.uri().query().unwrap_or(""));
        let parsed = request_info::parse(&method, request.uri().path(), &query);
        let (info, mut response) = match parsed {
            Ok(info) => {
                let _flight = self.fly(&method, &info);
                let span = tracing::debug_span!(
                    "request",
                    audit_id,
                    verb = info.verb,
                    resource = info.resource,
                    namespace = info.namespace,
                    name = info.name,
                    revision = tracing::field::Empty,
                );
                let work = self.answer(&identity, info.clone(), query, request).instrument(span);
                let response = AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
                    tracing::error!(path = info.path, "a handler panicked");
                    response::error(&ApiError::internal("a handler panicked"), PLAIN)
                });
                (info, response)
            }
            Err(error) => (RequestInfo::default(), response::error(&error, PLAIN)),
        };
        let headers = response.headers_mut();
        headers
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-cache, private"));
        if let Ok(value) = HeaderValue::from_str(&audit_id) {
            headers.insert("audit-id", value);
        }
        if method == Method::HEAD {
            *response.body_mut() = Body::Empty;
        }
        self.account(&info, &identity, &audit_id, response.status(), started.elapsed());
        response
    }

    fn fly(&self, method: &Method, info: &RequestInfo) -> Flight {
        if info.is_long_running() {
            let labels = KindLabels { group: info.group.clone(), resource: info.resource.clone() };
            return Flight::start(self.metrics.long_running.get_or_create_owned(&labels));
        }
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let labels = FlightLabels { request_kind: if reads { "readOnly" } else { "mutating" } };
        Flight::start(self.metrics.inflight.get_or_create_owned(&labels))
    }

    fn account(
        &self,
        info: &RequestInfo,
        identity: &Identity,
        audit_id: &str,
        code: StatusCode,
        took: Duration,
    ) {
        // Names from the outside must not make series without bound.
        let known = !info.is_resource
            || self.registry.resource(&info.group, &info.version, &info.resource).is_some();
        let (group, version, resource, subresource) = match (info.is_resource, known) {
            (true, true) => (&*info.group, &*info.version, &*info.resource, &*info.subresource),
            _ => ("", "", "", ""),
        };
        let verb = metric_verb(info.verb);
        self.metrics
            .requests
            .get_or_create(&RequestLabels {
                verb: verb.clone(),
                group: group.into(),
                version: version.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                code: code.as_u16(),
            })
            .inc();
        if !info.is_long_running() {
            let labels = LatencyLabels { verb, group: group.into(), resource: resource.into() };
            self.metrics.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
        tracing::debug!(
            audit_id,
            verb = info.verb,
            path = info.path,
            user = identity.user,
            code = code.as_u16(),
            micros = took.as_micros() as u64,
            "request"
        );
    }

    /// Authorizes and routes.
    async fn answer(
        self: &Arc<Self>,
        identity: &Identity,
        info: RequestInfo,
        query: Query,
        request: Request<RequestBody>,
    ) -> Response<Body> {
        // As upstream: a certificate that is not believed closes even what everybody may ask.
        if identity.is_refused() {
            return response::error(&unauthorized(), PLAIN);
        }
        if let Some(response) = self.answer_stranger(&info, &query, &request) {
            return response;
        }
        if info.path == "/rkube/v1/join" {
            return join::answer_join(self, request).await;
        }
        if info.path == member_requests::PATH {
            return member_requests::answer_add(self, request).await;
        }
        let plain_error = |error: &ApiError| response::error(error, PLAIN);
        if !identity.is_authenticated() {
            return plain_error(&unauthorized());
        }
        let selector = query.get("fieldSelector").unwrap_or("");
        let asked = Attributes::of(&info, selector);
        if let Err(refusal) = self.authorize(identity, &asked).await {
            return plain_error(&refusal);
        }
        if !info.is_resource {
            return self.answer_path(identity, &info, &query, request).await;
        }
        let long = info.is_long_running();
        let (parts, body) = request.into_parts();
        let accepted = accepted_or_plain(&parts.headers);
        let cx =
            match Cx::new(info, identity.clone(), query, parts.headers.clone(), Timestamp::now()) {
                Ok(cx) => cx.in_term(parts.extensions.get::<LeaderTerm>().map(|term| term.0)),
                Err(error) => return plain_error(&error),
            };
        let work = rest::dispatch(self, &cx, parts, body);
        let result = if long {
            work.await
        } else {
            match tokio::time::timeout(self.config.request_timeout, work).await {
                Ok(result) => result,
                Err(_) => Err(ApiError::new(
                    Reason::Timeout,
                    "Timeout: request did not complete within the allotted timeout",
                )),
            }
        };
        let mut response = result.unwrap_or_else(|error| response::error(&error, accepted));
        response::add_warnings(&mut response, &cx.take_warnings());
        gzip::compress(&mut response, cx.header(header::ACCEPT_ENCODING));
        response
    }

    /// A refusal that follows from what this member knows rests on the last state.
    async fn authorize(&self, identity: &Identity, asked: &Attributes<'_>) -> Result<(), ApiError> {
        if authz::authorize(identity, asked, &self.storage.graph()).is_ok() {
            return Ok(());
        }
        if identity.node_name().is_some() {
            self.storage.fresh_view().await?;
        }
        authz::authorize(identity, asked, &self.storage.graph())
            .map_err(|why| authz::forbidden(identity, asked, &why))
    }

    /// What everybody may ask.
    fn answer_stranger(
        &self,
        info: &RequestInfo,
        query: &Query,
        request: &Request<RequestBody>,
    ) -> Option<Response<Body>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        let path = info.path.as_str();
        if let Some((root, only)) = health_path(path) {
            let checks = self.checks(root);
            return Some(crate::health::answer(root, only, query, &checks));
        }
        match path {
            "/version" => Some(version()),
            "/rkube/v1/ca" => Some(response::bytes(
                StatusCode::OK,
                "application/x-pem-file",
                self.ca_pem().to_owned(),
            )),
            _ => None,
        }
    }

    fn checks(&self, root: &str) -> Vec<Check> {
        let mut checks = vec![
            Check { name: "ping", fault: None },
            Check { name: "store", fault: self.storage.fault() },
        ];
        if root == "readyz" {
            let fault = |is: bool, why: &str| is.then(|| why.to_owned());
            checks.push(Check { name: CATCH_UP, fault: self.caught_up.fault() });
            checks.push(Check {
                name: "shutdown",
                fault: fault(self.stopping.is_cancelled(), "stopping"),
            });
            checks.extend(self.companions.checks());
        }
        checks
    }

    async fn answer_path(
        self: &Arc<Self>,
        identity: &Identity,
        info: &RequestInfo,
        query: &Query,
        request: Request<RequestBody>,
    ) -> Response<Body> {
        if let Some(target) = member_requests::removed(request.method(), &info.path) {
            let force = query.get("force") == Some("true");
            return member_requests::answer_remove(self, identity, target, force).await;
        }
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match info.path.as_str() {
            "/metrics" if reads => {
                self.count_objects();
                self.metrics.answer(&self.companions)
            }
            "/rkube/v1/tokens" if request.method() == Method::POST => {
                join::answer_create_token(self, request).await
            }
            snapshot::PATH if request.method() == Method::GET => snapshot::answer(self).await,
            "/" if reads => response::json(
                StatusCode::OK,
                &serde_json::json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]}),
            ),
            path if reads && path.starts_with("/openapi/") => {
                match self.openapi.answer(self, path, query, request.headers()) {
                    Ok(response) => response,
                    Err(error) => response::error(&error, PLAIN),
                }
            }
            path if reads => match self.discovery.answer(path, request.headers()) {
                Some(response) => response,
                None if path.starts_with("/api/") || path == "/api" => {
                    response::error(&ApiError::no_route(), PLAIN)
                }
                None => response::text(StatusCode::NOT_FOUND, "404 page not found\n"),
            },
            _ => response::error(&rest::method_not_allowed(), PLAIN),
        }
    }

    fn count_objects(&self) {
        for kind in self.registry.kinds.iter().filter(|k| k.stored_as.is_none()) {
            let labels = KindLabels { group: kind.group.clone(), resource: kind.plural.clone() };
            let count = self.storage.count(&kind.store_resource());
            self.metrics.objects.get_or_create(&labels).set(count as i64);
        }
    }
}

/// A verb as upstream's metrics name it.
fn metric_verb(verb: &str) -> String {
    match verb {
        "create" => "POST".into(),
        "update" => "PUT".into(),
        other => other.to_uppercase(),
    }
}

fn accepted_or_plain(headers: &http::HeaderMap) -> negotiate::Accepted {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    negotiate::accepted(accept).unwrap_or(PLAIN)
}

fn audit_id(request: &Request<RequestBody>) -> String {
    request
        .headers()
        .get("audit-id")
        .and_then(|v| v.to_str().ok())
        .filter(|v| !v.is_empty() && v.len() <= 64)
        .map_or_else(ids::uuid, str::to_owned)
}

/// `readyz` and the check below it.
fn health_path(path: &str) -> Option<(&'static str, Option<&str>)> {
    ["healthz", "livez", "readyz"].iter().find_map(|root| {
        let rest = path.strip_prefix('/')?.strip_prefix(root)?;
        match rest.strip_prefix('/') {
            Some(check) => Some((*root, Some(check))),
            None => rest.is_empty().then_some((*root, None)),
        }
    })
}

fn version() -> Response<Body> {
    response::json(
        StatusCode::OK,
        &serde_json::json!({
            "major": "1", "minor": "36", "gitVersion": GIT_VERSION,
            "gitCommit": "", "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z",
            "goVersion": "none", "compiler": "rustc",
            "platform": format!("linux/{}", match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other }),
        }),
    )
}
