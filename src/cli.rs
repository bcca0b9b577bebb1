//! What `rkube` understands on its command line. Every setting is also an environment variable
//! (`RKUBE_…`) and a key of the file that `--config` names (see [`crate::config_file`]).

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use rkube_kubelet::KubeletConfig;
use std::net::IpAddr;
use std::path::PathBuf;

/// The client libraries report each failed attempt as an error; our own lines say what it means.
const DEFAULT_LOG: &str = "info,kube_client=off,kube_runtime=off";

/// A Kubernetes-compatible orchestrator in one binary.
#[derive(Debug, Parser)]
#[command(name = "rkube", version, propagate_version = true, args_override_self = true)]
pub struct Cli {
    /// A YAML file whose keys are the flags' names; flags and environment come before it
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `rkube_store=debug`
    #[arg(long, global = true, env = "RKUBE_LOG", default_value = DEFAULT_LOG)]
    pub log: String,
    /// How it is logged
    #[arg(long, global = true, env = "RKUBE_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A cluster on this machine: a control plane and some nodes, until Ctrl-C
    Up(UpArgs),
    /// One member of the control plane, and a node unless --no-agent
    Server(ServerArgs),
    /// One node
    Agent(AgentArgs),
    /// Tokens with which nodes and members join
    #[command(subcommand)]
    Token(TokenCommand),
    /// The members of the control plane: list, remove, recover from a lost quorum
    #[command(subcommand)]
    Member(MemberCommand),
    /// The whole state in a file: save it, look at it, restore it
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Nodes of a running `rkube up`: stop, start or kill one and see what the cluster does
    #[command(subcommand)]
    Node(NodeCommand),
    /// Simulated nodes that run pods instantly, for scale tests
    Hollow(HollowArgs),
    /// The first process of a node of `rkube up` (internal)
    #[command(hide = true)]
    NodeInit(NodeInitArgs),
}

/// Where the data is.
#[derive(Clone, Debug, Args)]
pub struct DataDir {
    /// Where all data is kept
    #[arg(long, env = "RKUBE_DATA_DIR", default_value = "/var/lib/rkube", value_name = "DIR")]
    pub data_dir: PathBuf,
}

/// Ranges of addresses; the same for all members and nodes.
#[derive(Clone, Debug, Args)]
pub struct ClusterNetwork {
    /// Pods' addresses; each node gets a /24 of it
    #[arg(long, env = "RKUBE_CLUSTER_CIDR", default_value = "10.42.0.0/16")]
    pub cluster_cidr: Ipv4Net,
    /// Services' addresses
    #[arg(long, env = "RKUBE_SERVICE_CIDR", default_value = "10.43.0.0/16")]
    pub service_cidr: Ipv4Net,
}

/// How long things may take before the cluster acts.
#[derive(Clone, Debug, Args)]
pub struct Patience {
    /// Seconds without a lease after which a node is not ready
    #[arg(long, env = "RKUBE_NODE_MONITOR_GRACE_PERIOD", default_value_t = 50)]
    pub node_monitor_grace_period: u64,
    /// Seconds that pods stay on a node that is not ready, unless they say otherwise
    #[arg(long, env = "RKUBE_DEFAULT_NOT_READY_TOLERATION_SECONDS", default_value_t = 300)]
    pub default_not_ready_toleration_seconds: i64,
    /// Seconds that pods stay on a node that can't be reached, unless they say otherwise
    #[arg(long, env = "RKUBE_DEFAULT_UNREACHABLE_TOLERATION_SECONDS", default_value_t = 300)]
    pub default_unreachable_toleration_seconds: i64,
}

/// `rkube server`
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    #[command(flatten)]
    pub data: DataDir,
    #[command(flatten)]
    pub network: ClusterNetwork,
    #[command(flatten)]
    pub patience: Patience,
    /// The address to listen on
    #[arg(long, env = "RKUBE_BIND_ADDRESS", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The port of the API
    #[arg(long, env = "RKUBE_SECURE_PORT", default_value_t = 6443)]
    pub secure_port: u16,
    /// The address at which nodes and pods reach this server; this machine's own by default
    #[arg(long, env = "RKUBE_ADVERTISE_ADDRESS")]
    pub advertise_address: Option<IpAddr>,
    #[command(flatten)]
    pub peers: PeerArgs,
    /// A further name or address for the server's certificate; may be repeated
    #[arg(long, env = "RKUBE_TLS_SAN", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Run no node in this process
    #[arg(long, env = "RKUBE_NO_AGENT")]
    pub no_agent: bool,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// What makes a server a member of a control plane of several.
