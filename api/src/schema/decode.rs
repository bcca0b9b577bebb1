//! Bodies of requests to values under a type, in one pass: unknown fields are found and pruned,
//! types checked, scalars put in their canonical form, and everything worded as Go's decoder does.
//!
//! The same pass runs over bytes ([`decode`]), over YAML ([`decode_yaml`]) and over a value that
//! is there already, such as the result of a patch ([`check`]).

use super::{Field, FieldType, Scalar, Schema, TypeDef, TypeId, scalar, stays};
use crate::error::ApiError;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// What happens with unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are dropped silently.
    Ignore,
    /// They are dropped with a warning; the server's default.
    #[default]
    Warn,
    /// The request is refused.
    Strict,
}

impl FieldValidation {
    /// From the query parameter; empty means the default, None that it is none of the three.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(FieldValidation::Warn),
            "Ignore" => Some(FieldValidation::Ignore),
            "Strict" => Some(FieldValidation::Strict),
            _ => None,
        }
    }
}

/// A decoded object.
#[derive(Debug, PartialEq)]
pub struct Decoded {
    /// What was sent, without unknown fields.
    pub value: Value,
    /// Texts for `Warning` headers; empty unless the validation is `Warn`.
    pub warnings: Vec<String>,
}

/// Deeper nesting is refused. The parser's own limit of 128 comes first for text.
const MAX_DEPTH: usize = 200;
/// More objects than this in one body are refused: an empty object takes 3 bytes to send and
/// hundreds to hold, so the body's size alone bounds nothing.
const MAX_OBJECTS: usize = 300_000;
/// Go stops counting strict errors here.
const MAX_STRICT: usize = 100;

/// Decodes a JSON body.
///
/// # Errors
/// 400 with the words of upstream for broken JSON, wrong types and, if strict, unknown fields.
pub fn decode(
    schema: &Schema,
    id: TypeId,
    body: &[u8],
    mode: FieldValidation,
) -> Result<Decoded, ApiError> {
    let mut source = serde_json::Deserializer::from_slice(body);
    run(schema, id, mode, |node| {
        let value = node.deserialize(&mut source)?;
        source.end()?;
        Ok(value)
    })
    .map_err(|fault| match fault {
        Fault::Syntax(error) => unrecognized(schema.get(id), body, &error),
        Fault::Content(text) => unhandled(schema.get(id), &peek(body), &text),
    })
}

/// Runs the same pass over a value.
///
/// # Errors
/// As [`decode`], without faults of syntax.
pub fn check(
    schema: &Schema,
    id: TypeId,
    value: Value,
    mode: FieldValidation,
) -> Result<Decoded, ApiError> {
    let head = Head::of(&value);
    run(schema, id, mode, |node| node.deserialize(value)).map_err(|fault| match fault {
        Fault::Syntax(error) => ApiError::bad_request(error.to_string()),
        Fault::Content(text) => unhandled(schema.get(id), &head, &text),
    })
}

/// Decodes a YAML body of one document.
///
/// # Errors
/// 400 for broken YAML and for aliases that multiply, otherwise as [`decode`].
pub fn decode_yaml(
    schema: &Schema,
    id: TypeId,
    body: &[u8],
    mode: FieldValidation,
) -> Result<Decoded, ApiError> {
    if serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        return decode(schema, id, body, mode);
    }
    let wrong =
        |why: String| ApiError::bad_request(format!("error converting YAML to JSON: yaml: {why}"));
    let text = std::str::from_utf8(body).map_err(|e| wrong(e.to_string()))?;
    let value = crate::yaml::parse_value(text)
        .map_err(|e| wrong(format!("line {}: {}", e.line, e.message)))?;
    check(schema, id, value, mode)
}

/// Fills an absent `kind` and `apiVersion` of a decoded object and refuses others than expected.
///
/// # Errors
/// 400 in upstream's words.
pub fn expect_kind(value: &mut Value, expected: &crate::GroupVersionKind) -> Result<(), ApiError> {
    let head = Head::of(value);
    let api_version = expected.api_version();
    if head.matches(&expected.kind, &api_version) {
        value["kind"] = expected.kind.clone().into();
        value["apiVersion"] = api_version.into();
        return Ok(());
    }
    let (_, version) = crate::meta::split_api_version(&head.api_version);
    let why = match head.kind == expected.kind {
        true => format!("no kind {:?} is registered for version {:?}", head.kind, head.api_version),
        false => format!(
            "converting ({}.{}) to ({}.{}): unknown conversion",
            version, head.kind, expected.version, expected.kind
        ),
    };
    Err(ApiError::bad_request(format!(
        "{} in version {version:?} cannot be handled as a {}: {why}",
        head.kind, expected.kind
    )))
}

enum Fault {
    Syntax(serde_json::Error),
    Content(String),
}

