//! The state as it was: for exact reads and for the later pages of a list.
//!
//! Recent revisions are found by walking back from the current state through the watch history,
//! whose events know what stood there before; older ones come from the archive. What was found
//! is kept for a while, so a long list pays once.

use crate::archive::ArchiveReader;
use crate::error::{Compacted, ViewError};
use crate::event::Event;
use crate::object::Key;
use crate::root::Root;
use crate::shared::Shared;
use crate::view::View;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many old states are kept: each is a few changed nodes of the tree, and the objects that
/// were replaced since.
const KEPT: usize = 16;
/// How long one is kept without use.
const KEPT_FOR: Duration = Duration::from_secs(300);

/// Old states found lately.
#[derive(Default)]
pub(crate) struct Past {
    kept: Mutex<VecDeque<KeptView>>,
}

struct KeptView {
    resource: Arc<str>,
    view: View,
    used: Instant,
}

impl Past {
    /// The state of one resource at a revision.
    pub(crate) async fn view_at(
        &self,
        shared: &Shared,
        archive: Option<&ArchiveReader>,
        revision: u64,
        resource: &str,
    ) -> Result<View, ViewError> {
        let view = shared.view.read().clone();
        if revision > view.revision() {
            return Err(ViewError::Future { asked: revision, current: view.revision() });
        }
        if revision == view.revision() {
            return Ok(view);
        }
        if let Some(kept) = self.find(revision, resource) {
            return Ok(kept);
        }
        // The view is published right before its events are.
        while shared.history.revision() < view.revision() {
            tokio::task::yield_now().await;
        }
        let resource: Arc<str> = resource.into();
        let found = match shared.history.between(&resource, revision, view.revision()) {
            Some(events) => Some(walk_back(&view.0, &events, revision)),
            None => match archive {
                Some(archive) => archive.root_at(&view, revision, &resource).await,
                None => None,
            },
        };
        let Some(root) = found else {
            let oldest = shared.history.complete_since();
            return Err(Compacted { asked: revision, oldest }.into());
        };
        let view = View(Arc::new(root));
        self.keep(resource, view.clone());
        Ok(view)
    }

    fn find(&self, revision: u64, resource: &str) -> Option<View> {
        let mut kept = self.kept.lock();
        let found =
            |kept: &&mut KeptView| kept.view.revision() == revision && *kept.resource == *resource;
        let kept = kept.iter_mut().find(found)?;
        kept.used = Instant::now();
        Some(kept.view.clone())
    }

    fn keep(&self, resource: Arc<str>, view: View) {
        let used = Instant::now();
        let mut kept = self.kept.lock();
        kept.retain(|kept| kept.used.elapsed() < KEPT_FOR);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(KeptView { resource, view, used });
    }

    /// Lets go of what nobody has used for long.
    pub(crate) fn expire(&self) {
        self.kept.lock().retain(|kept| kept.used.elapsed() < KEPT_FOR);
    }
}

/// Takes back the events, newest first.
fn walk_back(current: &Root, events: &[Arc<Event>], revision: u64) -> Root {
    let mut root = current.clone();
    for event in events.iter().rev() {
        restore(&mut root, &event.object.key, event.previous.clone());
    }
    root.revision = revision;
    root
}

/// Puts the object, or nothing, where the key says.
pub(crate) fn restore(root: &mut Root, key: &Key, object: Option<Arc<crate::object::Object>>) {
    match object {
        Some(object) => drop(root.put(object)),
        None => drop(root.remove(key)),
    }
}
