//! The names of members in certificates: which member of which cluster one belongs to.

use rkube_store::Identity;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const DOMAIN: &str = "rkube.internal";

/// The DNS name in a member's certificate, the only one in it:
/// `member-<id>.cluster-<id>.rkube.internal`, ids as 16 hexadecimal digits.
pub fn peer_name(identity: Identity) -> String {
    let Identity { cluster_id, member_id } = identity;
    format!("member-{member_id:016x}.cluster-{cluster_id:016x}.{DOMAIN}")
}

/// Whom a name made by [`peer_name`] stands for; None for every other name.
pub fn parse_peer_name(name: &str) -> Option<Identity> {
    let labels = name.strip_suffix(DOMAIN)?.strip_suffix('.')?;
    let (member, cluster) = labels.split_once('.')?;
    let member_id = u64::from_str_radix(member.strip_prefix("member-")?, 16).ok()?;
    let cluster_id = u64::from_str_radix(cluster.strip_prefix("cluster-")?, 16).ok()?;
    let identity = Identity { cluster_id, member_id };
    // Each member has one spelling, so that names can be compared.
    (member_id != 0 && peer_name(identity) == name).then_some(identity)
}

/// Which member a certificate was issued to. That its issuer and its dates are good was checked in
/// the handshake.
///
/// The CA also signs for nodes, which choose a name themselves: a certificate of a user of the API
/// (`system:...`) or with more than one name in it is nobody's.
pub(crate) fn identity_of(certificate: &[u8]) -> Result<Identity, &'static str> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| "the certificate can't be read")?;
    let mut names = certificate.subject().iter_common_name().filter_map(|n| n.as_str().ok());
    if names.any(|name| name.starts_with("system:")) {
        return Err("the certificate is that of a user of the API and not a member's");
    }
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    match alternatives.as_ref().map(|a| a.value.general_names.as_slice()) {
        Some([GeneralName::DNSName(name)]) => parse_peer_name(name),
        _ => None,
    }
    .ok_or("the certificate is not a member's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_which_member_of_which_cluster() {
        let identity = Identity { cluster_id: 0xc0ffee, member_id: u64::MAX };
        let name = peer_name(identity);
        assert_eq!(name, "member-ffffffffffffffff.cluster-0000000000c0ffee.rkube.internal");
        assert_eq!(parse_peer_name(&name), Some(identity));
    }

    #[test]
    fn other_names_are_nobodys() {
        for name in [
            "",
            "rkube.internal",
            "member-1.cluster-2.rkube.internal",
            "member-000000000000000A.cluster-0000000000000002.rkube.internal",
            "member-+00000000000000a.cluster-0000000000000002.rkube.internal",
            "member-000000000000000a.cluster-0000000000000002.rkube.internal.",
            "member-000000000000000a.cluster-0000000000000002.rkube.internal.example.com",
            "member-000000000000000a.cluster-0000000000000002.example.com",
            "member-0000000000000000.cluster-0000000000000002.rkube.internal",
            "x.member-000000000000000a.cluster-0000000000000002.rkube.internal",
        ] {
            assert_eq!(parse_peer_name(name), None, "{name}");
        }
    }
}
