//! `/openapi/v2` and `/openapi/v3`.
//!
//! Documents are large and rarely asked for: each is built when it is, kept while it is used, and
//! forgotten a minute after its last use.

use crate::body::Body;
use crate::gzip;
use crate::negotiate::clauses;
use crate::query::Query;
use crate::response;
use crate::server::ApiServer;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use rkube_api::ApiError;
use rkube_api::schema::{gnostic, openapi};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const KEEP: Duration = Duration::from_secs(60);

/// The documents in use.
pub struct OpenApi {
    kept: Mutex<HashMap<String, (Bytes, Instant)>>,
}

impl OpenApi {
    /// None yet.
    pub fn new() -> Self {
        OpenApi { kept: Mutex::default() }
    }

    /// Forgets what was not used lately.
    pub fn forget_unused(&self) {
        self.kept.lock().retain(|_, (_, used)| used.elapsed() < KEEP);
    }

    /// Answers a GET below `/openapi`.
    ///
    /// # Errors
    /// 404 for a document that does not exist.
    pub fn answer(
        &self,
        api: &ApiServer,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        let kinds = &api.registry.kinds;
        let (tag, content_type, body) = match path.strip_prefix("/openapi/").unwrap_or("") {
            "v2" => {
                let tag = openapi::hash(kinds);
                if wants_gnostic(headers) {
                    let make = || gnostic::encode(&openapi::v2(api.schema, kinds)).into();
                    (format!("{tag}-pb"), gnostic::CONTENT_TYPE, self.kept("v2.pb", make))
                } else {
                    let make = || openapi::v2(api.schema, kinds).to_string().into();
                    (tag, "application/json", self.kept("v2", make))
                }
            }
            "v3" => {
                let body = openapi::v3_index(kinds).to_string();
                (openapi::hash(kinds), "application/json", body.into())
            }
            other => {
                let place = other.strip_prefix("v3/").ok_or_else(ApiError::no_route)?;
                let tag = openapi::v3_hash(kinds, place).ok_or_else(ApiError::no_route)?;
                if query.text("hash").is_some_and(|asked| asked != tag) {
                    return Ok(moved(place, &tag));
                }
                let make =
                    || openapi::v3(api.schema, kinds, place).unwrap_or_default().to_string().into();
                (tag, "application/json", self.kept(other, make))
            }
        };
        let forever = query.text("hash").is_some();
        Ok(document(headers, &tag, content_type, body, forever))
    }

    fn kept(&self, key: &str, make: impl FnOnce() -> Bytes) -> Bytes {
        if let Some((body, used)) = self.kept.lock().get_mut(key) {
            *used = Instant::now();
            return body.clone();
        }
        // Two who ask at once may both build it; that is cheaper than one who waits under a lock.
        let body = make();
        self.kept.lock().insert(key.into(), (body.clone(), Instant::now()));
        body
    }
}

fn wants_gnostic(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let list = clauses(accept);
    list.first()
        .is_some_and(|c| c.media_type == gnostic::ACCEPT || c.media_type == gnostic::CONTENT_TYPE)
}

/// The client's link is stale: here is the current one.
fn moved(place: &str, tag: &str) -> Response<Body> {
    let mut response = response::text(StatusCode::MOVED_PERMANENTLY, "");
    if let Ok(value) = HeaderValue::from_str(&format!("/openapi/v3/{place}?hash={tag}")) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

fn document(
    headers: &HeaderMap,
    tag: &str,
    content_type: &'static str,
    body: Bytes,
    forever: bool,
) -> Response<Body> {
    let quoted = format!("\"{tag}\"");
    let known = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|tags| tags.contains(&quoted));
    let accept = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or("");
    let zip = !known && body.len() > gzip::THRESHOLD && gzip::is_accepted(accept);
    let mut response = if known {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if zip {
        let pieces = gzip::Gzipped::new(std::iter::once(Ok(body)));
        Response::new(Body::stream(futures::stream::iter(pieces)))
    } else {
        Response::new(Body::from(body))
    };
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    out.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if zip {
        out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Ok(value) = HeaderValue::from_str(&quoted) {
        out.insert(header::ETAG, value);
    }
    if forever {
        out.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    response
}
