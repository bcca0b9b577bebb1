//! Who is not let in, and what they are told.

use super::*;
use crate::PeerError;
use rustls::ClientConfig;
use tonic::Code;

/// How member 1 answers a link of someone with these certificates.
async fn answer(one: &Node, tls: &PeerTls, hello: Hello) -> Status {
    let raw = tokio::time::timeout(LIMIT, Raw::dial(tls, &one.address, hello)).await;
    raw.expect("an answer").err().expect("a refusal")
}

/// What a dialler gets that looks for a member at an address.
async fn dialled(tls: &PeerTls, to: Identity, address: &str) -> String {
    match connect(&tls.client, to, address).await {
        Err(PeerError::Connect { action: "TLS handshake", why, .. }) => why,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("connected"),
    }
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let ca = Ca::new();
    let one = Node::start(&ca, 1).await;
    let other = Identity { cluster_id: 0xc2, member_id: 2 };
    let said = Hello { cluster_id: 0xc2, ..hello(2, 1, 1) };
    let status = answer(&one, &ca.member(other), said).await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(
        status.message(),
        "member 0000000000000002 belongs to cluster 00000000000000c2, this is cluster \
         00000000000000c1"
    );
    // As a server it has another name than the dialler wants.
    let tls = ca.member(other);
    let wanted = Identity { cluster_id: 0xc2, member_id: 1 };
    let why = dialled(&tls, wanted, &one.address).await;
    assert!(why.contains("not valid for name"), "{why}");
}

#[tokio::test]
async fn another_member_is_refused() {
    let ca = Ca::new();
    let one = Node::start(&ca, 1).await;
    let tls = ca.member(member(2));
    let why = dialled(&tls, member(3), &one.address).await;
    assert!(why.contains("not valid for name"), "{why}");
    let status = answer(&one, &tls, hello(3, 1, 1)).await;
    assert_eq!(status.code(), Code::PermissionDenied, "another sender: {status}");
    let status = answer(&one, &tls, Hello { receiver_id: 4, ..hello(2, 1, 1) }).await;
    assert_eq!(status.code(), Code::PermissionDenied, "another receiver: {status}");
    let itself = ca.member(member(1));
    let status = answer(&one, &itself, hello(1, 1, 1)).await;
    assert_eq!(status.code(), Code::PermissionDenied, "itself: {status}");
    assert!(one.peers.metrics().is_empty());
}

#[tokio::test]
async fn certificates_of_nodes_and_users_are_refused() {
    let ca = Ca::new();
    let one = Node::start(&ca, 1).await;
    let two = peer_name(member(2));
    let refused = [
        ("system:node:n1", vec!["n1".to_owned()]),
        ("kubernetes-admin", vec![]),
        // A node that has chosen a member's name for itself.
        ("system:node:n1", vec![two.clone()]),
        ("rkube-member", vec![two.clone(), "127.0.0.1".to_owned()]),
    ];
    for (common_name, sans) in refused {
        let status = answer(&one, &ca.named(common_name, &sans), hello(2, 1, 1)).await;
        assert_eq!(status.code(), Code::Unauthenticated, "{common_name} {sans:?}: {status}");
    }
    // Nor is one taken for a member that answers where a member should be.
    let node = ca.named("system:node:n1", std::slice::from_ref(&two));
    let node = Node::with(member(2), node, |_| {}).await;
    let why = dialled(&ca.member(member(1)), member(2), &node.address).await;
    assert_eq!(why, "its certificate is not a member's");
}

#[tokio::test]
async fn who_shows_no_certificate_is_refused() {
    let ca = Ca::new();
    let one = Node::start(&ca, 1).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tls = ca.member(member(2));
    tls.client = Arc::new(client);
    Arc::get_mut(&mut tls.client).unwrap().alpn_protocols = vec![b"h2".to_vec()];
    // With TLS 1.3 the refusal comes with the first answer.
    answer(&one, &tls, hello(2, 1, 1)).await;
    assert!(one.peers.metrics().is_empty());
}

#[tokio::test]
async fn another_ca_is_refused_by_both_ends() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let one = Node::start(&ca, 1).await;
    let why = dialled(&foreign.member(member(2)), member(1), &one.address).await;
    assert!(why.contains("invalid peer certificate"), "{why}");
    // One that believes our server all the same.
    let (certificate, key) = foreign.pair("rkube-member", &[peer_name(member(2))]);
    let tls = PeerTls::new(&ca.certificate, vec![certificate], key).unwrap();
    answer(&one, &tls, hello(2, 1, 1)).await;
    assert!(one.peers.metrics().is_empty());
}

#[tokio::test]
async fn who_was_removed_is_told_so() {
    let ca = Ca::new();
    let (one, mut two) = (Node::start(&ca, 1).await, Node::start(&ca, 2).await);
    one.fake.refused.lock().insert(2, Refusal::Removed);
    two.knows(&[(1, &one.address)]);
    assert_eq!(two.event().await, Event::ToldRemoved(1));
    let status = answer(&one, &ca.member(member(2)), hello(2, 1, 1)).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(Refusal::of(&status), Some(Refusal::Removed));
}

#[tokio::test]
async fn who_is_not_known_yet_tries_again() {
    let ca = Ca::new();
    let (mut one, mut two) = (Node::start(&ca, 1).await, Node::start(&ca, 2).await);
    one.fake.refused.lock().insert(2, Refusal::Unknown);
    let status = answer(&one, &ca.member(member(2)), hello(2, 1, 1)).await;
    assert_eq!(Refusal::of(&status), Some(Refusal::Unknown));
    two.knows(&[(1, &one.address)]);
    // Frames for a link that is refused are dropped.
    while two.metrics(1).frames_dropped < 3 {
        two.send(1, "too early");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    one.fake.refused.lock().clear();
    two.linked(1).await;
    two.send(1, "known");
    // What waited when the link came about comes first.
    while one.frame(2).await != "known" {}
    assert_eq!(two.metrics(1).breaks, 0, "there was no link that could break");
}

#[tokio::test]
async fn releases_too_far_apart_are_refused() {
    let ca = Ca::new();
    let one = Node::start(&ca, 1).await;
    let later = Hello { oldest_frame_version: 2, frame_version: 3, ..hello(2, 1, 1) };
    let status = answer(&one, &ca.member(member(2)), later).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(
        status.message(),
        "rkube 9.9.9 speaks frame versions 2 to 3 and rkube 1.2.3 speaks frame versions 1 to 1: \
         they are too far apart"
    );
    assert_eq!(Refusal::of(&status), None, "nothing that membership has to do with");
}

#[tokio::test]
async fn a_link_begins_with_a_hello_and_has_no_second() {
    let ca = Ca::new();
    let mut one = Node::start(&ca, 1).await;
    let tls = ca.member(member(2));
    let mut connection = connect(&tls.client, member(1), &one.address).await.unwrap();
    let first = LinkRequest { hello: None, frames: vec![Bytes::from_static(b"rude")] };
    let answer = connection.client.link(futures::stream::iter([first])).await;
    assert_eq!(answer.expect_err("a refusal").code(), Code::InvalidArgument);
    let raw = Raw::dial(&tls, &one.address, hello(2, 1, 1)).await.unwrap();
    let again = LinkRequest { hello: Some(hello(2, 1, 2)), frames: Vec::new() };
    raw.requests.send(again).unwrap();
    assert_eq!(raw.end().await.code(), Code::InvalidArgument);
    assert_eq!(one.event().await, Event::Lost(2));
}
