//! Sets of field paths, as field managers own them, and their form in JSON (`FieldsV1`).
//!
//! A set is a tree. An edge is one element of a path in its serialized form: `f:<field>`,
//! `k:<keys of a list's item>`, `v:<value of a set's item>` or `i:<index>`; keys are written with
//! sorted names, so that equal elements are equal texts. Invariant: no node below the root is both
//! outside the set and without children.

use litemap::LiteMap;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor,
};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// A set of field paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// The path that leads here is in the set (`.`).
    pub(super) member: bool,
    /// Few at each place, mostly put in in their order: a sorted list takes a tenth of the memory
    /// that a tree's smallest node would.
    pub(super) children: LiteMap<Box<str>, FieldSet>,
}

impl FieldSet {
    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// How many paths are in it.
    pub fn len(&self) -> usize {
        usize::from(self.member) + self.children.values().map(FieldSet::len).sum::<usize>()
    }

    /// Adds all paths of the other set.
    pub fn union(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (element, theirs) in &other.children {
            match self.children.get_mut(element) {
                Some(ours) => ours.union(theirs),
                None => {
                    self.children.insert(element.clone(), theirs.clone());
                }
            }
        }
    }

    /// Removes all paths of the other set.
    pub fn subtract(&mut self, other: &FieldSet) {
        self.member &= !other.member;
        for (element, theirs) in &other.children {
            if let Some(ours) = self.children.get_mut(element) {
                ours.subtract(theirs);
                if ours.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    /// The paths that are in both.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut both = FieldSet { member: self.member && other.member, children: LiteMap::new() };
        for (element, ours) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                both.put(element.clone(), ours.intersection(theirs));
            }
        }
        both
    }

    /// Whether any of its paths is in `fields`, a `FieldsV1` that need not be kept for that.
    ///
    /// # Errors
    /// If `fields` is no `FieldsV1`.
    pub fn meets<'de, D: Deserializer<'de>>(&self, fields: D) -> Result<bool, D::Error> {
        Meets(self).deserialize(fields)
    }

    /// All paths as upstream prints them: `.spec.containers[name="c"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(String::new(), &mut paths);
        paths
    }

    fn collect(&self, path: String, paths: &mut Vec<String>) {
        for (element, child) in &self.children {
            child.collect(format!("{path}{}", shown(element)), paths);
        }
        if self.member {
            paths.push(path);
        }
    }

    /// Hangs a subtree in, unless it is empty.
    pub(super) fn put(&mut self, element: Box<str>, child: FieldSet) {
        if !child.is_empty() {
            self.children.insert(element, child);
        }
    }
}

/// The element of a structure's field or a map's key.
pub(super) fn field(name: &str) -> Box<str> {
    ["f:", name].concat().into()
}

/// The element of an item of a set.
pub(super) fn item_value(value: &Value) -> Box<str> {
    format!("v:{value}").into()
}

/// The element of an item that these keys tell apart. `keys` must be sorted by name.
pub(super) fn item_keys<'v>(keys: impl Iterator<Item = (&'v str, &'v Value)>) -> Box<str> {
    let mut out = String::from("k:{");
    for (i, (name, value)) in keys.enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(&Value::from(name).to_string());
        out.push(':');
        out.push_str(&value.to_string());
    }
    out.push('}');
    out.into()
}

/// An element that a client wrote, in the one form in which elements are compared.
fn canonical_element(text: &str) -> Result<Box<str>, String> {
    let bad = |why: &str| format!("{why} in field path element {text:?}");
    match text.split_at_checked(2) {
        Some(("f:", _)) => Ok(text.into()),
        Some(("v:", value)) => {
            let value: Value = serde_json::from_str(value).map_err(|_| bad("bad value"))?;
            Ok(item_value(&value))
        }
        Some(("k:", keys)) => {
            let keys: BTreeMap<String, Value> =
                serde_json::from_str(keys).map_err(|_| bad("bad keys"))?;
            Ok(item_keys(keys.iter().map(|(k, v)| (k.as_str(), v))))
        }
        Some(("i:", index)) => match index.parse::<u32>() {
            Ok(_) => Ok(text.into()),
            Err(_) => Err(bad("bad index")),
        },
        _ => Err(bad("unknown type")),
    }
}

/// Reads `FieldsV1`.
impl<'de> Deserialize<'de> for FieldSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = FieldSet;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of field path elements")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FieldSet, A::Error> {
                let mut set = FieldSet::default();
                let own = |key: &str| match key {
                    "." => Ok(None),
                    _ => canonical_element(key).map(Some),
                };
                while let Some(element) = map.next_key_seed(Key(own))? {
                    let Some(element) = element.map_err(A::Error::custom)? else {
                        map.next_value::<IgnoredAny>()?;
                        set.member = true;
                        continue;
                    };
                    let mut child: FieldSet = map.next_value()?;
                    child.member |= child.children.is_empty();
                    set.children.insert(element, child);
                }
                Ok(set)
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// Looks at a key where it lies: keys with quotes can't be borrowed, and few are kept.
struct Key<F>(F);

