//! The replicated state machine: the same commands in the same order give the same objects, the
//! same revisions, the same events and the same running hash on every member.
//!
//! It reads no clock, no randomness and no file. Invariants: the revision only grows, by one for
//! each command that changes something; an object's revision is that of the command that last
//! changed it; a request id that is remembered is never applied again.

use crate::codec::{Reader, put_u64};
use crate::command::{Command, Outcome, Precondition, Write};
use crate::event::Event;
use crate::member::MemberChange;
use crate::object::{Key, Object};
use crate::root::Root;
use crate::roster::Roster;
use raft::eraftpb::ConfState;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Everything that apply reads and changes.
#[derive(Clone, Default)]
pub(crate) struct State {
    pub(crate) root: Root,
    /// Index of the last log entry applied.
    pub(crate) applied_index: u64,
    /// Its term.
    pub(crate) applied_term: u64,
    /// Running hash over all changes, the same on every member at the same index.
    pub(crate) hash: u64,
    pub(crate) remembered: Remembered,
    pub(crate) roster: Roster,
}

/// What came of one command.
pub(crate) struct Applied {
    /// None if the request is so old that nobody knows whether it was applied before: it was not
    /// applied now.
    pub(crate) outcome: Option<Outcome>,
    /// At one revision, in the order of the writes.
    pub(crate) events: Vec<Arc<Event>>,
}

impl State {
    /// Begins a log entry: forgets the request ids that are `remember` entries old.
    pub(crate) fn begin_entry(&mut self, index: u64, term: u64, remember: u64) {
        self.applied_index = index;
        self.applied_term = term;
        self.remembered.forget_before(index.saturating_sub(remember));
    }

    /// Applies one command of the entry begun. Its sender had applied the log up to `since` when
    /// it first sent it, so if it was applied before that was later.
    pub(crate) fn apply(&mut self, command: Command, since: u64) -> Applied {
        if let Some(answer) = self.remembered.get(command.request_id) {
            let outcome = Some(self.repeat(answer, &command));
            return Applied { outcome, events: Vec::new() };
        }
        if command.request_id != 0 && since < self.remembered.forgotten {
            return Applied { outcome: None, events: Vec::new() };
        }
        let (outcome, events) = match self.refusal(&command) {
            Some(outcome) => (outcome, Vec::new()),
            None => self.write(&command.writes),
        };
        self.remembered.add(command.request_id, self.applied_index, Answer::of(&outcome));
        Applied { outcome: Some(outcome), events }
    }

    /// Takes a change of members, or says why it makes no sense.
    pub(crate) fn change_members(
        &mut self,
        change: &MemberChange,
        conf_state: &ConfState,
    ) -> Result<(), String> {
        self.roster.check(change, conf_state)?;
        self.roster.apply(change);
        let mut bytes = Vec::new();
        self.roster.encode(&mut bytes);
        self.mix_in(u64::from(crc32fast::hash(&bytes)) ^ (3 << 62));
        Ok(())
    }

    /// What a snapshot holds beside the objects and the remembered requests.
    pub(crate) fn encode_system(&self, out: &mut Vec<u8>) {
        put_u64(out, self.remembered.forgotten);
        self.roster.encode(out);
    }

    /// Reads what [`State::encode_system`] wrote; None if it is something else.
    pub(crate) fn decode_system(&mut self, bytes: &[u8]) -> Option<()> {
        let mut reader = Reader::new(bytes);
        self.remembered.forgotten = reader.u64().ok()?;
        self.roster = Roster::decode(&mut reader)?;
        reader.is_empty().then_some(())
    }

    fn refusal(&self, command: &Command) -> Option<Outcome> {
        if command.term.is_some_and(|term| term != self.applied_term) {
            return Some(Outcome::Fenced { term: self.applied_term });
        }
        let precondition = command.preconditions.iter().position(|p| !self.holds(p))?;
        let current = self.stands_at(&command.preconditions[precondition]);
        Some(Outcome::Refused { precondition, current })
    }

    fn holds(&self, precondition: &Precondition) -> bool {
        match precondition {
            Precondition::Absent(key) => self.root.get(key).is_none(),
            Precondition::RevisionIs(key, revision) => {
                self.root.get(key).is_some_and(|object| object.revision == *revision)
            }
            Precondition::Live(key) => {
                self.root.get(key).is_some_and(|object| !object.header.terminating)
            }
            Precondition::NoneIndexed { resource, term } => {
                self.root.first_indexed(resource, term).is_none()
            }
        }
    }

