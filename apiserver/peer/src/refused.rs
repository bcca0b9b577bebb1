//! How one member tells another that it won't have it: gRPC statuses, with a word in the metadata
//! where a program has to know which.

use crate::inbox::Refusal;
use crate::name::peer_name;
use rkube_proto::peer::Hello;
use rkube_store::Identity;
use std::fmt::Display;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

const KEY: &str = "rkube-refusal";
const REMOVED: &str = "removed";
const UNKNOWN: &str = "unknown";

impl Refusal {
    /// As the member that is refused gets to see it.
    pub(crate) fn status(self, member: u64) -> Status {
        let (code, word, message) = match self {
            Refusal::Removed => {
                (Code::FailedPrecondition, REMOVED, "was removed from the cluster and must stop")
            }
            Refusal::Unknown => (Code::Unavailable, UNKNOWN, "is not known here (yet)"),
        };
        let mut metadata = MetadataMap::new();
        metadata.insert(KEY, MetadataValue::from_static(word));
        Status::with_metadata(code, format!("member {member:016x} {message}"), metadata)
    }

    /// What a status says, if it is about membership.
    pub(crate) fn of(status: &Status) -> Option<Self> {
        let word = status.metadata().get(KEY)?;
        match (status.code(), word.as_bytes()) {
            (Code::FailedPrecondition, word) if word == REMOVED.as_bytes() => {
                Some(Refusal::Removed)
            }
            (Code::Unavailable, word) if word == UNKNOWN.as_bytes() => Some(Refusal::Unknown),
            _ => None,
        }
    }
}

/// The versions of frames that a program speaks, and its own.
#[derive(Clone, Copy)]
pub(crate) struct Versions<'a> {
    pub(crate) program: &'a str,
    pub(crate) oldest: u32,
    pub(crate) newest: u32,
}

impl Display for Versions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Versions { program, oldest, newest } = self;
        write!(f, "rkube {program} speaks frame versions {oldest} to {newest}")
    }
}

/// That a caller belongs to this cluster.
pub(crate) fn same_cluster(own: Identity, caller: Identity) -> Result<(), Status> {
    if caller.cluster_id == own.cluster_id {
        return Ok(());
    }
    let (theirs, ours) = (caller.cluster_id, own.cluster_id);
    Err(Status::permission_denied(format!(
        "member {:016x} belongs to cluster {theirs:016x}, this is cluster {ours:016x}",
        caller.member_id
    )))
}

/// Whether a hello fits the member that says it and the one that hears it; answers with the
/// version of frames that both speak.
pub(crate) fn judge(
    own: Identity,
    speaks: Versions<'_>,
    caller: Identity,
    hello: &Hello,
) -> Result<u32, Status> {
    same_cluster(own, caller)?;
    let sender = Identity { cluster_id: hello.cluster_id, member_id: hello.sender_id };
    if sender != caller {
        return Err(Status::permission_denied(format!(
            "the hello is that of {}, the certificate that of {}",
            peer_name(sender),
            peer_name(caller)
        )));
    }
    if hello.receiver_id != own.member_id || caller.member_id == own.member_id {
        return Err(Status::permission_denied(format!(
            "this is member {:016x}; {:016x} took it for member {:016x}",
            own.member_id, caller.member_id, hello.receiver_id
        )));
    }
    let theirs = Versions {
        program: &hello.version,
        oldest: hello.oldest_frame_version,
        newest: hello.frame_version,
    };
    let (newest, oldest) = (speaks.newest.min(theirs.newest), speaks.oldest.max(theirs.oldest));
    if newest < oldest {
        return Err(Status::failed_precondition(format!(
            "{theirs} and {speaks}: they are too far apart"
        )));
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Identity = Identity { cluster_id: 7, member_id: 1 };
    const CALLER: Identity = Identity { cluster_id: 7, member_id: 2 };

    fn hello() -> Hello {
        Hello {
            cluster_id: 7,
            sender_id: 2,
            receiver_id: 1,
            version: "0.3.0".into(),
            oldest_frame_version: 3,
            frame_version: 4,
            ..Hello::default()
        }
    }

    fn judged(oldest: u32, newest: u32, hello: &Hello) -> Result<u32, String> {
        let speaks = Versions { program: "0.2.0", oldest, newest };
        judge(OWN, speaks, CALLER, hello).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn the_newest_version_that_both_speak_is_used() {
        assert_eq!(judged(3, 4, &hello()), Ok(4));
        assert_eq!(judged(2, 3, &hello()), Ok(3));
        assert_eq!(judged(4, 5, &hello()), Ok(4));
    }

    #[test]
    fn versions_too_far_apart_are_named() {
        for (oldest, newest) in [(1, 2), (5, 6)] {
            let message = format!(
                "rkube 0.3.0 speaks frame versions 3 to 4 and rkube 0.2.0 speaks frame versions \
                 {oldest} to {newest}: they are too far apart"
            );
            assert_eq!(judged(oldest, newest, &hello()), Err(message));
        }
    }

    #[test]
    fn a_hello_must_be_what_the_certificate_says() {
        for wrong in [
            Hello { cluster_id: 8, ..hello() },
            Hello { sender_id: 3, ..hello() },
            Hello { receiver_id: 3, ..hello() },
        ] {
            assert!(judged(3, 4, &wrong).is_err(), "{wrong:?}");
        }
        let elsewhere = Identity { cluster_id: 8, member_id: 2 };
        let hello = Hello { cluster_id: 8, ..hello() };
        let speaks = Versions { program: "", oldest: 3, newest: 4 };
        let status = judge(OWN, speaks, elsewhere, &hello).unwrap_err();
        assert!(status.message().contains("cluster 0000000000000008"), "{status}");
    }

    #[test]
    fn a_refusal_survives_the_way() {
        for refusal in [Refusal::Removed, Refusal::Unknown] {
            assert_eq!(Refusal::of(&refusal.status(5)), Some(refusal));
        }
        assert_eq!(Refusal::of(&Status::failed_precondition("removed")), None);
    }
}
