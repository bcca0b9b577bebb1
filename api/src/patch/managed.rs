//! `metadata.managedFields` as the server works on it: each entry's `fieldsV1` is the text of its
//! JSON. Half of a pod's tree would be those fields, and most writes only carry them along.
//!
//! [`parse`] reads a stored object so, [`pack`] and [`unpack`] turn one form into the other, and
//! [`Entries`] writes entries of either form as clients see them.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fmt;

/// Where the fields stand in an entry.
const FIELDS: &str = "fieldsV1";

/// Reads an object with its fields packed.
///
/// # Errors
/// If it is no JSON object, or has metadata or entries that are none.
pub fn parse(json: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = Level::Object.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Turns the fields of an object's entries into text.
pub fn pack(object: &mut Value) {
    for fields in all_fields(object) {
        if fields.is_object() {
            *fields = fields.to_string().into();
        }
    }
}

/// Turns the fields of an object's entries into values.
pub fn unpack(object: &mut Value) {
    for fields in all_fields(object) {
        if let Some(value) = fields.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *fields = value;
        }
    }
}

fn all_fields(object: &mut Value) -> impl Iterator<Item = &mut Value> {
    let entries = object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut);
    entries.into_iter().flatten().filter_map(|entry| entry.get_mut(FIELDS))
}

/// Writes the value of `managedFields` with its fields unpacked.
pub struct Entries<'a>(pub &'a Value);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Array(entries) = self.0 else { return self.0.serialize(serializer) };
        let mut seq = serializer.serialize_seq(Some(entries.len()))?;
        for entry in entries {
            match entry.as_object() {
                Some(entry) => seq.serialize_element(&Entry(entry))?,
                None => seq.serialize_element(entry)?,
            }
        }
        seq.end()
    }
}

struct Entry<'a>(&'a Map<String, Value>);

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            let text = value.as_str().filter(|_| key == FIELDS);
            match text.and_then(|text| serde_json::from_str::<&RawValue>(text).ok()) {
                Some(fields) => map.serialize_entry(key, fields)?,
                None => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

/// What is being read, on the way from the object to an entry's fields.
#[derive(Clone, Copy)]
enum Level {
    Object,
    Metadata,
    Entries,
    Entry,
}

impl Level {
    /// What the value under a key is, if the way leads through it.
    fn below(self, key: &str) -> Option<Level> {
        match (self, key) {
            (Level::Object, "metadata") => Some(Level::Metadata),
            (Level::Metadata, "managedFields") => Some(Level::Entries),
            _ => None,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Level::Entries => deserializer.deserialize_seq(self),
            _ => deserializer.deserialize_map(self),
        }
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Object => "an object",
            Level::Metadata => "metadata",
            Level::Entries => "a list of managed fields",
            Level::Entry => "an entry of managed fields",
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = match self.below(&key) {
                Some(level) => access.next_value_seed(level)?,
                None if matches!(self, Level::Entry) && key == FIELDS => {
                    access.next_value::<&RawValue>()?.get().into()
                }
                None => access.next_value()?,
            };
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        if !matches!(self, Level::Entries) {
            return Err(A::Error::custom("a list where an object belongs"));
        }
        let mut list = Vec::new();
        while let Some(entry) = access.next_element_seed(Level::Entry)? {
            list.push(entry);
        }
        Ok(Value::Array(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object() -> Value {
        json!({"kind": "Pod", "metadata": {"name": "a", "managedFields": [
            {"manager": "m", "fieldsV1": {"f:spec": {"f:a": {}, "k:{\"name\":\"é\"}": {".": {}}}}},
            {"manager": "without fields"},
        ]}, "spec": {"fieldsV1": {"not": "these"}, "managedFields": [{"fieldsV1": {}}]}})
    }

    #[test]
    fn both_forms_lead_to_each_other() {
        let whole = object();
        let packed = parse(whole.to_string().as_bytes()).unwrap();
        assert_eq!(
            packed["metadata"]["managedFields"][0]["fieldsV1"],
            r#"{"f:spec":{"f:a":{},"k:{\"name\":\"é\"}":{".":{}}}}"#
        );
        assert_eq!(packed["spec"], whole["spec"]);
        let mut again = whole.clone();
        pack(&mut again);
        assert_eq!(again, packed);
        unpack(&mut again);
        assert_eq!(again, whole);
    }

    #[test]
    fn entries_are_written_as_clients_see_them() {
        let whole = object();
        let packed = parse(whole.to_string().as_bytes()).unwrap();
        let expected = whole["metadata"]["managedFields"].to_string();
        for form in [&packed, &whole] {
            let entries = Entries(&form["metadata"]["managedFields"]);
            assert_eq!(serde_json::to_string(&entries).unwrap(), expected);
        }
    }

    #[test]
    fn a_text_that_is_no_json_stays_a_text() {
        let mut odd = json!({"metadata": {"managedFields": [{"fieldsV1": "{]"}]}});
        let entries = odd["metadata"]["managedFields"].clone();
        assert_eq!(serde_json::to_value(Entries(&entries)).unwrap(), entries);
        unpack(&mut odd);
        assert_eq!(odd["metadata"]["managedFields"], entries);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bad in
            ["[]", "1", r#"{"metadata":[]}"#, r#"{"metadata":{"managedFields":{}}}"#, "{} {}"]
        {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
