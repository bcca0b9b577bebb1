//! Sets of field paths, as field managers own them, and their form in JSON (`FieldsV1`).
//!
//! A set is a tree. An edge is one element of a path in its serialized form: `f:<field>`,
//! `k:<keys of a list's item>`, `v:<value of a set's item>` or `i:<index>`; keys are written with
//! sorted names, so that equal elements are equal texts. Invariant: no node below the root is both
//! outside the set and without children.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A set of field paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// The path that leads here is in the set (`.`).
    pub(super) member: bool,
    pub(super) children: BTreeMap<Box<str>, FieldSet>,
}

impl FieldSet {
    /// Reads `FieldsV1`.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let Value::Object(map) = value else {
            return Err(format!("expected an object, got {value}"));
        };
        let mut set = FieldSet::default();
        for (key, below) in map {
            if key == "." {
                set.member = true;
                continue;
            }
            let mut child = FieldSet::parse(below)?;
            child.member |= child.children.is_empty();
            set.children.insert(canonical_element(key)?, child);
        }
        Ok(set)
    }

    /// Writes `FieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            map.insert(element.to_string(), child.to_value());
        }
        Value::Object(map)
    }

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
        let mut both = FieldSet { member: self.member && other.member, children: BTreeMap::new() };
        for (element, ours) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                both.put(element.clone(), ours.intersection(theirs));
            }
        }
        both
    }

    /// Whether any of its paths is in `fields`, a `FieldsV1` that need not be read for that.
    pub fn meets(&self, fields: &Value) -> bool {
        let Value::Object(map) = fields else { return false };
        let inside = |element: &str, child: &FieldSet| {
            let below = map.get(element).or_else(|| written_otherwise(map, element));
            below.is_some_and(|below| {
                let leaf = below.as_object().is_some_and(Map::is_empty);
                leaf && child.member || child.meets(below)
            })
        };
        self.member && map.contains_key(".") || self.children.iter().any(|(e, c)| inside(e, c))
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
    format!("f:{name}").into()
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

/// What stands behind an element that a client wrote with other spaces or another order of keys.
fn written_otherwise<'v>(map: &'v Map<String, Value>, element: &str) -> Option<&'v Value> {
    let prefix = element.get(..2).filter(|p| matches!(*p, "k:" | "v:"))?;
    let same = |text: &str| canonical_element(text).is_ok_and(|c| *c == *element);
    map.iter().find(|(text, _)| text.starts_with(prefix) && same(text)).map(|(_, below)| below)
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

    #[test]
    fn reads_and_writes_fields_v1() {
        let text = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":1,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}, "f:set": {"v:\"x\"": {}}, "f:l": {"i:0": {}}}});
        let set = FieldSet::parse(&text).unwrap();
        assert_eq!(set.to_value(), text);
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
        let a = FieldSet::parse(&json!({"k:{\"b\":1, \"a\":2}": {}})).unwrap();
        let b = FieldSet::parse(&json!({"k:{\"a\":2,\"b\":1}": {}})).unwrap();
        assert_eq!(a, b);
        assert!(b.meets(&json!({"k:{\"b\": 1, \"a\":2}": {}})));
        assert!(!b.meets(&json!({"k:{\"b\": 1, \"a\":3}": {}})));
        for bad in [
            json!({"x": {}}),
            json!({"k:[]": {}}),
            json!({"i:x": {}}),
            json!({"f:a": 1}),
            json!([]),
            json!({"é": {}}),
        ] {
            assert!(FieldSet::parse(&bad).is_err(), "{bad}");
        }
    }

    fn set() -> impl Strategy<Value = FieldSet> {
        let leaf = Just(json!({}));
        let tree = leaf.prop_recursive(4, 24, 4, |inner| {
            prop::collection::btree_map("f:[a-d]|\\.", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect()))
        });
        tree.prop_map(|v| {
            let mut set = FieldSet::parse(&v).unwrap();
            set.member = false;
            set
        })
    }

    proptest! {
        #[test]
        fn round_trip(a in set()) {
            prop_assert_eq!(FieldSet::parse(&a.to_value()).unwrap(), a);
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
            prop_assert_eq!(a.meets(&b.to_value()), !both.is_empty());
            let mut none = a.clone();
            none.subtract(&a);
            prop_assert!(none.is_empty());
        }
    }
}
