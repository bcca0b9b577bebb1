//! What is proposed, and what came of it.

use crate::object::{Key, NewObject, Object};
use std::sync::Arc;

/// Preconditions and writes over any keys: evaluated in apply, applied at one revision, or not
/// at all. A command that is refused or changes nothing takes no revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Unique for each request of a client; a proposal repeated with the same id is applied once.
    /// 0 asks for no such care.
    pub request_id: u128,
    /// Refuse the command unless this is the current leader term (of a leader scope).
    pub term: Option<u64>,
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// Applied in order; of several writes to one key the last one counts. A put of what is there
    /// already leaves the object at its revision.
    pub writes: Vec<Write>,
}

impl Command {
    /// A command of these writes that nothing hinders.
    pub fn unconditional(request_id: u128, writes: Vec<Write>) -> Self {
        Self { request_id, writes, ..Self::default() }
    }
}

/// A condition on the state right before the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// No object has this key.
    Absent(Key),
    /// The object exists and was last changed at this revision.
    RevisionIs(Key, u64),
    /// The object exists and is not terminating (the namespace of a create).
    Live(Key),
    /// No object in this resource is indexed under this term (see [`crate::Header::index`]).
    NoneIndexed {
        /// See [`Key::resource`].
        resource: Arc<str>,
        /// The term.
        term: Box<str>,
    },
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Create or replace.
    Put(Key, NewObject),
    /// Remove; no fault if the key is absent. Watchers get the last bytes with the revision of
    /// the deletion spliced in.
    Delete(Key),
}

impl Write {
    /// The key it changes.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// What came of a command.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was applied.
    Applied {
        /// The revision it was applied at; the current one if it changed nothing.
        revision: u64,
        /// For each write the object put (or found unchanged), or the one removed, with the
        /// revision of its deletion in it (None if there was none). The answer to a repeated
        /// request names what stands at the keys now.
        objects: Vec<Option<Arc<Object>>>,
    },
    /// A precondition did not hold; nothing has changed.
    Refused {
        /// Its place among the preconditions.
        precondition: usize,
        /// What stands at its key now; for [`Precondition::NoneIndexed`] the object found.
        current: Option<Arc<Object>>,
    },
    /// The command's leader term is over; nothing has changed.
    Fenced {
        /// The current term.
        term: u64,
    },
}
