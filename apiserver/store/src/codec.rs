//! How commands and objects are written into log entries and snapshots: compact, without JSON to
//! parse, versioned by the records that carry them.
//!
//! What is proposed is an item: its kind, its request id, what its sender had applied when it
//! first sent it (`since`), and the rest. An entry is a version and items with their lengths, so
//! a leader puts together what it was sent without reading it again.
//!
//! Numbers are little-endian or LEB128, texts and byte strings carry their length. Reading never
//! panics and never allocates more than the input has.

use crate::command::{Command, Precondition, Write};
use crate::member::{MemberChange, MemberInfo};
use crate::object::{Header, Key, NewObject, Object};
use crate::state::Answer;
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::Arc;

/// The newest form of log entries that this program reads, and writes once all members read it. The
/// form is the first byte of every entry with items.
pub(crate) const ENTRY_VERSION: u8 = 2;
/// What every member that has not said what it reads is taken for.
pub(crate) const OLDEST_ENTRY_VERSION: u8 = 2;
/// Entries of version 1 hold commands alone, without kinds and lengths.
const FIRST_VERSION: u8 = 1;

const ITEM_COMMAND: u8 = 1;
const ITEM_CHANGE: u8 = 2;
/// Where an item says what its sender had applied.
const SINCE_AT: usize = 17;
/// An item's kind, request id and `since`.
pub(crate) const ITEM_HEAD: usize = 25;

/// Why bytes can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("ends too early")]
    Short,
    #[error("text is not UTF-8")]
    Text,
    #[error("unknown tag {0}")]
    Tag(u8),
    #[error("unknown version {0}")]
    Version(u8),
    #[error("a number is out of range")]
    Range,
}

type Read<T> = Result<T, CodecError>;

/// Texts that occur again and again (resources, namespaces), held once.
#[derive(Default)]
pub(crate) struct Names(HashSet<Arc<str>>);

/// Beyond this many names those that nobody uses any more are dropped.
const NAMES_SWEEP: usize = 4096;

impl Names {
    pub(crate) fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        if self.0.len() >= NAMES_SWEEP {
            self.0.retain(|name| Arc::strong_count(name) > 1);
        }
        let name: Arc<str> = name.into();
        self.0.insert(name.clone());
        name
    }
}

pub(crate) fn put_u64(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}

