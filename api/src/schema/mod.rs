//! The one schema engine: every type of every kind in one form, from which decoding, pruning,
//! defaulting, type validation, patches, OpenAPI and protobuf follow.
//!
//! The built-in types come from a table that is compiled in ([`builtin`]). A
//! CustomResourceDefinition's structural schema becomes the same form at run time.

pub mod decode;
pub mod default;
pub mod gnostic;
pub mod openapi;
pub mod protobuf;
mod scalar;
pub mod table;
pub mod validate;
mod wire;

pub use decode::{Decoded, FieldValidation, check, decode, decode_yaml};
pub use default::apply_defaults;
pub use validate::validate;

use serde_json::Value;
use std::collections::HashMap;
use std::sync::LazyLock;

/// An index into a [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(pub u32);

/// A closed set of types that refer to each other.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<TypeDef>,
    names: HashMap<String, TypeId>,
}

/// A structure with named fields.
#[derive(Debug)]
pub struct TypeDef {
    /// `core.v1.PodSpec`, `meta.v1.ObjectMeta`: group's first label, version, type.
    pub name: String,
    /// By JSON name.
    pub fields: Fields,
    /// `x-kubernetes-map-type: atomic`: apply and patch treat the structure as one value.
    pub atomic: bool,
    /// It has a protobuf form.
    pub has_protobuf: bool,
    /// Where its fields stand in protobuf; the first is the message itself, the others are messages
    /// nested in it whose fields JSON inlines.
    pub(crate) layouts: Vec<Layout>,
}

/// The fields of a structure, sorted by JSON name.
#[derive(Debug, Default)]
pub struct Fields(Box<[Field]>);

/// One protobuf message's fields, sorted by number.
pub(crate) type Layout = Box<[(u32, Slot)]>;

/// What a protobuf field number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The field with this position in [`Fields`].
    Field(u32),
    /// A message that JSON inlines, with this position in the type's layouts.
    Inlined(u32),
}

/// One field of a structure.
#[derive(Debug)]
pub struct Field {
    /// The JSON name.
    pub name: Box<str>,
    /// What it holds.
    pub ty: FieldType,
    /// Without it the object is refused.
    pub required: bool,
    /// A zero value (`""`, 0, false, an empty list) differs from no value.
    pub keep_zero: bool,
    /// `x-kubernetes-patch-strategy` contains `merge`.
    pub patch_merge: bool,
    /// `x-kubernetes-patch-strategy` contains `retainKeys`.
    pub patch_retain_keys: bool,
    /// `x-kubernetes-patch-merge-key`.
    pub patch_merge_key: Option<String>,
    /// A default that depends on nothing else.
    pub default: Option<Value>,
    /// The protobuf field number; 0 if the field has none.
    pub number: u32,
    /// The name of the scalar's type in Go's errors (`v1.PullPolicy`), if it has one of its own.
    pub go_name: Option<Box<str>>,
}

/// What a field, an item or a map's value holds.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldType {
    /// A single value.
    Scalar(Scalar),
    /// A structure.
    Struct(TypeId),
    /// A list.
    List {
        /// What it holds.
        item: Box<FieldType>,
        /// How apply and patch tell the items apart.
        kind: ListKind,
    },
    /// A map with string keys.
    Map {
        /// What it holds.
        value: Box<FieldType>,
        /// One value for apply, instead of one value a key.
        atomic: bool,
    },
    /// Anything (`RawExtension`, `JSON`, `FieldsV1`).
    Any,
}

/// A value without parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A string.
    String,
    /// A signed 32-bit number.
    Int32,
    /// A signed 64-bit number.
    Int64,
    /// A double.
    Double,
    /// true or false.
    Bool,
    /// Base64 in JSON.
    Bytes,
    /// RFC 3339, to the second.
    Time,
    /// RFC 3339, to the microsecond.
    MicroTime,
    /// `metav1.Duration`: Go's duration text.
    Duration,
    /// `resource.Quantity`: text or a number.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Replaced as a whole.
    Atomic,
    /// Items are unique scalars.
    Set,
    /// Items are told apart by these fields.
    Map(Vec<String>),
}

/// The built-in types.
pub fn builtin() -> &'static Schema {
    static BUILTIN: LazyLock<Schema> = LazyLock::new(|| {
        // The table is compiled in and a test loads it, so this can't fail in a build that passed.
        table::parse(include_str!("types.tbl")).expect("the compiled-in type table is well formed")
    });
    &BUILTIN
}

impl Schema {
    /// The type with this name.
    pub fn id(&self, name: &str) -> Option<TypeId> {
        self.names.get(name).copied()
    }

    /// The type behind an id of this schema.
    pub fn get(&self, id: TypeId) -> &TypeDef {
        &self.types[id.0 as usize]
    }

    /// The type with this name.
    pub fn type_def(&self, name: &str) -> Option<&TypeDef> {
        self.id(name).map(|id| self.get(id))
    }

    /// The type of a kind: a group is known by its first label (`rbac.authorization.k8s.io` has
    /// `rbac.v1.Role`).
    pub fn id_of_kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        let label = match group.split('.').next() {
            None | Some("") => "core",
            Some(label) => label,
        };
        self.id(&format!("{label}.{version}.{kind}"))
    }

    /// All types, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (TypeId, &TypeDef)> {
        self.types.iter().enumerate().map(|(i, def)| (TypeId(i as u32), def))
    }
}

impl TypeDef {
    /// `PodSpec`
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// `v1.PodSpec`, as Go prints it.
    pub fn go_name(&self) -> &str {
        self.name.split_once('.').map_or(&self.name, |(_, rest)| rest)
    }
}

impl Fields {
    /// From fields in any order; the last of two with one name wins.
    pub fn new(mut fields: Vec<Field>) -> Self {
        fields.reverse();
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        fields.dedup_by(|a, b| a.name == b.name);
        Fields(fields.into())
    }

    /// The field with this JSON name.
    pub fn get(&self, name: &str) -> Option<&Field> {
        self.position(name).map(|i| &self.0[i])
    }

    /// The position of the field with this JSON name.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.0.binary_search_by(|f| (*f.name).cmp(name)).ok()
    }

    /// The field at a position.
    pub(crate) fn at(&self, position: usize) -> &Field {
        &self.0[position]
    }

    /// Whether there is a field with this JSON name.
    pub fn contains_key(&self, name: &str) -> bool {
        self.position(name).is_some()
    }

    /// All fields by JSON name, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.0.iter().map(|f| (&*f.name, f))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Scalar {
    /// The type's name in Go's errors.
    pub fn go_name(self) -> &'static str {
        match self {
            Scalar::String | Scalar::Quantity | Scalar::Time | Scalar::MicroTime => "string",
            Scalar::Duration => "string",
            Scalar::Int32 | Scalar::IntOrString => "int32",
            Scalar::Int64 => "int64",
            Scalar::Double => "float64",
            Scalar::Bool => "bool",
            Scalar::Bytes => "[]uint8",
        }
    }
}

/// Whether Go would leave the value out of a field with `omitempty`.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Whether a decoded value of a field stays: zero values of fields that don't tell zero from
/// absence are dropped, as a Go server's round trip does. Structures stay, even empty.
pub(crate) fn stays(field: &Field, value: &Value) -> bool {
    match field.ty {
        FieldType::Struct(_) | FieldType::Any => !value.is_null(),
        _ => field.keep_zero || !is_zero(value),
    }
}
