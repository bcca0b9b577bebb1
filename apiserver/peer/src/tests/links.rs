//! What links do: order, bounds, replacement, loss.

use super::*;
use crate::FRAME_BYTES;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tonic::Code;

#[tokio::test]
async fn frames_arrive_in_order_both_ways() {
    let (mut one, mut two) = pair(&Ca::new()).await;
    const FRAMES: u32 = 3000;
    for i in 0..FRAMES {
        // Some larger than what goes into one message with others.
        let length = if i % 500 == 0 { 2 << 20 } else { (i as usize * 37) % 5000 };
        let mut frame = i.to_le_bytes().to_vec();
        frame.resize(4 + length, i as u8);
        one.send(2, frame);
        two.send(1, i.to_le_bytes());
    }
    for i in 0..FRAMES {
        assert_eq!(two.frame(1).await[..4], i.to_le_bytes());
        assert_eq!(one.frame(2).await[..], i.to_le_bytes());
    }
    let (sent, received) = (one.metrics(2), two.metrics(1));
    assert_eq!((sent.frames_sent, sent.frames_dropped), (u64::from(FRAMES), 0));
    until(|| two.metrics(1).frames_received == u64::from(FRAMES)).await;
    assert_eq!(sent.bytes_sent, two.metrics(1).bytes_received);
    assert_eq!((sent.breaks, received.breaks), (0, 0));
}

