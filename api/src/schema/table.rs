//! Reads the compact table of types (`types.tbl`); its head explains the form.

use super::{Field, FieldType, Fields, Layout, ListKind, Scalar, Schema, Slot, TypeDef, TypeId};
use std::collections::{BTreeMap, HashMap};

/// What is wrong with a table.
#[derive(Debug, thiserror::Error)]
#[error("type table, line {line}: {why}")]
pub struct TableError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub why: String,
}

/// A field with the path of its protobuf numbers.
type RawField = (Field, Vec<u32>);

/// The schema of a table.
pub fn parse(text: &str) -> Result<Schema, TableError> {
    let names = type_names(text);
    let mut types = Vec::with_capacity(names.len());
    let mut open: Option<(TypeDef, Vec<RawField>)> = None;
    for (i, line) in text.lines().enumerate() {
        let fail = |why: String| TableError { line: i + 1, why };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(field) = line.strip_prefix(' ') {
            let (_, fields) = open.as_mut().ok_or_else(|| fail("a field outside a type".into()))?;
            fields.push(parse_field(field, &names).map_err(fail)?);
        } else {
            types.extend(open.replace((parse_type(line), Vec::new())).map(close));
        }
    }
    types.extend(open.map(close));
    Ok(Schema { types, names })
}

fn type_names(text: &str) -> HashMap<String, TypeId> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with([' ', '#']))
        .filter_map(|line| line.split(' ').next())
        .zip(0..)
        .map(|(name, id)| (name.to_string(), TypeId(id)))
        .collect()
}

fn parse_type(line: &str) -> TypeDef {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default().to_string();
    let mut def = TypeDef {
        name,
        fields: Fields::default(),
        atomic: false,
        has_protobuf: true,
        layouts: Vec::new(),
    };
    for word in words {
        def.atomic |= word == "atomic";
        def.has_protobuf &= word != "json-only";
    }
    def
}

fn close((mut def, raw): (TypeDef, Vec<RawField>)) -> TypeDef {
    let paths: HashMap<Box<str>, Vec<u32>> =
        raw.iter().map(|(field, path)| (field.name.clone(), path.clone())).collect();
    def.fields = Fields::new(raw.into_iter().map(|(field, _)| field).collect());
    let placed: Vec<(&[u32], u32)> =
        def.fields.iter().zip(0..).map(|((name, _), i)| (paths[name].as_slice(), i)).collect();
    let mut layouts = vec![Layout::default()];
    layouts[0] = layout(&placed, &mut layouts);
    def.layouts = layouts;
    def
}

/// The message with the fields whose remaining paths are given; nested messages are appended.
fn layout(placed: &[(&[u32], u32)], layouts: &mut Vec<Layout>) -> Layout {
    let mut slots: BTreeMap<u32, Slot> = BTreeMap::new();
    let mut inlined: BTreeMap<u32, Vec<(&[u32], u32)>> = BTreeMap::new();
    for &(path, field) in placed {
        match path {
            [] | [0] => {}
            [number] => {
                slots.insert(*number, Slot::Field(field));
            }
            [outer, rest @ ..] => inlined.entry(*outer).or_default().push((rest, field)),
        }
    }
    for (number, inner) in inlined {
        let message = layout(&inner, layouts);
        layouts.push(message);
        slots.insert(number, Slot::Inlined(layouts.len() as u32 - 1));
    }
    slots.into_iter().collect()
}

fn parse_field(line: &str, names: &HashMap<String, TypeId>) -> Result<RawField, String> {
    let (line, default) = match line.split_once(" default=") {
        Some((head, json)) => {
            (head, Some(serde_json::from_str(json).map_err(|e| format!("default: {e}"))?))
        }
        None => (line, None),
    };
    let mut words = line.split(' ');
    let mut word = |what| words.next().ok_or_else(|| format!("no {what}"));
    let (name, ty, number) = (word("name")?, word("type")?, word("number")?);
    let path: Vec<u32> = number
        .split('.')
        .map(|n| n.parse().map_err(|e| format!("number {n}: {e}")))
        .collect::<Result<_, String>>()?;
    let mut field = Field {
        name: name.into(),
        ty: parse_type_ref(ty, names)?,
        required: false,
        keep_zero: false,
        patch_merge: false,
        patch_retain_keys: false,
        patch_merge_key: None,
        default,
        number: path.last().copied().unwrap_or(0),
        go_name: None,
    };
    for word in words {
        apply_attribute(&mut field, word)?;
    }
    Ok((field, path))
}

