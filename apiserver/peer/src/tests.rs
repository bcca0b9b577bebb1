//! Real TLS on loopback: members with a fake store behind them.

mod links;
mod refusals;
mod status;

use crate::dial::{Connection, connect};
use crate::{Inbox, Links, PeerConfig, PeerStatus, PeerTls, Peers, Refusal, peer_name};
use bytes::Bytes;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rkube_proto::peer::{Hello, LinkReply, LinkRequest};
use rkube_store::{Identity, Member, MemberInfo, Role, Transport};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};

const CLUSTER: u64 = 0xc1;
const LIMIT: Duration = Duration::from_secs(20);

fn member(member_id: u64) -> Identity {
    Identity { cluster_id: CLUSTER, member_id }
}

/// A certificate authority.
struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Ca { certificate, issuer: Issuer::new(params, key) }
    }

    fn pair(
        &self,
        common_name: &str,
        sans: &[String],
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(sans).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// Shows a certificate with these names.
    fn named(&self, common_name: &str, sans: &[String]) -> PeerTls {
        let (certificate, key) = self.pair(common_name, sans);
        PeerTls::new(&self.certificate, vec![certificate], key).unwrap()
    }

    fn member(&self, identity: Identity) -> PeerTls {
        self.named("rkube-member", &[peer_name(identity)])
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Frame(u64, Bytes),
    Lost(u64),
    ToldRemoved(u64),
}

/// A store that tells the test what it is told.
struct Fake {
    identity: Identity,
    refused: Mutex<HashMap<u64, Refusal>>,
    events: mpsc::UnboundedSender<Event>,
    /// A permit for each frame that may still be taken.
    gate: Semaphore,
}

impl Inbox for Arc<Fake> {
    fn identity(&self) -> Identity {
        self.identity
    }

    fn admit(&self, id: u64) -> Result<(), Refusal> {
        self.refused.lock().get(&id).map_or(Ok(()), |refusal| Err(*refusal))
    }

    async fn receive(&self, from: u64, frame: Bytes) {
        self.gate.acquire().await.unwrap().forget();
        let _ = self.events.send(Event::Frame(from, frame));
    }

    fn link_lost(&self, peer: u64) {
        let _ = self.events.send(Event::Lost(peer));
    }

    fn told_removed(&self, by: u64) {
        let _ = self.events.send(Event::ToldRemoved(by));
    }

    fn status(&self) -> PeerStatus {
        PeerStatus { identity: self.identity, revision: 42, ..PeerStatus::default() }
    }
}

/// A member that runs.
struct Node {
    address: String,
    fake: Arc<Fake>,
    events: mpsc::UnboundedReceiver<Event>,
    peers: Peers<Arc<Fake>>,
    links: Links<Arc<Fake>>,
    stop: CancellationToken,
    serving: AbortOnDropHandle<()>,
}

impl Node {
    async fn start(ca: &Ca, id: u64) -> Self {
        Self::with(member(id), ca.member(member(id)), |_| {}).await
    }

    async fn with(identity: Identity, tls: PeerTls, change: impl FnOnce(&mut PeerConfig)) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let gate = Semaphore::new(Semaphore::MAX_PERMITS);
        let fake = Arc::new(Fake { identity, refused: Mutex::default(), events: sender, gate });
        let mut config = PeerConfig::new(tls, "1.2.3");
        change(&mut config);
        let peers = Peers::new(config, Arc::clone(&fake));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let (serve, stopped) = (peers.clone(), stop.clone());
        let serving = tokio::spawn(async move { serve.serve(listener, stopped).await });
        let serving = AbortOnDropHandle::new(serving);
        let links = peers.transport();
        Node { address, fake, events, peers, links, stop, serving }
    }

    /// Takes others for members, and nobody else.
    fn knows(&mut self, others: &[(u64, &str)]) {
        let members: Vec<_> = others.iter().map(|(id, address)| listed(*id, address)).collect();
        self.links.set_members(&members);
    }

    fn send(&mut self, to: u64, frame: impl Into<Vec<u8>>) {
        self.links.send(to, Bytes::from(frame.into()));
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(LIMIT, self.events.recv()).await.expect("something happens").unwrap()
    }

    async fn frame(&mut self, from: u64) -> Bytes {
        match self.event().await {
            Event::Frame(sender, frame) if sender == from => frame,
            other => panic!("no frame of {from}: {other:?}"),
        }
    }

    fn metrics(&self, peer: u64) -> crate::PeerMetrics {
        self.peers.metrics().get(&peer).copied().unwrap_or_default()
    }

    /// Waits until there is a link to a peer.
    async fn linked(&self, peer: u64) {
        until(|| self.metrics(peer).sending).await;
    }
}

fn listed(id: u64, address: &str) -> Member {
    let peer_address = address.to_owned();
    Member { id, role: Role::Voter, info: MemberInfo { peer_address, ..MemberInfo::default() } }
}

/// Waits for a condition that nothing tells about.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the condition comes true");
}

/// Two members that are linked both ways.
async fn pair(ca: &Ca) -> (Node, Node) {
    let (mut one, mut two) = (Node::start(ca, 1).await, Node::start(ca, 2).await);
    one.knows(&[(1, &one.address.clone()), (2, &two.address)]);
    two.knows(&[(1, &one.address), (2, &two.address.clone())]);
    one.linked(2).await;
    two.linked(1).await;
    (one, two)
}

/// What a member says first to member 1.
fn hello(sender_id: u64, epoch: u64, link: u64) -> Hello {
    Hello {
        cluster_id: CLUSTER,
        sender_id,
        receiver_id: 1,
        epoch,
        link,
        version: "9.9.9".into(),
        oldest_frame_version: 1,
        frame_version: 1,
    }
}

/// A link made by hand.
struct Raw {
    requests: mpsc::UnboundedSender<LinkRequest>,
    replies: Streaming<LinkReply>,
    _connection: Connection,
}

impl Raw {
    /// Dials member 1 and waits until the link is accepted.
    async fn dial(tls: &PeerTls, address: &str, hello: Hello) -> Result<Raw, Status> {
        let mut connection = connect(&tls.client, member(1), address)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let (requests, mut sent) = mpsc::unbounded_channel();
        requests.send(LinkRequest { hello: Some(hello), frames: Vec::new() }).unwrap();
        let stream = futures::stream::poll_fn(move |cx| sent.poll_recv(cx));
        let mut replies = connection.client.link(stream).await?.into_inner();
        replies.message().await?.expect("a first reply");
        Ok(Raw { requests, replies, _connection: connection })
    }

    fn send(&self, frame: &'static [u8]) {
        let frames = vec![Bytes::from_static(frame)];
        self.requests.send(LinkRequest { hello: None, frames }).unwrap();
    }

    /// Why the link ended, once it has.
    async fn end(mut self) -> Status {
        let end = tokio::time::timeout(LIMIT, self.replies.message()).await.expect("an end");
        end.expect_err("a reason")
    }
}