#[tokio::test]
async fn frames_wait_for_the_first_link() {
    let ca = Ca::new();
    let (mut one, mut two) = (Node::start(&ca, 1).await, Node::start(&ca, 2).await);
    one.send(2, "nobody to send to");
    one.knows(&[(2, &two.address)]);
    until(|| one.peers.metrics().contains_key(&2)).await;
    loop {
        // The attempt may not have begun.
        let dropped = one.metrics(2).frames_dropped;
        one.send(2, "early");
        if one.metrics(2).frames_dropped == dropped {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(two.frame(1).await, "early");
}

#[tokio::test]
async fn the_largest_frame_goes_through_and_no_larger_one() {
    let ca = Ca::new();
    let (mut one, mut two) = pair(&ca).await;
    one.send(2, vec![7; FRAME_BYTES + 1]);
    assert_eq!(one.metrics(2).frames_dropped, 1);
    one.send(2, vec![7; FRAME_BYTES]);
    assert_eq!(two.frame(1).await.len(), FRAME_BYTES);

    let tls = ca.member(member(3));
    let raw = Raw::dial(&tls, &one.address, hello(3, 1, 1)).await.unwrap();
    let frames = vec![Bytes::from(vec![7; FRAME_BYTES + 2048])];
    raw.requests.send(LinkRequest { hello: None, frames }).unwrap();
    let status = raw.end().await;
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(one.event().await, Event::Lost(3));
}

#[tokio::test]
async fn a_full_queue_drops_and_does_not_block() {
    let ca = Ca::new();
    let small = |config: &mut PeerConfig| config.queue_bytes = 64 << 10;
    let mut one = Node::with(member(1), ca.member(member(1)), small).await;
    let mut two = Node::start(&ca, 2).await;
    two.fake.gate.forget_permits(Semaphore::MAX_PERMITS);
    one.knows(&[(2, &two.address)]);
    one.linked(2).await;
    // The receiver takes nothing, so the windows on the way fill up, and the queue after them.
    let mut sent: u64 = 0;
    while one.metrics(2).frames_dropped < 5 {
        let mut frame = sent.to_le_bytes().to_vec();
        frame.resize(32 << 10, 0);
        one.send(2, frame);
        sent += 1;
        assert!(sent < 10_000, "what waits is bounded");
        tokio::task::yield_now().await;
    }
    two.fake.gate.add_permits(Semaphore::MAX_PERMITS);
    let arrived = sent - one.metrics(2).frames_dropped;
    let mut last = None;
    for _ in 0..arrived {
        let frame = two.frame(1).await;
        let number = u64::from_le_bytes(frame[..8].try_into().unwrap());
        assert!(last < Some(number), "{number} after {last:?}");
        last = Some(number);
    }
    one.send(2, "there is room again");
    assert_eq!(two.frame(1).await, "there is room again");
}

#[tokio::test]
async fn a_newer_link_takes_over() {
    let ca = Ca::new();
    let mut one = Node::start(&ca, 1).await;
    let tls = ca.member(member(2));
    one.fake.gate.forget_permits(Semaphore::MAX_PERMITS);
    let older = Raw::dial(&tls, &one.address, hello(2, 5, 1)).await.unwrap();
    one.fake.gate.add_permits(1);
    older.send(b"old");
    assert_eq!(one.frame(2).await, "old");
    // The next ones wait in the store when the newer link comes: they are never delivered.
    older.send(b"old and late");
    older.send(b"old and later");
    let newer = Raw::dial(&tls, &one.address, hello(2, 5, 2)).await.unwrap();
    assert_eq!(older.end().await.code(), Code::Aborted);
    newer.send(b"new");
    one.fake.gate.add_permits(10);
    assert_eq!(one.frame(2).await, "new");

    let stale = Raw::dial(&tls, &one.address, hello(2, 5, 1)).await.err().expect("a refusal");
    assert_eq!(stale.code(), Code::Aborted);
    newer.send(b"still there");
    assert_eq!(one.frame(2).await, "still there");
}

#[tokio::test]
async fn a_link_of_the_next_process_means_that_the_one_before_died() {
    let ca = Ca::new();
    let mut one = Node::start(&ca, 1).await;
    let tls = ca.member(member(2));
    let _before = Raw::dial(&tls, &one.address, hello(2, 5, 7)).await.unwrap();
    let after = Raw::dial(&tls, &one.address, hello(2, 6, 1)).await.unwrap();
    assert_eq!(one.event().await, Event::Lost(2));
    after.send(b"new");
    assert_eq!(one.frame(2).await, "new");
}

#[tokio::test]
async fn a_killed_member_is_noticed_at_once_and_once() {
    let ca = Ca::new();
    let mut one = Node::start(&ca, 1).await;
    let process = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (address, tls) = (one.address.clone(), ca.member(member(2)));
    let (started, two) = tokio::sync::oneshot::channel();
    process.spawn(async move {
        let mut two = Node::with(member(2), tls, |_| {}).await;
        two.knows(&[(1, &address)]);
        two.linked(1).await;
        let _ = started.send(two.address.clone());
        std::future::pending::<()>().await;
    });
    one.knows(&[(2, &two.await.unwrap())]);
    one.linked(2).await;
    until(|| one.metrics(2).receiving).await;
    // All of its tasks and sockets go, as with a process.
    process.shutdown_background();
    assert_eq!(one.event().await, Event::Lost(2));
    until(|| !one.metrics(2).sending && !one.metrics(2).receiving).await;
    one.send(2, "into the void");
    assert_eq!(one.metrics(2).breaks, 1, "both links broke for one reason");
    assert!(one.events.try_recv().is_err());

    // It comes back, under the same address or another.
    let mut two = Node::start(&ca, 2).await;
    two.knows(&[(1, &one.address)]);
    one.knows(&[(2, &two.address)]);
    one.linked(2).await;
    one.send(2, "again");
    assert_eq!(two.frame(1).await, "again");
}

#[tokio::test]
async fn a_break_is_noticed_while_the_store_is_busy() {
    let ca = Ca::new();
    let mut one = Node::start(&ca, 1).await;
    let tls = ca.member(member(2));
    one.fake.gate.forget_permits(Semaphore::MAX_PERMITS);
    let link = Raw::dial(&tls, &one.address, hello(2, 1, 1)).await.unwrap();
    one.fake.gate.add_permits(1);
    link.send(b"taken");
    link.send(b"held");
    assert_eq!(one.frame(2).await, "taken");
    drop(link);
    assert_eq!(one.event().await, Event::Lost(2));
}

#[tokio::test]
async fn a_silent_member_is_noticed() {
    let ca = Ca::new();
    let mut one = Node::start(&ca, 1).await;
    let two = Node::start(&ca, 2).await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = proxy.local_addr().unwrap().to_string();
    let target = two.address.clone();
    let (silence, silent) = tokio::sync::oneshot::channel();
    let _wire = AbortOnDropHandle::new(tokio::spawn(async move {
        let (mut near, _) = proxy.accept().await.unwrap();
        let mut far = TcpStream::connect(target).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => {}
            _ = silent => {}
        }
        // The sockets stay open, and nothing goes through.
        std::future::pending::<()>().await;
    }));
    one.knows(&[(2, &through)]);
    one.linked(2).await;
    until(|| two.metrics(1).receiving).await;
    silence.send(()).unwrap();
    assert_eq!(one.event().await, Event::Lost(2));
    until(|| two.metrics(1).breaks == 1).await;
}

#[tokio::test]
async fn a_member_that_moves_is_followed_and_not_taken_for_dead() {
    let ca = Ca::new();
    let (mut one, mut two) = pair(&ca).await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let moved = elsewhere.local_addr().unwrap().to_string();
    let (peers, stop) = (two.peers.clone(), two.stop.clone());
    let _serving =
        AbortOnDropHandle::new(tokio::spawn(async move { peers.serve(elsewhere, stop).await }));
    one.knows(&[(2, &moved)]);
    until(|| one.metrics(2).links_made == 2).await;
    one.send(2, "moved");
    assert_eq!(two.frame(1).await, "moved");
    assert_eq!((one.metrics(2).breaks, two.metrics(1).breaks), (0, 0));
}

#[tokio::test]
async fn who_is_no_member_any_more_is_let_go() {
    let (mut one, mut two) = pair(&Ca::new()).await;
    one.fake.refused.lock().insert(2, Refusal::Removed);
    one.knows(&[(1, "")]);
    assert_eq!(two.event().await, Event::Lost(1));
    assert_eq!(two.event().await, Event::ToldRemoved(1));
    until(|| !one.metrics(2).sending && !one.metrics(2).receiving).await;
    assert_eq!(one.metrics(2).breaks, 0);
}

#[tokio::test]
async fn a_server_that_stops_ends_its_links() {
    let (mut one, two) = pair(&Ca::new()).await;
    let Node { stop, serving, links: _links, .. } = two;
    stop.cancel();
    assert_eq!(one.event().await, Event::Lost(2));
    tokio::time::timeout(LIMIT, serving).await.expect("an end").unwrap();
}

#[tokio::test]
async fn links_end_with_their_transport() {
    let (mut one, two) = pair(&Ca::new()).await;
    drop(two.links);
    assert_eq!(one.event().await, Event::Lost(2));
    until(|| !one.metrics(2).receiving).await;
    assert!(one.metrics(2).sending, "the other direction stays");
}
