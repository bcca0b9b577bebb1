//! Requests to the API server, over whatever `kube::Client` carries them, with kubectl's words for
//! what goes wrong on the way.

use crate::cli::GlobalFlags;
use crate::error::{Error, Result, Status};
use crate::io::Io;
use crate::kubeconfig::{Chosen, Kubeconfig};
use crate::ways::{Ways, members};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long a server may take to be connected to where there is another.
const NEXT_SERVER: Duration = Duration::from_secs(3);
/// How often, and after which pause, a watch that broke is taken up again: over an election.
const RESUMES: u32 = 30;
const RESUME: Duration = Duration::from_millis(500);

/// Answers as plain JSON.
pub const JSON: &str = "application/json";
/// Answers as a table, or as JSON from servers that print none.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

/// What a patch's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902
    Json,
    /// RFC 7386
    Merge,
    /// Kubernetes' own
    Strategic,
    /// Server-side apply
    Apply,
}

impl PatchType {
    fn content_type(self) -> &'static str {
        match self {
            PatchType::Json => "application/json-patch+json",
            PatchType::Merge => "application/merge-patch+json",
            PatchType::Strategic => "application/strategic-merge-patch+json",
            PatchType::Apply => "application/apply-patch+yaml",
        }
    }
}

/// The way to one API server.
#[derive(Clone)]
pub struct Http {
    ways: Arc<Ways>,
    io: Io,
    /// `https://127.0.0.1:6443`
    pub server: String,
    /// Whether a kubeconfig said so, or nothing did.
    configured: bool,
    verbosity: u8,
    timeout: Option<Duration>,
}

impl Http {
    /// Over a client that is there already.
    pub fn new(client: kube::Client, io: Io, server: &str) -> Self {
        let server = server.to_owned();
        let ways = Arc::new(Ways::new(vec![client]));
        Http { ways, io, server, configured: true, verbosity: 0, timeout: None }
    }

    /// As kubeconfig and flags say.
    pub async fn connect(config: &Kubeconfig, flags: &GlobalFlags, io: Io) -> Result<Self> {
        let chosen = config.choose(flags)?;
        let configured = chosen.cluster["server"].as_str().is_some_and(|s| !s.is_empty());
        let mut kube_config = kube_config(&chosen, flags, configured).await?;
        let server = kube_config.cluster_url.to_string().trim_end_matches('/').to_owned();
        // A server that the user names is the one that is meant.
        let others = if flags.server.is_some() { Vec::new() } else { members(&chosen.cluster) };
        if !others.is_empty() {
            kube_config.connect_timeout = Some(NEXT_SERVER);
        }
        let mut clients = vec![client_of(kube_config.clone())?];
        for other in others.iter().filter(|other| other.trim_end_matches('/') != server) {
            let url = other.parse().map_err(|e| {
                Error::msg(format!("the kubeconfig names a member {other:?}, which is no URL: {e}"))
            })?;
            let mut config = kube_config.clone();
            config.cluster_url = url;
            clients.push(client_of(config)?);
        }
        let ways = Arc::new(Ways::new(clients));
        let timeout = request_timeout(flags)?;
        Ok(Http { ways, io, server, configured, verbosity: flags.verbosity, timeout })
    }

    /// The client itself, for what it does better (exec, port-forward).
    pub fn kube(&self) -> kube::Client {
        self.ways.client()
    }

    /// Sends one request and gives the answer, refused or not.
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>> {
        let what = format!("{} {}{}", request.method(), self.server, request.uri());
        let answer = self.ways.send(request).await.map_err(|e| self.unreachable(&e))?;
        if self.verbosity >= 6 {
            self.io.note(format!("{what} {}", answer.status()));
        }
        for warning in answer.headers().get_all("warning") {
            if let Some(text) = warning.to_str().ok().and_then(warning_text) {
                self.io.note(format!("Warning: {text}"));
            }
        }
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status().as_u16();
        let body = answer.into_body().collect_bytes().await.map_err(|e| self.unreachable(&e))?;
        Err(Error::Status(Box::new(Status::parse(code, &body))))
    }

