//! What an API server is told at its start.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of one API server. `ApiServerConfig::new(data_dir)` gives the documented defaults.
#[derive(Clone, Debug)]
pub struct ApiServerConfig {
    /// State lives in `<data_dir>/server/`, the admin's kubeconfig in `<data_dir>/admin.kubeconfig`.
    pub data_dir: PathBuf,
    /// The address to listen on.
    pub bind_address: IpAddr,
    /// The port to listen on.
    pub secure_port: u16,
    /// Where nodes and pods reach this server; also the address behind the Service `kubernetes`.
    pub advertise_address: IpAddr,
    /// The name of this member of the control plane, for people.
    pub member_name: String,
    /// The port at which the other members reach this one.
    pub peer_port: u16,
    /// The file of the key with which the store is encrypted; None for one in the data directory.
    pub encryption_key: Option<PathBuf>,
    /// More names and addresses for the server's certificate.
    pub extra_sans: Vec<String>,
    /// Seconds a pod stays bound to a node that is not ready, unless it says so itself.
    pub default_not_ready_toleration_seconds: i64,
    /// The same for a node that can't be reached.
    pub default_unreachable_toleration_seconds: i64,
    /// Where pods' addresses come from.
    pub cluster_cidr: String,
    /// Where Services' addresses come from.
    pub service_cidr: String,
    /// The cluster's DNS server.
    pub cluster_dns: IpAddr,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// The first and the last port that `nodePort` may be.
    pub node_ports: (u16, u16),
    /// A watch without `timeoutSeconds` lives between once and twice this long.
    pub min_request_timeout: Duration,
    /// How long a request that is not a watch may take.
    pub request_timeout: Duration,
    /// How long an Event is kept.
    pub event_ttl: Duration,
    /// How long a shutdown waits for requests in flight.
    pub shutdown_grace: Duration,
    /// Connections served at a time; more wait in the listen queue.
    pub max_connections: usize,
}

impl ApiServerConfig {
    /// The defaults, with state below `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        ApiServerConfig {
            data_dir: data_dir.into(),
            bind_address: IpAddr::from([0, 0, 0, 0]),
            secure_port: 6443,
            advertise_address: IpAddr::from([127, 0, 0, 1]),
            member_name: "rkube".into(),
            peer_port: 2380,
            encryption_key: None,
            extra_sans: Vec::new(),
            default_not_ready_toleration_seconds: 300,
            default_unreachable_toleration_seconds: 300,
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            cluster_dns: IpAddr::from([10, 43, 0, 10]),
            cluster_domain: "cluster.local".into(),
            node_ports: (30000, 32767),
            min_request_timeout: Duration::from_secs(1800),
            request_timeout: Duration::from_secs(60),
            event_ttl: Duration::from_secs(3600),
            shutdown_grace: Duration::from_secs(10),
            max_connections: 10_000,
        }
    }

    /// The folder of the keys and certificates.
    pub fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("server").join("pki")
    }

    /// The folder of the store.
    pub fn store_dir(&self) -> PathBuf {
        self.data_dir.join("server")
    }
}
