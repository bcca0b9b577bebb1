//! One kind, listed and then watched, for as long as the receiver lives.
//!
//! Every relist is complete and comes at one revision; the receiver gets it whole, so that it can
//! tell what is gone. Between lists changes come one by one and in order.

use futures::{StreamExt, pin_mut};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt};
use rand::Rng;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Duration;
use tokio::sync::mpsc::Sender;

/// News of one kind.
#[derive(Debug)]
pub enum Change<K> {
    /// Everything that there is.
    Listed {
        /// The objects.
        items: Vec<K>,
        /// The revision of the list; empty if the server gave none.
        revision: String,
    },
    /// An object is new or has changed.
    Applied(K),
    /// An object is gone; its last version.
    Deleted(K),
    /// The list failed.
    Failed(kube::Error),
}

/// Which objects to watch; empty fields mean all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// As in `fieldSelector`.
    pub fields: String,
    /// As in `labelSelector`.
    pub labels: String,
}

impl Selection {
    /// Objects with these fields.
    pub fn fields(fields: impl Into<String>) -> Self {
        Self { fields: fields.into(), ..Self::default() }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Lists and watches until the receiver is dropped.
pub async fn list_watch<K>(api: Api<K>, selection: Selection, changes: Sender<Change<K>>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match list_then_watch(&api, &selection, &changes).await {
            Ok(true) => pause = FIRST_PAUSE,
            Ok(false) => return,
            Err(error) => {
                if changes.send(Change::Failed(error)).await.is_err() {
                    return;
                }
                // Nodes that lost the same server don't come back in step.
                let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
                tokio::time::sleep(jittered).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// False if nobody wants to know any more.
async fn list_then_watch<K>(
    api: &Api<K>,
    selection: &Selection,
    changes: &Sender<Change<K>>,
) -> kube::Result<bool>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let params = ListParams::default().fields(&selection.fields).labels(&selection.labels);
    let list = api.list(&params).await?;
    let revision = list.metadata.resource_version.unwrap_or_default();
    let listed = Change::Listed { items: list.items, revision: revision.clone() };
    if changes.send(listed).await.is_err() {
        return Ok(false);
    }
    watch_from(api, selection, changes, revision).await
}

/// Goes on from a revision over as many connections as it takes; returns when a list is needed.
async fn watch_from<K>(
    api: &Api<K>,
    selection: &Selection,
    changes: &Sender<Change<K>>,
    mut revision: String,
) -> kube::Result<bool>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let params = WatchParams::default().fields(&selection.fields).labels(&selection.labels);
    loop {
        let events = api.watch(&params, &revision).await?;
        pin_mut!(events);
        let mut seen = 0u32;
        while let Some(event) = events.next().await {
            seen = seen.saturating_add(1);
            let (object, change): (_, fn(K) -> Change<K>) = match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    (object, Change::Applied)
                }
                Ok(WatchEvent::Deleted(object)) => (object, Change::Deleted),
                Ok(WatchEvent::Bookmark(mark)) => {
                    revision = mark.metadata.resource_version;
                    continue;
                }
                // Mostly 410: the history no longer reaches back to our revision.
                Ok(WatchEvent::Error(_)) => return Ok(!changes.is_closed()),
                Err(_) => break,
            };
            revision = object.resource_version().unwrap_or(revision);
            if changes.send(change(object)).await.is_err() {
                return Ok(false);
            }
        }
        if changes.is_closed() {
            return Ok(false);
        }
        if seen == 0 {
            tokio::time::sleep(FIRST_PAUSE).await;
        }
    }
}