    /// One request, whole answer.
    pub async fn bytes(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Bytes> {
        if self.verbosity >= 8 && !body.is_empty() {
            self.io.note(format!("Request Body: {}", String::from_utf8_lossy(&body)));
        }
        let mut request = Request::builder().method(method).uri(path).header("accept", accept);
        if !body.is_empty() {
            request = request.header("content-type", content_type);
        }
        let request = request
            .body(Body::from(body))
            .map_err(|e| Error::msg(format!("invalid request {path:?}: {e}")))?;
        let work = async {
            let answer = self.send(request).await?;
            answer.into_body().collect_bytes().await.map_err(|e| self.unreachable(&e))
        };
        let answer = match self.timeout {
            None => work.await?,
            Some(limit) => tokio::time::timeout(limit, work).await.map_err(|_| {
                Error::Unreachable(format!(
                    "Unable to connect to the server: no answer from {} within {limit:?} (--request-timeout)",
                    self.server
                ))
            })??,
        };
        if self.verbosity >= 8 {
            self.io.note(format!("Response Body: {}", String::from_utf8_lossy(&answer)));
        }
        Ok(answer)
    }

    async fn value(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Value> {
        let bytes = self.bytes(method, path, accept, content_type, body).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Error::msg(format!(
                "the server at {} answered something else than JSON: {e}",
                self.server
            ))
        })
    }

