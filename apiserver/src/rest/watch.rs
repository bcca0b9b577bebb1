//! Watches: what is there, if asked for, then every change, in order, until time is up.
//!
//! States: initial objects being written, the mark behind them if the client waits for one, then
//! changes. A watcher that is slower than the history is long gets its stream closed. Pending
//! events are joined into one piece; a JSON line is made once per event for all watchers.

use super::object::{message_of, partial_of};
use super::options::{self, ListOptions, Match};
use super::table::{self, IncludeObject};
use crate::body::{Body, BoxError};
use crate::codec;
use crate::contact;
use crate::context::Cx;
use crate::metrics::{Flight, KindLabels};
use crate::negotiate::{Accepted, Encoding, Shape};
use crate::server::ApiServer;
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use rkube_api::ApiError;
use rkube_api::registry::Kind;
use rkube_store::event::json_line;
use rkube_store::{Event, EventKind, Object, Scope, View, Watch, WatchError, WatchType};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of initial objects joined into one piece.
const PIECE: usize = 64 * 1024;
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The last bookmark comes this long before the end.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// The annotation of the mark behind the initial objects.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Where a watch begins.
struct Start {
    initial: Vec<Arc<Object>>,
    /// A mark follows the initial objects.
    mark: bool,
    watch: Watch,
    /// The revision of the initial objects.
    revision: u64,
}

