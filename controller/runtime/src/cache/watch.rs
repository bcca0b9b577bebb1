//! Feeds a store from a watch: list, watch, bookmarks, a new list after 410, back-off between.

use super::{Store, Stored};
use crate::backoff::{Counting, RECONNECT};
use futures::{Stream, StreamExt};
use kube::runtime::{
    WatchStreamExt,
    watcher::{self, Event},
};
use tokio_util::sync::CancellationToken;

/// Runs until `stop`. `resource` names the kind in logs.
pub(super) async fn feed<K: Stored>(
    store: Store<K>,
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    resource: String,
    stop: CancellationToken,
) {
    let events = events.backoff(Counting::new(RECONNECT));
    let mut events = std::pin::pin!(events);
    let mut listed = Vec::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => take(&store, &mut listed, event),
            Some(Err(error)) => tracing::warn!(resource, %error, "watch broke; taking it up again"),
            None => return,
        }
    }
}

fn take<K: Stored>(store: &Store<K>, listed: &mut Vec<K>, event: Event<K>) {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(object) => listed.push(object),
        Event::InitDone => store.replace(std::mem::take(listed)),
        Event::Apply(object) => store.apply(object),
        Event::Delete(object) => store.delete(&object),
    }
}