    fn stands_at(&self, precondition: &Precondition) -> Option<Arc<Object>> {
        match precondition {
            Precondition::Absent(key)
            | Precondition::RevisionIs(key, _)
            | Precondition::Live(key) => self.root.get(key).cloned(),
            Precondition::NoneIndexed { resource, term } => self.root.first_indexed(resource, term),
        }
    }

    fn write(&mut self, writes: &[Write]) -> (Outcome, Vec<Arc<Event>>) {
        let revision = self.root.revision + 1;
        let mut events = Vec::with_capacity(writes.len());
        let mut objects = Vec::with_capacity(writes.len());
        for (place, write) in writes.iter().enumerate() {
            let superseded = writes[place + 1..].iter().any(|later| later.key() == write.key());
            objects.push(match write {
                _ if superseded => None,
                Write::Put(key, new) => {
                    let old = self.root.get(key).cloned();
                    match old.filter(|old| old.equals(new)) {
                        Some(unchanged) => Some(unchanged),
                        None => {
                            let created =
                                self.root.get(key).map_or(revision, |o| o.created_revision);
                            let object = Object::place(key.clone(), new, created, revision);
                            Some(self.put(Arc::new(object), &mut events))
                        }
                    }
                }
                Write::Delete(key) => self.delete(key, revision, &mut events),
            });
        }
        if !events.is_empty() {
            self.root.revision = revision;
        }
        (Outcome::Applied { revision: self.root.revision, objects }, events)
    }

    fn put(&mut self, object: Arc<Object>, events: &mut Vec<Arc<Event>>) -> Arc<Object> {
        self.mix(1, &object);
        let previous = self.root.put(object.clone());
        events.push(Arc::new(Event::put(object.clone(), previous)));
        object
    }

    fn delete(
        &mut self,
        key: &Key,
        revision: u64,
        events: &mut Vec<Arc<Event>>,
    ) -> Option<Arc<Object>> {
        let previous = self.root.remove(key)?;
        let object = Arc::new(previous.at_revision(revision));
        self.mix(2, &object);
        events.push(Arc::new(Event::delete(object.clone(), previous)));
        Some(object)
    }

    fn mix(&mut self, kind: u64, object: &Object) {
        let mut crc = crc32fast::Hasher::new();
        for part in [&object.key.resource, &object.key.namespace, &object.key.name] {
            crc.update(part.as_bytes());
            crc.update(&[0]);
        }
        crc.update(&object.json);
        self.mix_in((u64::from(crc.finalize()) << 32) ^ object.revision ^ (kind << 62));
    }

    fn mix_in(&mut self, change: u64) {
        // The multiplier is the golden ratio's fraction: odd, so no information is lost.
        self.hash = (self.hash.rotate_left(23) ^ change).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    /// The answer to a request that was applied before: what stands at its keys now.
    fn repeat(&self, answer: Answer, command: &Command) -> Outcome {
        match answer {
            Answer::Applied { revision } => {
                let now = |write: &Write| self.root.get(write.key()).cloned();
                Outcome::Applied { revision, objects: command.writes.iter().map(now).collect() }
            }
            Answer::Refused { precondition } => {
                let refused = command.preconditions.get(precondition as usize);
                let current = refused.and_then(|p| self.stands_at(p));
                Outcome::Refused { precondition: precondition as usize, current }
            }
            Answer::Fenced => Outcome::Fenced { term: self.applied_term },
        }
    }
}

/// What is kept of an outcome to answer a repeated request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Applied { revision: u64 },
    Refused { precondition: u32 },
    Fenced,
}

impl Answer {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Applied { revision, .. } => Self::Applied { revision: *revision },
            Outcome::Refused { precondition, .. } => {
                Self::Refused { precondition: *precondition as u32 }
            }
            Outcome::Fenced { .. } => Self::Fenced,
        }
    }
}

/// Most request ids remembered, whatever the entries: about 5 MB.
const REMEMBER_MOST: usize = 1 << 16;

/// The request ids of the last log entries, so that a repeated proposal is applied once. They are
/// forgotten by log index, hence at the same point on every member.
#[derive(Clone, Default)]
pub(crate) struct Remembered {
    order: VecDeque<(u64, u128)>,
    answers: HashMap<u128, Answer>,
    /// Ids given in entries up to this index may be forgotten: it is not known any more whether a
    /// request from before it was applied.
    forgotten: u64,
}