/// Answers a watch.
///
/// # Errors
/// What the client gets to see before the first event.
pub async fn watch(
    api: &Arc<ApiServer>,
    cx: &Cx,
    kind: &Arc<Kind>,
) -> Result<Response<Body>, ApiError> {
    let options = ListOptions::parse(kind, cx, true)?;
    let name = cx.info.named.then_some(cx.info.name.as_str());
    let scope = options.selection.scope(kind, &cx.info.namespace, name);
    let include = table::include_object(cx)?;
    if options.stale {
        options::warn_stale(api, cx);
    } else if api.contact.is_lost() {
        // It would end at once; another member may do better.
        api.storage.fresh_view().await?;
    }
    let start = start(api, kind, &options, &scope).await?;
    let life = options.timeout.unwrap_or_else(|| default_life(api));
    let labels = KindLabels { group: kind.group.clone(), resource: kind.plural.clone() };
    let stream = Stream {
        writer: Writer {
            api: Arc::clone(api),
            kind: Arc::clone(kind),
            accepted: cx.accepted,
            include,
            columns_sent: false,
            events: api.metrics.watch_events.get_or_create_owned(&labels),
        },
        initial: start.initial.into_iter(),
        mark: start.mark.then_some(start.revision),
        watch: start.watch,
        options,
        deadline: Instant::now() + life,
        out_of_touch: api.contact.subscribe(),
        bookmark_at: Instant::now() + first_bookmark(life),
        over: false,
        _flight: Flight::start(api.metrics.long_running.get_or_create_owned(&labels)),
    };
    let body = futures::stream::unfold(stream, |mut stream| async move {
        let piece = stream.next().await?;
        Some((piece, stream))
    });
    let content_type = match cx.accepted.encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    let mut response = Response::new(Body::stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

/// Between once and twice the configured time, so that watches do not all end at once.
fn default_life(api: &ApiServer) -> Duration {
    api.config().min_request_timeout.mul_f64(1.0 + rand::random::<f64>())
}

fn first_bookmark(life: Duration) -> Duration {
    let before_end = life.saturating_sub(BOOKMARK_BEFORE_END);
    BOOKMARK_EVERY.mul_f64(0.9 + 0.2 * rand::random::<f64>()).min(before_end)
}

async fn start(
    api: &ApiServer,
    kind: &Kind,
    options: &ListOptions,
    scope: &Scope,
) -> Result<Start, ApiError> {
    let initial_events = options.send_initial_events;
    let view = match (options.revision, initial_events) {
        (None | Some(0), _) | (_, Some(true)) => options.latest(api, options.revision).await?,
        (Some(revision), _) => {
            // A client that has seen this revision elsewhere must not be told that it is wrong.
            options::reached(api, revision).await?;
            let watch = begin(api, scope, revision)?;
            return Ok(Start { initial: Vec::new(), mark: false, watch, revision });
        }
    };
    let watch = begin(api, scope, view.revision())?;
    let wanted = initial_events.unwrap_or(true);
    debug_assert!(options.revision_match != Some(Match::Exact));
    let initial = if wanted { initial(&view, kind, options, scope) } else { Vec::new() };
    let mark = initial_events == Some(true) && options.bookmarks;
    Ok(Start { initial, mark, watch, revision: view.revision() })
}

fn initial(view: &View, kind: &Kind, options: &ListOptions, scope: &Scope) -> Vec<Arc<Object>> {
    let selection = &options.selection;
    let meant = |o: &Arc<Object>| selection.is_everything() || selection.matches(kind, o);
    match selection.index_term(kind) {
        Some(term) => view
            .indexed(&scope.resource, &term)
            .filter(|o| scope.contains(&o.key))
            .filter(meant)
            .collect(),
        None => view.range(scope, None).filter(meant).collect(),
    }
}

fn begin(api: &ApiServer, scope: &Scope, revision: u64) -> Result<Watch, ApiError> {
    api.storage.watch(scope.clone(), revision).map_err(|error| match error {
        WatchError::Compacted { oldest } => {
            ApiError::expired(format!("too old resource version: {revision} ({oldest})"))
        }
        WatchError::Future { current } => options::too_large(revision, current),
    })
}

/// A watch being served.
struct Stream {
    writer: Writer,
    initial: std::vec::IntoIter<Arc<Object>>,
    /// The revision of the mark still to be sent.
    mark: Option<u64>,
    watch: Watch,
    options: ListOptions,
    deadline: Instant,
    bookmark_at: Instant,
    /// Turns true when no leader was heard of for too long.
    out_of_touch: tokio::sync::watch::Receiver<bool>,
    over: bool,
    _flight: Flight,
}

impl Stream {
    /// The next piece; None at the end.
    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        if self.over {
            return None;
        }
        if let Some(piece) = self.initial_piece() {
            return Some(piece);
        }
        let api = Arc::clone(&self.writer.api);
        loop {
            let batch = tokio::select! {
                biased;
                () = api.stopping.cancelled() => return None,
                () = contact::lost(&mut self.out_of_touch), if !self.options.stale => return None,
                batch = self.watch.next_batch() => batch,
                () = tokio::time::sleep_until(self.bookmark_at), if self.options.bookmarks => {
                    self.bookmark_at = self.following_bookmark();
                    let revision = self.watch.progress();
                    return Some(self.writer.bookmark(revision, false));
                }
                () = tokio::time::sleep_until(self.deadline) => return None,
            };
            match batch {
                // Too slow: the client starts anew from what it has.
                Err(lagged) => {
                    tracing::info!(
                        resource = self.writer.kind.plural,
                        at = lagged.at,
                        "a watcher was too slow"
                    );
                    return None;
                }
                Ok(events) => match self.changes(&events) {
                    Ok(piece) if piece.is_empty() => {}
                    Ok(piece) => return Some(Ok(piece)),
                    Err(error) => {
                        self.over = true;
                        return Some(self.writer.error(&error));
                    }
                },
            }
        }
    }

    fn following_bookmark(&self) -> Instant {
        let next = Instant::now() + BOOKMARK_EVERY;
        let last = self.deadline - BOOKMARK_BEFORE_END;
        // Behind the last one there is none.
        if Instant::now() >= last { self.deadline + BOOKMARK_EVERY } else { next.min(last) }
    }

    fn initial_piece(&mut self) -> Option<Result<Bytes, BoxError>> {
        let mut piece = Vec::new();
        while piece.len() < PIECE {
            let Some(object) = self.initial.next() else { break };
            if let Err(error) = self.writer.write(&mut piece, WatchType::Added, &object, None) {
                self.over = true;
                return Some(self.writer.error(&error));
            }
        }
        if self.initial.len() == 0
            && let Some(revision) = self.mark.take()
        {
            match self.writer.bookmark(revision, true) {
                Ok(mark) => piece.extend_from_slice(&mark),
                Err(error) => return Some(Err(error)),
            }
        }
        (!piece.is_empty()).then(|| Ok(piece.into()))
    }

    /// What the client sees of these events.
    fn changes(&mut self, events: &[Arc<Event>]) -> Result<Bytes, ApiError> {
        if let [event] = events
            && let Some(line) = self.shared_line(event)
        {
            return Ok(line);
        }
        let mut piece = Vec::new();
        for event in events {
            self.change(&mut piece, event)?;
        }
        Ok(piece.into())
    }

    /// The line that all watchers share, if this one sees the event as everybody does.
    fn shared_line(&self, event: &Event) -> Option<Bytes> {
        let plain = self.writer.is_plain() && self.options.selection.is_everything();
        plain.then(|| {
            self.writer.events.inc();
            event.json_line(event.watch_type())
        })
    }

    fn change(&mut self, piece: &mut Vec<u8>, event: &Event) -> Result<(), ApiError> {
        let kind = Arc::clone(&self.writer.kind);
        let selection = &self.options.selection;
        let meant = |object: &Object| selection.is_everything() || selection.matches(&kind, object);
        let before = event.previous.as_deref().is_some_and(&meant);
        let after = event.kind == EventKind::Put && meant(&event.object);
        match (before, after) {
            (false, false) => Ok(()),
            (false, true) => self.writer.write(piece, WatchType::Added, &event.object, Some(event)),
            (true, true) => {
                self.writer.write(piece, WatchType::Modified, &event.object, Some(event))
            }
            (true, false) => match (&event.previous, event.kind) {
                // Left the selection: its last state inside, at the revision of the change.
                (Some(previous), EventKind::Put) => {
                    let last = previous.at_revision(event.revision);
                    self.writer.write(piece, WatchType::Deleted, &last, None)
                }
                _ => self.writer.write(piece, WatchType::Deleted, &event.object, Some(event)),
            },
        }
    }
}

/// Writes events in the client's representation.
struct Writer {
    api: Arc<ApiServer>,
    kind: Arc<Kind>,
    accepted: Accepted,
    include: IncludeObject,
    columns_sent: bool,
    events: Counter,
}

impl Writer {
    /// The stored bytes are what the client reads.
    fn is_plain(&self) -> bool {
        self.accepted.shape == Shape::Object
            && self.accepted.encoding != Encoding::Protobuf
            && self.kind.stored_as.is_none()
    }

    fn write(
        &mut self,
        piece: &mut Vec<u8>,
        watch_type: WatchType,
        object: &Object,
        event: Option<&Event>,
    ) -> Result<(), ApiError> {
        self.events.inc();
        if self.is_plain() {
            match event {
                Some(event) => piece.extend_from_slice(&event.json_line(watch_type)),
                None => piece.extend_from_slice(&json_line(watch_type, &object.json)),
            }
            return Ok(());
        }
        let kind = Arc::clone(&self.kind);
        match (self.accepted.shape, self.accepted.encoding) {
            (Shape::Object, Encoding::Protobuf) => {
                let message = message_of(&self.api, &kind, object)?;
                let body = codec::envelope(&kind.api_version(), &kind.kind, &message);
                codec::watch_frame(piece, watch_type.as_str(), &body);
            }
            (Shape::Metadata, Encoding::Protobuf) => {
                let message =
                    codec::partial_message(self.api.schema, &super::value_of(&kind, object)?)?;
                let version = format!("meta.k8s.io/{}", self.accepted.meta_version);
                let body = codec::envelope(&version, "PartialObjectMetadata", &message);
                codec::watch_frame(piece, watch_type.as_str(), &body);
            }
            (Shape::Metadata, _) => {
                let bytes = partial_of(&kind, object, self.accepted.meta_version)?;
                piece.extend_from_slice(&json_line(watch_type, &bytes));
            }
            (Shape::Table, _) => {
                let value = super::value_of(&kind, object)?;
                let table = self.table(&value);
                piece.extend_from_slice(&json_line(watch_type, table.to_string().as_bytes()));
            }
            (Shape::Object, _) => {
                let value = super::value_of(&kind, object)?;
                piece.extend_from_slice(&json_line(watch_type, value.to_string().as_bytes()));
            }
        }
        Ok(())
    }

    /// A table of one row; the columns stand in the first one only.
    fn table(&mut self, value: &Value) -> Value {
        let columns = if std::mem::replace(&mut self.columns_sent, true) {
            Value::Null
        } else {
            table::columns(&self.kind)
        };
        let cells = self.kind.strategy.cells(value, Timestamp::now());
        let object = match self.include {
            IncludeObject::None => Value::Null,
            IncludeObject::Metadata => super::object::partial(value, self.accepted.meta_version),
            IncludeObject::Object => value.clone(),
        };
        let revision = value["metadata"]["resourceVersion"].clone();
        json!({
            "kind": "Table", "apiVersion": format!("meta.k8s.io/{}", self.accepted.meta_version),
            "metadata": {"resourceVersion": revision}, "columnDefinitions": columns,
            "rows": [{"cells": cells, "object": object}],
        })
    }

    /// Tells how far the client has come.
    fn bookmark(&mut self, revision: u64, end_of_initial: bool) -> Result<Bytes, BoxError> {
        let mut metadata =
            json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if end_of_initial {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let kind = &self.kind;
        let plain =
            json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
        let object = match self.accepted.shape {
            Shape::Object => plain,
            Shape::Metadata => super::object::partial(&plain, self.accepted.meta_version),
            Shape::Table => {
                // The row's object carries the annotation, as a client looks for it there.
                let version = self.accepted.meta_version;
                let object = super::object::partial(&plain, version);
                json!({
                    "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
                    "metadata": metadata, "columnDefinitions": [],
                    "rows": [{"cells": vec![Value::Null; kind.columns.len()], "object": object}],
                })
            }
        };
        self.frame("BOOKMARK", &object)
    }

    fn error(&mut self, error: &ApiError) -> Result<Bytes, BoxError> {
        self.frame("ERROR", &error.to_status())
    }

    fn frame(&mut self, word: &str, object: &Value) -> Result<Bytes, BoxError> {
        if self.accepted.encoding == Encoding::Protobuf {
            let body = codec::to_protobuf(object).ok_or("no protobuf form")?;
            let mut piece = Vec::new();
            codec::watch_frame(&mut piece, word, &body);
            return Ok(piece.into());
        }
        Ok(Bytes::from(format!("{{\"type\":\"{word}\",\"object\":{object}}}\n")))
    }
}
