//! What must hold all along: one history, in which every operation stands as its caller was told.
//!
//! The store gives each change a revision, so linearizability needs no search: the revisions are
//! the order. A write that was acknowledged stands at its revision, once, and the state before it
//! justifies it; a read names the revision that it saw. Real time is respected if each operation's
//! revision is not before what any member had published when it was asked for. That is more than
//! clients could see, and holds all the same: what is published is committed, and a read asks a
//! quorum.

use crate::command::{Command, Precondition, Write};
use crate::event::{Event, EventKind};
use crate::object::{Key, Object, Scope};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What every object's JSON has: the number of the operation that wrote it.
pub(super) fn json(number: u64, filler: u64) -> String {
    let filler = "f".repeat(filler as usize);
    format!(r#"{{"metadata":{{"n":{number},"f":"{filler}"}}}}"#)
}

/// The number in an object.
pub(super) fn number(object: &Object) -> u64 {
    let text = std::str::from_utf8(&object.json).unwrap_or_default();
    let digits = text.split_once("\"n\":").map_or("", |(_, rest)| rest);
    digits.split(',').next().and_then(|n| n.parse().ok()).unwrap_or(u64::MAX)
}

/// A change of one key: the operation that put it, or None for a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Key,
    pub(super) value: Option<u64>,
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Asked for, or its caller does not know.
    Open,
    Done,
    Refused,
    /// It must never be applied.
    Failed,
}

/// A write.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) command: Command,
    /// What was published when it was asked for first.
    pub(super) floor: u64,
    pub(super) fate: Fate,
    /// Where it stands in the history.
    pub(super) revision: Option<u64>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Checker {
    /// Of each revision from 1 on.
    history: Vec<Vec<Change>>,
    /// Each key's values, with the revision they are from.
    versions: BTreeMap<Key, Vec<(u64, Option<u64>)>>,
    pub(super) operations: Vec<Operation>,
    /// Deletions that nobody was told of yet.
    deletions: BTreeMap<Key, Vec<u64>>,
    /// How often one of those may be what a caller was told of.
    perhaps: BTreeMap<Key, usize>,
    /// The state's hash at each index.
    hashes: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
    /// The newest term of a write in a leader's scope.
    fence: u64,
    /// Most objects in a namespace of `children`.
    children: usize,
    counts: BTreeMap<Arc<str>, usize>,
    pub(super) acknowledged: u64,
    pub(super) reads: u64,
}

type Checked = Result<(), String>;

impl Checker {
    pub(super) fn new(children: usize) -> Self {
        Self { children, ..Self::default() }
    }

    /// The newest revision that any member has published.
    pub(super) fn head(&self) -> u64 {
        self.history.len() as u64
    }

    /// Notes a write that is about to be asked for; its number is in its objects.
    pub(super) fn begin(&mut self, command: Command) -> usize {
        let floor = self.head();
        self.operations.push(Operation { command, floor, fate: Fate::Open, revision: None });
        self.operations.len() - 1
    }

    /// A member says what happened at a revision.
    pub(super) fn published(&mut self, events: &[Arc<Event>]) -> Checked {
        let revision = events[0].revision;
        let mut changes = Vec::with_capacity(events.len());
        for event in events {
            if event.revision != revision || event.object.revision != revision {
                return Err(format!("an event of revision {revision} says another"));
            }
            let value = (event.kind == EventKind::Put).then(|| number(&event.object));
            let before = self.at(&event.object.key, revision - 1);
            let told = event.previous.as_ref().map(|o| (o.revision, number(o)));
            if revision <= self.head() + 1 && before != told {
                return Err(format!("revision {revision} has {told:?} before, not {before:?}"));
            }
            changes.push(Change { key: event.object.key.clone(), value });
        }
        match self.history.get(revision as usize - 1) {
            Some(known) if *known == changes => Ok(()),
            Some(known) => Err(format!("revision {revision} is {known:?} and {changes:?}")),
            None if revision == self.head() + 1 => self.append(revision, changes),
            None => Err(format!("revision {revision} follows {}", self.head())),
        }
    }