#[derive(Clone, Debug, Args)]
pub struct PeerArgs {
    /// Join the control plane of this API server, as in https://HOST:6443, with --token; skipped
    /// once the data directory holds a member
    #[arg(long, env = "RKUBE_JOIN", value_name = "URL")]
    pub join: Option<String>,
    /// The token with which to join (`rkube token create`); needed once
    #[arg(long, env = "RKUBE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The port for the other members
    #[arg(long, env = "RKUBE_PEER_PORT", default_value_t = 2380, value_parser = clap::value_parser!(u16).range(1..))]
    pub peer_port: u16,
    /// The key with which the store's files are encrypted; one in the data directory by default
    #[arg(long, env = "RKUBE_ENCRYPTION_KEY_FILE", value_name = "FILE")]
    pub encryption_key_file: Option<PathBuf>,
}

/// What is particular to a node.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    #[command(flatten)]
    pub kubelet: KubeletConfig,
    /// The socket of a container runtime to use, instead of a containerd of the node's own
    #[arg(long, env = "RKUBE_CONTAINER_RUNTIME_ENDPOINT", value_name = "SOCKET")]
    pub container_runtime_endpoint: Option<String>,
    /// Pull images of HOST from URL, which may be plain http (HOST=URL); may be repeated
    #[arg(long = "registry-mirror", env = "RKUBE_REGISTRY_MIRROR", value_delimiter = ',')]
    pub registry_mirrors: Vec<String>,
}

/// `rkube agent`
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// The API server, as in https://HOST:6443; may be repeated. One member is enough: it names the
    /// others
    #[arg(long, required = true, value_delimiter = ',', env = "RKUBE_SERVER", value_name = "URL")]
    pub server: Vec<String>,
    /// The token with which to join (`rkube token create`); needed once
    #[arg(long, env = "RKUBE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `rkube up`
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub data: DataDir,
    #[command(flatten)]
    pub network: ClusterNetwork,
    /// How many nodes
    #[arg(long, env = "RKUBE_NODES", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub nodes: u8,
    /// Forget what an earlier run left in the data directory
    #[arg(long)]
    pub fresh: bool,
    /// The port of the API
    #[arg(long, env = "RKUBE_SECURE_PORT", default_value_t = 6443)]
    pub secure_port: u16,
    /// The network of the nodes; the first address is this machine's
    #[arg(long, env = "RKUBE_NODE_SUBNET", default_value = "10.99.0.0/24")]
    pub node_subnet: Ipv4Net,
    /// Also run a registry, filled with the OCI images in this folder (NAME_TAG each)
    #[arg(long, value_name = "DIR")]
    pub registry_images: Option<PathBuf>,
    /// Pull images of HOST from URL, which may be plain http (HOST=URL); may be repeated
    #[arg(long = "registry-mirror", env = "RKUBE_REGISTRY_MIRROR", value_delimiter = ',')]
    pub registry_mirrors: Vec<String>,
    /// Seconds without a lease after which a node is not ready
    #[arg(long, env = "RKUBE_NODE_MONITOR_GRACE_PERIOD", default_value_t = 50)]
    pub node_monitor_grace_period: u64,
    /// Seconds that pods stay on a node that is gone (Kubernetes: 300)
    #[arg(long, env = "RKUBE_DEFAULT_TOLERATION_SECONDS", default_value_t = 10)]
    pub default_toleration_seconds: i64,
}

/// `rkube token`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it; it is good for a day
    Create(TokenCreateArgs),
}

/// `rkube token create`
#[derive(Clone, Debug, Args)]
pub struct TokenCreateArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// Who may join with it; who may join as a member gets the cluster's keys
    #[arg(long, value_enum, default_value = "any")]
    pub role: TokenRole,
}

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenRole {
    /// Nodes (`rkube agent`) and members of the control plane (`rkube server --join`).
    Any,
    /// Nodes.
    Node,
}

