//! Lists: a consistent state, page by page, written as a stream of the objects' own bytes.

use super::object::{json_of, message_of, partial_of};
use super::options::{self, ListOptions};
use super::table;
use crate::body::{Body, BoxError};
use crate::codec;
use crate::context::Cx;
use crate::gzip;
use crate::negotiate::{Encoding, Shape};
use crate::response;
use crate::server::ApiServer;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use rkube_api::ApiError;
use rkube_api::registry::Kind;
use rkube_store::{Key, Object, Scope, View};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// A body below this goes out as one piece with its length.
const ONE_PIECE: usize = 256 * 1024;
/// The size of the pieces of a larger one.
const PIECE: usize = 128 * 1024;

/// Where a page ended. Clients must not look inside; the version is there for us.
#[derive(Serialize, Deserialize)]
struct Continue {
    v: String,
    /// The revision of the first page; -1 to go on with whatever is current.
    rv: i64,
    /// The last key given, as `namespace/name`.
    start: String,
}

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";

impl Continue {
    fn encode(revision: i64, last: &Key) -> String {
        let token = Continue {
            v: CONTINUE_VERSION.into(),
            rv: revision,
            start: format!("{}/{}", last.namespace, last.name),
        };
        URL_SAFE_NO_PAD.encode(json!(token).to_string())
    }

    fn decode(text: &str, scope: &Scope) -> Result<(i64, Key), ApiError> {
        let bad = |why: &str| ApiError::bad_request(format!("invalid continue token: {why}"));
        let bytes = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|_| bad("continue key is not valid base64"))?;
        let token: Continue =
            serde_json::from_slice(&bytes).map_err(|_| bad("continue key is not valid"))?;
        if token.v != CONTINUE_VERSION || token.rv == 0 {
            return Err(bad("server does not recognize this encoded version"));
        }
        let (namespace, name) =
            token.start.split_once('/').ok_or_else(|| bad("continue key is not valid"))?;
        let elsewhere = scope.namespace.as_deref().is_some_and(|n| n != namespace);
        if elsewhere || name.contains('/') {
            return Err(bad("the key is outside of this list"));
        }
        Ok((token.rv, Key::new(&scope.resource, namespace, name)))
    }
}

/// One page.
struct Page {
    objects: Vec<Arc<Object>>,
    revision: u64,
    continue_token: Option<String>,
    remaining: Option<usize>,
}

impl Page {
    /// `metadata` of the list.
    fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(token) = &self.continue_token {
            metadata["continue"] = token.clone().into();
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        metadata
    }
}

/// Answers a list.
///
/// # Errors
/// What the client gets to see.
pub async fn list(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
) -> Result<Response<Body>, ApiError> {
    let options = ListOptions::parse(kind, cx, false)?;
    if options.stale {
        options::warn_stale(api, cx);
    }
    let scope = options.selection.scope(kind, &cx.info.namespace, None);
    let page = if kind.computed {
        let all = super::computed::objects(api, cx, kind).await?.into_iter();
        let selection = &options.selection;
        Page {
            objects: all.filter(|o| selection.matches(kind, o)).collect(),
            revision: api.storage.view().revision(),
            continue_token: None,
            remaining: None,
        }
    } else {
        page(api, kind, &options, &scope).await?
    };
    match cx.accepted.shape {
        Shape::Table => respond_table(cx, kind, page),
        shape => match cx.accepted.encoding {
            Encoding::Json => Ok(respond_json(cx, kind, page, shape)),
            Encoding::Yaml => respond_yaml(cx, kind, &page, shape),
            Encoding::Protobuf => respond_protobuf(api, cx, kind, &page, shape),
        },
    }
}

async fn page(
    api: &ApiServer,
    kind: &Kind,
    options: &ListOptions,
    scope: &Scope,
) -> Result<Page, ApiError> {
    let Some(token) = &options.continue_token else {
        let view = options.view(api, &scope.resource).await?;
        return Ok(cut(&view, kind, options, scope, None));
    };
    let (revision, after) = Continue::decode(token, scope)?;
    let view = match u64::try_from(revision) {
        Err(_) => options.latest(api, None).await?,
        Ok(revision) => page_at(api, revision, scope, &after).await?,
    };
    Ok(cut(&view, kind, options, scope, Some(&after)))
}