fn run(
    schema: &Schema,
    id: TypeId,
    mode: FieldValidation,
    go: impl FnOnce(Node<'_, '_>) -> Result<Option<Value>, serde_json::Error>,
) -> Result<Decoded, Fault> {
    let ty = FieldType::Struct(id);
    let mut cx =
        Context { schema, mode, path: Vec::new(), strict: Vec::new(), fault: None, objects: 0 };
    let outcome = go(Node { cx: &mut cx, ty: &ty, field: None });
    if let Some(text) = cx.fault {
        return Err(Fault::Content(text));
    }
    let value = outcome.map_err(Fault::Syntax)?.unwrap_or_else(|| Value::Object(Map::new()));
    match mode {
        FieldValidation::Strict if !cx.strict.is_empty() => {
            Err(Fault::Content(format!("strict decoding error: {}", cx.strict.join(", "))))
        }
        _ => Ok(Decoded { value, warnings: cx.strict }),
    }
}

/// The type that a body says it has.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    kind: String,
    #[serde(rename = "apiVersion")]
    api_version: String,
}

impl Head {
    fn of(value: &Value) -> Head {
        let text = |key| crate::meta::str_at(value, &[key]).to_string();
        Head { kind: text("kind"), api_version: text("apiVersion") }
    }

    fn matches(&self, kind: &str, api_version: &str) -> bool {
        (self.kind.is_empty() || self.kind == kind)
            && (self.api_version.is_empty() || self.api_version == api_version)
    }
}

fn peek(body: &[u8]) -> Head {
    serde_json::from_slice(body).unwrap_or_default()
}

fn unhandled(def: &TypeDef, head: &Head, why: &str) -> ApiError {
    let expected = def.short_name();
    let own = def.name.split('.').nth(1).unwrap_or_default();
    let (_, said) = crate::meta::split_api_version(&head.api_version);
    let (kind, version) = (
        if head.kind.is_empty() { expected } else { &head.kind },
        if said.is_empty() { own } else { said },
    );
    ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {expected}: {why}"
    ))
}

fn unrecognized(def: &TypeDef, body: &[u8], error: &serde_json::Error) -> ApiError {
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {} ({})",
        def.short_name(),
        syntax_error(body, error),
        summary(body),
    ))
}

/// The beginning of a body, as upstream quotes it.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    match std::str::from_utf8(body) {
        _ if body.is_empty() => "<empty>".into(),
        Ok(text) if body.len() > SHOWN => {
            format!("{} ...", text.chars().take(SHOWN).collect::<String>())
        }
        Ok(text) => text.into(),
        Err(_) => body.iter().take(SHOWN / 2).fold("0x".into(), |s, b| format!("{s}{b:02x}")),
    }
}

/// The fault in the words of Go's `encoding/json`.
pub fn syntax_error(body: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let text = error.to_string();
    if text.starts_with("recursion limit") {
        return "exceeded max depth".into();
    }
    let context = [
        ("expected value", "looking for beginning of value"),
        ("expected ident", "in literal"),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("key must be a string", "looking for beginning of object key string"),
        ("trailing comma", "looking for beginning of value"),
        ("trailing characters", "after top-level value"),
        ("control character", "in string literal"),
        ("invalid escape", "in string escape code"),
        ("invalid number", "in numeric literal"),
    ]
    .iter()
    .find(|(ours, _)| text.starts_with(ours));
    match (context, offender(body, error)) {
        (Some((_, context)), Some(c)) => format!("invalid character {c:?} {context}"),
        _ => text,
    }
}

fn offender(body: &[u8], error: &serde_json::Error) -> Option<char> {
    let line = body.split(|&b| b == b'\n').nth(error.line().checked_sub(1)?)?;
    line.get(error.column().saturating_sub(1)).map(|&b| char::from(b))
}

/// Where the pass is, and what it has found.
struct Context<'s> {
    schema: &'s Schema,
    mode: FieldValidation,
    path: Vec<Segment<'s>>,
    strict: Vec<String>,
    fault: Option<String>,
    objects: usize,
}

enum Segment<'s> {
    Field(&'s str, TypeId),
    Key(String),
    Index(usize),
}

impl<'s> Context<'s> {
    /// Stops the pass with a text that goes out.
    fn fail<E: Error>(&mut self, text: String) -> E {
        self.fault.get_or_insert(text);
        E::custom("content")
    }

    fn strict(&mut self, what: &str, name: &str) {
        if self.mode != FieldValidation::Ignore && self.strict.len() < MAX_STRICT {
            let path = self.full_path();
            let dot = if path.is_empty() { "" } else { "." };
            self.strict.push(format!("{what} field \"{path}{dot}{name}\""));
        }
    }

