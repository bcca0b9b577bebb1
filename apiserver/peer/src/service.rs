//! The gRPC service: who may call, and the receiving end of a link.

use crate::inbox::Inbox;
use crate::peers::Shared;
use crate::queue::amount;
use crate::refused::{Versions, judge, same_cluster};
use crate::state::{LinkId, Newcomer, PeerState};
use crate::{FRAME_VERSION, OLDEST_FRAME_VERSION};
use futures::{StreamExt, future, stream};
use rkube_proto::peer::peer_server::Peer;
use rkube_proto::peer::{Hello, LinkReply, LinkRequest, StatusReply, StatusRequest};
use rkube_store::Identity;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

/// How long the first word on a link may take.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Answers the calls of one connection.
pub(crate) struct PeerService<I> {
    pub(crate) shared: Arc<Shared<I>>,
    /// Whom the other end's certificate names, or what is wrong with it.
    pub(crate) caller: Result<Identity, &'static str>,
    /// Cancelled when the server stops.
    pub(crate) stop: CancellationToken,
}

impl<I: Inbox> PeerService<I> {
    fn caller(&self) -> Result<Identity, Status> {
        let caller = self.caller.map_err(Status::unauthenticated)?;
        same_cluster(self.shared.identity, caller)?;
        Ok(caller)
    }
}

#[tonic::async_trait]
impl<I: Inbox> Peer for PeerService<I> {
    type LinkStream = stream::BoxStream<'static, Result<LinkReply, Status>>;

    async fn link(
        &self,
        request: Request<Streaming<LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let caller = self.caller()?;
        let mut requests = request.into_inner();
        let late = |_| Status::deadline_exceeded("no hello came");
        let hello = tokio::time::timeout(HELLO_DEADLINE, hello(&mut requests)).await;
        let hello = hello.map_err(late)??;
        let shared = &self.shared;
        let speaks = Versions {
            program: &shared.version,
            oldest: OLDEST_FRAME_VERSION,
            newest: FRAME_VERSION,
        };
        let frame_version = judge(shared.identity, speaks, caller, &hello)?;
        shared.inbox.admit(caller.member_id).map_err(|r| r.status(caller.member_id))?;
        let link = IncomingLink::enter(shared, &self.stop, &hello).await?;
        let accepted = LinkReply { version: shared.version.clone(), frame_version };
        // What the link carries is taken while the reply's end is waited for: no task of its own.
        let end = stream::once(link.run(requests)).filter_map(|end| future::ready(end.err()));
        let replies = stream::once(future::ready(Ok(accepted))).chain(end.map(Err));
        Ok(Response::new(replies.boxed()))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        self.caller()?;
        Ok(Response::new(self.shared.own_status().into()))
    }
}

async fn hello(requests: &mut Streaming<LinkRequest>) -> Result<Hello, Status> {
    let first = requests.message().await?;
    first
        .and_then(|r| r.hello)
        .ok_or_else(|| Status::invalid_argument("a link begins with a hello"))
}

/// The receiving end of a link. While it lives no other link of its peer takes frames.
struct IncomingLink<I: Inbox> {
    shared: Arc<Shared<I>>,
    peer: Arc<PeerState>,
    /// A newer link took over, or the peer is no member any more.
    end: CancellationToken,
    stop: CancellationToken,
    /// If this is dropped now its link broke.
    broken: bool,
    _turn: OwnedSemaphorePermit,
}

impl<I: Inbox> IncomingLink<I> {
    /// Takes over from the peer's link before this one, once that has let go.
    async fn enter(
        shared: &Arc<Shared<I>>,
        stop: &CancellationToken,
        hello: &Hello,
    ) -> Result<Self, Status> {
        let peer = shared.peer(hello.sender_id);
        let id: LinkId = (hello.epoch, hello.link);
        let (newcomer, end) = peer.replace_incoming(id);
        match newcomer {
            Newcomer::Stale => return Err(Status::aborted("there is a newer link already")),
            Newcomer::Restarted if peer.metrics().receiving => shared.broke(&peer),
            Newcomer::Restarted | Newcomer::Next => {}
        }
        let turn = Arc::clone(&peer.turn).acquire_owned().await;
        let turn = turn.map_err(|_| Status::unavailable("stopping"))?;
        peer.receiving();
        info!(
            peer = %format_args!("{:016x}", peer.id), version = hello.version,
            "a member has connected"
        );
        let (shared, stop) = (Arc::clone(shared), stop.clone());
        Ok(IncomingLink { shared, peer, end, stop, broken: true, _turn: turn })
    }

    /// Hands on what comes until the link ends; what is then to be said, if anything. A link that
    /// is dropped before that broke.
    async fn run(mut self, requests: Streaming<LinkRequest>) -> Result<(), Status> {
        let (end, stop) = (self.end.clone(), self.stop.clone());
        let result = tokio::select! {
            biased;
            () = end.cancelled() => Err(self.why_ended()),
            () = stop.cancelled() => Err(Status::unavailable("stopping")),
            result = self.receive(requests) => result,
        };
        let meant = end.is_cancelled() || stop.is_cancelled();
        if let (Err(status), false) = (&result, meant) {
            let peer = format_args!("{:016x}", self.peer.id);
            info!(%peer, why = status.message(), "the link from a member broke");
        }
        self.broken = result.is_err() && !meant;
        result
    }

    fn why_ended(&self) -> Status {
        match self.shared.inbox.admit(self.peer.id) {
            Err(refusal) => refusal.status(self.peer.id),
            Ok(()) => Status::aborted("a newer link took over"),
        }
    }

    async fn receive(&self, mut requests: Streaming<LinkRequest>) -> Result<(), Status> {
        while let Some(request) = requests.message().await? {
            if request.hello.is_some() {
                return Err(Status::invalid_argument("a second hello"));
            }
            for frame in request.frames {
                // A link with much to do would not see in time that it is to end.
                if self.end.is_cancelled() {
                    return Err(self.why_ended());
                }
                let amount = amount(std::slice::from_ref(&frame));
                self.shared.inbox.receive(self.peer.id, frame).await;
                self.peer.received.add(amount);
            }
        }
        Ok(())
    }
}

impl<I: Inbox> Drop for IncomingLink<I> {
    fn drop(&mut self) {
        self.peer.not_receiving();
        if self.broken {
            self.shared.broke(&self.peer);
        }
    }
}
