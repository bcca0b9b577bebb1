//! Kinds whose objects are made on request: where the objects come from, in the form in which the
//! store would give them, so that lists, tables and selectors work as ever.

use super::delete::Deletion;
use super::object::{encode, key_of};
use crate::body::Body;
use crate::context::Cx;
use crate::response;
use crate::server::ApiServer;
use crate::{member_requests, members};
use bytes::Bytes;
use http::Response;
use rkube_api::ApiError;
use rkube_api::registry::Kind;
use rkube_store::Object;
use std::sync::Arc;

/// The objects of a computed kind, by name. Nothing is waited for but other members' word.
///
/// # Errors
/// 500 if one can't be encoded.
pub async fn objects(api: &ApiServer, cx: &Cx, kind: &Kind) -> Result<Vec<Arc<Object>>, ApiError> {
    let values = match kind.plural.as_str() {
        "members" => members::list(api).await,
        _ => Vec::new(),
    };
    // They change without a revision; the store's is the best that can be said.
    let revision = api.storage.view().revision();
    let place = |value| {
        let name = rkube_api::meta::metadata_str(&value, "name").to_owned();
        let new = encode(api, kind, &value, cx.now)?;
        Ok(Arc::new(Object::place(key_of(kind, "", &name), &new, revision, revision)))
    };
    values.into_iter().map(place).collect()
}

/// One object of a computed kind.
///
/// # Errors
/// 404 if there is none.
pub async fn object(api: &ApiServer, cx: &Cx, kind: &Kind) -> Result<Arc<Object>, ApiError> {
    let name = &cx.info.name;
    let mut all = objects(api, cx, kind).await?.into_iter();
    all.find(|o| *o.key.name == **name)
        .ok_or_else(|| ApiError::not_found(&kind.group, &kind.plural, name))
}

/// Answers a DELETE.
///
/// # Errors
/// What the client gets to see.
pub async fn delete(
    api: &ApiServer,
    cx: &Cx,
    kind: &Kind,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let deletion = Deletion::parse(api, cx, body)?;
    let object = object(api, cx, kind).await?;
    deletion.check_preconditions(kind, &object)?;
    if !deletion.dry {
        member_requests::remove(api, &cx.identity, &object.key.name, false).await?;
    }
    let name = &object.key.name;
    let status = response::deleted(&kind.group, &kind.plural, name, &object.header.uid);
    Ok(response::encoded(http::StatusCode::OK, &status, cx.accepted.encoding))
}