    /// `spec.containers[0].ports`
    fn full_path(&self) -> String {
        let mut out = String::new();
        for segment in &self.path {
            let name = match segment {
                Segment::Index(i) => {
                    out.push_str(&format!("[{i}]"));
                    continue;
                }
                Segment::Field(name, _) => name,
                Segment::Key(name) => name.as_str(),
            };
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(name);
        }
        out
    }

    /// `struct field Container.spec.containers.image`, or `value`.
    fn go_place(&self) -> String {
        let fields: Vec<(&str, TypeId)> = self
            .path
            .iter()
            .filter_map(|s| match s {
                Segment::Field(name, owner) => Some((*name, *owner)),
                _ => None,
            })
            .collect();
        match fields.last() {
            None => "value".into(),
            Some((_, owner)) => {
                let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
                format!("struct field {}.{}", self.schema.get(*owner).short_name(), names.join("."))
            }
        }
    }

    fn enter_object<E: Error>(&mut self) -> Result<(), E> {
        self.objects += 1;
        match self.objects > MAX_OBJECTS {
            true => Err(self.fail(format!("more than {MAX_OBJECTS} objects in one body"))),
            false => Ok(()),
        }
    }

    fn push<E: Error>(&mut self, segment: Segment<'s>) -> Result<(), E> {
        self.path.push(segment);
        match self.path.len() > MAX_DEPTH {
            true => Err(self.fail("exceeded max depth".into())),
            false => Ok(()),
        }
    }
}

/// One value to come: its type and, inside a structure, its field.
struct Node<'a, 's> {
    cx: &'a mut Context<'s>,
    ty: &'a FieldType,
    field: Option<&'s Field>,
}

impl<'de, 's> DeserializeSeed<'de> for Node<'_, 's> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Self::Value, D::Error> {
        source.deserialize_any(self)
    }
}

/// The name that Go gives a type in its errors.
fn go_type(schema: &Schema, ty: &FieldType, own: Option<&str>) -> String {
    match ty {
        FieldType::Scalar(s) => own.unwrap_or(s.go_name()).to_string(),
        FieldType::Struct(id) => schema.get(*id).go_name().to_string(),
        FieldType::List { item, .. } => format!("[]{}", go_type(schema, item, own)),
        FieldType::Map { value, .. } => match **value {
            FieldType::Scalar(Scalar::Quantity) => "v1.ResourceList".into(),
            _ => format!("map[string]{}", go_type(schema, value, own)),
        },
        FieldType::Any => "map[string]interface {}".into(),
    }
}

/// What Go makes of `null` in a list or map: the zero value.
fn zero(ty: &FieldType) -> Value {
    match ty {
        FieldType::Struct(_) => Value::Object(Map::new()),
        FieldType::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double) => 0.into(),
        FieldType::Scalar(Scalar::Bool) => false.into(),
        FieldType::Scalar(Scalar::String | Scalar::Bytes) => "".into(),
        FieldType::Scalar(Scalar::Quantity | Scalar::IntOrString) => "0".into(),
        _ => Value::Null,
    }
}

