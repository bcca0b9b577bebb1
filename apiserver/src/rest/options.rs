//! The parameters of reads.

use crate::context::{Cx, invalid_option};
use crate::query::Query;
use crate::server::ApiServer;
use rkube_api::registry::Kind;
use rkube_api::selector::{FieldSelector, LabelSelector};
use rkube_api::{ApiError, Cause, FieldError, Reason};
use rkube_store::{Object, Scope, View, ViewError};
use std::time::Duration;

/// How long a read waits for a revision that has not come yet.
const REVISION_WAIT: Duration = Duration::from_secs(3);

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// This revision or a later one.
    NotOlderThan,
    /// This revision.
    Exact,
}

/// The parameters of a list or watch.
pub struct ListOptions {
    /// Which objects.
    pub selection: Selection,
    /// At most so many; 0 for all.
    pub limit: usize,
    /// Where an earlier page ended.
    pub continue_token: Option<String>,
    /// The revision asked for.
    pub revision: Option<u64>,
    /// How it is meant.
    pub revision_match: Option<Match>,
    /// A watch begins with what is there; None if nothing is said.
    pub send_initial_events: Option<bool>,
    /// A watch tells its progress.
    pub bookmarks: bool,
    /// How long a watch lives.
    pub timeout: Option<Duration>,
    /// What this member knows will do, however old.
    pub stale: bool,
}

/// Which objects of a scope are meant.
pub struct Selection {
    /// By labels.
    pub labels: LabelSelector,
    /// By fields.
    pub fields: FieldSelector,
}

impl Selection {
    /// The selectors of a request for a kind.
    ///
    /// # Errors
    /// 400 for a selector that can't be read or a field that the kind does not know.
    pub fn parse(kind: &Kind, query: &Query) -> Result<Self, ApiError> {
        let labels = match query.text("labelSelector") {
            Some(text) => LabelSelector::parse(text)?,
            None => LabelSelector::everything(),
        };
        let fields = match query.text("fieldSelector") {
            Some(text) => FieldSelector::parse(text)?,
            None => FieldSelector::default(),
        };
        let known = |field: &str| {
            field == "metadata.name"
                || field == "metadata.namespace" && kind.namespaced
                || kind.selectable_fields.iter().any(|f| f == field)
        };
        fields.check(known)?;
        Ok(Selection { labels, fields })
    }

    /// No condition at all.
    pub fn is_everything(&self) -> bool {
        self.labels.selects_everything() && self.fields.selects_everything()
    }

    /// Whether an object is meant.
    pub fn matches(&self, kind: &Kind, object: &Object) -> bool {
        if !self.labels.matches(&*object.header.labels) {
            return false;
        }
        if self.fields.selects_everything() {
            return true;
        }
        let converted: Vec<String>;
        let position = |field: &str| kind.selectable_fields.iter().position(|f| f == field);
        match kind.stored_as {
            None => self.fields.matches(|field| match field {
                "metadata.name" => Some(&*object.key.name),
                "metadata.namespace" => Some(&*object.key.namespace),
                _ => object.header.fields.get(position(field)?).map(|v| &**v),
            }),
            Some(_) => {
                let value = super::value_of(kind, object).unwrap_or_default();
                converted = kind.strategy.selectable_values(&value);
                self.fields.matches(|field| match field {
                    "metadata.name" => Some(&*object.key.name),
                    "metadata.namespace" => Some(&*object.key.namespace),
                    _ => converted.get(position(field)?).map(String::as_str),
                })
            }
        }
    }

    /// The term of the store's index that holds every object meant, if there is one.
    pub fn index_term(&self, kind: &Kind) -> Option<String> {
        let exact = |field: &str| self.fields.exact(field).filter(|v| !v.is_empty());
        match kind.plural.as_str() {
            "pods" => exact("spec.nodeName").map(|node| format!("node={node}")),
            "events" => exact("involvedObject.uid")
                .or_else(|| exact("regarding.uid"))
                .map(|uid| format!("involved={uid}")),
            _ => None,
        }
    }