/// A number in LEB128.
pub(crate) fn put_count(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_key(out: &mut Vec<u8>, key: &Key) {
    put_bytes(out, key.resource.as_bytes());
    put_bytes(out, key.namespace.as_bytes());
    put_bytes(out, key.name.as_bytes());
}

fn put_header(out: &mut Vec<u8>, header: &Header) {
    put_bytes(out, header.uid.as_bytes());
    put_count(out, header.labels.len());
    for (name, value) in &header.labels {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
    for texts in [&header.fields, &header.index] {
        put_count(out, texts.len());
        texts.iter().for_each(|text| put_bytes(out, text.as_bytes()));
    }
    let flags = u8::from(header.terminating) | (u8::from(header.expires_at.is_some()) << 1);
    out.push(flags);
    if let Some(at) = header.expires_at {
        put_u64(out, at as u64);
    }
}

/// What an entry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Command { since: u64, command: Command },
    Change { request_id: u128, change: MemberChange },
}

fn write_item_head(out: &mut Vec<u8>, kind: u8, request_id: u128) {
    out.push(kind);
    out.extend_from_slice(&request_id.to_le_bytes());
    put_u64(out, 0);
}

/// Writes an item with a command; `since` is stamped later.
pub(crate) fn write_command(out: &mut Vec<u8>, command: &Command) {
    write_item_head(out, ITEM_COMMAND, command.request_id);
    write_command_body(out, command);
}

/// An item with a change of members.
pub(crate) fn change_item(request_id: u128, change: &MemberChange) -> Vec<u8> {
    let mut out = Vec::with_capacity(ITEM_HEAD + 128);
    write_item_head(&mut out, ITEM_CHANGE, request_id);
    write_change(&mut out, change);
    out
}

/// Notes in an item what its sender has applied.
pub(crate) fn stamp_since(item: &mut [u8], since: u64) {
    item[SINCE_AT..ITEM_HEAD].copy_from_slice(&since.to_le_bytes());
}

/// The request id of an item; None if it is too short to be one.
pub(crate) fn request_id(item: &[u8]) -> Option<u128> {
    let id = item.get(1..SINCE_AT)?.try_into().ok()?;
    Some(u128::from_le_bytes(id)).filter(|_| item.len() >= ITEM_HEAD)
}

/// The change of members that an item asks for, if it does.
pub(crate) fn change_of(item: &[u8]) -> Option<MemberChange> {
    if item.first() != Some(&ITEM_CHANGE) {
        return None;
    }
    match Reader::new(item).item(&mut Names::default()) {
        Ok(Item::Change { change, .. }) => Some(change),
        _ => None,
    }
}

/// Adds an item to an entry's data.
pub(crate) fn put_item(data: &mut Vec<u8>, version: u8, item: &[u8]) {
    if data.is_empty() {
        data.push(version);
    }
    put_bytes(data, item);
}

/// Writes a change of members, as [`Reader::change`] reads it.
fn write_change(out: &mut Vec<u8>, change: &MemberChange) {
    let (tag, id) = match change {
        MemberChange::Add { id, .. } => (1, *id),
        MemberChange::Update { id, .. } => (2, *id),
        MemberChange::Promote(id) => (3, *id),
        MemberChange::Remove(id) => (4, *id),
    };
    out.push(tag);
    put_u64(out, id);
    if let MemberChange::Add { info, .. } | MemberChange::Update { info, .. } = change {
        write_info(out, info);
    }
}

/// Writes how a member is found, as [`Reader::info`] reads it.
pub(crate) fn write_info(out: &mut Vec<u8>, info: &MemberInfo) {
    for text in [&info.name, &info.peer_address, &info.api_url, &info.version] {
        put_bytes(out, text.as_bytes());
    }
    out.push(info.level);
}

fn write_command_body(out: &mut Vec<u8>, command: &Command) {
    // Raft's terms begin at 1.
    put_u64(out, command.term.unwrap_or(0));
    put_count(out, command.preconditions.len());
    for precondition in &command.preconditions {
        write_precondition(out, precondition);
    }
    put_count(out, command.writes.len());
    for write in &command.writes {
        match write {
            Write::Put(key, new) => {
                out.push(1);
                put_key(out, key);
                put_u64(out, u64::from(new.splice_at));
                put_header(out, &new.header);
                put_bytes(out, &new.json);
            }
            Write::Delete(key) => {
                out.push(2);
                put_key(out, key);
            }
        }
    }
}

fn write_precondition(out: &mut Vec<u8>, precondition: &Precondition) {
    match precondition {
        Precondition::Absent(key) => {
            out.push(1);
            put_key(out, key);
        }
        Precondition::RevisionIs(key, revision) => {
            out.push(2);
            put_key(out, key);
            put_u64(out, *revision);
        }
        Precondition::Live(key) => {
            out.push(3);
            put_key(out, key);
        }
        Precondition::NoneIndexed { resource, term } => {
            out.push(4);
            put_bytes(out, resource.as_bytes());
            put_bytes(out, term.as_bytes());
        }
    }
}

/// Writes one object, as [`Reader::object`] reads it.
pub(crate) fn write_object(out: &mut Vec<u8>, object: &Object) {
    put_key(out, &object.key);
    put_u64(out, object.revision);
    put_u64(out, object.created_revision);
    put_u64(out, u64::from(object.splice_at));
    put_header(out, &object.header);
    put_bytes(out, &object.json);
}

/// Writes a remembered request, as [`Reader::remembered`] reads it.
pub(crate) fn write_remembered(out: &mut Vec<u8>, index: u64, id: u128, answer: Answer) {
    put_u64(out, index);
    out.extend_from_slice(&id.to_le_bytes());
    let (tag, number) = match answer {
        Answer::Applied { revision } => (1, revision),
        Answer::Refused { precondition } => (2, u64::from(precondition)),
        Answer::Fenced => (3, 0),
    };
    out.push(tag);
    put_u64(out, number);
}

/// Reads what the functions above wrote.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Read<u8> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Read<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Read<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn u128(&mut self) -> Read<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    pub(crate) fn count(&mut self) -> Read<usize> {
        let mut n = 0usize;
        for shift in (0..35).step_by(7) {
            let byte = self.u8()?;
            n |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(CodecError::Range)
    }

    pub(crate) fn bytes(&mut self) -> Read<&'a [u8]> {
        let n = self.count()?;
        self.take(n)
    }

    fn text(&mut self) -> Read<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| CodecError::Text)
    }

    /// `count` items; their number is bounded by the input, since each takes at least a byte.
    pub(crate) fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let n = self.count()?;
        let mut items = Vec::with_capacity(n.min(self.rest.len()));
        for _ in 0..n {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn key(&mut self, names: &mut Names) -> Read<Key> {
        let resource = names.get(self.text()?);
        let namespace = names.get(self.text()?);
        Ok(Key { resource, namespace, name: self.text()?.into() })
    }

    fn header(&mut self) -> Read<Header> {
        let uid = self.text()?.into();
        let labels = self.list(|r| Ok((r.text()?.into(), r.text()?.into())))?.into();
        let fields = self.list(|r| Ok(r.text()?.into()))?.into();
        let index = self.list(|r| Ok(r.text()?.into()))?.into();
        let flags = self.u8()?;
        let expires_at = if flags & 2 != 0 { Some(self.u64()? as i64) } else { None };
        Ok(Header { uid, labels, fields, index, expires_at, terminating: flags & 1 != 0 })
    }

    fn splice_at(&mut self) -> Read<u32> {
        u32::try_from(self.u64()?).map_err(|_| CodecError::Range)
    }

    /// One item, to its end.
    pub(crate) fn item(&mut self, names: &mut Names) -> Read<Item> {
        let (kind, request_id, since) = (self.u8()?, self.u128()?, self.u64()?);
        let item = match kind {
            ITEM_COMMAND => Item::Command { since, command: self.command(request_id, names)? },
            ITEM_CHANGE => Item::Change { request_id, change: self.change()? },
            tag => return Err(CodecError::Tag(tag)),
        };
        if !self.is_empty() {
            return Err(CodecError::Range);
        }
        Ok(item)
    }

    fn change(&mut self) -> Read<MemberChange> {
        let (tag, id) = (self.u8()?, self.u64()?);
        Ok(match tag {
            1 => MemberChange::Add { id, info: self.info()? },
            2 => MemberChange::Update { id, info: self.info()? },
            3 => MemberChange::Promote(id),
            4 => MemberChange::Remove(id),
            tag => return Err(CodecError::Tag(tag)),
        })
    }

    /// How a member is found.
    pub(crate) fn info(&mut self) -> Read<MemberInfo> {
        let mut text = || self.text().map(str::to_owned);
        let (name, peer_address, api_url, version) = (text()?, text()?, text()?, text()?);
        Ok(MemberInfo { name, peer_address, api_url, version, level: self.u8()? })
    }

    fn command(&mut self, request_id: u128, names: &mut Names) -> Read<Command> {
        let term = Some(self.u64()?).filter(|term| *term != 0);
        let preconditions = self.list(|r| r.precondition(names))?;
        let writes = self.list(|r| r.write(names))?;
        Ok(Command { request_id, term, preconditions, writes })
    }

    fn precondition(&mut self, names: &mut Names) -> Read<Precondition> {
        Ok(match self.u8()? {
            1 => Precondition::Absent(self.key(names)?),
            2 => Precondition::RevisionIs(self.key(names)?, self.u64()?),
            3 => Precondition::Live(self.key(names)?),
            4 => Precondition::NoneIndexed {
                resource: names.get(self.text()?),
                term: self.text()?.into(),
            },
            tag => return Err(CodecError::Tag(tag)),
        })
    }

    fn write(&mut self, names: &mut Names) -> Read<Write> {
        match self.u8()? {
            1 => {
                let key = self.key(names)?;
                let splice_at = self.splice_at()?;
                let header = self.header()?;
                let json = Bytes::copy_from_slice(self.bytes()?);
                if splice_at as usize > json.len() {
                    return Err(CodecError::Range);
                }
                Ok(Write::Put(key, NewObject { json, splice_at, header }))
            }
            2 => Ok(Write::Delete(self.key(names)?)),
            tag => Err(CodecError::Tag(tag)),
        }
    }

    /// One object.
    pub(crate) fn object(&mut self, names: &mut Names) -> Read<Object> {
        let key = self.key(names)?;
        let (revision, created) = (self.u64()?, self.u64()?);
        let splice_at = self.splice_at()?;
        let header = self.header()?;
        let json = Bytes::copy_from_slice(self.bytes()?);
        Object::from_parts(key, revision, created, json, splice_at, header).ok_or(CodecError::Range)
    }

    /// One remembered request: index, id, answer.
    pub(crate) fn remembered(&mut self) -> Read<(u64, u128, Answer)> {
        let (index, id) = (self.u64()?, self.u128()?);
        let (tag, number) = (self.u8()?, self.u64()?);
        let answer = match tag {
            1 => Answer::Applied { revision: number },
            2 => Answer::Refused { precondition: number as u32 },
            3 => Answer::Fenced,
            tag => return Err(CodecError::Tag(tag)),
        };
        Ok((index, id, answer))
    }
}

