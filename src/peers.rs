//! The service between members: opened beside the API, and behind the questions how others are.

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::BoxFuture;
use rkube_apiserver::pki;
use rkube_apiserver::store_setup::{Identity, Member, Store};
use rkube_apiserver::{ApiServer, ApiServerConfig, PeerStatus, PeerStatuses};
use rkube_peer::{PeerConfig, PeerTls, Peers, peer_name};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The other members, for the API's questions.
struct Others(Peers<Store>);

impl PeerStatuses for Others {
    fn statuses(
        &self,
        members: Vec<Member>,
        patience: Duration,
    ) -> BoxFuture<'static, Vec<Result<PeerStatus, String>>> {
        let peers = self.0.clone();
        async move {
            let answers = peers.statuses(&members, patience).await;
            answers
                .into_iter()
                .map(|(_, answer)| answer.map(told).map_err(|e| e.to_string()))
                .collect()
        }
        .boxed()
    }
}

fn told(status: rkube_peer::PeerStatus) -> PeerStatus {
    PeerStatus {
        id: status.identity.member_id,
        term: status.term,
        commit: status.commit,
        applied_index: status.applied_index,
        revision: status.revision,
        state_hash: status.state_hash,
        leader: status.leader,
        version: status.version,
    }
}

/// What a member shows to others and takes for good.
pub fn config(config: &ApiServerConfig, identity: Identity) -> Result<PeerConfig> {
    let pair = pki::peer(config, &peer_name(identity), SystemTime::now())?;
    let (chain, key) = pair.own.der()?;
    let ca = CertificateDer::from_pem_slice(pair.ca.as_bytes())
        .map_err(|e| anyhow::anyhow!("the cluster's CA: {e:?}"))?;
    Ok(PeerConfig::new(PeerTls::new(&ca, chain, key)?, env!("CARGO_PKG_VERSION")))
}

/// Connects the store to the other members and serves them until `stop`.
///
/// A member alone in its cluster goes on without the port if another program has it: most of those
/// stay alone.
pub async fn start(
    server: &Arc<ApiServer>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>> {
    let store = server.store();
    let own = server.config();
    let address = SocketAddr::new(own.bind_address, own.peer_port);
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => Some(listener),
        Err(error) if store.members().len() == 1 => {
            tracing::warn!(%address, %error, "the port for other members is taken: none can join; give --peer-port");
            None
        }
        Err(error) => {
            return Err(error).with_context(|| format!("listening on {address} for other members"));
        }
    };
    let peers = match &listener {
        Some(_) => {
            let config = config(own, store.identity())?;
            let peers = Peers::new(config, store.clone());
            store.connect(Box::new(peers.transport()));
            server.ask_peers_by(Arc::new(Others(peers.clone())));
            Some(peers)
        }
        None => None,
    };
    Ok(async move {
        if let (Some(peers), Some(listener)) = (peers, listener) {
            tracing::info!(%address, "other members are served");
            peers.serve(listener, stop).await;
        }
    })
}
