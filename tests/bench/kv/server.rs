//! `kv-server SPEC`: a member of our store that speaks etcd's API.

use super::Fault;
use super::cluster::Spec;
use bytes::Bytes;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rkube_etcd_api::kv_server::{Kv, KvServer};
use rkube_etcd_api::maintenance_server::{Maintenance, MaintenanceServer};
use rkube_etcd_api::{
    KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader, StatusRequest,
    StatusResponse,
};
use rkube_peer::{PeerConfig, PeerTls, Peers, peer_name};
use rkube_store::{
    Begin, Command, Header, Identity, Key, Member, MemberChange, MemberInfo, NewObject, Object,
    Outcome, Role, Scope, Store, StoreConfig, StoreError, Write,
};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tower::Service;

/// How many members a cluster of ours has.
pub const MEMBERS: usize = 3;

const RESOURCE: &str = "kv";
/// Requests under way on one connection; more than any client here sends.
const STREAMS: u32 = 16_384;

/// Runs until it is killed or the store fails.
pub fn main(args: &[String]) {
    let spec: Spec = serde_json::from_str(&args[0]).expect("a member's description");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let store = open_member(&spec).await.expect("the store");
        tokio::select! {
            failure = store.failed() => panic!("the store: {failure}"),
            served = serve(&spec, store.clone()) => served.expect("a port"),
        }
    });
}

/// What the first member tells the others: the cluster's id, and theirs in the order of the addresses.
#[derive(Serialize, Deserialize)]
struct Word {
    cluster_id: u64,
    member_ids: Vec<u64>,
}

/// Opens a member and connects it to the others. The first one founds the cluster and adds them; they
/// wait for its word, which is a file.
async fn open_member(spec: &Spec) -> Result<Store, Fault> {
    let file = spec.dir.with_file_name("word");
    let mut config = StoreConfig { info: info(spec, spec.index), ..StoreConfig::new(&spec.dir) };
    if spec.index > 0 {
        let Word { cluster_id, member_ids } = wait_for(&file).await?;
        config.begin = Begin::Join(Identity { cluster_id, member_id: member_ids[spec.index] });
        let seed = |(index, id): (usize, &u64)| Member {
            id: *id,
            role: Role::Voter,
            info: info(spec, index),
        };
        config.seeds = member_ids.iter().enumerate().map(seed).collect();
    }
    let store = Store::open(config)?;
    let (chain, key) = spec.certificates.peer(&peer_name(store.identity()))?;
    let tls = PeerTls::new(&spec.certificates.authority()?, chain, key)?;
    let peers = Peers::new(PeerConfig::new(tls, env!("CARGO_PKG_VERSION")), store.clone());
    store.connect(Box::new(peers.transport()));
    let listener = TcpListener::bind(("127.0.0.1", spec.addresses[spec.index].peer)).await?;
    tokio::spawn(async move { peers.serve(listener, CancellationToken::new()).await });
    if spec.index == 0 && !file.exists() {
        add_the_others(spec, &store, &file).await?;
    }
    Ok(store)
}

fn info(spec: &Spec, index: usize) -> MemberInfo {
    MemberInfo {
        name: format!("member-{index}"),
        peer_address: format!("127.0.0.1:{}", spec.addresses[index].peer),
        ..MemberInfo::default()
    }
}