/// The items of a log entry's data, of versions up to `newest`; none for the empty entry of a new
/// leader. Whatever is not known here is an error: a member that skipped it would differ from the
/// others.
pub(crate) fn read_entry(data: &[u8], names: &mut Names, newest: u8) -> Read<Vec<Item>> {
    let mut reader = Reader::new(data);
    let mut items = Vec::new();
    if reader.is_empty() {
        return Ok(items);
    }
    let version = reader.u8()?;
    while !reader.is_empty() {
        items.push(match version {
            // Who wrote these had applied all that was before: it was alone.
            FIRST_VERSION => {
                let request_id = reader.u128()?;
                let command = reader.command(request_id, names)?;
                Item::Command { since: u64::MAX, command }
            }
            OLDEST_ENTRY_VERSION.. if version <= newest => {
                Reader::new(reader.bytes()?).item(names)?
            }
            version => return Err(CodecError::Version(version)),
        });
    }
    Ok(items)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An entry's data with these commands, whose sender had applied what `since` says.
    pub(crate) fn entry_data(commands: &[Command], since: u64) -> Vec<u8> {
        let mut data = Vec::new();
        for command in commands {
            let mut item = Vec::new();
            write_command(&mut item, command);
            stamp_since(&mut item, since);
            put_item(&mut data, ENTRY_VERSION, &item);
        }
        data
    }

    fn command() -> impl Strategy<Value = Command> {
        let key = ("[a-z]{1,3}", "[a-z]{0,3}", "[a-zé]{1,5}")
            .prop_map(|(resource, namespace, name)| Key::new(&resource, &namespace, &name));
        let text = "[a-z=]{0,4}".prop_map(|s| s.into_boxed_str());
        let texts = prop::collection::vec(text.clone(), 0..3).prop_map(Vec::into_boxed_slice);
        let labels = prop::collection::vec((text.clone(), text.clone()), 0..3);
        let header =
            (text.clone(), labels, texts.clone(), texts, any::<Option<i64>>(), any::<bool>())
                .prop_map(|(uid, labels, fields, index, expires_at, terminating)| Header {
                    uid,
                    labels: labels.into(),
                    fields,
                    index,
                    expires_at,
                    terminating,
                });
        let put = (key.clone(), prop::collection::vec(any::<u8>(), 0..300), header).prop_map(
            |(key, json, header)| {
                let splice_at = json.len() as u32 / 2;
                Write::Put(key, NewObject { json: json.into(), splice_at, header })
            },
        );
        let write = prop_oneof![put, key.clone().prop_map(Write::Delete)];
        let precondition = prop_oneof![
            key.clone().prop_map(Precondition::Absent),
            (key.clone(), any::<u64>()).prop_map(|(k, r)| Precondition::RevisionIs(k, r)),
            key.prop_map(Precondition::Live),
            text.prop_map(|term| Precondition::NoneIndexed { resource: "r".into(), term }),
        ];
        (
            any::<u128>(),
            any::<Option<std::num::NonZeroU64>>(),
            prop::collection::vec(precondition, 0..3),
            prop::collection::vec(write, 0..3),
        )
            .prop_map(|(request_id, term, preconditions, writes)| Command {
                request_id,
                term: term.map(Into::into),
                preconditions,
                writes,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn commands_come_back(commands in prop::collection::vec(command(), 0..4)) {
            for command in &commands {
                let mut item = Vec::new();
                write_command(&mut item, command);
                prop_assert_eq!(request_id(&item), Some(command.request_id));
            }
            let data = entry_data(&commands, 7);
            let read = read_entry(&data, &mut Names::default(), ENTRY_VERSION);
            let items = commands.into_iter().map(|command| Item::Command { since: 7, command });
            prop_assert_eq!(read, Ok(items.collect()));
        }

        #[test]
        fn no_input_panics(mut data in prop::collection::vec(any::<u8>(), 0..200)) {
            for first in [None, Some(FIRST_VERSION), Some(ENTRY_VERSION)] {
                if let (Some(version), Some(first)) = (data.first_mut(), first) {
                    *version = first;
                }
                let _ = read_entry(&data, &mut Names::default(), ENTRY_VERSION);
            }
            let _ = Reader::new(&data).object(&mut Names::default());
        }
    }

    #[test]
    fn a_change_of_members_comes_back_and_what_is_not_known_is_refused() {
        let info = MemberInfo { name: "a".into(), ..MemberInfo::default() };
        for change in [
            MemberChange::Add { id: 3, info: info.clone() },
            MemberChange::Update { id: 4, info },
            MemberChange::Promote(5),
            MemberChange::Remove(6),
        ] {
            let mut data = Vec::new();
            put_item(&mut data, ENTRY_VERSION, &change_item(9, &change));
            let item = Item::Change { request_id: 9, change };
            assert_eq!(read_entry(&data, &mut Names::default(), ENTRY_VERSION), Ok(vec![item]));
        }
        let mut item = change_item(9, &MemberChange::Promote(5));
        item[0] = 99;
        let mut data = Vec::new();
        put_item(&mut data, ENTRY_VERSION, &item);
        let names = &mut Names::default();
        assert_eq!(read_entry(&data, names, ENTRY_VERSION), Err(CodecError::Tag(99)));
        assert_eq!(
            read_entry(&[ENTRY_VERSION + 1, 0], names, ENTRY_VERSION),
            Err(CodecError::Version(3))
        );
        item.push(0);
        item[0] = ITEM_CHANGE;
        data.clear();
        put_item(&mut data, ENTRY_VERSION, &item);
        assert_eq!(read_entry(&data, names, ENTRY_VERSION), Err(CodecError::Range));
    }
}
