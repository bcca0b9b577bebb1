//! The sending end of links: one task for each peer, which dials, keeps the link while it holds,
//! and dials again.

use crate::dial::{PeerError, connect};
use crate::inbox::{Inbox, Refusal};
use crate::peers::Shared;
use crate::queue::{Amount, Outbound};
use crate::state::PeerState;
use crate::{FRAME_VERSION, OLDEST_FRAME_VERSION};
use rand::Rng;
use rkube_proto::peer::{Hello, LinkReply};
use rkube_store::Identity;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Status, Streaming};
use tracing::{info, warn};

/// How long a connection and the answer to the hello may take.
const DIAL_DEADLINE: Duration = Duration::from_secs(3);
const BACKOFF_LEAST: Duration = Duration::from_millis(50);
const BACKOFF_MOST: Duration = Duration::from_secs(1);
/// How long the peer may take to confirm the end of a link that is let go.
const GOODBYE: Duration = Duration::from_millis(100);

/// How long to wait before the next attempt, doubling from one to the next.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Backoff(BACKOFF_LEAST)
    }

    /// The next pause: a random time between half of the step and all of it.
    fn pause(&mut self, random: f64) -> Duration {
        let step = self.0;
        self.0 = (step * 2).min(BACKOFF_MOST);
        step.mul_f64(0.5 + random / 2.0)
    }
}

/// How an attempt or its link ended.
enum End {
    /// There was a link, and it broke.
    Broke(PeerError),
    /// There was none.
    Failed(PeerError),
    /// The address has changed, or the peer is to be let go.
    Changed,
}

/// Keeps a link to a peer until the sender of its address is dropped.
pub(crate) async fn keep<I: Inbox>(
    shared: Arc<Shared<I>>,
    peer: Arc<PeerState>,
    mut address: watch::Receiver<String>,
) {
    let mut backoff = Backoff::new();
    let mut told = String::new();
    let name = format!("{:016x}", peer.id);
    loop {
        let target = address.borrow_and_update().clone();
        let end = attempt(&shared, &peer, &target, &mut address).await;
        peer.dropped.add(peer.queue.close());
        let error = match end {
            End::Changed => {
                backoff = Backoff::new();
                if address.has_changed().is_err() {
                    return;
                }
                continue;
            }
            End::Broke(error) => {
                warn!(peer = name, address = target, %error, "the link to a member broke");
                backoff = Backoff::new();
                error
            }
            End::Failed(error) => {
                // Each reason once, and not with each attempt.
                let why = error.to_string();
                if why != told {
                    info!(peer = name, address = target, %error, "no link to a member");
                    told = why;
                }
                error
            }
        };
        let removed = matches!(error, PeerError::Call { refusal: Some(Refusal::Removed), .. });
        if removed {
            shared.inbox.told_removed(peer.id);
        }
        let pause = backoff.pause(rand::rng().random());
        let changed = tokio::select! {
            changed = address.changed() => changed,
            // Ids don't come back: only another address could mean another answer.
            () = tokio::time::sleep(pause), if !removed => continue,
            () = peer.alive.notified(), if !removed => continue,
        };
        if changed.is_err() {
            return;
        }
        backoff = Backoff::new();
    }
}

/// Dials and keeps the link while it holds and the address stays.
async fn attempt<I: Inbox>(
    shared: &Arc<Shared<I>>,
    peer: &Arc<PeerState>,
    target: &str,
    address: &mut watch::Receiver<String>,
) -> End {
    let number = shared.next_link();
    peer.queue.prepare(number);
    let dialled = tokio::select! {
        dialled = tokio::time::timeout(DIAL_DEADLINE, dial(shared, peer, target, number)) => dialled,
        _ = address.changed() => return End::Changed,
    };
    let mut link = match dialled {
        Ok(Ok(link)) => link,
        Ok(Err(error)) => return End::Failed(error),
        Err(_) => return End::Failed(PeerError::Timeout(DIAL_DEADLINE)),
    };
    info!(
        peer = %format_args!("{:016x}", peer.id), address = target, version = link.version,
        "linked to a member"
    );
    peer.sending();
    peer.queue.open(number);
    let broke = tokio::select! {
        ended = link.replies.message() => Some(ended.err()),
        _ = address.changed() => None,
    };
    peer.not_sending();
    match broke {
        Some(status) => {
            shared.broke(peer);
            End::Broke(status.unwrap_or_else(|| Status::unavailable("it ended the link")).into())
        }
        None => {
            // An end that the peer sees as one, so that it takes nobody for dead.
            peer.dropped.add(peer.queue.close());
            let _ = tokio::time::timeout(GOODBYE, link.replies.message()).await;
            End::Changed
        }
    }
}

/// The sending end of a link; dropped, its connection ends.
struct Link {
    replies: Streaming<LinkReply>,
    /// The version of the peer's program.
    version: String,
    _connection: crate::dial::Connection,
}

async fn dial<I: Inbox>(
    shared: &Arc<Shared<I>>,
    peer: &Arc<PeerState>,
    target: &str,
    number: u64,
) -> Result<Link, PeerError> {
    let own = shared.identity;
    let to = Identity { cluster_id: own.cluster_id, member_id: peer.id };
    let mut connection = connect(&shared.tls.client, to, target).await?;
    let hello = Hello {
        cluster_id: own.cluster_id,
        sender_id: own.member_id,
        receiver_id: peer.id,
        epoch: shared.epoch,
        link: number,
        version: shared.version.clone(),
        oldest_frame_version: OLDEST_FRAME_VERSION,
        frame_version: FRAME_VERSION,
    };
    let counted = Arc::clone(peer);
    let sent = move |amount: Amount| counted.sent.add(amount);
    let outbound = Outbound::new(Arc::clone(&peer.queue), number, hello, sent);
    let mut replies = connection.client.link(outbound).await?.into_inner();
    let accepted = replies.message().await?;
    let accepted = accepted.ok_or_else(|| Status::unavailable("it ended the link at once"))?;
    Ok(Link { replies, version: accepted.version, _connection: connection })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..7).map(|_| backoff.pause(1.0).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(Backoff::new().pause(0.0), BACKOFF_LEAST / 2);
    }
}
