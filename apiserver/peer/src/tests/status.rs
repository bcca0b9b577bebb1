//! Where members stand, asked of all at once.

use super::*;
use crate::PeerError;

#[tokio::test]
async fn all_are_asked_and_nobody_holds_up_the_others() {
    let ca = Ca::new();
    let (one, two) = (Node::start(&ca, 1).await, Node::start(&ca, 2).await);
    // It takes connections and never says a word.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute_address = mute.local_addr().unwrap().to_string();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let members =
        [listed(3, &mute_address), listed(2, &two.address), listed(4, &gone), listed(1, "")];
    let most = Duration::from_secs(2);
    let answers = tokio::time::timeout(LIMIT, one.peers.statuses(&members, most)).await.unwrap();
    let ids: Vec<u64> = answers.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [3, 2, 4, 1]);
    assert!(matches!(answers[0].1, Err(PeerError::Timeout(limit)) if limit == most));
    assert!(matches!(answers[2].1, Err(PeerError::Connect { action: "connecting", .. })));
    for (id, answer) in [&answers[1], &answers[3]] {
        let status = answer.as_ref().unwrap();
        assert_eq!(status.identity, member(*id));
        assert_eq!((status.revision, status.version.as_str()), (42, "1.2.3"));
    }
}

#[tokio::test]
async fn strangers_learn_nothing() {
    let ca = Ca::new();
    let one = Node::start(&ca, 1).await;
    let node = ca.named("system:node:n1", &["n1".to_owned()]);
    let asker = Node::with(member(2), node, |_| {}).await;
    let members = [listed(1, &one.address)];
    let answers = asker.peers.statuses(&members, LIMIT).await;
    let Err(PeerError::Call { why, .. }) = &answers[0].1 else { panic!("{answers:?}") };
    assert_eq!(why, "the certificate is that of a user of the API and not a member's");
}
