//! The members of a cluster, as the log knows them, and what they are to each other.

use bytes::Bytes;
use std::time::Duration;

/// Which cluster a member belongs to, and which member it is. Both are drawn at random when the
/// cluster or the member is made and are never used again: a member whose disk is lost comes back
/// under another id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member, its Raft id; never 0.
    pub member_id: u64,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "member {:x} of cluster {:x}", self.member_id, self.cluster_id)
    }
}

/// What a member counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives the log and does not vote yet.
    Learner,
    /// Votes.
    Voter,
}

/// How a member is found, and what it speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberInfo {
    /// A name for people, unique among the members.
    pub name: String,
    /// Host and port of its peer service.
    pub peer_address: String,
    /// The URL of its API server.
    pub api_url: String,
    /// The version of its program.
    pub version: String,
    /// The newest form of log entries that it reads; 0 if it has not said so yet. The store fills
    /// it in.
    pub level: u8,
}

/// One member, as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its Raft id.
    pub id: u64,
    /// Whether it votes.
    pub role: Role,
    /// How it is found.
    pub info: MemberInfo,
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.info.name.is_empty() {
            true => write!(f, "{:x}", self.id),
            false => write!(f, "{} ({})", self.info.name, self.info.peer_address),
        }
    }
}

/// A change of the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Adds a learner, which the leader makes a voter once it has caught up.
    Add {
        /// An id that no member of this cluster ever had.
        id: u64,
        /// How it is found.
        info: MemberInfo,
    },
    /// What a member says of itself after a start.
    Update {
        /// Its id.
        id: u64,
        /// How it is found now.
        info: MemberInfo,
    },
    /// Makes a learner a voter.
    Promote(u64),
    /// Removes a member; its id never comes back.
    Remove(u64),
}

/// Who leads, as this member knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The Raft term.
    pub term: u64,
    /// The leader's id, 0 if unknown.
    pub leader: u64,
    /// This member leads and has committed an entry of its term: commands that carry `term` may be
    /// proposed here.
    pub leads: bool,
}

/// Where frames to other members go. It is handed to [`crate::Store::connect`].
pub trait Transport: Send {
    /// Sends in order, each frame at most once, or loses it. Never blocks; what is too much is
    /// lost.
    fn send(&mut self, to: u64, frame: Bytes);
    /// The members there are now, this one among them; links to all others are to be let go.
    fn set_members(&mut self, members: &[Member]);
}

/// A tick of the members' clock: a heartbeat is sent every second one, and a leader that is not
/// heard of for ten to twenty is replaced.
pub const TICK: Duration = Duration::from_millis(50);

/// How long a member without a word from a leader may serve watches.
pub const CONTACT_MOST: Duration = Duration::from_secs(10);
