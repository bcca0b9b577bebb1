//! What the store's handle and its threads share.

use crate::error::StoreError;
use crate::history::History;
use crate::member::{Leadership, Member};
use crate::metrics::Metrics;
use crate::store::{Progress, Status};
use crate::view::View;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Notify, watch};

/// Written by the driver thread, read by all.
pub(crate) struct Shared {
    pub(crate) view: RwLock<View>,
    pub(crate) history: Arc<History>,
    pub(crate) metrics: Metrics,
    pub(crate) status: Mutex<Status>,
    /// This member is the only voter and leads: whatever was acknowledged is in `view` already,
    /// since nobody else can have acknowledged anything and the view goes before every answer.
    pub(crate) alone: AtomicBool,
    /// Of `view`.
    pub(crate) revision: watch::Sender<u64>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) members: watch::Sender<Vec<Member>>,
    /// The ids of those that were removed.
    pub(crate) removed: RwLock<BTreeSet<u64>>,
    /// How far the members are, on the leader.
    pub(crate) progress: Mutex<Vec<Progress>>,
    failure: OnceLock<StoreError>,
    failed: Notify,
}

impl Shared {
    pub(crate) fn new(view: View, history: Arc<History>, status: Status) -> Self {
        Self {
            view: RwLock::new(view),
            history,
            metrics: Metrics::default(),
            status: Mutex::new(status),
            alone: AtomicBool::new(false),
            revision: watch::Sender::default(),
            leadership: watch::Sender::default(),
            members: watch::Sender::default(),
            removed: RwLock::default(),
            progress: Mutex::default(),
            failure: OnceLock::new(),
            failed: Notify::new(),
        }
    }

    /// Records why the store stops. The first reason counts.
    pub(crate) fn fail(&self, error: StoreError) {
        tracing::error!(%error, "store stopped");
        let _ = self.failure.set(error);
        self.alone.store(false, Ordering::SeqCst);
        self.failed.notify_waiters();
    }

    /// Why it stopped, as callers are told.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.failure.get().map(|cause| StoreError::Failed(Arc::new(cause.clone())))
    }

    /// Waits for [`Shared::fail`].
    pub(crate) async fn failed(&self) -> StoreError {
        loop {
            let mut notified = std::pin::pin!(self.failed.notified());
            // From here on a notification is not missed.
            notified.as_mut().enable();
            if let Some(failure) = self.failure() {
                return failure;
            }
            notified.await;
        }
    }
}
