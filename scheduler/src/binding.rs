//! Sends a binding and finds out what came of it.
//!
//! The answer is yes, a refusal, or nothing that tells: a timeout, a broken connection, a 5xx. In
//! the last case the pod may be bound already, and it may yet be bound later. Over a network the
//! request can lie in a socket or with a handler at work. In one process with the API server a
//! request that is dropped, times out or panics takes its handler with it, but not what that has
//! proposed to the store; it is applied after all that stands before it in the store's queue, and a
//! read does not wait for that queue. So a live read proves what it shows bound, and of an unbound
//! pod not that it stays so. No precondition helps: the uid tells apart pods of one name; a
//! Binding's `resourceVersion` is one upstream (our API server does not look at it), and fences an
//! older request only once the pod has changed.
//!
//! Therefore a binding whose answer was lost is sent again with back-off, to the same node, and the
//! pod stays assumed there. Whichever copy is applied first wins, the others are conflicts, and all
//! of them put the pod where its room is kept. This ends when
//! - an answer or a live read shows the pod bound;
//! - the pod is gone, is another one of that name, or is going away: no copy can bind it any more;
//! - a copy is refused: all are alike, so a late one is refused too. Left open: the right or policy
//!   that was in the way changes while an old copy is under way;
//! - the node takes the pod no more (it is gone, cordoned, tainted): decided anew, lest the pod ends
//!   on a node that nobody would choose. A late copy makes the new binding a conflict, and a live
//!   read settles it. Left open: a pod that the node does take gets the room before;
//! - the scheduler ends: the next one does not know of copies. In one process with the API server
//!   both end together, and the log is applied before anybody lists. Left open: a scheduler that
//!   starts anew alone, for as long as an old copy is under way: through the store's queue, and over
//!   a network as long as that and the API server (a minute) allow a request.

use crate::pod::PodInfo;
use crate::resources::is_terminal;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use rkube_runtime::backoff::RECONNECT;
use rkube_runtime::{Client, ClientError};
use serde::de::IgnoredAny;
use serde_json::json;
use std::sync::Arc;

/// A pod on its way to a node.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// The node on which it is assumed.
    pub node: Arc<str>,
    /// The answer to this request or to an earlier copy was lost: a copy may be applied later.
    pub lost: bool,
    /// How many live reads have failed since the request.
    pub unread: u32,
}

impl Attempt {
    /// Not sent yet; `lost` if an earlier copy was, and its answer did not come.
    pub fn new(pod: Arc<PodInfo>, node: Arc<str>, lost: bool) -> Self {
        Attempt { pod, node, lost, unread: 0 }
    }
}

/// What the failure of a binding says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The API server has decided against it.
    Refused,
    /// This request has not bound the pod, but something may have: an earlier copy, or somebody else.
    Contested,
    /// It may have bound the pod, or may yet.
    Unknown,
}

/// Judges the failure of a binding. Only a 4xx is a decision; 408 and 429 are none, they say that
/// the API server (or what stands before it) was out of time or did not look at the request.
pub(crate) fn verdict(error: &ClientError) -> Verdict {
    let code = match error.source.as_ref() {
        kube::Error::Api(status) => status.code,
        _ => return Verdict::Unknown,
    };
    match code {
        409 => Verdict::Contested,
        408 | 429 => Verdict::Unknown,
        400..=499 => Verdict::Refused,
        _ => Verdict::Unknown,
    }
}

/// What a live read shows of a pod that was to be bound.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// It has this node.
    Bound(Arc<PodInfo>, Arc<str>),
    /// It has none and may get one.
    Unbound,
    /// It takes no room and never will: it is not there, another has its name, it has ended, or it
    /// is going away without a node (the API server binds no such pod).
    Gone,
}

