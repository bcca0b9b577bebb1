//! Objects in Kubernetes' protobuf form, by the table: no generated structs.
//!
//! A message on its own carries neither `apiVersion` nor `kind`; the envelope around it
//! (`k8s\0` and a `runtime.Unknown`) does. Go's encoder writes fields that are no pointers even
//! when they are zero, so zero values that mean nothing are dropped while decoding.

use super::decode::{Decoded, FieldValidation};
use super::wire::{Raw, Reader, WireError, Writer};
use super::{Field, FieldType, Scalar, Schema, Slot, TypeDef, TypeId, scalar, stays};
use crate::GroupVersionKind;
use crate::error::{ApiError, Reason};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Number, Value};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The media type of a watch: frames of [`watch_frame`].
pub const WATCH_MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";

const MAGIC: &[u8] = b"k8s\0";
/// Deeper nesting is refused; the deepest type of the API stays far below.
const MAX_DEPTH: usize = 100;
/// As in [`super::decode`]: an empty message takes two bytes to send.
const MAX_OBJECTS: usize = 300_000;

/// An object with its envelope.
///
/// # Errors
/// 406 if the type has no protobuf form.
pub fn encode(
    schema: &Schema,
    gvk: &GroupVersionKind,
    id: TypeId,
    value: &Value,
) -> Result<Bytes, ApiError> {
    Ok(envelope(gvk, &encode_message(schema, id, value)?))
}

/// An object's message without the envelope, for lists (see [`encode_list`]).
///
/// # Errors
/// 406 if the type has no protobuf form.
pub fn encode_message(schema: &Schema, id: TypeId, value: &Value) -> Result<Vec<u8>, ApiError> {
    let def = schema.get(id);
    if !def.has_protobuf {
        let why =
            format!("object {} does not implement the protobuf marshalling interface", def.name);
        return Err(ApiError::new(Reason::NotAcceptable, why));
    }
    let mut writer = Writer::default();
    if let Value::Object(map) = value {
        write_layout(schema, def, 0, map, &mut writer);
    }
    Ok(writer.finish())
}

/// The envelope around a message.
pub fn envelope(gvk: &GroupVersionKind, message: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(message.len() + 64);
    out.extend_from_slice(MAGIC);
    let mut writer = Writer::after(out);
    writer.message(1, |w| {
        w.string(1, &gvk.api_version());
        w.string(2, &gvk.kind);
    });
    writer.bytes(2, message);
    writer.string(3, "");
    writer.string(4, "");
    writer.finish().into()
}

/// A list with its envelope, from the messages of its items. `gvk` is the list's own (`PodList`).
pub fn encode_list<'a>(
    schema: &Schema,
    gvk: &GroupVersionKind,
    metadata: &Value,
    items: impl Iterator<Item = &'a [u8]>,
) -> Result<Bytes, ApiError> {
    let id = schema
        .id("meta.v1.ListMeta")
        .ok_or_else(|| ApiError::internal("the schema has no ListMeta"))?;
    let metadata = encode_message(schema, id, metadata)?;
    let mut writer = Writer::default();
    writer.bytes(1, &metadata);
    items.for_each(|item| writer.bytes(2, item));
    Ok(envelope(gvk, &writer.finish()))
}

/// One frame of a watch: four bytes of length, then a `WatchEvent` with an enveloped object.
pub fn watch_frame(event: &str, object: &[u8]) -> Bytes {
    let mut writer = Writer::after(vec![0; 4]);
    writer.string(1, event);
    writer.message(2, |w| w.bytes(1, object));
    let mut out = writer.finish();
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.into()
}

/// Decodes an enveloped object of a known type, with its `apiVersion` and `kind` from the
/// envelope. A body whose envelope holds JSON is decoded as JSON.
///
/// # Errors
/// 400 for a broken body, 415 if the type has no protobuf form.
pub fn decode(schema: &Schema, id: TypeId, body: &[u8]) -> Result<Decoded, ApiError> {
    let unknown = open(body).map_err(bad)?;
    if unknown.content_type == "application/json" {
        return super::decode::decode(schema, id, unknown.raw, FieldValidation::Ignore);
    }
    let value = Decoder { schema, objects: 0 }.enveloped(id, &unknown, 0).map_err(bad)?;
    match schema.get(id).has_protobuf {
        true => Ok(Decoded { value, warnings: Vec::new() }),
        false => Err(ApiError::new(
            Reason::UnsupportedMediaType,
            format!("{} has no protobuf form", schema.get(id).name),
        )),
    }
}

/// The group, version and kind that an envelope names.
///
/// # Errors
/// 400 for a broken envelope.
pub fn peek_kind(body: &[u8]) -> Result<GroupVersionKind, ApiError> {
    open(body).map(|u| GroupVersionKind::new(&u.api_version, &u.kind)).map_err(bad)
}