/// The state of a first page that another member may have served.
async fn page_at(
    api: &ApiServer,
    revision: u64,
    scope: &Scope,
    after: &Key,
) -> Result<View, ApiError> {
    options::reached(api, revision).await?;
    api.storage.view_at(revision, &scope.resource).await.map_err(|error| {
            let mut error = options::view_error(error);
            if error.reason == rkube_api::Reason::Expired {
                error.message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.".into();
                error.continue_token = Some(Continue::encode(-1, after));
            }
            error
        })
}

/// The page of a state behind `after`.
fn cut(
    view: &View,
    kind: &Kind,
    options: &ListOptions,
    scope: &Scope,
    after: Option<&Key>,
) -> Page {
    let selection = &options.selection;
    let meant = |object: &Arc<Object>| selection.is_everything() || selection.matches(kind, object);
    let most = if options.limit == 0 { usize::MAX } else { options.limit };
    // One more than asked tells whether there is another page.
    let one_more = most.saturating_add(1);
    let mut objects: Vec<Arc<Object>> = match selection.index_term(kind) {
        Some(term) => view
            .indexed(&scope.resource, &term)
            .filter(|o| scope.contains(&o.key) && after.is_none_or(|a| o.key > *a))
            .filter(meant)
            .take(one_more)
            .collect(),
        None => view.range(scope, after).filter(meant).take(one_more).collect(),
    };
    let mut page = Page {
        objects: Vec::new(),
        revision: view.revision(),
        continue_token: None,
        remaining: None,
    };
    if objects.len() > most {
        objects.truncate(most);
        if let Some(last) = objects.last() {
            page.continue_token = Some(Continue::encode(view.revision() as i64, &last.key));
            page.remaining =
                selection.is_everything().then(|| view.range(scope, Some(&last.key)).count());
        }
    }
    page.objects = objects;
    page
}

/// The list's kind and apiVersion.
fn list_kind(cx: &Cx, kind: &Kind, shape: Shape) -> (String, String) {
    match shape {
        Shape::Metadata => (
            "PartialObjectMetadataList".into(),
            format!("meta.k8s.io/{}", cx.accepted.meta_version),
        ),
        _ => (format!("{}List", kind.kind), kind.api_version()),
    }
}

fn item(cx: &Cx, kind: &Kind, shape: Shape, object: &Object) -> Result<Bytes, ApiError> {
    match shape {
        Shape::Metadata => partial_of(kind, object, cx.accepted.meta_version),
        _ => json_of(kind, object),
    }
}

fn respond_json(cx: &Cx, kind: &Arc<Kind>, page: Page, shape: Shape) -> Response<Body> {
    let (list_kind, api_version) = list_kind(cx, kind, shape);
    let head = format!(
        "{{\"kind\":\"{list_kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{},\"items\":[",
        page.metadata()
    );
    let meta_version = cx.accepted.meta_version;
    let kind = Arc::clone(kind);
    let size = head.len() + page.objects.iter().map(|o| o.json.len() + 1).sum::<usize>();
    let item = move |object: &Object| match shape {
        Shape::Metadata => partial_of(&kind, object, meta_version),
        _ => json_of(&kind, object),
    };
    let pieces = Pieces {
        head: Some(head),
        objects: page.objects.into_iter(),
        item,
        first: true,
        done: false,
    };
    respond_pieces(cx, pieces, size, Encoding::Json)
}

/// The pieces of a JSON list.
struct Pieces<F> {
    head: Option<String>,
    objects: std::vec::IntoIter<Arc<Object>>,
    item: F,
    first: bool,
    done: bool,
}

impl<F: Fn(&Object) -> Result<Bytes, ApiError>> Iterator for Pieces<F> {
    type Item = Result<Bytes, BoxError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let mut piece = Vec::with_capacity(PIECE + 4096);
        if let Some(head) = self.head.take() {
            piece.extend_from_slice(head.as_bytes());
        }
        while piece.len() < PIECE {
            let Some(object) = self.objects.next() else {
                piece.extend_from_slice(b"]}\n");
                self.done = true;
                break;
            };
            let bytes = match (self.item)(&object) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.done = true;
                    return Some(Err(error.into()));
                }
            };
            if !std::mem::take(&mut self.first) {
                piece.push(b',');
            }
            piece.extend_from_slice(&bytes);
        }
        Some(Ok(piece.into()))
    }
}

