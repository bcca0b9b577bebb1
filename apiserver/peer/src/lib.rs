//! How the members of a control plane talk: ordered links that carry the store's frames, and the
//! question where a member stands, over gRPC with mutual TLS.
//!
//! Each member dials each other one and sends over that link; what it receives comes over the
//! links that the others dial. A frame is delivered at most once, in order, and never retried: who
//! sends it must live with its loss. A member's certificate says which member of which cluster it
//! is, and every connection is held against that at both ends.
//!
//! A link that breaks is told to the store at once, since the leader may have died with it; one
//! that is let go, or replaced by a newer one of the same process, is not.

mod dial;
mod inbox;
mod link;
mod name;
mod peers;
mod queue;
mod refused;
mod serve;
mod service;
mod state;
#[cfg(test)]
mod tests;
mod tls;

pub use dial::PeerError;
pub use inbox::{Inbox, PeerStatus, Refusal};
pub use name::{parse_peer_name, peer_name};
pub use peers::{Links, PeerConfig, Peers};
pub use state::PeerMetrics;
pub use tls::{PeerTls, TlsError};

/// The version of frames that this program writes. Members speak with releases one older and one
/// newer than their own.
pub const FRAME_VERSION: u32 = 1;
/// The oldest version of frames that this program still reads and can write.
pub const OLDEST_FRAME_VERSION: u32 = 1;
/// Bytes of the largest frame.
pub const FRAME_BYTES: usize = 64 << 20;
/// Bytes of the largest message, which is a frame and little else.
const MESSAGE_BYTES: usize = FRAME_BYTES + (1 << 10);
