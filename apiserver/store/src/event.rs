//! What watchers get: one change of one object, encoded once for all of them.

use crate::object::Object;
use bytes::Bytes;
use std::sync::{Arc, OnceLock};

/// Whether the object is there after the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Created or changed.
    Put,
    /// Removed.
    Delete,
}

/// The word that a watcher reads. It is not the event's own: to a watcher with a selector a
/// change can be `ADDED` or `DELETED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WatchType {
    /// `ADDED`
    Added,
    /// `MODIFIED`
    Modified,
    /// `DELETED`
    Deleted,
}

impl WatchType {
    /// As it stands in the stream.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change of one object at one revision.
#[derive(Debug)]
pub struct Event {
    /// The revision of the change; all events of a command share it.
    pub revision: u64,
    /// See [`EventKind`].
    pub kind: EventKind,
    /// The object after the change; of a deletion the last bytes with the deletion's revision.
    pub object: Arc<Object>,
    /// The object before it, None if it was created.
    pub previous: Option<Arc<Object>>,
    /// One line for each [`WatchType`], behind one pointer since most are never asked for.
    lines: OnceLock<Box<[OnceLock<Bytes>; 3]>>,
}

impl Event {
    /// A creation or change.
    pub fn put(object: Arc<Object>, previous: Option<Arc<Object>>) -> Self {
        let lines = OnceLock::new();
        Self { revision: object.revision, kind: EventKind::Put, object, previous, lines }
    }

    /// A removal; `object` carries the deletion's revision.
    pub fn delete(object: Arc<Object>, previous: Arc<Object>) -> Self {
        let previous = Some(previous);
        let lines = OnceLock::new();
        Self { revision: object.revision, kind: EventKind::Delete, object, previous, lines }
    }

    /// The word for a watcher that sees every object of its scope.
    pub fn watch_type(&self) -> WatchType {
        match (self.kind, &self.previous) {
            (EventKind::Delete, _) => WatchType::Deleted,
            (EventKind::Put, None) => WatchType::Added,
            (EventKind::Put, Some(_)) => WatchType::Modified,
        }
    }

    /// `{"type":"…","object":…}` and a newline, made on first demand and shared by all watchers.
    pub fn json_line(&self, watch_type: WatchType) -> Bytes {
        let lines = self.lines.get_or_init(Default::default);
        lines[watch_type as usize].get_or_init(|| json_line(watch_type, &self.object.json)).clone()
    }
}

/// One line of a JSON watch stream.
pub fn json_line(watch_type: WatchType, object: &[u8]) -> Bytes {
    let word = watch_type.as_str();
    let mut line = Vec::with_capacity(object.len() + word.len() + 24);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(word.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_watchers_read() {
        assert_eq!(
            json_line(WatchType::Deleted, b"{}").as_ref(),
            b"{\"type\":\"DELETED\",\"object\":{}}\n"
        );
    }
}
