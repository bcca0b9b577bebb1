//! What links need of the store, and no more.

use bytes::Bytes;
use rkube_proto::peer::StatusReply;
use rkube_store::{Identity, Store};
use std::future::Future;

/// Why a member is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was removed from the cluster; its id never comes back.
    Removed,
    /// It is not among the members as known here. It may have been added so lately that this is
    /// not known yet: it should try again.
    Unknown,
}

/// Where a member stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which member of which cluster this is.
    pub identity: Identity,
    /// The Raft term.
    pub term: u64,
    /// The leader's id, 0 if unknown.
    pub leader: u64,
    /// Index of the last log entry known to be committed.
    pub commit: u64,
    /// Index of the last log entry applied.
    pub applied_index: u64,
    /// Index of the last log entry that the member has.
    pub last_index: u64,
    /// Revision of the last change.
    pub revision: u64,
    /// Running hash of the state at `applied_index`.
    pub state_hash: u64,
    /// The version of the member's program.
    pub version: String,
}

impl From<PeerStatus> for StatusReply {
    fn from(s: PeerStatus) -> Self {
        StatusReply {
            cluster_id: s.identity.cluster_id,
            member_id: s.identity.member_id,
            term: s.term,
            leader: s.leader,
            commit: s.commit,
            applied_index: s.applied_index,
            last_index: s.last_index,
            revision: s.revision,
            state_hash: s.state_hash,
            version: s.version,
        }
    }
}

impl From<StatusReply> for PeerStatus {
    fn from(s: StatusReply) -> Self {
        PeerStatus {
            identity: Identity { cluster_id: s.cluster_id, member_id: s.member_id },
            term: s.term,
            leader: s.leader,
            commit: s.commit,
            applied_index: s.applied_index,
            last_index: s.last_index,
            revision: s.revision,
            state_hash: s.state_hash,
            version: s.version,
        }
    }
}

/// Who takes what comes in over links. Nothing here but [`Inbox::receive`] may block or wait.
pub trait Inbox: Send + Sync + 'static {
    /// Which member this is.
    fn identity(&self) -> Identity;

    /// Whether a member may send here.
    ///
    /// # Errors
    /// Why not.
    fn admit(&self, id: u64) -> Result<(), Refusal>;

    /// Takes a frame from a member, in the order in which that one sent them; the next one is
    /// handed over when this future is done, which is how a slow store slows its peers. A dropped
    /// future has either taken its frame or never will.
    fn receive(&self, from: u64, frame: Bytes) -> impl Future<Output = ()> + Send;

    /// A link from or to a member broke. Links that break together are told once.
    fn link_lost(&self, peer: u64);

    /// A member says that this one was removed from the cluster.
    fn told_removed(&self, by: u64);

    /// Where this member stands. The version is filled in by the caller.
    fn status(&self) -> PeerStatus;
}

impl Inbox for Store {
    fn identity(&self) -> Identity {
        Store::identity(self)
    }

    fn admit(&self, id: u64) -> Result<(), Refusal> {
        if self.was_removed(id) {
            return Err(Refusal::Removed);
        }
        let known = self.members().iter().any(|member| member.id == id);
        if known { Ok(()) } else { Err(Refusal::Unknown) }
    }

    fn receive(&self, from: u64, frame: Bytes) -> impl Future<Output = ()> + Send {
        Store::receive(self, from, frame)
    }

    fn link_lost(&self, peer: u64) {
        Store::link_lost(self, peer);
    }

    fn told_removed(&self, by: u64) {
        tracing::error!(by = %format_args!("{by:016x}"), "this member was removed from its cluster");
        Store::told_removed(self);
    }

    fn status(&self) -> PeerStatus {
        let status = Store::status(self);
        PeerStatus {
            identity: Store::identity(self),
            term: status.term,
            leader: status.leader,
            commit: status.commit,
            applied_index: status.applied_index,
            last_index: status.last_index,
            revision: status.revision,
            state_hash: status.state_hash,
            version: String::new(),
        }
    }
}
