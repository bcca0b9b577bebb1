//! Nodes that join: tokens, and certificates for those who show one.
//!
//! A token is `<id>.<secret>`, kept as a Secret of type `bootstrap.kubernetes.io/token` in
//! kube-system with an end. It buys a certificate for a node's name; a node that joins again under
//! its name gets a new certificate. One whose Secret has the role `any` also buys membership in the
//! control plane ([`crate::member_requests`]), and with it the cluster's keys; a Secret that says
//! nothing is for nodes.

use crate::authn::{Identity, unauthorized};
use crate::body::{self, Body, RequestBody};
use crate::context::Cx;
use crate::ids;
use crate::negotiate::PLAIN;
use crate::query::Query;
use crate::request_info::RequestInfo;
use crate::response;
use crate::rest;
use crate::server::ApiServer;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use rkube_api::{ApiError, FieldError};
use rkube_store::{Key, View};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Length of a token's id.
const ID: usize = 6;
/// Length of a token's secret: 165 bits.
const SECRET: usize = 32;
const NAMESPACE: &str = "kube-system";
/// The type of the Secrets that hold tokens.
pub const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
/// How long a token lives unless something else is said.
const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 3600);

/// What a joining node sends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JoinRequest {
    node_name: String,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    csr: String,
}

/// What a token is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenRole {
    /// Nodes and members of the control plane.
    #[default]
    Any,
    /// Nodes.
    Node,
}

impl TokenRole {
    fn name(self) -> &'static str {
        match self {
            TokenRole::Any => "any",
            TokenRole::Node => "node",
        }
    }
}

/// What is sent to make a token.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TokenRequest {
    ttl_seconds: Option<u64>,
    description: String,
    role: TokenRole,
}

/// Makes a token and gives its whole text, the hash of the CA in it.
///
/// # Errors
/// If it can't be stored.
pub async fn create_token(
    api: &Arc<ApiServer>,
    life: Duration,
    description: &str,
    role: TokenRole,
) -> Result<String, ApiError> {
    let now = Timestamp::now();
    let (id, secret) = (ids::token_part(ID), ids::token_part(SECRET));
    let life = SignedDuration::try_from(life).unwrap_or(SignedDuration::from_hours(24));
    let until = now.checked_add(life).map_err(ApiError::internal)?;
    let b64 = |text: &str| STANDARD.encode(text);
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": TOKEN_TYPE,
        "metadata": {"name": secret_name(&id)},
        "data": {
            "token-id": b64(&id), "token-secret": b64(&secret),
            "expiration": b64(&until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            "description": b64(description), "role": b64(role.name()),
            "usage-bootstrap-authentication": b64("true"),
        },
    });
    let kind = api.registry.resource("", "v1", "secrets").ok_or_else(ApiError::no_route)?;
    let info = RequestInfo {
        is_resource: true,
        verb: "create",
        version: "v1".into(),
        resource: "secrets".into(),
        namespace: NAMESPACE.into(),
        ..RequestInfo::default()
    };
    let identity = Identity::component("rkube-token");
    let cx = Cx::new(info, identity, Query::default(), HeaderMap::new(), now)?;
    rest::create_value(api, &cx, kind, object, false, false).await?;
    let hash = api.pki.ca_hash().map_err(ApiError::internal)?;
    Ok(format!("{id}.{secret}:sha256:{hash}"))
}

fn secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// Answers `POST /rkube/v1/tokens`; the caller was authorized.
pub async fn answer_create_token(
    api: &Arc<ApiServer>,
    request: Request<RequestBody>,
) -> Response<Body> {
    let work = async {
        let body = body::read(request.into_body()).await?;
        let asked: TokenRequest = if body.is_empty() {
            TokenRequest::default()
        } else {
            serde_json::from_slice(&body)
                .map_err(|e| ApiError::bad_request(format!("decoding the token request: {e}")))?
        };
        let life = asked.ttl_seconds.map_or(DEFAULT_LIFE, Duration::from_secs);
        create_token(api, life, &asked.description, asked.role).await
    };
    match work.await {
        Ok(token) => response::json(StatusCode::CREATED, &json!({"token": token})),
        Err(error) => response::error(&error, PLAIN),
    }
}

/// Answers `POST /rkube/v1/join`.
pub async fn answer_join(api: &Arc<ApiServer>, request: Request<RequestBody>) -> Response<Body> {
    if request.method() != Method::POST {
        return response::error(&rest::method_not_allowed(), PLAIN);
    }
    match join(api, request).await {
        Ok(answer) => response::json(StatusCode::CREATED, &answer),
        Err(error) => response::error(&error, PLAIN),
    }
}

async fn join(api: &Arc<ApiServer>, request: Request<RequestBody>) -> Result<Value, ApiError> {
    check_token(api, request.headers()).await?;
    let body = body::read(request.into_body()).await?;
    let asked: JoinRequest = serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request(format!("decoding the join request: {e}")))?;
    check_name(&asked.node_name)?;
    let certificate = api
        .pki
        .sign_node(&asked.csr, &asked.node_name, &asked.addresses, SystemTime::now())
        .map_err(|e| ApiError::bad_request(e.to_string()))?;
    tracing::info!(node = asked.node_name, "a node joined");
    let config = api.config();
    Ok(json!({
        "certificate": certificate, "ca": api.ca_pem(),
        "clusterCIDR": config.cluster_cidr, "serviceCIDR": config.service_cidr,
        "clusterDNS": config.cluster_dns.to_string(), "clusterDomain": config.cluster_domain,
        "clusterID": cluster_id(api),
    }))
}