    fn append(&mut self, revision: u64, changes: Vec<Change>) -> Checked {
        match changes.iter().find_map(|change| change.value) {
            Some(number) => self.attribute(number, revision, &changes)?,
            None => {
                let key = changes[0].key.clone();
                self.deletions.entry(key).or_default().push(revision);
            }
        }
        for Change { key, value } in &changes {
            self.count_child(key, *value)?;
            self.versions.entry(key.clone()).or_default().push((revision, *value));
        }
        self.history.push(changes);
        Ok(())
    }

    /// The operation stands here, once, and the state before justifies what it did.
    fn attribute(&mut self, number: u64, revision: u64, changes: &[Change]) -> Checked {
        let Some(operation) = self.operations.get(number as usize) else {
            return Err(format!("nobody asked for {number} at revision {revision}"));
        };
        if let Some(before) = operation.revision {
            return Err(format!("operation {number} stands at {before} and {revision}"));
        }
        if !matches!(operation.fate, Fate::Open) {
            return Err(format!("{number} was {:?}, yet is at {revision}", operation.fate));
        }
        let command = &operation.command;
        if let Some(term) = command.term {
            if term < self.fence {
                let fence = self.fence;
                return Err(format!("a write of term {term} comes after one of term {fence}"));
            }
            self.fence = term;
        }
        if !command.preconditions.iter().all(|p| self.holds(p, revision - 1)) {
            return Err(format!("revision {revision} breaks a precondition of {number}"));
        }
        let mut expected = Vec::new();
        for write in &command.writes {
            let there = self.at(write.key(), revision - 1).is_some();
            let value = matches!(write, Write::Put(..)).then_some(number);
            if value.is_some() || there {
                expected.push(Change { key: write.key().clone(), value });
            }
        }
        if expected != changes {
            return Err(format!("revision {revision} is {changes:?}, not {expected:?}"));
        }
        self.operations[number as usize].revision = Some(revision);
        Ok(())
    }

    /// A controller in a leader scope counts before it creates: one too many is a late write.
    fn count_child(&mut self, key: &Key, value: Option<u64>) -> Checked {
        if &*key.resource != "children" {
            return Ok(());
        }
        let there = self.at(key, self.head()).is_some();
        let count = self.counts.entry(key.namespace.clone()).or_default();
        match (there, value) {
            (false, Some(_)) => *count += 1,
            (true, None) => *count -= 1,
            _ => {}
        }
        match *count > self.children {
            true => Err(format!("{} has {count} children, one too many", key.namespace)),
            false => Ok(()),
        }
    }

    /// The key's revision and value at a revision.
    pub(super) fn at(&self, key: &Key, revision: u64) -> Option<(u64, u64)> {
        let versions = self.versions.get(key)?;
        let place = versions.partition_point(|(at, _)| *at <= revision);
        let (at, value) = versions.get(place.checked_sub(1)?)?;
        value.map(|value| (*at, value))
    }

    fn holds(&self, precondition: &Precondition, at: u64) -> bool {
        match precondition {
            Precondition::Absent(key) => self.at(key, at).is_none(),
            Precondition::RevisionIs(key, revision) => {
                self.at(key, at).is_some_and(|(found, _)| found == *revision)
            }
            Precondition::Live(key) => self.at(key, at).is_some(),
            Precondition::NoneIndexed { .. } => true,
        }
    }

    /// A caller was told that its write was applied.
    pub(super) fn acknowledged(&mut self, number: usize, revision: u64, changed: bool) -> Checked {
        let head = self.head();
        let operation = &self.operations[number];
        let (floor, deletes) = (operation.floor, deleted(&operation.command).cloned());
        if revision < floor || revision > head {
            return Err(format!("{number} was acknowledged at {revision} of {floor}..={head}"));
        }
        match deletes {
            None if operation.revision != Some(revision) => {
                let found = operation.revision;
                return Err(format!("{number} was acknowledged at {revision}, is at {found:?}"));
            }
            None => {}
            Some(key) => self.deleted(&key, revision, changed)?,
        }
        self.operations[number].fate = Fate::Done;
        self.acknowledged += 1;
        Ok(())
    }