    /// GET as JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.value(Method::GET, path, JSON, JSON, Vec::new()).await
    }

    /// GET in another representation.
    pub async fn get_as(&self, path: &str, accept: &str) -> Result<Value> {
        self.value(Method::GET, path, accept, JSON, Vec::new()).await
    }

    /// POST of an object.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.value(Method::POST, path, JSON, JSON, body.to_string().into_bytes()).await
    }

    /// PUT of an object.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.value(Method::PUT, path, JSON, JSON, body.to_string().into_bytes()).await
    }

    /// PATCH.
    pub async fn patch(&self, path: &str, kind: PatchType, body: &Value) -> Result<Value> {
        self.value(Method::PATCH, path, JSON, kind.content_type(), body.to_string().into_bytes())
            .await
    }

    /// DELETE with options.
    pub async fn delete(&self, path: &str, options: &Value) -> Result<Value> {
        self.value(Method::DELETE, path, JSON, JSON, options.to_string().into_bytes()).await
    }

    /// GET whose body comes in pieces (a log).
    pub async fn stream(&self, path: &str) -> Result<impl Stream<Item = Result<Bytes>> + use<>> {
        let request = Request::get(path)
            .header("accept", "*/*")
            .body(Body::empty())
            .map_err(|e| Error::msg(format!("invalid request {path:?}: {e}")))?;
        let answer = self.send(request).await?;
        let this = self.clone();
        Ok(answer
            .into_body()
            .into_data_stream()
            .map(move |piece| piece.map_err(|e| this.unreachable(&e))))
    }

    /// A watch: one value an event. An `ERROR` event becomes an error.
    pub async fn watch(
        &self,
        path: &str,
        accept: &str,
    ) -> Result<impl Stream<Item = Result<Value>> + use<>> {
        let request = Request::get(path)
            .header("accept", accept)
            .body(Body::empty())
            .map_err(|e| Error::msg(format!("invalid request {path:?}: {e}")))?;
        let answer = self.send(request).await?;
        let pieces = answer.into_body().into_data_stream();
        let this = self.clone();
        let reader = tokio_util::io::StreamReader::new(
            pieces.map(|piece| piece.map_err(std::io::Error::other)),
        );
        let lines =
            tokio_util::codec::FramedRead::new(reader, tokio_util::codec::LinesCodec::new());
        Ok(lines.map(move |line| {
            let line = line.map_err(|e| this.lost(&e))?;
            let event: Value = serde_json::from_str(&line).map_err(|e| {
                Error::msg(format!("unable to decode an event from the watch stream: {e}"))
            })?;
            if event["type"] == "ERROR" {
                return Err(Error::Status(Box::new(Status::from_value(&event["object"], 500))));
            }
            Ok(event)
        }))
    }

    /// A watch that goes on at another server, from its last revision, when its own is gone. `path`
    /// names no revision; with one server, or without a revision, it ends as the server ends it.
    pub async fn follow(
        &self,
        path: &str,
        accept: &str,
        revision: String,
    ) -> Result<impl Stream<Item = Result<Value>> + use<>> {
        let (path, accept) = (path.to_owned(), accept.to_owned());
        let mut follow = Follow { http: self.clone(), path, accept, revision, events: None };
        follow.open().await?;
        Ok(futures::stream::unfold(follow, |mut follow| async move {
            let event = follow.next().await?;
            Some((event, follow))
        }))
    }

    /// Upgrades a connection to another protocol.
    pub async fn upgrade(
        &self,
        path: &str,
        upgrade: &str,
        stream_protocol: &str,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>> {
        let request = Request::post(path)
            .header("connection", "Upgrade")
            .header("upgrade", upgrade)
            .header("x-stream-protocol-version", stream_protocol)
            .body(Body::empty())
            .map_err(|e| Error::msg(format!("invalid request {path:?}: {e}")))?;
        let answer = self.ways.send(request).await.map_err(|e| self.unreachable(&e))?;
        if answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            let code = answer.status();
            let body =
                answer.into_body().collect_bytes().await.map_err(|e| self.unreachable(&e))?;
            return Err(refused_upgrade(code, &body));
        }
        let upgraded = hyper::upgrade::on(answer)
            .await
            .map_err(|e| Error::msg(format!("unable to upgrade connection: {}", chain(&e))))?;
        Ok(TokioIo::new(upgraded))
    }

    fn lost(&self, e: &dyn std::error::Error) -> Error {
        Error::Unreachable(format!(
            "the connection to the server {} was lost: {}",
            self.server,
            chain(e)
        ))
    }

    /// Says which address was tried and what to check.
    fn unreachable(&self, e: &dyn std::error::Error) -> Error {
        let text = chain(e);
        let host = self.server.split("://").last().unwrap_or(&self.server).to_owned();
        let tried = &self.server;
        let tried = match self.ways.len() {
            1 => tried.clone(),
            several => format!("{tried} and {} other members", several - 1),
        };
        let text = if text.contains("Connection refused") || text.contains("connection refused") {
            let check = if self.configured {
                "Nothing listens there: is the port right, is the cluster started (`rkube up`)?"
            } else {
                "No kubeconfig was found, so the default address was tried: start a cluster with `rkube up`, or name one with --kubeconfig or --server."
            };
            format!(
                "The connection to the server {host} was refused - did you specify the right host or port?\nTried {tried}. {check}"
            )
        } else if let Some(fault) = certificate_fault(&text) {
            format!(
                "Unable to connect to the server: tls: failed to verify certificate: {fault}\nTried {tried}."
            )
        } else if text.contains("failed to lookup") || text.contains("dns error") {
            let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
            format!(
                "Unable to connect to the server: dial tcp: lookup {name}: no such host\nTried {tried}: is the name right?"
            )
        } else if text.contains("InvalidContentType") || text.contains("corrupt message") {
            format!(
                "Unable to connect to the server: {tried} does not speak TLS: is it http://, or the wrong port?"
            )
        } else if text.contains("timed out") || text.contains("deadline has elapsed") {
            format!(
                "Unable to connect to the server: dial tcp {host}: i/o timeout\nTried {tried}: is the address right and the machine reachable?"
            )
        } else {
            format!(
                "Unable to connect to the server: {text}\nTried {tried}: is the port right, is the cluster started (`rkube up`)?"
            )
        };
        Error::Unreachable(text)
    }
}

fn client_of(mut config: kube::Config) -> Result<kube::Client> {
    // It would go on for minutes, and repeat a write that may have been done; who types wants to
    // know why.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    let server = server.trim_end_matches('/');
    kube::Client::try_from(config)
        .map_err(|e| Error::msg(format!("can't make a client for {server}: {}", chain(&e))))
}

/// A watch that outlives its server.
struct Follow {
    http: Http,
    path: String,
    accept: String,
    /// Of the last event.
    revision: String,
    events: Option<BoxStream<'static, Result<Value>>>,
}

