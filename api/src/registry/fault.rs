//! Paths of fields, written out only when something is wrong, and the list of faults found.

use super::access::equivalent;
use crate::error::FieldError;
use serde_json::Value;
use std::fmt;

/// A field's place in an object. It borrows its parent, so that checking a sound object builds no
/// text.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// A field of the object itself.
    pub const fn root(name: &'a str) -> Path<'a> {
        Path { parent: None, step: Step::Field(name) }
    }

    /// A field below this one.
    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    /// An item of this list.
    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    /// A value of this map.
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// What is wrong with an object so far.
#[derive(Default)]
pub(super) struct Faults(pub Vec<FieldError>);

impl Faults {
    pub fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.0.push(FieldError::Required { path: path.to_string(), detail: detail.into() });
    }

    pub fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>) {
        self.0.push(FieldError::Invalid {
            path: path.to_string(),
            value: value.into(),
            detail: detail.into(),
        });
    }

    /// One fault for each message about a value.
    pub fn each(&mut self, path: &Path<'_>, value: &str, messages: Vec<String>) {
        for message in messages {
            self.invalid(path, value, message);
        }
    }

    pub fn not_supported(&mut self, path: &Path<'_>, value: &str, supported: &[&str]) {
        self.0.push(FieldError::NotSupported {
            path: path.to_string(),
            value: value.into(),
            supported: supported.iter().map(|s| (*s).to_owned()).collect(),
        });
    }

    pub fn duplicate(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.0.push(FieldError::Duplicate { path: path.to_string(), value: value.into() });
    }

    pub fn forbidden(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.0.push(FieldError::Forbidden { path: path.to_string(), detail: detail.into() });
    }

    pub fn too_long(&mut self, path: &Path<'_>, max: usize) {
        self.0.push(FieldError::TooLong { path: path.to_string(), max });
    }

    pub fn not_found(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.0.push(FieldError::NotFound { path: path.to_string(), value: value.into() });
    }

    /// A number that may not be negative.
    pub fn non_negative(&mut self, path: &Path<'_>, value: Option<i64>) {
        if let Some(value) = value.filter(|v| *v < 0) {
            self.invalid(path, value, "must be greater than or equal to 0");
        }
    }

    /// A number within bounds.
    pub fn within(&mut self, path: &Path<'_>, value: i64, low: i64, high: i64) {
        if value < low || value > high {
            self.invalid(path, value, format!("must be between {low} and {high}, inclusive"));
        }
    }

    /// A word out of a set; an empty one is missing.
    pub fn one_of(&mut self, path: &Path<'_>, value: &str, supported: &[&str]) {
        if value.is_empty() {
            self.required(path, "");
        } else if !supported.contains(&value) {
            self.not_supported(path, value, supported);
        }
    }

    /// A value that may not change.
    pub fn immutable(&mut self, path: &Path<'_>, new: Option<&Value>, old: Option<&Value>) {
        let unset = &Value::Null;
        let (new, old) = (new.unwrap_or(unset), old.unwrap_or(unset));
        if !equivalent(new, old) {
            self.invalid(path, new.clone(), "field is immutable");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_upstream_does() {
        let spec = Path::root("spec");
        let containers = spec.field("containers");
        let first = containers.index(0);
        assert_eq!(first.field("image").to_string(), "spec.containers[0].image");
        assert_eq!(Path::root("data").key("a b").to_string(), "data[a b]");
    }
}