impl<'de, T, F: FnOnce(&str) -> T> DeserializeSeed<'de> for Key<F> {
    type Value = T;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> T> Visitor<'_> for Key<F> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field path element")
    }
    fn visit_str<E: Error>(self, key: &str) -> Result<T, E> {
        Ok((self.0)(key))
    }
}

/// Writes `FieldsV1`.
impl Serialize for FieldSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let marked = self.member && !self.children.is_empty();
        let mut map = serializer.serialize_map(Some(self.children.len() + usize::from(marked)))?;
        if marked {
            map.serialize_entry(".", &FieldSet::default())?;
        }
        for (element, child) in &self.children {
            map.serialize_entry(element, child)?;
        }
        map.end()
    }
}

/// Walks a `FieldsV1` along a set; whether they meet.
struct Meets<'s>(&'s FieldSet);

impl<'de> DeserializeSeed<'de> for Meets<'_> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Meets<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of field path elements")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let (mut met, mut leaf) = (false, true);
        while let Some((own, child)) = map.next_key_seed(Key(|key: &str| self.look(key)))? {
            leaf = false;
            met |= own;
            match child {
                Some(child) if !met => met = map.next_value_seed(Meets(child))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(met || leaf && self.0.member)
    }
}

impl<'s> Meets<'s> {
    /// Whether a key says that the path that leads here is in both, and what the set has below it.
    fn look(&self, key: &str) -> (bool, Option<&'s FieldSet>) {
        let children = &self.0.children;
        let found = children.get(key).or_else(|| {
            // A client may have written an item with other spaces or another order of keys.
            let prefix = key.get(..2).filter(|p| matches!(*p, "k:" | "v:"))?;
            let any = children.keys().any(|element| element.starts_with(prefix));
            children.get(&*any.then(|| canonical_element(key).ok()).flatten()?)
        });
        (key == "." && self.0.member, found)
    }
}

fn shown(element: &str) -> String {
    let (kind, rest) = element.split_at(2);
    match kind {
        "f:" => format!(".{rest}"),
        "v:" => format!("[={rest}]"),
        "i:" => format!("[{rest}]"),
        _ => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", keys.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(fields: &Value) -> Result<FieldSet, serde_json::Error> {
        FieldSet::deserialize(fields)
    }

    #[test]
    fn reads_and_writes_fields_v1() {
        let text = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":1,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}, "f:set": {"v:\"x\"": {}}, "f:l": {"i:0": {}}}});
        let set = read(&text).unwrap();
        assert_eq!(serde_json::to_value(&set).unwrap(), text);
        assert_eq!(serde_json::to_string(&set).unwrap(), text.to_string());
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels.a",
                ".metadata.labels",
                ".spec.l[0]",
                ".spec.ports[port=1,protocol=\"TCP\"].port",
                ".spec.ports[port=1,protocol=\"TCP\"]",
                ".spec.set[=\"x\"]",
            ]
        );
    }

    #[test]
    fn keys_are_compared_by_meaning() {
        let a = read(&json!({"k:{\"b\":1, \"a\":2}": {}})).unwrap();
        let b = read(&json!({"k:{\"a\":2,\"b\":1}": {}})).unwrap();
        assert_eq!(a, b);
        assert!(b.meets(&json!({"k:{\"b\": 1, \"a\":2}": {}})).unwrap());
        assert!(!b.meets(&json!({"k:{\"b\": 1, \"a\":3}": {}})).unwrap());
        for bad in [
            json!({"x": {}}),
            json!({"k:[]": {}}),
            json!({"i:x": {}}),
            json!({"f:a": 1}),
            json!([]),
            json!({"é": {}}),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }

    fn set() -> impl Strategy<Value = FieldSet> {
        let leaf = Just(json!({}));
        let tree = leaf.prop_recursive(4, 24, 4, |inner| {
            prop::collection::btree_map("f:[a-d]|\\.", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect()))
        });
        tree.prop_map(|v| {
            let mut set = read(&v).unwrap();
            set.member = false;
            set
        })
    }

    proptest! {
        #[test]
        fn round_trip(a in set()) {
            let text = serde_json::to_string(&a).unwrap();
            prop_assert_eq!(serde_json::from_str::<FieldSet>(&text).unwrap(), a);
        }

        #[test]
        fn laws_of_sets(a in set(), b in set()) {
            let both = a.intersection(&b);
            prop_assert_eq!(&both, &b.intersection(&a));
            let mut union = a.clone();
            union.union(&b);
            prop_assert_eq!(union.len() + both.len(), a.len() + b.len());
            let mut rest = union.clone();
            rest.subtract(&b);
            rest.union(&both);
            prop_assert_eq!(rest.len(), a.len());
            prop_assert_eq!(rest.intersection(&a).len(), a.len());
            let fields = serde_json::to_value(&b).unwrap();
            prop_assert_eq!(a.meets(&fields).unwrap(), !both.is_empty());
            let mut none = a.clone();
            none.subtract(&a);
            prop_assert!(none.is_empty());
        }
    }
}