fn bad(error: WireError) -> ApiError {
    ApiError::bad_request(format!("unable to decode the protobuf body: proto: {error}"))
}

fn write_layout(
    schema: &Schema,
    def: &TypeDef,
    layout: usize,
    map: &Map<String, Value>,
    w: &mut Writer,
) {
    for &(number, slot) in &def.layouts[layout] {
        match slot {
            Slot::Field(position) => {
                let field = def.fields.at(position as usize);
                if let Some(value) = map.get(&*field.name).filter(|v| !v.is_null()) {
                    write_field(schema, number, &field.ty, value, w);
                }
            }
            Slot::Inlined(inner) => {
                w.message(number, |w| write_layout(schema, def, inner as usize, map, w));
            }
        }
    }
}

fn write_field(schema: &Schema, number: u32, ty: &FieldType, value: &Value, w: &mut Writer) {
    match (ty, value) {
        (FieldType::List { item, .. }, Value::Array(items)) => {
            items.iter().for_each(|v| write_item(schema, number, item, v, w));
        }
        (FieldType::Map { value: ty, .. }, Value::Object(map)) => {
            for (key, value) in map {
                w.message(number, |w| {
                    w.string(1, key);
                    write_item(schema, 2, ty, value, w);
                });
            }
        }
        _ => write_item(schema, number, ty, value, w),
    }
}

fn write_item(schema: &Schema, number: u32, ty: &FieldType, value: &Value, w: &mut Writer) {
    match (ty, value) {
        (FieldType::Scalar(scalar), value) => write_scalar(number, *scalar, value, w),
        (FieldType::Struct(id), Value::Object(map)) => {
            w.message(number, |w| write_layout(schema, schema.get(*id), 0, map, w));
        }
        // A list that is an item or a map's value is a message with the list as its only field.
        (FieldType::List { .. }, value) => {
            w.message(number, |w| write_field(schema, 1, ty, value, w));
        }
        (FieldType::Any, value) => w.message(number, |w| w.string(1, &value.to_string())),
        (FieldType::Map { .. } | FieldType::Struct(_), _) => {}
    }
}

fn write_scalar(number: u32, scalar: Scalar, value: &Value, w: &mut Writer) {
    match (scalar, value) {
        (Scalar::String, Value::String(s)) => w.string(number, s),
        (Scalar::Int32 | Scalar::Int64, Value::Number(n)) => {
            w.int(number, n.as_i64().unwrap_or_default());
        }
        (Scalar::Double, Value::Number(n)) => w.double(number, n.as_f64().unwrap_or_default()),
        (Scalar::Bool, Value::Bool(b)) => w.bool(number, *b),
        (Scalar::Bytes, Value::String(s)) => {
            w.bytes(number, &STANDARD.decode(s).unwrap_or_default());
        }
        (Scalar::Time | Scalar::MicroTime, Value::String(s)) => w.message(number, |w| {
            if let Some((seconds, nanos)) = scalar::time_parts(s) {
                w.int(1, seconds);
                w.int(2, i64::from(nanos));
            }
        }),
        (Scalar::Duration, Value::String(s)) => {
            w.message(number, |w| w.int(1, scalar::duration_nanos(s).unwrap_or_default()));
        }
        (Scalar::Quantity, Value::String(s)) => w.message(number, |w| w.string(1, s)),
        (Scalar::Quantity, Value::Number(n)) => {
            w.message(number, |w| w.string(1, &n.to_string()));
        }
        (Scalar::IntOrString, value) => w.message(number, |w| write_int_or_string(value, w)),
        _ => {}
    }
}

fn write_int_or_string(value: &Value, w: &mut Writer) {
    let text = value.as_str();
    w.int(1, i64::from(text.is_some()));
    w.int(2, value.as_i64().unwrap_or_default());
    w.string(3, text.unwrap_or_default());
}

/// `runtime.Unknown`
#[derive(Default)]
struct Unknown<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
    content_encoding: String,
    content_type: String,
}

fn open(body: &[u8]) -> Result<Unknown<'_>, WireError> {
    let message = body.strip_prefix(MAGIC).ok_or_else(|| {
        WireError::Content("provided data does not appear to be a protobuf message".into())
    })?;
    let mut unknown = Unknown::default();
    let mut reader = Reader::new(message);
    while let Some((number, raw)) = reader.next()? {
        match number {
            1 => read_type_meta(raw.bytes(1)?, &mut unknown)?,
            2 => unknown.raw = raw.bytes(2)?,
            3 => unknown.content_encoding = raw.string(3)?,
            4 => unknown.content_type = raw.string(4)?,
            _ => {}
        }
    }
    match unknown.content_encoding.as_str() {
        "" => Ok(unknown),
        other => Err(WireError::Content(format!("content encoding {other:?} is not known"))),
    }
}