impl<'s> Node<'_, 's> {
    fn mismatch<E: Error>(self, found: &str) -> E {
        let own = self.field.and_then(|f| f.go_name.as_deref());
        let (place, ty) = (self.cx.go_place(), go_type(self.cx.schema, self.ty, own));
        self.cx.fail(format!("json: cannot unmarshal {found} into Go {place} of type {ty}"))
    }

    /// The words of types that decode themselves: they don't know where they stand.
    fn plain<E: Error>(self, found: &str, ty: &str) -> E {
        self.cx.fail(format!("json: cannot unmarshal {found} into Go value of type {ty}"))
    }

    fn not_fitting<E: Error>(self, found: &str) -> E {
        match self.ty {
            FieldType::Scalar(Scalar::Quantity) => {
                let text = scalar::normalize(Scalar::Quantity, "?").err().unwrap_or_default();
                self.cx.fail(text)
            }
            FieldType::Scalar(
                s @ (Scalar::Time | Scalar::MicroTime | Scalar::Duration | Scalar::IntOrString),
            ) => self.plain(found, s.go_name()),
            _ => self.mismatch(found),
        }
    }

    fn number<E: Error>(self, number: Number) -> Result<Option<Value>, E> {
        let FieldType::Scalar(scalar) = self.ty else {
            return match self.ty {
                FieldType::Any => Ok(Some(Value::Number(number))),
                _ => Err(self.not_fitting("number")),
            };
        };
        let fits = match scalar {
            Scalar::Int32 | Scalar::IntOrString => {
                number.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
            }
            Scalar::Int64 => number.is_i64(),
            Scalar::Double => true,
            Scalar::Quantity => return Ok(Some(number.to_string().into())),
            _ => return Err(self.not_fitting("number")),
        };
        match fits {
            true => Ok(Some(Value::Number(number))),
            false => Err(self.not_fitting(&format!("number {number}"))),
        }
    }

    fn text<E: Error>(self, text: String) -> Result<Option<Value>, E> {
        match self.ty {
            FieldType::Any => Ok(Some(text.into())),
            FieldType::Scalar(Scalar::String | Scalar::IntOrString) => Ok(Some(text.into())),
            FieldType::Scalar(
                s @ (Scalar::Bytes
                | Scalar::Time
                | Scalar::MicroTime
                | Scalar::Duration
                | Scalar::Quantity),
            ) => scalar::normalize(*s, &text).map(|t| Some(t.into())).map_err(|e| self.cx.fail(e)),
            _ => Err(self.not_fitting("string")),
        }
    }

    fn list<'de, A: SeqAccess<'de>>(
        self,
        mut items: A,
        item: &FieldType,
    ) -> Result<Option<Value>, A::Error> {
        let cx = self.cx;
        let mut out = Vec::with_capacity(items.size_hint().unwrap_or(0).min(1024));
        loop {
            cx.push(Segment::Index(out.len()))?;
            let node = Node { cx: &mut *cx, ty: item, field: self.field };
            let Some(value) = items.next_element_seed(node)? else { break };
            out.push(value.unwrap_or_else(|| zero(item)));
            cx.path.pop();
        }
        cx.path.pop();
        Ok(Some(Value::Array(out)))
    }

    fn map<'de, A: MapAccess<'de>>(
        self,
        mut entries: A,
        ty: &FieldType,
    ) -> Result<Option<Value>, A::Error> {
        let cx = self.cx;
        let mut out = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if out.contains_key(&key) {
                cx.strict("duplicate", &key);
            }
            cx.push(Segment::Key(key))?;
            let node = Node { cx: &mut *cx, ty, field: self.field };
            let value = entries.next_value_seed(node)?.unwrap_or_else(|| zero(ty));
            if let Some(Segment::Key(key)) = cx.path.pop() {
                out.insert(key, value);
            }
        }
        Ok(Some(Value::Object(out)))
    }

    fn structure<'de, A: MapAccess<'de>>(
        self,
        mut entries: A,
        id: TypeId,
    ) -> Result<Option<Value>, A::Error> {
        let cx = self.cx;
        let schema = cx.schema;
        let fields = &schema.get(id).fields;
        let mut out = Map::new();
        let mut seen = Seen::default();
        while let Some(found) = entries.next_key_seed(Key { fields })? {
            let position = match found {
                Ok(position) => position,
                Err(name) => {
                    cx.strict("unknown", &name);
                    entries.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let field = fields.at(position);
            if seen.again(position) {
                cx.strict("duplicate", &field.name);
            }
            cx.push(Segment::Field(&field.name, id))?;
            let node = Node { cx: &mut *cx, ty: &field.ty, field: Some(field) };
            let value = entries.next_value_seed(node)?;
            cx.path.pop();
            match value.filter(|v| stays(field, v)) {
                Some(value) => out.insert(field.name.to_string(), value),
                None => out.remove(&*field.name),
            };
        }
        Ok(Some(Value::Object(out)))
    }
}

/// The positions of the fields that came already.
#[derive(Default)]
struct Seen(Vec<u64>);

impl Seen {
    fn again(&mut self, position: usize) -> bool {
        let (word, bit) = (position / 64, 1u64 << (position % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let again = self.0[word] & bit != 0;
        self.0[word] |= bit;
        again
    }
}

/// A key of a structure: a field's position, or the unknown name.
struct Key<'s> {
    fields: &'s super::Fields,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Result<usize, String>;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Self::Value, D::Error> {
        source.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Result<usize, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.fields.position(name).ok_or_else(|| name.to_string()))
    }
}

impl<'de> Visitor<'de> for Node<'_, '_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        match self.ty {
            FieldType::Any | FieldType::Scalar(Scalar::Bool) => Ok(Some(value.into())),
            _ => Err(self.not_fitting("bool")),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        self.number(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        self.number(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        match Number::from_f64(value) {
            Some(number) => self.number(number),
            None => Err(self.not_fitting("number")),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        self.text(text.to_string())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
        self.text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
        match self.ty {
            FieldType::List { item, .. } => self.list(items, item),
            FieldType::Any => self.list(items, &FieldType::Any),
            _ => Err(self.not_fitting("array")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Self::Value, A::Error> {
        self.cx.enter_object()?;
        match self.ty {
            FieldType::Struct(id) => self.structure(entries, *id),
            FieldType::Map { value, .. } => self.map(entries, value),
            FieldType::Any => self.map(entries, &FieldType::Any),
            _ => Err(self.not_fitting("object")),
        }
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