fn apply_attribute(field: &mut Field, word: &str) -> Result<(), String> {
    let (key, argument) = word.split_once('=').unwrap_or((word, ""));
    match (key, &mut field.ty) {
        ("!", _) => (field.required, field.keep_zero) = (true, true),
        ("*", _) => field.keep_zero = true,
        ("set", FieldType::List { kind, .. }) => *kind = ListKind::Set,
        ("map", FieldType::List { kind, .. }) => {
            *kind = ListKind::Map(argument.split(',').map(str::to_string).collect());
        }
        ("atomic", FieldType::Map { atomic, .. }) => *atomic = true,
        ("merge", _) => field.patch_merge = true,
        ("retainKeys", _) => field.patch_retain_keys = true,
        ("replace", _) => {}
        ("key", _) => field.patch_merge_key = Some(argument.to_string()),
        ("go", _) => field.go_name = Some(argument.into()),
        _ => return Err(format!("attribute {word:?} of {}", field.name)),
    }
    Ok(())
}

fn parse_type_ref(text: &str, names: &HashMap<String, TypeId>) -> Result<FieldType, String> {
    if let Some(item) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        let item = Box::new(parse_type_ref(item, names)?);
        return Ok(FieldType::List { item, kind: ListKind::Atomic });
    }
    if let Some(value) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        let value = Box::new(parse_type_ref(value, names)?);
        return Ok(FieldType::Map { value, atomic: false });
    }
    Ok(FieldType::Scalar(match text {
        "any" => return Ok(FieldType::Any),
        "string" => Scalar::String,
        "int32" => Scalar::Int32,
        "int64" => Scalar::Int64,
        "double" => Scalar::Double,
        "bool" => Scalar::Bool,
        "bytes" => Scalar::Bytes,
        "time" => Scalar::Time,
        "microtime" => Scalar::MicroTime,
        "duration" => Scalar::Duration,
        "quantity" => Scalar::Quantity,
        "intorstring" => Scalar::IntOrString,
        name => {
            let id = names.get(name).ok_or_else(|| format!("unknown type {name}"))?;
            return Ok(FieldType::Struct(*id));
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;

    #[test]
    fn reads_the_built_in_types() {
        let schema = builtin();
        let volume = schema.type_def("core.v1.Volume").unwrap();
        assert_eq!(volume.layouts.len(), 2, "the sources stand in a message of their own");
        let ports = schema.type_def("core.v1.Container").unwrap().fields.get("ports").unwrap();
        assert_eq!(ports.patch_merge_key.as_deref(), Some("containerPort"));
        let keys = vec!["containerPort".to_string(), "protocol".to_string()];
        assert!(matches!(&ports.ty, FieldType::List { kind: ListKind::Map(k), .. } if *k == keys));
        let rule = schema.type_def("admissionregistration.v1.NamedRuleWithOperations").unwrap();
        assert_eq!(rule.layouts.len(), 3, "two levels are inlined");
        assert!(schema.type_def("meta.v1.LabelSelector").unwrap().atomic);
        let protocol = schema.type_def("core.v1.ServicePort").unwrap().fields.get("protocol");
        assert_eq!(protocol.unwrap().default, Some("TCP".into()));
        let role = schema.id_of_kind("rbac.authorization.k8s.io", "v1", "Role");
        assert_eq!(role, schema.id("rbac.v1.Role"));
        assert_eq!(schema.id_of_kind("", "v1", "Pod"), schema.id("core.v1.Pod"));
    }

    #[test]
    fn names_the_line_of_a_fault() {
        for (text, line) in [
            (" a string 1\n", 1),
            ("# x\nt.v1.A\n a strin 1\n", 3),
            ("t.v1.A\n a string\n", 2),
            ("t.v1.A\n a string x\n", 2),
            ("t.v1.A\n a string 1 map=k\n", 2),
            ("t.v1.A\n a string 1 default={\n", 2),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
        }
    }
}