/// The cluster is known by the uid of its first namespace.
fn cluster_id(api: &ApiServer) -> String {
    let object = api.storage.view().get(&Key::new("namespaces", "", NAMESPACE));
    object.map_or_else(String::new, |o| o.header.uid.to_string())
}

/// Refuses what can't be the name of a node or a member.
pub fn check_name(name: &str) -> Result<(), ApiError> {
    let good = !name.is_empty()
        && name.len() <= 253
        // Names in members' certificates.
        && !name.ends_with(".rkube.internal")
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
    if good {
        return Ok(());
    }
    Err(ApiError::invalid(
        "",
        "Node",
        name,
        &[FieldError::Invalid {
            path: "nodeName".into(),
            value: name.into(),
            detail: "a lowercase RFC 1123 subdomain is needed".into(),
        }],
    ))
}

fn token_id(token: &str) -> &str {
    token.split('.').next().filter(|id| id.len() == ID).unwrap_or("")
}

/// What the token of a request is good for. It may have been made at another member a moment ago,
/// so everything acknowledged is looked at.
///
/// # Errors
/// 401 if it is good for nothing, 503 without a leader.
pub async fn check_token(api: &ApiServer, headers: &HeaderMap) -> Result<TokenRole, ApiError> {
    let shown = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = shown.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or("");
    let view = api.storage.fresh_view().await?;
    role_of(&view, token, Timestamp::now()).ok_or_else(|| {
        tracing::warn!(token_id = token_id(token), "a join with a token that is not valid");
        unauthorized()
    })
}

/// The role of a token that is known, meant for joining and not at its end.
fn role_of(view: &View, token: &str, now: Timestamp) -> Option<TokenRole> {
    let (id, secret) = token.split_once('.')?;
    // What follows a colon is the hash that the node has checked already.
    let secret = secret.split(':').next().unwrap_or("");
    let fits = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if !fits(id, ID) {
        return None;
    }
    let object = view.get(&Key::new("secrets", NAMESPACE, &secret_name(id)))?;
    role_in(&serde_json::from_slice(&object.json).ok()?, secret, now)
}

/// The role that a Secret gives to who shows the token's secret at a time.
fn role_in(object: &Value, secret: &str, now: Timestamp) -> Option<TokenRole> {
    let data = |key: &str| data(object, key);
    let alive = data("expiration")
        .is_none_or(|until| until.parse::<Timestamp>().is_ok_and(|until| now < until));
    let good = object["type"] == TOKEN_TYPE
        && data("usage-bootstrap-authentication").as_deref() == Some("true")
        && data("token-secret").is_some_and(|known| same(known.as_bytes(), secret.as_bytes()))
        && alive;
    good.then(|| match data("role").as_deref() {
        Some("any") => TokenRole::Any,
        _ => TokenRole::Node,
    })
}

/// The text in a Secret's entry.
fn data(secret: &Value, key: &str) -> Option<String> {
    let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
    String::from_utf8(bytes).ok()
}

/// When a token ends, in seconds since 1970; None if it does not or can't be read.
pub fn end_of_token(secret: &Value) -> Option<i64> {
    let until: Timestamp = data(secret, "expiration")?.parse().ok()?;
    Some(until.as_second())
}

/// Compares in a time that depends on the lengths alone.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |d, (x, y)| d | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_roles() {
        let secret = |extra: Value| {
            let b64 = |text: &str| STANDARD.encode(text);
            let mut object = json!({"type": TOKEN_TYPE, "data": {
                "token-secret": b64("s"), "usage-bootstrap-authentication": b64("true"),
                "expiration": b64("2030-01-01T00:00:00Z")}});
            for (key, value) in extra.as_object().into_iter().flatten() {
                object["data"][key] = b64(value.as_str().unwrap_or("")).into();
            }
            object
        };
        let now: Timestamp = "2029-01-01T00:00:00Z".parse().unwrap();
        let role = |extra: Value| role_in(&secret(extra), "s", now);
        assert_eq!(role(json!({"role": "any"})), Some(TokenRole::Any));
        assert_eq!(role(json!({"role": "node"})), Some(TokenRole::Node));
        assert_eq!(role(json!({})), Some(TokenRole::Node));
        assert_eq!(role(json!({"role": "everything"})), Some(TokenRole::Node));
        assert_eq!(role(json!({"expiration": "2028-01-01T00:00:00Z"})), None);
        assert_eq!(role(json!({"usage-bootstrap-authentication": "false"})), None);
        assert_eq!(role_in(&secret(json!({"role": "any"})), "t", now), None);
    }

    #[test]
    fn names_and_comparison() {
        assert!(check_name("n1").is_ok());
        assert!(check_name("n1.example.org").is_ok());
        let member = "member-1.cluster-2.rkube.internal";
        for bad in ["", member, "N1", "a/b", "-a", "a..b", "system:node:x", &"a".repeat(254)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd"));
        assert!(!same(b"abc", b"ab"));
    }
}
