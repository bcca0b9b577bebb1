//! Required fields and types, with the paths and words that Kubernetes uses for faults that the
//! schema alone can find (those of custom resources).

use super::{FieldType, Scalar, Schema, TypeId};
use crate::error::FieldError;
use serde_json::Value;

/// All faults of a value under a type. `path` is where the value stands; empty for a whole object.
pub fn validate(schema: &Schema, id: TypeId, value: &Value, path: &str) -> Vec<FieldError> {
    let mut faults = Vec::new();
    Validator { schema, faults: &mut faults }.structure(id, value, path);
    faults
}

struct Validator<'a> {
    schema: &'a Schema,
    faults: &'a mut Vec<FieldError>,
}

impl Validator<'_> {
    fn structure(&mut self, id: TypeId, value: &Value, path: &str) {
        let Value::Object(map) = value else { return self.wrong(value, path, "object") };
        let schema = self.schema;
        for (name, field) in schema.get(id).fields.iter() {
            let path = join(path, name);
            match map.get(name).filter(|v| !v.is_null()) {
                Some(value) => self.value(&field.ty, value, &path),
                None if field.required => {
                    self.faults.push(FieldError::Required { path, detail: String::new() });
                }
                None => {}
            }
        }
    }

    fn value(&mut self, ty: &FieldType, value: &Value, path: &str) {
        match (ty, value) {
            (FieldType::Any, _) => {}
            (FieldType::Struct(id), _) => self.structure(*id, value, path),
            (FieldType::List { item, .. }, Value::Array(items)) => {
                for (i, value) in items.iter().enumerate() {
                    self.value(item, value, &format!("{path}[{i}]"));
                }
            }
            (FieldType::Map { value: ty, .. }, Value::Object(map)) => {
                for (key, value) in map {
                    self.value(ty, value, &join(path, key));
                }
            }
            (FieldType::List { .. }, _) => self.wrong(value, path, "array"),
            (FieldType::Map { .. }, _) => self.wrong(value, path, "object"),
            (FieldType::Scalar(scalar), _) => {
                if let Some(wanted) = unfit(*scalar, value) {
                    self.wrong(value, path, wanted);
                }
            }
        }
    }

    fn wrong(&mut self, value: &Value, path: &str, wanted: &str) {
        let found = type_name(value);
        self.faults.push(FieldError::TypeInvalid {
            path: path.to_string(),
            value: found.into(),
            detail: format!("{path} in body must be of type {wanted}: {found:?}"),
        });
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

/// The type that was wanted, if the value is of another one.
fn unfit(scalar: Scalar, value: &Value) -> Option<&'static str> {
    let (fits, wanted) = match scalar {
        Scalar::Bool => (value.is_boolean(), "boolean"),
        Scalar::Int32 => {
            let fits = value.as_i64().is_some_and(|n| i32::try_from(n).is_ok());
            (fits, "integer")
        }
        Scalar::Int64 => (value.is_i64(), "integer"),
        Scalar::Double => (value.is_number(), "number"),
        Scalar::IntOrString | Scalar::Quantity => {
            (value.is_number() || value.is_string(), "integer,string")
        }
        _ => (value.is_string(), "string"),
    };
    (!fits).then_some(wanted)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::table;
    use serde_json::json;

    #[test]
    fn names_faults_with_their_paths() {
        let schema = table::parse(
            "x.v1.Thing\n spec x.v1.Spec 0 !\nx.v1.Spec\n name string 0 !\n ports [int32] 0\n sizes {quantity} 0\n",
        )
        .unwrap();
        let id = schema.id("x.v1.Thing").unwrap();
        for (value, want) in [
            (json!({}), vec!["spec: Required value"]),
            (json!({"spec": {"name": "a", "ports": [1], "sizes": {"k": 3}}}), vec![]),
            (
                json!({"spec": {"ports": [1, "2"], "sizes": {"k": true}}}),
                vec![
                    "spec.name: Required value",
                    "spec.ports[1]: Invalid value: \"string\": spec.ports[1] in body must be of type integer: \"string\"",
                    "spec.sizes.k: Invalid value: \"boolean\": spec.sizes.k in body must be of type integer,string: \"boolean\"",
                ],
            ),
            (
                json!({"spec": []}),
                vec![
                    "spec: Invalid value: \"array\": spec in body must be of type object: \"array\"",
                ],
            ),
        ] {
            let got: Vec<String> =
                validate(&schema, id, &value, "").iter().map(ToString::to_string).collect();
            assert_eq!(got, want, "{value}");
        }
    }
}
