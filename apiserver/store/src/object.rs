//! An object as the store holds it: once, as the bytes that go out, beside a small header.

use bytes::Bytes;
use rkube_api::patch::managed::Entries;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::Write as _;
use std::sync::{Arc, OnceLock};

/// Where an object lives: resource, namespace (empty for cluster scope) and name.
///
/// Keys order by resource, then namespace, then name, so that a list is a range.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// `pods`, `deployments.apps`; names below `rkube/` are the store's user's own (allocations).
    pub resource: Arc<str>,
    /// Empty for cluster scope.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

impl Key {
    /// A key of these parts; an empty namespace for cluster scope.
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self { resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }
}

/// A set of keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    /// See [`Key::resource`].
    pub resource: Arc<str>,
    /// All namespaces if None.
    pub namespace: Option<Arc<str>>,
    /// All names if None.
    pub name: Option<Arc<str>>,
}

impl Scope {
    /// Everything of one resource.
    pub fn all(resource: &str) -> Self {
        Self { resource: resource.into(), namespace: None, name: None }
    }

    /// One namespace of a resource.
    pub fn namespace(resource: &str, namespace: &str) -> Self {
        Self { resource: resource.into(), namespace: Some(namespace.into()), name: None }
    }

    /// One object.
    pub fn object(key: &Key) -> Self {
        Self {
            resource: key.resource.clone(),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
        }
    }

    /// True if the key lies in the scope.
    pub fn contains(&self, key: &Key) -> bool {
        let part =
            |scope: &Option<Arc<str>>, part: &str| scope.as_deref().is_none_or(|s| s == part);
        *self.resource == *key.resource
            && part(&self.namespace, &key.namespace)
            && part(&self.name, &key.name)
    }
}

/// What the store knows of an object without reading its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// `metadata.uid`
    pub uid: Box<str>,
    /// `metadata.labels`, sorted by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The values of the kind's selectable fields, in the kind's order.
    pub fields: Box<[Box<str>]>,
    /// Terms under which the object can be found within its resource: `node=n1`, `owner=<uid>`,
    /// `involved=<uid>`.
    pub index: Box<[Box<str>]>,
    /// When the object may be deleted by the expiry loop, in seconds since 1970.
    pub expires_at: Option<i64>,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
}

/// An object on its way into the store: JSON without `metadata.resourceVersion`, and the place
/// where apply splices `"resourceVersion":"N",` in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewObject {
    /// JSON, compact.
    pub json: Bytes,
    /// Offset into `json`, right behind the opening brace of `metadata` (which is never empty).
    pub splice_at: u32,
    /// See [`Header`].
    pub header: Header,
}

/// Why a value can't be stored.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The value is no JSON object.
    #[error("the value is not an object")]
    NotAnObject,
    /// `metadata` is absent, no object, or has nothing but a resourceVersion.
    #[error("metadata is missing or empty")]
    NoMetadata,
    /// The value can't be written.
    #[error("encode object: {0}")]
    Json(#[from] serde_json::Error),
}

impl NewObject {
    /// Encodes a value for the store, leaving `metadata.resourceVersion` out and remembering
    /// where it belongs. Managed fields may be packed.
    pub fn encode(value: &Value, header: Header) -> Result<Self, EncodeError> {
        let fields = value.as_object().ok_or(EncodeError::NotAnObject)?;
        let mut json = Vec::with_capacity(1024);
        let mut splice_at = None;
        json.push(b'{');
        for (name, value) in fields {
            separate(&mut json);
            write_name(&mut json, name)?;
            match value.as_object() {
                Some(metadata) if name == "metadata" => {
                    json.push(b'{');
                    splice_at = Some(json.len());
                    write_metadata(&mut json, metadata)?;
                    json.push(b'}');
                }
                _ => serde_json::to_writer(&mut json, value)?,
            }
        }
        json.push(b'}');
        let splice_at = splice_at.filter(|&at| json[at] != b'}').ok_or(EncodeError::NoMetadata)?;
        json.shrink_to_fit();
        Ok(Self { json: json.into(), splice_at: splice_at as u32, header })
    }
}

fn separate(json: &mut Vec<u8>) {
    if json.last() != Some(&b'{') {
        json.push(b',');
    }
}

fn write_name(json: &mut Vec<u8>, name: &str) -> Result<(), serde_json::Error> {
    serde_json::to_writer(&mut *json, name)?;
    json.push(b':');
    Ok(())
}

fn write_metadata(
    json: &mut Vec<u8>,
    metadata: &serde_json::Map<String, Value>,
) -> Result<(), serde_json::Error> {
    for (name, value) in metadata.iter().filter(|(name, _)| *name != "resourceVersion") {
        separate(json);
        write_name(json, name)?;
        match name.as_str() {
            "managedFields" => serde_json::to_writer(&mut *json, &Entries(value))?,
            _ => serde_json::to_writer(&mut *json, value)?,
        }
    }
    Ok(())
}

/// An object at a revision. Immutable and shared by the state, the history and all watchers.
#[derive(Debug)]
pub struct Object {
    /// Where it lives.
    pub key: Key,
    /// The revision of its last change; what `metadata.resourceVersion` says.
    pub revision: u64,
    /// The revision of its creation.
    pub created_revision: u64,
    /// Complete JSON, `metadata.resourceVersion` in it.
    pub json: Bytes,
    /// Offset into `json` of `"resourceVersion":"N",`.
    pub splice_at: u32,
    /// See [`Header`].
    pub header: Header,
    /// See [`Object::encoding`]. Behind one pointer, since most objects never need any.
    encodings: OnceLock<Box<[OnceLock<Bytes>; ENCODINGS]>>,
}

