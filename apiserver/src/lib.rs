//! The HTTP face of the cluster: discovery, REST, watch, authentication, authorization, admission.
//!
//! A request goes authenticate → parse → authorize → decode → default → admit → validate →
//! propose. What comes out are the store's own bytes wherever they fit. The server keeps no state
//! of its own: what it knows stands in the store, in the files of the PKI, or is counted in
//! metrics.

mod admission;
pub mod authn;
pub mod authz;
pub mod body;
mod bootstrap;
#[cfg(test)]
mod cluster_tests;
mod codec;
mod companions;
pub mod config;
mod connection;
mod contact;
mod context;
mod discovery;
mod endpoints;
mod expiry;
mod gzip;
mod health;
mod ids;
mod join;
mod leading;
mod local;
pub mod member_file;
pub mod member_requests;
mod members;
mod metrics;
mod negotiate;
mod openapi;
pub mod pki;
mod proxy;
mod query;
mod request_info;
mod response;
mod rest;
mod review;
mod server;
mod snapshot;
pub mod snapshot_file;
mod storage;
pub mod store_setup;
mod tls;

pub use authn::Identity;
pub use companions::Companions;
pub use config::ApiServerConfig;
pub use local::{LEADER_TERM, LocalService};
pub use members::{PeerStatus, PeerStatuses};
pub use server::{ApiServer, StartError};
