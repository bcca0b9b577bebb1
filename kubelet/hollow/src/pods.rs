//! One watch of all bound pods, and what is done about those on our nodes.
//!
//! A list, then a watch from its revision; a watch that ends is taken up where it was, one that
//! the server no longer can continue (410) begins with a list again. What was missed in between
//! is harmless: a pod that is still there says itself what it lacks.

use crate::fleet::{Fleet, node_address};
use crate::pod::{self, Action, Pod};
use crate::send::{Content, HollowError, send};
use futures::StreamExt;
use http::{Method, Request, StatusCode};
use jiff::Timestamp;
use kube::core::WatchEvent;
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%21%3D";
const PAGE: usize = 500;
/// Seconds after which the server ends a watch and we begin the next.
const WATCH_SECONDS: u32 = 290;
/// Pods that wait for their request: a burst of bindings must not hold up the watch, which the
/// server would close; 64 thousand are about 20 MB.
const QUEUE: usize = 1 << 16;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

type Queue = mpsc::Sender<(Pod, Action)>;

/// Runs pods, for ever.
pub async fn run(fleet: &Fleet) {
    let (queue, work) = mpsc::channel(QUEUE);
    let carry_out = ReceiverStream::new(work)
        .for_each_concurrent(fleet.config.parallel_requests, |(pod, action)| {
            carry_out(fleet, pod, action)
        });
    tokio::join!(follow(fleet, queue), carry_out);
}

/// Lists and watches, for ever.
async fn follow(fleet: &Fleet, queue: Queue) {
    let mut revision = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let outcome = match revision.take() {
            None => list(fleet, &queue).await.map(Some),
            Some(from) => watch(fleet, &queue, from).await,
        };
        match outcome {
            Ok(next) => {
                revision = next;
                pause = FIRST_PAUSE;
            }
            Err(error) => {
                tracing::warn!(%error, "pods are not seen");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    items: Vec<Pod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

/// Sees all pods; gives the revision at which.
async fn list(fleet: &Fleet, queue: &Queue) -> Result<String, HollowError> {
    let mut path = format!("{PODS}&limit={PAGE}");
    loop {
        let body = send(&fleet.client, Method::GET, &path, Content::Nothing).await?;
        let list: List =
            serde_json::from_slice(&body).map_err(|e| broken(&path, kube::Error::SerdeError(e)))?;
        for pod in list.items {
            consider(fleet, queue, pod).await;
        }
        if list.metadata.r#continue.is_empty() {
            return Ok(list.metadata.resource_version);
        }
        path = format!("{PODS}&limit={PAGE}&continue={}", list.metadata.r#continue);
    }
}

/// Sees changes from `revision` on until the server ends the watch; gives the revision to go on
/// from, none if that is too old.
async fn watch(
    fleet: &Fleet,
    queue: &Queue,
    mut revision: String,
) -> Result<Option<String>, HollowError> {
    let path = format!(
        "{PODS}&watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}\
         &resourceVersion={revision}"
    );
    let request = Request::get(&path).body(Vec::new());
    let request = request.map_err(|e| broken(&path, kube::Error::HttpError(e)))?;
    let events = match fleet.client.request_events::<Pod>(request).await {
        Err(kube::Error::Api(status)) if status.code == 410 => return Ok(None),
        other => other.map_err(|e| broken(&path, e))?,
    };
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event.map_err(|e| broken(&path, e))? {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                revision.clone_from(&pod.metadata.resource_version);
                consider(fleet, queue, pod).await;
            }
            WatchEvent::Deleted(pod) => revision = pod.metadata.resource_version,
            WatchEvent::Bookmark(bookmark) => revision = bookmark.metadata.resource_version,
            WatchEvent::Error(status) if status.code == 410 => return Ok(None),
            WatchEvent::Error(status) => return Err(broken(&path, kube::Error::Api(status))),
        }
    }
    Ok(Some(revision))
}

fn broken(path: &str, source: kube::Error) -> HollowError {
    HollowError::Unanswered { method: Method::GET, path: path.into(), source: Box::new(source) }
}

async fn consider(fleet: &Fleet, queue: &Queue, pod: Pod) {
    let action = pod::decide(&pod);
    if action != Action::Leave && fleet.index(&pod.spec.node_name).is_some() {
        // The other end lives as long as we do.
        let _ = queue.send((pod, action)).await;
    }
}

/// Does it, and again after a while as long as the server can't take it.
async fn carry_out(fleet: &Fleet, pod: Pod, action: Action) {
    let mut pause = FIRST_PAUSE;
    while let Err(error) = attempt(fleet, &pod, action).await {
        match error.code() {
            // It is gone, or another pod of its name is there: that one comes by itself.
            Some(StatusCode::NOT_FOUND | StatusCode::CONFLICT) => return,
            Some(code) if code.is_client_error() && code != StatusCode::TOO_MANY_REQUESTS => {
                tracing::warn!(%error, "a pod is left alone");
                return;
            }
            _ => tracing::debug!(%error, "trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn attempt(fleet: &Fleet, pod: &Pod, action: Action) -> Result<(), HollowError> {
    let metadata = &pod.metadata;
    let path = format!("/api/v1/namespaces/{}/pods/{}", metadata.namespace, metadata.name);
    let client = &fleet.client;
    match action {
        Action::Leave => Ok(()),
        Action::Remove => {
            let options = Content::Json(pod::removal(&metadata.uid));
            send(client, Method::DELETE, &path, options).await.map(drop)
        }
        Action::ReportRunning => {
            let host = node_address(fleet.index(&pod.spec.node_name).unwrap_or_default());
            let change = pod::running(pod, host, fleet.next_address(), Timestamp::now());
            let path = format!("{path}/status");
            send(client, Method::PATCH, &path, Content::StrategicMerge(change)).await.map(drop)
        }
    }
}