    /// The objects meant may lie in: a namespace or all, one name or all.
    pub fn scope(&self, kind: &Kind, namespace: &str, name: Option<&str>) -> Scope {
        let mut scope = Scope::all(&kind.store_resource());
        if !kind.namespaced {
            scope.namespace = Some("".into());
        } else if !namespace.is_empty() {
            scope.namespace = Some(namespace.into());
        } else {
            scope.namespace = self.fields.exact("metadata.namespace").map(Into::into);
        }
        scope.name = name.or_else(|| self.fields.exact("metadata.name")).map(Into::into);
        scope
    }
}

impl ListOptions {
    /// The options of a list or watch.
    ///
    /// # Errors
    /// 400 for what can't be read, 422 for what does not go together; worded as upstream.
    pub fn parse(kind: &Kind, cx: &Cx, watching: bool) -> Result<Self, ApiError> {
        let query = &cx.query;
        let options = ListOptions {
            selection: Selection::parse(kind, query)?,
            limit: query.number("limit")?.unwrap_or(0).max(0) as usize,
            continue_token: query.text("continue").map(str::to_owned),
            revision: revision(query)?,
            revision_match: revision_match(query)?,
            send_initial_events: query.flag("sendInitialEvents")?,
            bookmarks: query.flag("allowWatchBookmarks")?.unwrap_or(false),
            stale: allows_stale(cx)?,
            timeout: query
                .number("timeoutSeconds")?
                .filter(|s| *s > 0)
                .map(|s| Duration::from_secs(s.min(i64::from(u32::MAX)) as u64)),
        };
        match options.fault(watching) {
            None => Ok(options),
            Some((field, why)) => Err(invalid_option(
                "ListOptions",
                FieldError::Forbidden { path: field.into(), detail: why },
            )),
        }
    }

    /// What does not go together.
    fn fault(&self, watching: bool) -> Option<(&'static str, String)> {
        let matching = "resourceVersionMatch";
        let word = match self.revision_match {
            Some(Match::Exact) => "Exact",
            Some(Match::NotOlderThan) => "NotOlderThan",
            None => "",
        };
        if watching {
            return match (self.send_initial_events, self.revision_match) {
                (None, Some(_)) => Some((
                    matching,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided".into(),
                )),
                (Some(_), None) => Some((
                    matching,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan".into(),
                )),
                (Some(_), Some(Match::Exact)) => Some((
                    matching,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan".into(),
                )),
                _ => None,
            };
        }
        if self.send_initial_events.is_some() {
            return Some(("sendInitialEvents", "sendInitialEvents is forbidden for list".into()));
        }
        let Some(how) = self.revision_match else {
            let later_page = self.continue_token.is_some() && self.revision.is_some_and(|r| r > 0);
            return later_page.then(|| {
                (
                    "resourceVersion",
                    "specifying resource version is not allowed when using continue".into(),
                )
            });
        };
        match (how, self.revision, &self.continue_token) {
            (_, _, Some(_)) => Some((
                matching,
                "resourceVersionMatch is forbidden when continue is provided".into(),
            )),
            (_, None, _) => Some((
                matching,
                "resourceVersionMatch is forbidden unless resourceVersion is provided".into(),
            )),
            (Match::Exact, Some(0), _) => Some((
                matching,
                format!(
                    "resourceVersionMatch {:?} is forbidden for resourceVersion \"0\"",
                    word.to_lowercase()
                ),
            )),
            _ => None,
        }
    }

    /// The state that a list shows.
    ///
    /// # Errors
    /// 410 for a revision that is gone, 504 for one that does not come.
    pub async fn view(&self, api: &ApiServer, resource: &str) -> Result<View, ApiError> {
        match (self.revision, self.revision_match) {
            (Some(revision), Some(Match::Exact)) => {
                reached(api, revision).await?;
                api.storage.view_at(revision, resource).await.map_err(view_error)
            }
            (revision, _) => self.latest(api, revision).await,
        }
    }