/// Sends pieces: at once if they are few, compressed if they are many and the client likes it.
fn respond_pieces(
    cx: &Cx,
    pieces: impl Iterator<Item = Result<Bytes, BoxError>> + Send + 'static,
    size: usize,
    encoding: Encoding,
) -> Response<Body> {
    let zip = size > gzip::THRESHOLD && gzip::is_accepted(cx.header(header::ACCEPT_ENCODING));
    let body = if zip {
        Body::stream(futures::stream::iter(gzip::Gzipped::new(pieces)))
    } else if size < ONE_PIECE {
        match pieces.collect::<Result<Vec<Bytes>, BoxError>>() {
            Ok(mut list) if list.len() == 1 => Body::from(list.remove(0)),
            Ok(list) => Body::from(Bytes::from(list.concat())),
            Err(error) => {
                return response::error(&ApiError::internal(error), cx.accepted);
            }
        }
    } else {
        Body::stream(futures::stream::iter(pieces))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(encoding.media_type()));
    if zip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

fn respond_yaml(
    cx: &Cx,
    kind: &Kind,
    page: &Page,
    shape: Shape,
) -> Result<Response<Body>, ApiError> {
    let (list_kind, api_version) = list_kind(cx, kind, shape);
    let mut items = Vec::with_capacity(page.objects.len());
    for object in &page.objects {
        let bytes = item(cx, kind, shape, object)?;
        items.push(serde_json::from_slice::<Value>(&bytes).map_err(ApiError::internal)?);
    }
    let list = json!({
        "kind": list_kind, "apiVersion": api_version, "metadata": page.metadata(), "items": items,
    });
    Ok(response::encoded(StatusCode::OK, &list, Encoding::Yaml))
}

fn respond_protobuf(
    api: &ApiServer,
    cx: &Cx,
    kind: &Kind,
    page: &Page,
    shape: Shape,
) -> Result<Response<Body>, ApiError> {
    let (list_kind, api_version) = list_kind(cx, kind, shape);
    let mut items = Vec::with_capacity(page.objects.len());
    for object in &page.objects {
        items.push(match shape {
            Shape::Metadata => codec::partial_message(api.schema, &super::value_of(kind, object)?)?,
            _ => message_of(api, kind, object)?,
        });
    }
    let body = codec::list(api.schema, &api_version, &list_kind, &page.metadata(), &items)?;
    let size = body.len();
    Ok(respond_pieces(cx, std::iter::once(Ok(body)), size, Encoding::Protobuf))
}

fn respond_table(cx: &Cx, kind: &Kind, page: Page) -> Result<Response<Body>, ApiError> {
    let include = table::include_object(cx)?;
    let mut rows = Vec::with_capacity(page.objects.len());
    for object in &page.objects {
        let value = super::value_of(kind, object)?;
        rows.push(table::row(cx, kind, &value, include));
    }
    let table = table::table(cx, page.metadata(), table::columns(kind), rows);
    let body = match cx.accepted.encoding {
        Encoding::Yaml => return Ok(response::encoded(StatusCode::OK, &table, Encoding::Yaml)),
        _ => Bytes::from(table.to_string()),
    };
    let size = body.len();
    let pieces = std::iter::once(Ok(body));
    Ok(respond_pieces(cx, pieces, size, Encoding::Json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_round_and_stays_in_its_scope() {
        let key = Key::new("pods", "a", "x.y");
        let token = Continue::encode(7, &key);
        let all = Scope::all("pods");
        assert_eq!(Continue::decode(&token, &all).unwrap(), (7, key));
        assert!(Continue::decode(&token, &Scope::namespace("pods", "b")).is_err());
        assert!(Continue::decode("zzz", &all).is_err());
        assert!(Continue::decode("", &all).is_err());
    }
}