fn read_type_meta(message: &[u8], unknown: &mut Unknown<'_>) -> Result<(), WireError> {
    let mut reader = Reader::new(message);
    while let Some((number, raw)) = reader.next()? {
        match number {
            1 => unknown.api_version = raw.string(1)?,
            2 => unknown.kind = raw.string(2)?,
            _ => {}
        }
    }
    Ok(())
}

struct Decoder<'s> {
    schema: &'s Schema,
    objects: usize,
}

impl Decoder<'_> {
    fn enveloped(
        &mut self,
        id: TypeId,
        unknown: &Unknown<'_>,
        depth: usize,
    ) -> Result<Value, WireError> {
        let mut map = self.structure(id, unknown.raw, depth)?;
        for (key, text) in [("apiVersion", &unknown.api_version), ("kind", &unknown.kind)] {
            if !text.is_empty() {
                map.insert(key.into(), text.clone().into());
            }
        }
        Ok(Value::Object(map))
    }

    fn structure(
        &mut self,
        id: TypeId,
        message: &[u8],
        depth: usize,
    ) -> Result<Map<String, Value>, WireError> {
        self.objects += 1;
        if self.objects > MAX_OBJECTS {
            return Err(WireError::Mass);
        }
        let schema = self.schema;
        let mut map = Map::new();
        self.layout(schema.get(id), 0, message, depth, &mut map)?;
        Ok(map)
    }

    fn layout(
        &mut self,
        def: &TypeDef,
        layout: usize,
        message: &[u8],
        depth: usize,
        map: &mut Map<String, Value>,
    ) -> Result<(), WireError> {
        if depth > MAX_DEPTH {
            return Err(WireError::Depth);
        }
        let slots = &def.layouts[layout];
        let mut reader = Reader::new(message);
        while let Some((number, raw)) = reader.next()? {
            let Ok(at) = slots.binary_search_by_key(&number, |(n, _)| *n) else { continue };
            match slots[at].1 {
                Slot::Inlined(inner) => {
                    self.layout(def, inner as usize, raw.bytes(number)?, depth + 1, map)?;
                }
                Slot::Field(position) => {
                    let field = def.fields.at(position as usize);
                    self.field(field, number, raw, depth + 1, map)?;
                }
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &Field,
        number: u32,
        raw: Raw<'_>,
        depth: usize,
        map: &mut Map<String, Value>,
    ) -> Result<(), WireError> {
        match &field.ty {
            FieldType::List { item, .. } => {
                let list = map.entry(&*field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    self.items(item, number, raw, depth, list)?;
                }
            }
            FieldType::Map { value: ty, .. } => {
                let (key, value) = self.map_entry(ty, raw.bytes(number)?, depth)?;
                let entries = map.entry(&*field.name).or_insert_with(|| Value::Object(Map::new()));
                entries.as_object_mut().map(|entries| entries.insert(key, value));
            }
            ty => {
                let value = self.item(ty, number, raw, depth)?;
                if stays(field, &value) {
                    map.insert(field.name.to_string(), value);
                }
            }
        }
        Ok(())
    }

    /// One item, or several numbers that are packed into one field.
    fn items(
        &mut self,
        item: &FieldType,
        number: u32,
        raw: Raw<'_>,
        depth: usize,
        list: &mut Vec<Value>,
    ) -> Result<(), WireError> {
        let packed =
            matches!(item, FieldType::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Bool));
        if let (true, Raw::Bytes(bytes)) = (packed, raw) {
            let mut reader = Reader::new(bytes);
            while !reader.is_empty() {
                let raw = Raw::Int(reader.varint()?);
                list.push(self.item(item, number, raw, depth)?);
            }
            return Ok(());
        }
        list.push(self.item(item, number, raw, depth)?);
        Ok(())
    }

    fn map_entry(
        &mut self,
        ty: &FieldType,
        message: &[u8],
        depth: usize,
    ) -> Result<(String, Value), WireError> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader::new(message);
        while let Some((number, raw)) = reader.next()? {
            match number {
                1 => key = raw.string(1)?,
                2 => value = Some(self.item(ty, 2, raw, depth)?),
                _ => {}
            }
        }
        match value {
            Some(value) => Ok((key, value)),
            None => {
                let empty = match ty {
                    FieldType::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Bool) => Raw::Int(0),
                    FieldType::Scalar(Scalar::Double) => Raw::Fixed64(0),
                    _ => Raw::Bytes(&[]),
                };
                Ok((key, self.item(ty, 2, empty, depth)?))
            }
        }
    }

    fn item(
        &mut self,
        ty: &FieldType,
        number: u32,
        raw: Raw<'_>,
        depth: usize,
    ) -> Result<Value, WireError> {
        match ty {
            FieldType::Scalar(scalar) => read_scalar(*scalar, number, raw),
            FieldType::Struct(id) => {
                self.structure(*id, raw.bytes(number)?, depth).map(Value::Object)
            }
            FieldType::List { item, .. } => self.wrapped_list(item, raw.bytes(number)?, depth),
            FieldType::Map { .. } => Err(WireError::Mismatch(number)),
            FieldType::Any => self.any(raw.bytes(number)?, depth),
        }
    }

    fn wrapped_list(
        &mut self,
        item: &FieldType,
        message: &[u8],
        depth: usize,
    ) -> Result<Value, WireError> {
        let mut list = Vec::new();
        let mut reader = Reader::new(message);
        while let Some((number, raw)) = reader.next()? {
            if number == 1 {
                self.items(item, 1, raw, depth + 1, &mut list)?;
            }
        }
        Ok(Value::Array(list))
    }

    /// JSON, or an object with an envelope of its own.
    fn any(&mut self, message: &[u8], depth: usize) -> Result<Value, WireError> {
        let mut reader = Reader::new(message);
        let mut content: &[u8] = &[];
        while let Some((number, raw)) = reader.next()? {
            if number == 1 {
                content = raw.bytes(1)?;
            }
        }
        if content.is_empty() {
            return Ok(Value::Null);
        }
        if !content.starts_with(MAGIC) {
            return serde_json::from_slice(content).map_err(|e| WireError::Content(e.to_string()));
        }
        if depth > MAX_DEPTH {
            return Err(WireError::Depth);
        }
        let unknown = open(content)?;
        let gvk = GroupVersionKind::new(&unknown.api_version, &unknown.kind);
        match self.schema.id_of_kind(&gvk.group, &gvk.version, &gvk.kind) {
            Some(id) => self.enveloped(id, &unknown, depth + 1),
            None => Err(WireError::Content(format!("no type for {gvk}"))),
        }
    }
}