/// Judges what a live read has answered about the pod of this uid.
pub(crate) fn found(live: Option<&Pod>, uid: &str) -> Found {
    let Some(pod) = live.filter(|p| p.metadata.uid.as_deref() == Some(uid)) else {
        return Found::Gone;
    };
    if is_terminal(pod) {
        return Found::Gone;
    }
    let info = PodInfo::of(pod);
    match info.node.clone() {
        Some(node) => Found::Bound(Arc::new(info), node),
        None if info.terminating => Found::Gone,
        None => Found::Unbound,
    }
}

/// Asks the API server to bind the pod.
pub(crate) async fn bind(client: &Client, pod: &PodInfo, node: &str) -> Result<(), ClientError> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.key.name, "namespace": pod.key.namespace, "uid": &*pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let api = Api::<Pod>::namespaced(client.kube().clone(), &pod.key.namespace);
    let params =
        PostParams { field_manager: Some(client.manager().into()), ..PostParams::default() };
    let done = api.create_subresource::<_, IgnoredAny>("binding", &pod.key.name, &params, &body);
    done.await.map(drop).map_err(ClientError::of::<Pod>("bind", &pod.key))
}

/// Reads the pod past all caches; after reads that failed, with a back-off before it.
pub(crate) async fn ask(client: &Client, attempt: &Attempt) -> Result<Found, ClientError> {
    if attempt.unread > 0 {
        tokio::time::sleep(RECONNECT.delay(attempt.unread)).await;
    }
    let live = client.get_live::<Pod>(&attempt.pod.key).await?;
    Ok(found(live.as_ref(), &attempt.pod.uid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use rkube_runtime::ObjectKey;
    use serde_json::Value;

    fn failure(source: kube::Error) -> ClientError {
        ClientError::of::<Pod>("bind", &ObjectKey::new("default", "a"))(source)
    }

    #[test]
    fn only_a_decision_is_a_refusal() {
        for (code, expected) in [
            (400, Verdict::Refused),
            (401, Verdict::Refused),
            (403, Verdict::Refused),
            (404, Verdict::Refused),
            (408, Verdict::Unknown),
            (409, Verdict::Contested),
            (422, Verdict::Refused),
            (429, Verdict::Unknown),
            (500, Verdict::Unknown),
            (503, Verdict::Unknown),
            (504, Verdict::Unknown),
            (0, Verdict::Unknown),
        ] {
            let status = Status::failure("no", "Because").with_code(code);
            assert_eq!(verdict(&failure(kube::Error::Api(status.boxed()))), expected, "{code}");
        }
        let broken = kube::Error::Service("connection reset".into());
        assert_eq!(verdict(&failure(broken)), Verdict::Unknown);
        let cut_short = serde_json::from_str::<Value>("{\"kind\":").unwrap_err();
        assert_eq!(verdict(&failure(kube::Error::SerdeError(cut_short))), Verdict::Unknown);
    }

    #[test]
    fn what_a_live_read_shows() {
        let shown = |value: Value| {
            let pod: Pod = serde_json::from_value(value).unwrap();
            match found(Some(&pod), "a") {
                Found::Bound(pod, node) => format!("{} on {node}", pod.key),
                other => format!("{other:?}"),
            }
        };
        let meta = json!({"name": "a", "namespace": "default", "uid": "a"});
        let mut leaving = meta.clone();
        leaving["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        let containers = json!([{"name": "c"}]);
        let free = json!({"containers": containers});
        let placed = json!({"containers": containers, "nodeName": "n"});
        let other = json!({"name": "a", "namespace": "default", "uid": "b"});
        for (value, expected) in [
            (json!({"metadata": meta, "spec": free}), "Unbound"),
            (json!({"metadata": meta, "spec": placed}), "default/a on n"),
            (json!({"metadata": leaving, "spec": placed}), "default/a on n"),
            (json!({"metadata": leaving, "spec": free}), "Gone"),
            (json!({"metadata": other, "spec": placed}), "Gone"),
            (json!({"metadata": meta, "spec": placed, "status": {"phase": "Succeeded"}}), "Gone"),
        ] {
            assert_eq!(shown(value.clone()), expected, "{value}");
        }
        assert!(matches!(found(None, "a"), Found::Gone));
    }
}
