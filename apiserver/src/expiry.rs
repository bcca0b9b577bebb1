//! The end of events and join tokens: what is past its time is deleted, in batches, one at a time.

use crate::server::ApiServer;
use jiff::Timestamp;
use rkube_store::{Object, Precondition, Scope, View, Write};
use std::sync::Arc;
use std::time::Duration;

/// The longest pause between two rounds; shorter where events live shorter.
const EVERY: Duration = Duration::from_secs(60);
const AT_LEAST: Duration = Duration::from_secs(1);
/// Enough to keep up with a storm, few enough that a batch delays nobody.
const BATCH: usize = 200;

/// Deletes as long as the term lasts.
pub async fn run(api: &ApiServer, term: u64) {
    let pause = api.config().event_ttl.clamp(AT_LEAST, EVERY);
    loop {
        tokio::time::sleep(pause).await;
        sweep(api, term, Timestamp::now().as_second()).await;
    }
}

async fn sweep(api: &ApiServer, term: u64, now: i64) {
    let expired = expired(&api.storage.view(), now);
    for batch in expired.chunks(BATCH) {
        // One by one refused would be nothing lost: an event that was just written anew lives on
        // and its batch comes again in the next round.
        let preconditions =
            batch.iter().map(|o| Precondition::RevisionIs(o.key.clone(), o.revision)).collect();
        let writes = batch.iter().map(|o| Write::Delete(o.key.clone())).collect();
        if let Err(error) = api.storage.propose(Some(term), preconditions, writes).await {
            tracing::warn!(%error, "deleting expired objects failed");
            return;
        }
    }
    if !expired.is_empty() {
        tracing::debug!(objects = expired.len(), "expired objects deleted");
    }
}

/// What is past its time.
fn expired(view: &View, now: i64) -> Vec<Arc<Object>> {
    let over = |o: &Arc<Object>| o.header.expires_at.is_some_and(|at| at <= now);
    let (events, secrets) = (Scope::all("events"), Scope::all("secrets"));
    view.range(&events, None).chain(view.range(&secrets, None)).filter(over).collect()
}