    /// A deletion of one key: it did something at its revision, or there was nothing to delete. A
    /// repeated answer does not say which.
    fn deleted(&mut self, key: &Key, revision: u64, changed: bool) -> Checked {
        if self.at(key, revision).is_some() {
            return Err(format!("{} is there at {revision}, yet deleted", key.name));
        }
        let open = self.deletions.entry(key.clone()).or_default();
        let place = open.iter().position(|at| *at == revision);
        match (place, changed) {
            (Some(place), true) => drop(open.remove(place)),
            (None, true) => return Err(format!("nothing was deleted at {revision}, or twice")),
            (Some(_), false) => *self.perhaps.entry(key.clone()).or_default() += 1,
            (None, false) => {}
        }
        Ok(())
    }

    /// A caller was told that a precondition did not hold.
    pub(super) fn refused(&mut self, number: usize, place: usize) -> Checked {
        let operation = &self.operations[number];
        if let Some(revision) = operation.revision {
            return Err(format!("{number} was refused and stands at {revision}"));
        }
        let precondition = &operation.command.preconditions[place];
        let mut window = operation.floor..=self.head();
        if !window.any(|at| !self.holds(precondition, at)) {
            return Err(format!("{number} was refused though {precondition:?} held all along"));
        }
        self.operations[number].fate = Fate::Refused;
        Ok(())
    }

    /// A caller was told that its write was not applied and never will be.
    pub(super) fn failed(&mut self, number: usize) -> Checked {
        if let Some(revision) = self.operations[number].revision {
            return Err(format!("{number} failed, they said, and stands at {revision}"));
        }
        self.operations[number].fate = Fate::Failed;
        Ok(())
    }

    /// A reader saw these keys at a revision.
    pub(super) fn read(
        &mut self,
        floor: u64,
        revision: u64,
        seen: &[(Key, Option<(u64, u64)>)],
    ) -> Checked {
        if revision < floor || revision > self.head() {
            let head = self.head();
            return Err(format!("a read saw revision {revision} of {floor}..={head}"));
        }
        for (key, value) in seen {
            let expected = self.at(key, revision);
            if expected != *value {
                let name = &key.name;
                return Err(format!("{name} at {revision} is {value:?}, not {expected:?}"));
            }
        }
        self.reads += 1;
        Ok(())
    }

    /// What a scope's watcher gets between two revisions.
    pub(super) fn events(&self, scope: &Scope, after: u64, until: u64) -> Vec<(u64, Change)> {
        let mut events = Vec::new();
        for revision in after + 1..=until.min(self.head()) {
            let changes = self.history[revision as usize - 1].iter();
            let within = changes.filter(|change| scope.contains(&change.key));
            events.extend(within.map(|change| (revision, change.clone())));
        }
        events
    }

    /// The same state at the same index.
    pub(super) fn state(&mut self, index: u64, hash: u64) -> Checked {
        match *self.hashes.entry(index).or_insert(hash) == hash {
            true => Ok(()),
            false => Err(format!("the state at entry {index} has another hash")),
        }
    }

    /// One leader in a term.
    pub(super) fn leads(&mut self, term: u64, id: u64) -> Checked {
        match *self.leaders.entry(term).or_insert(id) {
            other if other != id => Err(format!("{other:x} and {id:x} lead in term {term}")),
            _ => Ok(()),
        }
    }

    pub(super) fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// In the end no more happened than was asked for.
    pub(super) fn end(&self) -> Checked {
        for (key, open) in &self.deletions {
            let asked = |o: &&Operation| deleted(&o.command) == Some(key) && o.fate == Fate::Open;
            let asked = self.operations.iter().filter(asked).count();
            if open.len() > asked + self.perhaps.get(key).copied().unwrap_or(0) {
                return Err(format!("{} was deleted more often than asked for", key.name));
            }
        }
        let missing = |o: &&Operation| {
            o.fate == Fate::Done && o.revision.is_none() && deleted(&o.command).is_none()
        };
        match self.operations.iter().find(missing) {
            Some(missing) => Err(format!("an acknowledged write is missing: {missing:?}")),
            None => Ok(()),
        }
    }
}

/// The key, if the command does no more than delete one.
fn deleted(command: &Command) -> Option<&Key> {
    match command.writes.as_slice() {
        [Write::Delete(key)] => Some(key),
        _ => None,
    }
}