    /// The state at `revision` or later: not older than any that a member ever showed, so that a
    /// client that moves between members never goes back, unless a stale one will do.
    ///
    /// # Errors
    /// 503 without a leader, 504 for a revision that does not come.
    pub async fn latest(&self, api: &ApiServer, revision: Option<u64>) -> Result<View, ApiError> {
        latest(api, revision, self.stale).await
    }
}

/// The revision a request names.
///
/// # Errors
/// 400 for what is no number.
pub fn revision(query: &Query) -> Result<Option<u64>, ApiError> {
    query
        .text("resourceVersion")
        .map(|text| {
            text.parse().map_err(|_| {
                ApiError::bad_request(format!(
                    "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                ))
            })
        })
        .transpose()
}

fn revision_match(query: &Query) -> Result<Option<Match>, ApiError> {
    match query.get("resourceVersionMatch").unwrap_or("") {
        "" => Ok(None),
        "NotOlderThan" => Ok(Some(Match::NotOlderThan)),
        "Exact" => Ok(Some(Match::Exact)),
        other => Err(invalid_option(
            "ListOptions",
            FieldError::NotSupported {
                path: "resourceVersionMatch".into(),
                value: other.into(),
                supported: vec!["Exact".into(), "NotOlderThan".into()],
            },
        )),
    }
}

/// The state that a read of one object shows.
///
/// # Errors
/// 504 for a revision that does not come.
pub async fn view_for_read(api: &ApiServer, cx: &Cx) -> Result<View, ApiError> {
    let stale = allows_stale(cx)?;
    if stale {
        warn_stale(api, cx);
    }
    latest(api, revision(&cx.query)?, stale).await
}

/// Whether the client takes what this member knows, however old (`allowStale=true`).
fn allows_stale(cx: &Cx) -> Result<bool, ApiError> {
    Ok(cx.query.flag("allowStale")?.unwrap_or(false))
}

/// Says what a stale read is worth.
pub fn warn_stale(api: &ApiServer, cx: &Cx) {
    let (name, silence) = (api.storage.own_name(), api.storage.leader_contact().as_secs());
    cx.warn([format!("may be stale: member {name} has heard of no leader for {silence} s")]);
}

async fn latest(api: &ApiServer, revision: Option<u64>, stale: bool) -> Result<View, ApiError> {
    let view = if stale { api.storage.view() } else { api.storage.fresh_view().await? };
    match revision {
        Some(revision) if view.revision() < revision => reached(api, revision).await,
        _ => Ok(view),
    }
}

/// The state here at `revision` or later, as soon as it is there.
///
/// # Errors
/// 504 with the cause that clients look for.
pub async fn reached(api: &ApiServer, revision: u64) -> Result<View, ApiError> {
    let waited = tokio::time::timeout(REVISION_WAIT, api.storage.reach(revision)).await;
    let view = api.storage.view();
    if waited.is_ok() && view.revision() >= revision {
        Ok(view)
    } else {
        Err(too_large(revision, view.revision()))
    }
}

/// 504 for a revision of the future.
pub fn too_large(revision: u64, current: u64) -> ApiError {
    let mut error = ApiError::new(
        Reason::Timeout,
        format!("Timeout: Too large resource version: {revision}, current: {current}"),
    );
    error.causes.push(Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    });
    error.retry_after_seconds = Some(1);
    error
}

/// Why a state can't be shown.
pub fn view_error(error: ViewError) -> ApiError {
    match error {
        ViewError::Compacted(gone) => ApiError::expired(format!(
            "The resourceVersion for the provided list is too old: {} ({})",
            gone.asked, gone.oldest
        )),
        ViewError::Future { asked, current } => too_large(asked, current),
    }
}
