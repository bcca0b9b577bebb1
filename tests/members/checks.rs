//! What must hold of what the clients saw, whatever happened to the members.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
}

/// A change as a watcher saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: Kind,
    pub name: String,
    pub revision: u64,
    pub value: u64,
}

/// A write that was answered with success. For one that removes neither revision nor value counts.
#[derive(Clone, Debug)]
pub struct Acked {
    pub kind: Kind,
    pub name: String,
    pub revision: u64,
    pub value: u64,
}

/// What all clients saw.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pub acknowledged: Vec<Acked>,
    /// Creates without an answer, or one that says that nobody knows.
    pub unknown: Vec<String>,
    /// Creates that surely were not done, as the server says.
    pub refused: Vec<String>,
    pub watched: Vec<Vec<Event>>,
    /// Promises that were seen to be broken on the way.
    pub broken: Vec<String>,
}

/// Objects by name: revision and value.
pub type Objects = BTreeMap<String, (u64, u64)>;

/// What is wrong, if anything. `start` was there when the watches began, `end` is what each member
/// has after the last write.
pub fn judge(records: &Records, start: &Objects, end: &[Objects]) -> Vec<String> {
    let mut wrong = records.broken.clone();
    for (n, events) in records.watched.iter().enumerate() {
        let says = |what: String| format!("watcher {n}: {what}");
        wrong.extend(order(events).into_iter().map(says));
        if *events != records.watched[0] {
            wrong.push(format!("watchers 0 and {n} saw different things"));
        }
    }
    let events = records.watched.first().map(Vec::as_slice).unwrap_or_default();
    let (state, lives) = replay(events, start);
    wrong.extend(lives);
    wrong.extend(acknowledged_is_there(records, events));
    for (member, objects) in end.iter().enumerate() {
        if *objects != state {
            let odd = difference(objects, &state);
            wrong.push(format!("member {member} has something else than was watched: {odd}"));
        }
    }
    let added: BTreeSet<&str> =
        events.iter().filter(|e| e.kind == Kind::Added).map(|e| &*e.name).collect();
    let refused = records.refused.iter().filter(|name| added.contains(&***name));
    wrong.extend(refused.map(|name| format!("{name} was refused and stands nevertheless")));
    let known: BTreeSet<&str> = records
        .acknowledged
        .iter()
        .map(|a| &*a.name)
        .chain(records.unknown.iter().map(|n| &**n))
        .collect();
    let alien = added.iter().filter(|name| !known.contains(**name) && name.starts_with('w'));
    wrong.extend(alien.map(|name| format!("{name} was never written")));
    wrong
}

/// Revisions of a watcher only rise.
fn order(events: &[Event]) -> Vec<String> {
    let pairs = events.windows(2).filter(|pair| pair[1].revision <= pair[0].revision);
    pairs.map(|pair| format!("{:?} came after {:?}", pair[1], pair[0])).collect()
}

/// What the events make of the start, and where they make no sense: what is there made again, what
/// is not there changed, a counter that leaps or stands.
fn replay(events: &[Event], start: &Objects) -> (Objects, Vec<String>) {
    let (mut state, mut wrong) = (start.clone(), Vec::new());
    let mut ever: BTreeSet<&str> = BTreeSet::new();
    for event in events {
        let before = state.get(&event.name).copied();
        match (event.kind, before) {
            (Kind::Added, None) if ever.insert(&event.name) => {}
            (Kind::Modified, Some((_, value))) if event.value == value + 1 => {}
            (Kind::Deleted, Some(_)) => {}
            _ => wrong.push(format!("{event:?} follows {before:?}")),
        }
        match event.kind {
            Kind::Deleted => state.remove(&event.name),
            _ => state.insert(event.name.clone(), (event.revision, event.value)),
        };
    }
    (state, wrong)
}

fn acknowledged_is_there(records: &Records, events: &[Event]) -> Vec<String> {
    let at: BTreeMap<u64, &Event> = events.iter().map(|e| (e.revision, e)).collect();
    let gone: BTreeSet<&str> =
        events.iter().filter(|e| e.kind == Kind::Deleted).map(|e| &*e.name).collect();
    let stands = |acked: &Acked| match acked.kind {
        Kind::Deleted => gone.contains(&*acked.name),
        kind => at.get(&acked.revision).is_some_and(|event| {
            (event.kind, &event.name, event.value) == (kind, &acked.name, acked.value)
        }),
    };
    let lost = records.acknowledged.iter().filter(|acked| !stands(acked));
    lost.map(|acked| format!("{acked:?} was acknowledged and no watcher saw it")).collect()
}

fn difference(a: &Objects, b: &Objects) -> String {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let odd = names.into_iter().filter(|name| a.get(*name) != b.get(*name)).take(5);
    odd.map(|name| format!("{name}: {:?}, watched {:?}", a.get(name), b.get(name)))
        .collect::<Vec<_>>()
        .join("; ")
}

/// The checks find what they are there for.
pub fn find_what_they_should() {
    let event =
        |kind, name: &str, revision, value| Event { kind, name: name.into(), revision, value };
    let events = vec![
        event(Kind::Added, "w0-1", 11, 1),
        event(Kind::Modified, "counter-0", 12, 1),
        event(Kind::Added, "w1-1", 13, 1),
        event(Kind::Deleted, "w0-1", 14, 1),
    ];
    let acked = |kind, name: &str, revision| Acked { kind, name: name.into(), revision, value: 1 };
    let good = Records {
        acknowledged: vec![
            acked(Kind::Added, "w0-1", 11),
            acked(Kind::Modified, "counter-0", 12),
            acked(Kind::Deleted, "w0-1", 0),
        ],
        unknown: vec!["w1-1".into(), "w1-2".into()],
        refused: vec!["w2-1".into()],
        watched: vec![events.clone(), events],
        broken: Vec::new(),
    };
    let start = Objects::from([("counter-0".into(), (10, 0))]);
    let end = Objects::from([("counter-0".into(), (12, 1)), ("w1-1".into(), (13, 1))]);
    assert_eq!(judge(&good, &start, &[end.clone(), end.clone()]), [""; 0]);

    let finds = |what: &str, change: &dyn Fn(&mut Records, &mut Objects)| {
        let (mut records, mut member) = (good.clone(), end.clone());
        change(&mut records, &mut member);
        let wrong = judge(&records, &start, &[end.clone(), member]);
        assert!(wrong.iter().any(|w| w.contains(what)), "{what}: {wrong:?}");
    };
    let both = |records: &mut Records, change: &dyn Fn(&mut Vec<Event>)| {
        records.watched.iter_mut().for_each(change);
    };
    finds("no watcher saw it", &|r, _| both(r, &|e| drop(e.remove(0))));
    finds("saw different things", &|r, _| drop(r.watched[1].remove(2)));
    finds("came after", &|r, _| r.watched[1].swap(0, 1));
    finds("came after", &|r, _| both(r, &|e| e.insert(1, e[0].clone())));
    finds("follows", &|r, _| both(r, &|e| e.push(event(Kind::Added, "w1-1", 20, 1))));
    finds("follows", &|r, _| both(r, &|e| e[1].value = 2));
    finds("something else", &|_, m| m.retain(|name, _| name != "w1-1"));
    finds("was refused", &|r, _| r.refused.push("w1-1".into()));
    finds("never written", &|r, _| r.unknown.clear());
    finds("no watcher saw it", &|r, _| r.acknowledged[0].revision = 13);
    finds("out loud", &|r, _| r.broken.push("out loud".into()));
}
