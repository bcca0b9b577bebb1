//! Defaults that the table states: they depend on nothing but the field's absence.

use super::{FieldType, Schema, TypeDef, TypeId};
use serde_json::Value;

/// Fills absent fields that have a static default, in every structure that the value holds.
pub fn apply_defaults(schema: &Schema, id: TypeId, value: &mut Value) {
    let Value::Object(map) = value else { return };
    let def: &TypeDef = schema.get(id);
    for (name, field) in def.fields.iter() {
        match (map.get_mut(name), &field.default) {
            (Some(value), _) if !value.is_null() => descend(schema, &field.ty, value),
            (_, Some(default)) => {
                map.insert(name.to_string(), default.clone());
            }
            _ => {}
        }
    }
}

fn descend(schema: &Schema, ty: &FieldType, value: &mut Value) {
    match (ty, value) {
        (FieldType::Struct(id), value) => apply_defaults(schema, *id, value),
        (FieldType::List { item, .. }, Value::Array(items)) if has_structs(item) => {
            items.iter_mut().for_each(|v| descend(schema, item, v));
        }
        (FieldType::Map { value: item, .. }, Value::Object(map)) if has_structs(item) => {
            map.values_mut().for_each(|v| descend(schema, item, v));
        }
        _ => {}
    }
}

fn has_structs(ty: &FieldType) -> bool {
    match ty {
        FieldType::Struct(_) => true,
        FieldType::List { item, .. } => has_structs(item),
        FieldType::Map { value, .. } => has_structs(value),
        FieldType::Scalar(_) | FieldType::Any => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;
    use serde_json::json;

    #[test]
    fn fills_only_what_is_absent() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 2, "protocol": "UDP"}]},
        ]}});
        let schema = builtin();
        apply_defaults(schema, schema.id("core.v1.Pod").unwrap(), &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["ports"],
            json!([{"containerPort": 1, "protocol": "TCP"}, {"containerPort": 2, "protocol": "UDP"}])
        );
        assert_eq!(pod.as_object().unwrap().len(), 1, "no structure appears from nothing");
    }
}
