//! Who is asking.
//!
//! A client is known by its certificate: the common name is the user, the organizations are the
//! groups. The chain was verified by rustls before a byte of HTTP was read, so what stands here
//! only reads names. Bearer tokens are good for joining alone and are looked at there.

use rkube_api::{ApiError, Reason};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The group whose members may do everything.
pub const MASTERS: &str = "system:masters";
/// The group of all nodes.
pub const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// A user and the groups it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `kubernetes-admin`, `system:node:n1`, `system:anonymous`
    pub user: String,
    /// `system:masters`, …
    pub groups: Vec<String>,
}

impl Identity {
    /// Somebody who proved nothing.
    pub fn anonymous() -> Self {
        Identity { user: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()] }
    }

    /// A user with the groups given and the one that everybody authenticated is in.
    pub fn new(user: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        groups.push("system:authenticated".into());
        Identity { user: user.into(), groups }
    }

    /// A component of the control plane in this process.
    pub fn component(name: &str) -> Self {
        Identity::new(name, [MASTERS.to_owned()])
    }

    /// A node.
    pub fn node(name: &str) -> Self {
        Identity::new(format!("{NODE_PREFIX}{name}"), [NODES.to_owned()])
    }

    /// The identity in a verified certificate (DER); None without a common name.
    pub fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned);
        Some(Identity::new(user, groups.collect::<Vec<_>>()))
    }

    /// Proved who it is.
    pub fn is_authenticated(&self) -> bool {
        self.is_in("system:authenticated")
    }

    /// Whether it is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name if it is a node.
    pub fn node_name(&self) -> Option<&str> {
        self.is_in(NODES).then(|| self.user.strip_prefix(NODE_PREFIX)).flatten()
    }
}

/// 401, worded as upstream.
pub fn unauthorized() -> ApiError {
    ApiError::new(Reason::Unauthorized, "Unauthorized")
}
