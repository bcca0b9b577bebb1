//! Several members in one process, with their own threads and directories, over channels in the
//! place of a network.

mod common;

use bytes::Bytes;
use common::{apply, config, create, pod, put, value_of};
use rkube_store::{
    Begin, Command, Identity, Member, MemberChange, MemberInfo, Outcome, Role, Scope, Store,
    StoreConfig, StoreError, Transport,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

type Inboxes = HashMap<u64, UnboundedSender<(u64, Bytes)>>;

/// Who can be reached.
#[derive(Clone, Default)]
struct Net(Arc<Mutex<Inboxes>>);

struct Link {
    net: Net,
    from: u64,
}

impl Transport for Link {
    fn send(&mut self, to: u64, frame: Bytes) {
        let reachable = self.net.0.lock().unwrap();
        if let (Some(inbox), true) = (reachable.get(&to), reachable.contains_key(&self.from)) {
            let _ = inbox.send((self.from, frame));
        }
    }

    fn set_members(&mut self, _members: &[Member]) {}
}

impl Net {
    fn connect(&self, store: &Store) {
        let id = store.identity().member_id;
        let (inbox, mut frames) = unbounded_channel();
        self.0.lock().unwrap().insert(id, inbox);
        let receiver = store.clone();
        tokio::spawn(async move {
            while let Some((from, frame)) = frames.recv().await {
                receiver.receive(from, frame).await;
            }
        });
        store.connect(Box::new(Link { net: self.clone(), from: id }));
    }

    /// The process is gone, and its connections with it.
    fn lose(&self, id: u64, others: &[&Store]) {
        self.0.lock().unwrap().remove(&id);
        others.iter().for_each(|store| store.link_lost(id));
    }
}

fn named(dir: &Path, name: &str, begin: Begin) -> StoreConfig {
    let mut config = config(dir);
    config.begin = begin;
    config.info = MemberInfo { name: name.into(), ..MemberInfo::default() };
    config
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn join(net: &Net, first: &Store, dir: &Path, name: &str, id: u64) -> Store {
    let cluster_id = first.identity().cluster_id;
    let info = MemberInfo { name: name.into(), ..MemberInfo::default() };
    first.change_members(MemberChange::Add { id, info }).await.unwrap();
    let begin = Begin::Join(Identity { cluster_id, member_id: id });
    let store = Store::open(named(dir, name, begin)).unwrap();
    net.connect(&store);
    let votes = |m: &Member| m.id == id && m.role == Role::Voter;
    eventually("a voter", || store.members().iter().any(votes)).await;
    store
}

/// Three members that vote; the first one leads.
async fn three(net: &Net, dir: &Path) -> [Store; 3] {
    let first = Store::open(named(&dir.join("1"), "a", Begin::Found)).unwrap();
    net.connect(&first);
    apply(&first, put(&pod("x", "before"), "1")).await;
    let second = join(net, &first, &dir.join("2"), "b", 2).await;
    let third = join(net, &first, &dir.join("3"), "c", 3).await;
    [first, second, third]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_serves_and_reads_its_own_writes() {
    let (net, dir) = (Net::default(), tempfile::tempdir().unwrap());
    let stores = three(&net, dir.path()).await;
    for (number, store) in stores.iter().enumerate() {
        let key = pod("x", &format!("own-{number}"));
        apply(store, create(&key, "1")).await;
        assert_eq!(value_of(&store.view().get(&key).unwrap()), "1");
        let refused = store.propose(create(&key, "2")).await.unwrap();
        assert!(matches!(refused, Outcome::Refused { precondition: 0, .. }));
    }
    for store in &stores {
        store.read_barrier().await.unwrap();
        assert_eq!(store.view().count(&Scope::all("pods")), 4);
    }
    let names: Vec<_> = stores[2].members().into_iter().map(|member| member.info.name).collect();
    assert_eq!(names.len(), 3);
    assert!(["a", "b", "c"].iter().all(|name| names.contains(&name.to_string())), "{names:?}");
    for store in &stores {
        store.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_member_takes_over_from_a_dead_one() {
    let (net, dir) = (Net::default(), tempfile::tempdir().unwrap());
    let [first, second, third] = three(&net, dir.path()).await;
    let dead = first.identity().member_id;
    net.lose(dead, &[&second, &third]);
    let begun = Instant::now();
    apply(&third, put(&pod("x", "after"), "1")).await;
    let gap = begun.elapsed();
    println!("the next write came {gap:?} after the leader's death");
    assert!(gap < Duration::from_secs(2), "{gap:?}");
    second.read_barrier().await.unwrap();
    assert!(second.view().get(&pod("x", "after")).is_some());
    assert!(first.view().get(&pod("x", "after")).is_none());
    // Cut off, it neither writes nor reads.
    let alone = tokio::join!(first.read_barrier(), first.propose(put(&pod("x", "lost"), "1")));
    assert!(matches!(alone.0, Err(StoreError::NoQuorum { .. })), "{alone:?}");
    assert!(matches!(alone.1, Err(StoreError::Unknown | StoreError::NoQuorum { .. })));
    let said = alone.0.unwrap_err().to_string();
    assert!(said.contains('b') && said.contains('c'), "{said}");
    net.connect(&first);
    eventually("a leader", || first.leader_contact() < Duration::from_secs(1)).await;
    first.read_barrier().await.unwrap();
    assert!(first.view().get(&pod("x", "after")).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_hands_the_leadership_over() {
    let (net, dir) = (Net::default(), tempfile::tempdir().unwrap());
    let [first, second, third] = three(&net, dir.path()).await;
    let term = first.leadership().borrow().term;
    first.shutdown().await.unwrap();
    let begun = Instant::now();
    apply(&second, put(&pod("x", "after"), "1")).await;
    println!("the next write came {:?} after the leader's end", begun.elapsed());
    let now = *second.leadership().borrow();
    assert_eq!(now.term, term + 1, "one election, not an expired one");
    assert!([2, 3].contains(&now.leader), "{now:?}");
    drop(third);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_stops_and_is_not_let_in_again() {
    let (net, dir) = (Net::default(), tempfile::tempdir().unwrap());
    let [first, second, third] = three(&net, dir.path()).await;
    second.change_members(MemberChange::Remove(3)).await.unwrap();
    assert!(
        matches!(third.failed().await, StoreError::Failed(cause) if matches!(*cause, StoreError::Removed))
    );
    assert!(first.was_removed(3));
    assert_eq!(first.members().len(), 2);
    let again = MemberChange::Add { id: 3, info: MemberInfo::default() };
    assert!(matches!(first.change_members(again).await, Err(StoreError::Members(_))));
    // The leader can be removed as well: it hands over first.
    let leader = first.identity().member_id;
    second.change_members(MemberChange::Remove(leader)).await.unwrap();
    eventually("the old leader stops", || first.failure().is_some()).await;
    apply(&second, put(&pod("x", "alone"), "1")).await;
    drop(third);
    let reopened = Store::open(named(&dir.path().join("3"), "c", Begin::Found));
    assert!(matches!(reopened, Err(StoreError::Removed)), "{:?}", reopened.err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_an_old_term_are_refused() {
    let (net, dir) = (Net::default(), tempfile::tempdir().unwrap());
    let [first, second, third] = three(&net, dir.path()).await;
    let term = first.leadership().borrow().term;
    let fenced = |key: &str, term| Command { term: Some(term), ..put(&pod("x", key), "1") };
    apply(&first, fenced("mine", term)).await;
    first.shutdown().await.unwrap();
    apply(&second, put(&pod("x", "after"), "1")).await;
    let late = third.propose(fenced("late", term)).await.unwrap();
    assert!(matches!(late, Outcome::Fenced { .. }), "{late:?}");
    third.read_barrier().await.unwrap();
    assert!(third.view().get(&pod("x", "late")).is_none());
}