/// How many other encodings an object can keep, see [`Object::encoding`].
pub const ENCODINGS: usize = 3;

impl Object {
    /// The object that `new` becomes when it is put at `revision`.
    pub fn place(key: Key, new: &NewObject, created_revision: u64, revision: u64) -> Self {
        let (before, after) = new.json.split_at(new.splice_at as usize);
        Self {
            key,
            revision,
            created_revision,
            json: splice(before, revision, after),
            splice_at: new.splice_at,
            header: new.header.clone(),
            encodings: OnceLock::new(),
        }
    }

    /// The same object with another revision in its bytes: what watchers get of a deletion.
    pub fn at_revision(&self, revision: u64) -> Self {
        let (before, after) = self.unspliced();
        Self {
            key: self.key.clone(),
            revision,
            created_revision: self.created_revision,
            json: splice(before, revision, after),
            splice_at: self.splice_at,
            header: self.header.clone(),
            encodings: OnceLock::new(),
        }
    }

    /// An object from its stored parts; None if the bytes have no revision where they should.
    pub(crate) fn from_parts(
        key: Key,
        revision: u64,
        created_revision: u64,
        json: Bytes,
        splice_at: u32,
        header: Header,
    ) -> Option<Self> {
        let behind = (splice_at as usize).checked_add(spliced_len(revision))?;
        json.get(splice_at as usize..behind)?.starts_with(SPLICE_OPEN).then_some(())?;
        let encodings = OnceLock::new();
        Some(Self { key, revision, created_revision, json, splice_at, header, encodings })
    }

    /// Another encoding of the object, made on first demand and kept with it. The store's user
    /// says what the slots below [`ENCODINGS`] mean (protobuf, table row, metadata alone).
    pub fn encoding(&self, slot: usize, make: impl FnOnce() -> Bytes) -> &Bytes {
        let slots = self.encodings.get_or_init(Default::default);
        slots[slot].get_or_init(make)
    }

    /// True if putting `new` here would change nothing.
    pub fn equals(&self, new: &NewObject) -> bool {
        let (before, after) = self.unspliced();
        let (new_before, new_after) = new.json.split_at(new.splice_at as usize);
        self.splice_at == new.splice_at
            && before == new_before
            && after == new_after
            && self.header == new.header
    }

    /// The bytes before and behind `"resourceVersion":"N",`.
    pub fn unspliced(&self) -> (&[u8], &[u8]) {
        let (before, rest) = self.json.split_at(self.splice_at as usize);
        (before, &rest[spliced_len(self.revision)..])
    }
}

const SPLICE_OPEN: &[u8] = b"\"resourceVersion\":\"";
const SPLICE_CLOSE: &[u8] = b"\",";

fn spliced_len(revision: u64) -> usize {
    let digits = revision.checked_ilog10().unwrap_or(0) as usize + 1;
    SPLICE_OPEN.len() + digits + SPLICE_CLOSE.len()
}

fn splice(before: &[u8], revision: u64, after: &[u8]) -> Bytes {
    let len = before.len() + spliced_len(revision) + after.len();
    let mut json = Vec::with_capacity(len);
    json.extend_from_slice(before);
    json.extend_from_slice(SPLICE_OPEN);
    // Writing into a Vec can't fail.
    let _ = write!(json, "{revision}");
    json.extend_from_slice(SPLICE_CLOSE);
    json.extend_from_slice(after);
    debug_assert_eq!(json.len(), len);
    json.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn encode_leaves_the_revision_out_and_place_puts_it_in() {
        let value = json!({"kind": "Pod", "metadata": {"name": "a", "resourceVersion": "7"}});
        let new = NewObject::encode(&value, Header::default()).unwrap();
        assert!(!String::from_utf8_lossy(&new.json).contains("resourceVersion"));
        for revision in [1, 9, 10, 99, 1_000_000, u64::MAX] {
            let object = Object::place(Key::new("pods", "d", "a"), &new, 1, revision);
            let read: Value = serde_json::from_slice(&object.json).unwrap();
            assert_eq!(read["metadata"]["resourceVersion"], revision.to_string());
            assert_eq!(read["metadata"]["name"], "a");
            assert!(object.equals(&new));
            let deleted = object.at_revision(5);
            let read: Value = serde_json::from_slice(&deleted.json).unwrap();
            assert_eq!(read["metadata"]["resourceVersion"], "5");
            assert!(deleted.equals(&new));
        }
    }

    #[test]
    fn encode_refuses_what_has_no_place_for_a_revision() {
        for value in [
            json!([]),
            json!({"kind": "Pod"}),
            json!({"metadata": {}}),
            json!({"metadata": {"resourceVersion": "3"}}),
            json!({"metadata": "x"}),
        ] {
            assert!(NewObject::encode(&value, Header::default()).is_err(), "{value}");
        }
    }

    #[test]
    fn only_the_top_metadata_is_spliced() {
        let value = json!({"a": {"metadata": {"x": 1}}, "metadata": {"name": "n"}, "z": 1});
        let new = NewObject::encode(&value, Header::default()).unwrap();
        let object = Object::place(Key::new("x", "", "n"), &new, 3, 3);
        let read: Value = serde_json::from_slice(&object.json).unwrap();
        assert_eq!(read["metadata"]["resourceVersion"], "3");
        assert_eq!(read["a"]["metadata"], json!({"x": 1}));
    }
}
