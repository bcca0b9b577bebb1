//! The pod network of one node.
//!
//! Pods get their addresses from containerd's CNI plugins (`bridge`, `host-local`); this crate
//! writes that configuration and does what lies around it: routes to the pods of other nodes
//! ([`routes`], through VXLAN where a node isn't on the same link), masquerading of what leaves the
//! cluster and host ports ([`nft`]).
//!
//! What to do is decided by pure functions over what is wanted and what is there; `ip` and `nft`
//! carry it out, each call one transaction. The kernel holds the state: a restart reads it back and
//! changes only what differs.

pub mod cni;
pub mod command;
pub mod nft;
pub mod routes;

pub use command::NetError;
pub use nft::{HostPorts, PortMapping, Protocol};
pub use routes::{Local, Peer, Route};
