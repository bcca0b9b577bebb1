//! The whole of it: one member's links and its service.

use crate::dial::{PeerError, connect};
use crate::inbox::{Inbox, PeerStatus};
use crate::queue::{Queue, amount};
use crate::state::{PeerMetrics, PeerState};
use crate::tls::PeerTls;
use crate::{FRAME_BYTES, link, serve};
use bytes::Bytes;
use futures::future::join_all;
use parking_lot::RwLock;
use rkube_proto::peer::StatusRequest;
use rkube_store::{Identity, Member, Transport};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Settings.
#[derive(Clone)]
pub struct PeerConfig {
    /// What is shown and believed.
    pub tls: PeerTls,
    /// The version of this program, for people.
    pub version: String,
    /// Bytes of frames that may wait for one peer.
    pub queue_bytes: usize,
    /// Frames that may wait for one peer.
    pub queue_frames: usize,
}

impl PeerConfig {
    /// With the usual bounds.
    pub fn new(tls: PeerTls, version: impl Into<String>) -> Self {
        let version = version.into();
        PeerConfig { tls, version, queue_bytes: FRAME_BYTES, queue_frames: 1 << 16 }
    }
}

/// What both directions and all peers share.
pub(crate) struct Shared<I> {
    pub(crate) inbox: I,
    pub(crate) identity: Identity,
    pub(crate) version: String,
    pub(crate) tls: PeerTls,
    /// Of this process.
    pub(crate) epoch: u64,
    links: AtomicU64,
    queue_bytes: usize,
    queue_frames: usize,
    /// Everyone who was a member or was let in since the start, by id.
    peers: RwLock<BTreeMap<u64, Arc<PeerState>>>,
    runtime: Handle,
}

impl<I: Inbox> Shared<I> {
    pub(crate) fn peer(&self, id: u64) -> Arc<PeerState> {
        if let Some(peer) = self.peers.read().get(&id) {
            return Arc::clone(peer);
        }
        let new = || Arc::new(PeerState::new(id, Queue::new(self.queue_bytes, self.queue_frames)));
        Arc::clone(self.peers.write().entry(id).or_insert_with(new))
    }

    pub(crate) fn next_link(&self) -> u64 {
        self.links.fetch_add(1, Ordering::Relaxed)
    }

    /// A link with this peer broke.
    pub(crate) fn broke(&self, peer: &PeerState) {
        if peer.broke(Instant::now()) {
            self.inbox.link_lost(peer.id);
        }
    }

    pub(crate) fn own_status(&self) -> PeerStatus {
        PeerStatus { version: self.version.clone(), ..self.inbox.status() }
    }
}

/// One member's links to and from the others. Copies are cheap and mean the same.
pub struct Peers<I> {
    shared: Arc<Shared<I>>,
}

impl<I> Clone for Peers<I> {
    fn clone(&self) -> Self {
        Peers { shared: Arc::clone(&self.shared) }
    }
}

impl<I: Inbox> Peers<I> {
    /// For the member whose inbox this is. Nothing happens before [`Peers::serve`] and
    /// [`Peers::transport`]. Links run in the runtime in which this is called.
    ///
    /// The inbox lives as long as any of this does, the transport among it.
    pub fn new(config: PeerConfig, inbox: I) -> Self {
        let shared = Shared {
            identity: inbox.identity(),
            inbox,
            version: config.version,
            tls: config.tls,
            epoch: rand::random(),
            links: AtomicU64::new(1),
            queue_bytes: config.queue_bytes,
            queue_frames: config.queue_frames,
            peers: RwLock::default(),
            runtime: Handle::current(),
        };
        Peers { shared: Arc::new(shared) }
    }

    /// The sending side, for [`rkube_store::Store::connect`]. When it is dropped its links end.
    pub fn transport(&self) -> Links<I> {
        let shared = Arc::clone(&self.shared);
        Links { shared, outgoing: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Takes links of other members and answers them until `stop`, then ends the links; that takes
    /// two seconds at most.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        serve::serve(Arc::clone(&self.shared), listener, stop).await;
    }

    /// Asks members where they stand, all at the same time, each for at most `most`. The answers
    /// are in the order of the members; this member's own is among them without a call.
    pub async fn statuses(
        &self,
        members: &[Member],
        most: Duration,
    ) -> Vec<(u64, Result<PeerStatus, PeerError>)> {
        let ask = |member: &Member| {
            let (id, address) = (member.id, member.info.peer_address.clone());
            async move {
                let answer = tokio::time::timeout(most, self.status(id, &address)).await;
                (id, answer.unwrap_or(Err(PeerError::Timeout(most))))
            }
        };
        join_all(members.iter().map(ask)).await
    }

    async fn status(&self, id: u64, address: &str) -> Result<PeerStatus, PeerError> {
        let own = self.shared.identity;
        if id == own.member_id {
            return Ok(self.shared.own_status());
        }
        let to = Identity { member_id: id, ..own };
        let mut connection = connect(&self.shared.tls.client, to, address).await?;
        Ok(connection.client.status(StatusRequest {}).await?.into_inner().into())
    }

    /// What went over the links with each peer since the start, by id.
    pub fn metrics(&self) -> BTreeMap<u64, PeerMetrics> {
        let peers = self.shared.peers.read();
        peers.iter().map(|(id, peer)| (*id, peer.metrics())).collect()
    }
}

/// A peer that frames are sent to.
struct Outgoing {
    peer: Arc<PeerState>,
    /// Dropped, it ends the task that keeps the link.
    address: watch::Sender<String>,
}

/// The links to all other members.
pub struct Links<I: Inbox> {
    shared: Arc<Shared<I>>,
    outgoing: BTreeMap<u64, Outgoing>,
    tasks: JoinSet<()>,
}

impl<I: Inbox> Links<I> {
    fn add(&mut self, id: u64, address: String) {
        let peer = self.shared.peer(id);
        let (address, changes) = watch::channel(address);
        let task = link::keep(Arc::clone(&self.shared), Arc::clone(&peer), changes);
        self.tasks.spawn_on(task, &self.shared.runtime);
        self.outgoing.insert(id, Outgoing { peer, address });
    }
}

impl<I: Inbox> Transport for Links<I> {
    fn send(&mut self, to: u64, frame: Bytes) {
        let Some(outgoing) = self.outgoing.get(&to) else { return };
        let amount = amount(std::slice::from_ref(&frame));
        if frame.len() > FRAME_BYTES || !outgoing.peer.queue.push(frame) {
            outgoing.peer.dropped.add(amount);
        }
    }

    fn set_members(&mut self, members: &[Member]) {
        while self.tasks.try_join_next().is_some() {}
        self.outgoing.retain(|id, outgoing| {
            let stays = members.iter().any(|member| member.id == *id);
            if !stays {
                outgoing.peer.end_incoming();
            }
            stays
        });
        let own = self.shared.identity.member_id;
        for member in members.iter().filter(|member| member.id != own) {
            let address = &member.info.peer_address;
            match self.outgoing.get(&member.id) {
                Some(outgoing) => {
                    outgoing.address.send_if_modified(|now| {
                        let changed = now != address;
                        address.clone_into(now);
                        changed
                    });
                }
                None => self.add(member.id, address.clone()),
            }
        }
    }
}