impl Follow {
    async fn open(&mut self) -> Result<()> {
        let path = match self.revision.as_str() {
            "" => self.path.clone(),
            revision => format!("{}&resourceVersion={revision}", self.path),
        };
        self.events = Some(self.http.watch(&path, &self.accept).await?.boxed());
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<Value>> {
        let mut tries = 0;
        loop {
            let event = match &mut self.events {
                Some(events) => events.next().await,
                None => None,
            };
            let may_go_on = self.http.ways.len() > 1 && !self.revision.is_empty();
            match event {
                Some(Ok(event)) => {
                    if let Some(revision) = revision_of(&event["object"]) {
                        self.revision = revision;
                    }
                    return Some(Ok(event));
                }
                Some(Err(Error::Unreachable(_))) | None if may_go_on => {}
                end => return end,
            }
            self.events = None;
            match self.open().await {
                Ok(()) => {}
                // Between two leaders nobody may answer for a while.
                Err(e) if tries < RESUMES && is_passing(&e) => tokio::time::sleep(RESUME).await,
                Err(e) => return Some(Err(e)),
            }
            tries += 1;
        }
    }
}

fn is_passing(e: &Error) -> bool {
    matches!(e, Error::Unreachable(_)) || e.status().is_some_and(|s| s.code == 503)
}

/// The revision of an object, or of a table of one row.
fn revision_of(object: &Value) -> Option<String> {
    let of = |object: &Value| object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    of(object).filter(|r| !r.is_empty()).or_else(|| of(&object["rows"][0]["object"]))
}

/// Why a connection was not upgraded: what the API server says as for any request, or the words
/// of a kubelet, which knows no `Status`.
fn refused_upgrade(code: http::StatusCode, body: &[u8]) -> Error {
    let status = Status::parse(code.as_u16(), body);
    if status.proper {
        return Error::Status(Box::new(status));
    }
    let said = String::from_utf8_lossy(body);
    let why = match said.trim() {
        "" => code.to_string(),
        why => why.to_owned(),
    };
    Error::msg(format!("unable to upgrade connection: {why}"))
}

/// An error with all that caused it, each once.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

/// What is wrong with a certificate, in the words that users know, and what to do.
fn certificate_fault(text: &str) -> Option<&'static str> {
    let known = [
        (
            "UnknownIssuer",
            "x509: certificate signed by unknown authority (the kubeconfig belongs to another cluster, or the cluster was made anew)",
        ),
        (
            "BadSignature",
            "x509: certificate signed by unknown authority (the kubeconfig belongs to another cluster of the same name)",
        ),
        (
            "CertExpired",
            "x509: certificate has expired (check both clocks, renew the certificates)",
        ),
        (
            "certificate expired",
            "x509: certificate has expired (check both clocks, renew the certificates)",
        ),
        (
            "ExpiredContext",
            "x509: certificate has expired (check both clocks, renew the certificates)",
        ),
        ("NotValidYet", "x509: certificate is not yet valid (check both clocks)"),
        ("not valid yet", "x509: certificate is not yet valid (check both clocks)"),
        (
            "NotValidForName",
            "x509: certificate is not valid for this name or address (see --tls-server-name)",
        ),
        (
            "not valid for name",
            "x509: certificate is not valid for this name or address (see --tls-server-name)",
        ),
        (
            "CertificateRequired",
            "the server wants a client certificate and the kubeconfig has none",
        ),
        ("CertificateUnknown", "the server does not accept the client certificate"),
        ("UnknownCA", "the server does not know the authority of the client certificate"),
        ("CertificateExpired", "the client certificate has expired"),
        ("DecryptError", "the server does not accept the client certificate"),
        ("invalid peer certificate", "x509: the server's certificate is not acceptable"),
    ];
    known.iter().find(|(mark, _)| text.contains(mark)).map(|(_, fault)| *fault)
}

/// The text of `299 - "text"`.
fn warning_text(header: &str) -> Option<String> {
    let quoted = header.split_once('"')?.1.rsplit_once('"')?.0;
    Some(quoted.replace("\\\"", "\"").replace("\\\\", "\\"))
}