impl TokenRole {
    /// As the API has it.
    pub fn name(self) -> &'static str {
        match self {
            TokenRole::Any => "any",
            TokenRole::Node => "node",
        }
    }
}

/// Where an administrator finds the API.
#[derive(Clone, Debug, Args)]
pub struct AdminArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// Whom to speak as; DATA_DIR/admin.kubeconfig by default
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The member to ask, as in https://HOST:6443, instead of the kubeconfig's
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
}

/// `rkube member`
#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// Show the members and how they are, be there a quorum or not
    List(AdminArgs),
    /// Remove a member for good; it stops, and its data directory can't be used again
    Remove(MemberRemoveArgs),
    /// Make a stopped member a cluster of its own, when most members are lost for good
    Recover(MemberRecoverArgs),
}

/// `rkube member remove`
#[derive(Clone, Debug, Args)]
pub struct MemberRemoveArgs {
    #[command(flatten)]
    pub admin: AdminArgs,
    /// The member
    #[arg(value_name = "NAME|ID")]
    pub member: String,
    /// Remove it though those left are no majority that answers
    #[arg(long)]
    pub force: bool,
}

/// `rkube member recover`
#[derive(Clone, Debug, Args)]
pub struct MemberRecoverArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// The key with which the store's files are encrypted; one in the data directory by default
    #[arg(long, env = "RKUBE_ENCRYPTION_KEY_FILE", value_name = "FILE")]
    pub encryption_key_file: Option<PathBuf>,
    /// Go on though another member has log entries that this one lacks
    #[arg(long)]
    pub accept_loss: bool,
    /// Ask nothing
    #[arg(long)]
    pub yes: bool,
}

/// `rkube snapshot`
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save the state of a running cluster; the file is not encrypted and holds Secrets, but no keys
    Save(SnapshotSaveArgs),
    /// Make a new cluster of one member from a file
    Restore(SnapshotRestoreArgs),
    /// Check a file and say what is in it
    Status(SnapshotStatusArgs),
}

/// `rkube snapshot save`
#[derive(Clone, Debug, Args)]
pub struct SnapshotSaveArgs {
    #[command(flatten)]
    pub admin: AdminArgs,
    /// The file to write
    pub file: PathBuf,
}

/// `rkube snapshot restore`
#[derive(Clone, Debug, Args)]
pub struct SnapshotRestoreArgs {
    #[command(flatten)]
    pub data: DataDir,
    /// The key with which the store's files are encrypted; one in the data directory by default
    #[arg(long, env = "RKUBE_ENCRYPTION_KEY_FILE", value_name = "FILE")]
    pub encryption_key_file: Option<PathBuf>,
    /// What `rkube snapshot save` wrote
    pub file: PathBuf,
}

/// `rkube snapshot status`
#[derive(Clone, Debug, Args)]
pub struct SnapshotStatusArgs {
    /// What `rkube snapshot save` wrote
    pub file: PathBuf,
}

/// `rkube node`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Stop a node in good order
    Stop(NodeTarget),
    /// Start a node that was stopped or killed, or what has died of one
    Start(NodeTarget),
    /// Kill a node, as if its power failed
    Kill(NodeTarget),
}

/// A node of a `rkube up`.
#[derive(Clone, Debug, Args)]
pub struct NodeTarget {
    #[command(flatten)]
    pub data: DataDir,
    /// `node-1`, `node-2`, …, or `control-plane`
    pub name: String,
}

/// `rkube hollow`
#[derive(Clone, Debug, Args)]
pub struct HollowArgs {
    /// How many nodes
    #[arg(long, default_value_t = 100)]
    pub nodes: usize,
    /// Their names begin with this
    #[arg(long, default_value = "hollow-")]
    pub prefix: String,
    /// How to reach the API server
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// `rkube node-init`
#[derive(Clone, Debug, Args)]
pub struct NodeInitArgs {
    /// The node's host name
    #[arg(long)]
    pub hostname: String,
}