fn read_scalar(scalar: Scalar, number: u32, raw: Raw<'_>) -> Result<Value, WireError> {
    Ok(match scalar {
        Scalar::String => raw.string(number)?.into(),
        Scalar::Int32 => (raw.int(number)? as i32).into(),
        Scalar::Int64 => (raw.int(number)? as i64).into(),
        Scalar::Bool => (raw.int(number)? != 0).into(),
        Scalar::Double => match raw {
            Raw::Fixed64(bits) => Number::from_f64(f64::from_bits(bits)).into(),
            _ => return Err(WireError::Mismatch(number)),
        },
        Scalar::Bytes => STANDARD.encode(raw.bytes(number)?).into(),
        Scalar::Time | Scalar::MicroTime => read_time(scalar, raw.bytes(number)?)?,
        Scalar::Duration => {
            let nanos = numbers(raw.bytes(number)?)?[0];
            scalar::duration_text(nanos as i64).into()
        }
        Scalar::Quantity => read_quantity(raw.bytes(number)?)?,
        Scalar::IntOrString => read_int_or_string(raw.bytes(number)?)?,
    })
}

/// The numbers of fields 1 and 2.
fn numbers(message: &[u8]) -> Result<[u64; 2], WireError> {
    let mut out = [0; 2];
    let mut reader = Reader::new(message);
    while let Some((number, raw)) = reader.next()? {
        if let 1 | 2 = number {
            out[number as usize - 1] = raw.int(number)?;
        }
    }
    Ok(out)
}

/// An empty message is Go's zero time, which is null in JSON.
fn read_time(scalar: Scalar, message: &[u8]) -> Result<Value, WireError> {
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let [seconds, nanos] = numbers(message)?;
    Ok(match scalar {
        Scalar::MicroTime => scalar::micro_time_text(seconds as i64, nanos as i32).into(),
        _ => scalar::time_text(seconds as i64).into(),
    })
}

fn read_quantity(message: &[u8]) -> Result<Value, WireError> {
    let mut text = String::new();
    let mut reader = Reader::new(message);
    while let Some((number, raw)) = reader.next()? {
        if number == 1 {
            text = raw.string(1)?;
        }
    }
    if text.is_empty() {
        return Ok("0".into());
    }
    scalar::normalize(Scalar::Quantity, &text).map(Value::from).map_err(WireError::Content)
}

fn read_int_or_string(message: &[u8]) -> Result<Value, WireError> {
    let (mut is_text, mut int, mut text) = (false, 0i32, String::new());
    let mut reader = Reader::new(message);
    while let Some((number, raw)) = reader.next()? {
        match number {
            1 => is_text = raw.int(1)? == 1,
            2 => int = raw.int(2)? as i32,
            3 => text = raw.string(3)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { int.into() })
}

#[cfg(test)]
#[path = "protobuf_tests.rs"]
mod tests;