/// The patience of one request; None for ever.
pub fn request_timeout(flags: &GlobalFlags) -> Result<Option<Duration>> {
    let Some(text) = flags.request_timeout.as_deref().filter(|t| *t != "0") else {
        return Ok(None);
    };
    let seconds = text.parse::<u64>().map(Duration::from_secs).ok();
    let parsed = seconds.or_else(|| crate::duration::parse(text));
    match parsed {
        Some(d) if d.is_zero() => Ok(None),
        Some(d) => Ok(Some(d)),
        None => Err(Error::msg(format!(
            "Invalid timeout value {text:?}. Timeout must be a single integer in seconds, or an integer followed by a corresponding time unit (e.g. 1s | 2m | 3h)"
        ))),
    }
}

async fn kube_config(
    chosen: &Chosen,
    flags: &GlobalFlags,
    configured: bool,
) -> Result<kube::Config> {
    if !configured
        && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        && let Ok(config) = kube::Config::incluster()
    {
        return Ok(config);
    }
    let mut cluster = chosen.cluster.clone();
    if !configured {
        cluster["server"] = "http://localhost:8080".into();
    }
    let whole = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": cluster}],
        "users": [{"name": "it", "user": chosen.user}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    });
    let wrong = |e: &dyn std::error::Error| {
        Error::msg(format!("invalid configuration of context {:?}: {}", chosen.context, chain(e)))
    };
    let whole = serde_json::from_value(whole).map_err(|e| wrong(&e))?;
    let options = kube::config::KubeConfigOptions::default();
    let mut config =
        kube::Config::from_custom_kubeconfig(whole, &options).await.map_err(|e| wrong(&e))?;
    // Some verbs write many small requests; a second of patience is enough on any network that works.
    config.connect_timeout = Some(Duration::from_secs(10));
    impersonate(&mut config, flags)?;
    Ok(config)
}

fn impersonate(config: &mut kube::Config, flags: &GlobalFlags) -> Result<()> {
    let user = flags.as_user.iter().map(|u| ("impersonate-user", u));
    let groups = flags.as_group.iter().map(|g| ("impersonate-group", g));
    for (name, value) in user.chain(groups) {
        let value = http::HeaderValue::from_str(value)
            .map_err(|_| Error::msg(format!("{value:?} can't be impersonated: not plain text")))?;
        config.headers.push((http::HeaderName::from_static(name), value));
    }
    Ok(())
}

/// A query of `key=value` pairs, escaped, with its `?`; empty without pairs.
pub fn query(pairs: &[(&str, String)]) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    let parts: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={}", escape(v))).collect();
    format!("?{}", parts.join("&"))
}

/// Percent-encodes everything but unreserved characters.
pub fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(b as char)
            }
            _ => out.push_str(&format!("%{b:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        let pairs = [("labelSelector", "a=b,c in (d)".to_owned()), ("limit", "5".to_owned())];
        assert_eq!(query(&pairs), "?labelSelector=a%3Db%2Cc%20in%20%28d%29&limit=5");
        assert_eq!(query(&[]), "");
    }

    #[test]
    fn refused_upgrades_say_why() {
        let refused = |code: u16, body: &str| {
            let code = http::StatusCode::from_u16(code).unwrap();
            refused_upgrade(code, body.as_bytes()).to_string()
        };
        let status = |reason: &str, message: &str| {
            json!({"kind": "Status", "reason": reason, "message": message}).to_string()
        };
        // As kubectl 1.33 prints them.
        for (code, body, shown) in [
            (
                404,
                "container not found (\"c\")\n".to_owned(),
                "error: unable to upgrade connection: container not found (\"c\")",
            ),
            (
                400,
                status("BadRequest", "pod p does not have a host assigned"),
                "Error from server (BadRequest): pod p does not have a host assigned",
            ),
            (
                401,
                status("Unauthorized", "Unauthorized"),
                "error: You must be logged in to the server (Unauthorized)",
            ),
            (500, status("", "m"), "Error from server: m"),
        ] {
            assert_eq!(refused(code, &body), shown);
        }
        let shown = refused(502, "");
        assert_eq!(shown, "error: unable to upgrade connection: 502 Bad Gateway");
    }

    #[test]
    fn warnings_lose_their_dress() {
        let text = warning_text(r#"299 - "unknown field \"spec.x\"""#);
        assert_eq!(text.as_deref(), Some("unknown field \"spec.x\""));
    }
}