impl Remembered {
    pub(crate) fn get(&self, id: u128) -> Option<Answer> {
        self.answers.get(&id).copied()
    }

    /// Remembers the answer to `id`, given in the entry at `index`; 0 is nobody's id.
    pub(crate) fn add(&mut self, id: u128, index: u64, answer: Answer) {
        if id != 0 {
            self.order.push_back((index, id));
            self.answers.insert(id, answer);
        }
    }

    fn forget_before(&mut self, index: u64) {
        let mut excess = self.order.len().saturating_sub(REMEMBER_MOST);
        while let Some((at, id)) = self.order.pop_front_if(|(at, _)| excess > 0 || *at < index) {
            excess = excess.saturating_sub(1);
            self.answers.remove(&id);
            self.forgotten = at;
        }
    }

    /// All in the order in which they came: index, id, answer.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u128, Answer)> + '_ {
        self.order.iter().map(|(index, id)| (*index, *id, self.answers[id]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Header, NewObject};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn new_object(value: u8, term: u8) -> NewObject {
        let index = [format!("t={term}").into()].into();
        let header = Header { index, terminating: value == 0, ..Header::default() };
        let json = format!(r#"{{"metadata":{{"v":{value}}}}}"#).into();
        NewObject { json, splice_at: 13, header }
    }

    fn key() -> impl Strategy<Value = Key> {
        (0..2u8, 0..2u8, 0..3u8).prop_map(|(resource, namespace, name)| {
            Key::new(&format!("r{resource}"), &format!("n{namespace}"), &format!("o{name}"))
        })
    }

    fn command() -> impl Strategy<Value = Command> {
        let write = prop_oneof![
            3 => (key(), 0..3u8, 0..2u8).prop_map(|(k, v, t)| Write::Put(k, new_object(v, t))),
            1 => key().prop_map(Write::Delete),
        ];
        let precondition = prop_oneof![
            key().prop_map(Precondition::Absent),
            (key(), 0..20u64).prop_map(|(k, r)| Precondition::RevisionIs(k, r)),
            key().prop_map(Precondition::Live),
            (0..2u8).prop_map(|t| Precondition::NoneIndexed {
                resource: "r0".into(),
                term: format!("t={t}").into(),
            }),
        ];
        (
            0..40u128,
            prop::option::weighted(0.2, 1..3u64),
            prop::collection::vec(precondition, 0..2),
            prop::collection::vec(write, 0..4),
        )
            .prop_map(|(request_id, term, preconditions, writes)| Command {
                request_id,
                term,
                preconditions,
                writes,
            })
    }

    /// The obvious implementation: a map, and nothing shared.
    #[derive(Default)]
    struct Model {
        revision: u64,
        objects: BTreeMap<Key, (u64, u64, NewObject)>,
        answers: BTreeMap<u128, Answer>,
    }

    impl Model {
        fn holds(&self, precondition: &Precondition) -> bool {
            match precondition {
                Precondition::Absent(key) => !self.objects.contains_key(key),
                Precondition::RevisionIs(key, revision) => {
                    self.objects.get(key).is_some_and(|object| object.0 == *revision)
                }
                Precondition::Live(key) => {
                    self.objects.get(key).is_some_and(|object| !object.2.header.terminating)
                }
                Precondition::NoneIndexed { resource, term } => !self
                    .objects
                    .iter()
                    .any(|(key, o)| key.resource == *resource && o.2.header.index.contains(term)),
            }
        }

        fn apply(&mut self, command: &Command, term: u64) -> Answer {
            if let Some(answer) = self.answers.get(&command.request_id) {
                return *answer;
            }
            let answer = self.decide(command, term);
            if command.request_id != 0 {
                self.answers.insert(command.request_id, answer);
            }
            answer
        }

        fn decide(&mut self, command: &Command, term: u64) -> Answer {
            if command.term.is_some_and(|wanted| wanted != term) {
                return Answer::Fenced;
            }
            if let Some(place) = command.preconditions.iter().position(|p| !self.holds(p)) {
                return Answer::Refused { precondition: place as u32 };
            }
            // The last write of a key counts; what is the same stays as it is.
            let mut last = BTreeMap::new();
            for write in &command.writes {
                last.insert(write.key().clone(), write);
            }
            let revision = self.revision + 1;
            for (key, write) in last {
                let old = self.objects.get(&key).cloned();
                let changed = match (write, old) {
                    (Write::Put(_, new), Some((_, _, old))) if *new == old => false,
                    (Write::Put(_, new), old) => {
                        let created = old.map_or(revision, |old| old.1);
                        self.objects.insert(key, (revision, created, new.clone()));
                        true
                    }
                    (Write::Delete(_), _) => self.objects.remove(&key).is_some(),
                };
                if changed {
                    self.revision = revision;
                }
            }
            Answer::Applied { revision: self.revision }
        }
    }

    fn check(state: &State, model: &Model) -> Result<(), TestCaseError> {
        prop_assert_eq!(state.root.revision, model.revision);
        let found: Vec<_> = state.root.iter().collect();
        prop_assert_eq!(found.len(), model.objects.len());
        for (object, (key, (revision, created, new))) in found.iter().zip(&model.objects) {
            prop_assert_eq!(&object.key, key);
            prop_assert_eq!((object.revision, object.created_revision), (*revision, *created));
            prop_assert!(object.equals(new));
        }
        for term in ["t=0", "t=1"] {
            let indexed = |key: &&Key| *model.objects[*key].2.header.index[0] == *term;
            let expected: Vec<_> =
                model.objects.keys().filter(|key| &*key.resource == "r0").filter(indexed).collect();
            let resource = state.root.resources.get("r0");
            let found: Vec<_> = resource.into_iter().flat_map(|r| r.indexed(term)).collect();
            let current =
                |o: &Arc<Object>| state.root.get(&o.key).is_some_and(|c| Arc::ptr_eq(c, o));
            prop_assert!(found.iter().all(current), "the index points to current objects");
            prop_assert_eq!(found.iter().map(|o| &o.key).collect::<Vec<_>>(), expected);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn apply_is_what_the_model_says(
            commands in prop::collection::vec((command(), 1..3u64), 1..40),
        ) {
            let (mut state, mut model) = (State::default(), Model::default());
            let mut watched = State::default();
            for (index, (command, term)) in commands.into_iter().enumerate() {
                state.begin_entry(index as u64 + 1, term, u64::MAX);
                let before = state.root.revision;
                let expected = model.apply(&command, term);
                let applied = state.apply(command, u64::MAX);
                prop_assert_eq!(applied.outcome.as_ref().map(Answer::of), Some(expected));
                prop_assert_eq!(state.root.revision > before, !applied.events.is_empty());
                check(&state, &model)?;
                // Who follows the events has the same objects.
                for event in &applied.events {
                    prop_assert_eq!(event.revision, before + 1);
                    let object = (event.kind == crate::EventKind::Put).then(|| event.object.clone());
                    let known = watched.root.get(&event.object.key).map(|o| o.revision);
                    prop_assert_eq!(known, event.previous.as_ref().map(|o| o.revision));
                    crate::past::restore(&mut watched.root, &event.object.key, object);
                }
                watched.root.revision = state.root.revision;
                check(&watched, &model)?;
            }
        }
    }

    #[test]
    fn request_ids_are_forgotten_by_index_and_by_number() {
        let mut state = State::default();
        let command = |id| Command::unconditional(id, Vec::new());
        state.begin_entry(1, 1, 10);
        state.apply(command(5), 0);
        state.begin_entry(11, 1, 10);
        assert!(state.remembered.get(5).is_some());
        state.begin_entry(12, 1, 10);
        assert!(state.remembered.get(5).is_none());
        // Whether 5 was applied is not known any more, so it is not applied again.
        assert!(state.apply(command(5), 0).outcome.is_none());
        assert!(state.apply(command(6), 0).outcome.is_none());
        assert!(state.apply(command(6), 1).outcome.is_some());
        for id in 0..REMEMBER_MOST as u128 + 10 {
            state.apply(command(id + 100), 12);
        }
        state.begin_entry(13, 1, 10);
        // 6 was there as well: the oldest that had to go.
        assert!(state.remembered.get(6).is_none());
        assert!(state.remembered.get(109).is_none());
        assert!(state.remembered.get(110).is_some());
        assert_eq!(state.remembered.iter().count(), REMEMBER_MOST);
        let mut system = Vec::new();
        state.encode_system(&mut system);
        let mut read = State::default();
        assert_eq!(read.decode_system(&system), Some(()));
        assert_eq!(read.remembered.forgotten, 12);
        assert_eq!(State::default().decode_system(&system[1..]), None);
    }
}
