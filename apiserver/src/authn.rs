//! Who is asking.
//!
//! A client is known by its certificate: the common name is the user, the organizations are the
//! groups. The chain is verified once a connection (see `tls`), the end of its validity is compared
//! with the clock at every request. Bearer tokens are good for joining alone and are looked at there.

use jiff::Timestamp;
use rkube_api::{ApiError, Reason};
use rustls::pki_types::UnixTime;
use std::borrow::Cow;
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

    /// Somebody whose certificate is not believed: less than a stranger, in no group at all.
    pub fn refused() -> Self {
        Identity { user: String::new(), groups: Vec::new() }
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

    /// Whether all its requests are to be answered 401.
    pub fn is_refused(&self) -> bool {
        self.groups.is_empty()
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

/// Whom the client of a connection is taken for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// As its certificate says, or anonymous.
    Known {
        /// Who.
        identity: Identity,
        /// The last second of the certificate's validity; None without a certificate.
        until: Option<UnixTime>,
    },
    /// It showed a certificate that is not believed, for this reason.
    Refused(String),
}

impl Caller {
    /// A client that showed nothing, or a certificate that names nobody.
    pub fn anonymous() -> Self {
        Caller::Known { identity: Identity::anonymous(), until: None }
    }

    /// Who makes a request at a time.
    ///
    /// # Errors
    /// Why nobody is believed to.
    pub fn at(&self, now: UnixTime) -> Result<&Identity, Cow<'_, str>> {
        match self {
            Caller::Known { identity, until: Some(until) } if *until < now => {
                let end = i64::try_from(until.as_secs()).ok();
                let end = end.and_then(|s| Timestamp::from_second(s).ok()).unwrap_or_default();
                let user = &identity.user;
                Err(Cow::Owned(format!("the certificate of {user:?} expired at {end}")))
            }
            Caller::Known { identity, .. } => Ok(identity),
            Caller::Refused(why) => Err(Cow::Borrowed(why)),
        }
    }
}

/// 401, worded as upstream.
pub fn unauthorized() -> ApiError {
    ApiError::new(Reason::Unauthorized, "Unauthorized")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_caller_is_believed_to_the_end_of_its_certificate() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let jane = Identity::new("jane", []);
        let known = Caller::Known { identity: jane.clone(), until: Some(at(100)) };
        assert_eq!(known.at(at(100)), Ok(&jane));
        let why = "the certificate of \"jane\" expired at 1970-01-01T00:01:40Z";
        assert_eq!(known.at(at(101)), Err(why.into()));
        assert_eq!(Caller::anonymous().at(at(u64::MAX)), Ok(&Identity::anonymous()));
        assert_eq!(Caller::Refused("forged".into()).at(at(0)), Err("forged".into()));
    }

    #[test]
    fn only_the_refused_are_refused() {
        assert!(Identity::refused().is_refused());
        assert!(!Identity::refused().is_authenticated());
        for identity in [Identity::anonymous(), Identity::new("", []), Identity::node("n")] {
            assert!(!identity.is_refused(), "{identity:?}");
        }
    }
}