async fn wait_for(file: &Path) -> Result<Word, Fault> {
    loop {
        match std::fs::read(file) {
            Ok(text) => return Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn add_the_others(spec: &Spec, store: &Store, file: &Path) -> Result<(), Fault> {
    let Identity { cluster_id, member_id } = store.identity();
    let mut member_ids = vec![member_id];
    for index in 1..spec.addresses.len() {
        let id = index as u64;
        store.change_members(MemberChange::Add { id, info: info(spec, index) }).await?;
        member_ids.push(id);
    }
    let part = file.with_extension("part");
    std::fs::write(&part, serde_json::to_vec(&Word { cluster_id, member_ids })?)?;
    std::fs::rename(&part, file)?;
    let votes = |members: &Vec<Member>| members.iter().all(|m| m.role == Role::Voter);
    store.watch_members().wait_for(votes).await?;
    Ok(())
}

async fn serve(spec: &Spec, store: Store) -> Result<(), Fault> {
    let port = spec.addresses[spec.index].client;
    let acceptor = TlsAcceptor::from(spec.certificates.server(spec.index)?);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (tcp, _) = listener.accept().await?;
        let (acceptor, member) = (acceptor.clone(), Served(store.clone()));
        tokio::spawn(async move {
            if let Err(error) = connection(tcp, acceptor, member).await {
                // A client that was killed, as a rule.
                eprintln!("connection: {error}");
            }
        });
    }
}

async fn connection(tcp: TcpStream, acceptor: TlsAcceptor, member: Served) -> Result<(), Fault> {
    tcp.set_nodelay(true)?;
    let stream = TokioIo::new(acceptor.accept(tcp).await?);
    let kv = KvServer::new(member.clone());
    let maintenance = MaintenanceServer::new(member);
    let service = tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        if request.uri().path().starts_with("/etcdserverpb.KV/") {
            kv.clone().call(request)
        } else {
            maintenance.clone().call(request)
        }
    });
    let mut server = Builder::new(TokioExecutor::new());
    server.max_concurrent_streams(STREAMS);
    server.serve_connection(stream, TowerToHyperService::new(service)).await?;
    Ok(())
}

/// What answers. A value is stored as it comes; the store puts the revision in front of it.
#[derive(Clone)]
struct Served(Store);

impl Served {
    fn header(&self, revision: u64) -> Option<ResponseHeader> {
        let status = self.0.status();
        Some(ResponseHeader {
            cluster_id: self.0.identity().cluster_id,
            member_id: status.node_id,
            revision: revision as i64,
            raft_term: status.term,
        })
    }
}

fn store_key(key: &[u8]) -> Result<Key, Status> {
    let name = str::from_utf8(key).map_err(|_| Status::invalid_argument("the key is no text"))?;
    Ok(Key::new(RESOURCE, "", name))
}

fn unavailable(error: StoreError) -> Status {
    Status::unavailable(error.to_string())
}

fn key_value(object: &Object) -> KeyValue {
    let (_, value) = object.unspliced();
    KeyValue {
        key: Bytes::copy_from_slice(object.key.name.as_bytes()),
        create_revision: object.created_revision as i64,
        mod_revision: object.revision as i64,
        value: object.json.slice(object.json.len() - value.len()..),
    }
}

#[tonic::async_trait]
impl Kv for Served {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let PutRequest { key, value } = request.into_inner();
        let object = NewObject { json: value, splice_at: 0, header: Header::default() };
        let writes = vec![Write::Put(store_key(&key)?, object)];
        let outcome = self.0.propose(Command::unconditional(rand::random(), writes)).await;
        match outcome.map_err(unavailable)? {
            Outcome::Applied { revision, .. } => {
                Ok(Response::new(PutResponse { header: self.header(revision) }))
            }
            other => Err(Status::internal(format!("{other:?}"))),
        }
    }

    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let RangeRequest { key, range_end, count_only } = request.into_inner();
        let revision = self.0.read_barrier().await.map_err(unavailable)?;
        let view = self.0.view();
        let objects: Vec<Arc<Object>> = if range_end.is_empty() {
            view.get(&store_key(&key)?).into_iter().collect()
        } else {
            let scope = Scope::all(RESOURCE);
            let inside = |object: &Arc<Object>| {
                let name = object.key.name.as_bytes();
                *key <= *name && *name < *range_end
            };
            view.range(&scope, None).filter(inside).collect()
        };
        let count = objects.len() as i64;
        let kvs = objects.iter().filter(|_| !count_only).map(|o| key_value(o)).collect();
        Ok(Response::new(RangeResponse { header: self.header(revision), kvs, count }))
    }
}

#[tonic::async_trait]
impl Maintenance for Served {
    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let status = self.0.status();
        Ok(Response::new(StatusResponse {
            header: self.header(status.revision),
            version: env!("CARGO_PKG_VERSION").into(),
            leader: status.leader,
            raft_term: status.term,
        }))
    }
}
