//! Nodes are registered, and their leases renewed evenly over time.

use crate::fleet::Fleet;
use crate::node;
use crate::send::{Content, HollowError, send};
use futures::{StreamExt, TryStreamExt, stream};
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::IntervalStream;

const NODES: &str = "/api/v1/nodes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// How often each lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Identified {
    metadata: Identity,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(default)]
    uid: String,
}

/// Makes all nodes known and Ready.
pub async fn register_all(fleet: &Fleet) -> Result<(), HollowError> {
    stream::iter((0..fleet.config.nodes).map(Ok))
        .try_for_each_concurrent(fleet.config.parallel_requests, |index| register(fleet, index))
        .await
}

/// Makes a node known and Ready, whatever an earlier run left of it.
async fn register(fleet: &Fleet, index: usize) -> Result<(), HollowError> {
    let (client, name) = (&fleet.client, fleet.name(index));
    let now = Timestamp::now();
    let object = Content::Json(node::node(&name, index, now));
    let node = match send(client, Method::POST, NODES, object).await {
        Err(error) if error.code() == Some(StatusCode::CONFLICT) => {
            let path = format!("{NODES}/{name}/status");
            let status = serde_json::json!({"status": node::status(&name, index, now)});
            send(client, Method::PATCH, &path, Content::StrategicMerge(status)).await?
        }
        other => other?,
    };
    let uid = serde_json::from_slice::<Identified>(&node).map(|n| n.metadata.uid);
    let lease = Content::Json(node::lease(&name, &uid.unwrap_or_default(), now));
    match send(client, Method::POST, LEASES, lease).await {
        Err(error) if error.code() == Some(StatusCode::CONFLICT) => renew(fleet, index).await,
        other => other.map(drop),
    }
}

async fn renew(fleet: &Fleet, index: usize) -> Result<(), HollowError> {
    let path = format!("{LEASES}/{}", fleet.name(index));
    let change = Content::Merge(node::renewal(Timestamp::now()));
    send(&fleet.client, Method::PATCH, &path, change).await.map(drop)
}

/// Renews one lease after the other, for ever, each once in ten seconds.
pub async fn renew_leases(fleet: &Fleet) {
    let nodes = fleet.config.nodes;
    if nodes == 0 {
        return;
    }
    let mut ticks = interval(RENEW_EVERY / nodes as u32);
    // After a stall: no burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let failing = AtomicBool::new(false);
    IntervalStream::new(ticks)
        .enumerate()
        .for_each_concurrent(fleet.config.parallel_requests, |(count, _)| {
            keep(fleet, count % nodes, &failing)
        })
        .await;
}

/// Renews a lease; a node that is gone is registered again. A failure is made good by the next
/// round, and logged once until it is.
async fn keep(fleet: &Fleet, index: usize, failing: &AtomicBool) {
    let mut outcome = renew(fleet, index).await;
    if matches!(&outcome, Err(error) if error.code() == Some(StatusCode::NOT_FOUND)) {
        outcome = register(fleet, index).await;
    }
    match outcome {
        Ok(()) if failing.swap(false, Ordering::Relaxed) => {
            tracing::info!("leases are renewed again");
        }
        Ok(()) => {}
        Err(error) if !failing.swap(true, Ordering::Relaxed) => {
            tracing::warn!(%error, "leases are not renewed");
        }
        Err(error) => tracing::debug!(%error, "a lease is not renewed"),
    }
}
