//! Errors in Kubernetes' own form: a `Status` with a reason, a code and causes with field paths.

use serde_json::{Value, json};

/// `metav1.StatusReason`, with the HTTP code that upstream pairs it with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// 400
    BadRequest,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 406
    NotAcceptable,
    /// 409, the name is taken
    AlreadyExists,
    /// 409, the object has changed or another manager owns the field
    Conflict,
    /// 410, the object or revision is gone for good
    Gone,
    /// 410, the revision is older than the history kept
    Expired,
    /// 413
    RequestEntityTooLarge,
    /// 415
    UnsupportedMediaType,
    /// 422
    Invalid,
    /// 429
    TooManyRequests,
    /// 500
    InternalError,
    /// 503
    ServiceUnavailable,
    /// 504
    Timeout,
}

impl Reason {
    /// The HTTP status code of this reason.
    pub fn code(self) -> u16 {
        match self {
            Reason::BadRequest => 400,
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Gone | Reason::Expired => 410,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::Invalid => 422,
            Reason::TooManyRequests => 429,
            Reason::InternalError => 500,
            Reason::ServiceUnavailable => 503,
            Reason::Timeout => 504,
        }
    }

    /// The word that stands in `status.reason`; it equals the variant's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::BadRequest => "BadRequest",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "NotFound",
            Reason::MethodNotAllowed => "MethodNotAllowed",
            Reason::NotAcceptable => "NotAcceptable",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Gone => "Gone",
            Reason::Expired => "Expired",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
            Reason::UnsupportedMediaType => "UnsupportedMediaType",
            Reason::Invalid => "Invalid",
            Reason::TooManyRequests => "TooManyRequests",
            Reason::InternalError => "InternalError",
            Reason::ServiceUnavailable => "ServiceUnavailable",
            Reason::Timeout => "Timeout",
        }
    }
}

/// One entry of `status.details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldManagerConflict`, …
    pub reason: String,
    /// What is wrong, for a person.
    pub message: String,
    /// The field's path, as in `spec.containers[0].image`; empty when no field is meant.
    pub field: String,
}

/// What is wrong with one field (upstream's `field.Error`).
#[derive(Clone, Debug, PartialEq)]
pub enum FieldError {
    /// A value is needed.
    Required { path: String, detail: String },
    /// The value breaks a rule.
    Invalid { path: String, value: Value, detail: String },
    /// The value is of the wrong type.
    TypeInvalid { path: String, value: Value, detail: String },
    /// The value is none of those known.
    NotSupported { path: String, value: Value, supported: Vec<String> },
    /// A second of what must be unique.
    Duplicate { path: String, value: Value },
    /// The field may not be set here.
    Forbidden { path: String, detail: String },
    /// Longer than `max` bytes.
    TooLong { path: String, max: usize },
    /// More than `max` items.
    TooMany { path: String, actual: usize, max: usize },
    /// What the value names does not exist.
    NotFound { path: String, value: Value },
}

/// A field's value as Go's `field.Error` prints it: strings quoted, objects and lists as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(_) | Value::Number(_) | Value::Bool(_) => value.to_string(),
        Value::Null => "null".into(),
        Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

impl FieldError {
    /// The field's path.
    pub fn path(&self) -> &str {
        use FieldError::*;
        match self {
            Required { path, .. }
            | Invalid { path, .. }
            | TypeInvalid { path, .. }
            | NotSupported { path, .. }
            | Duplicate { path, .. }
            | Forbidden { path, .. }
            | TooLong { path, .. }
            | TooMany { path, .. }
            | NotFound { path, .. } => path,
        }
    }

    fn reason(&self) -> &'static str {
        use FieldError::*;
        match self {
            Required { .. } => "FieldValueRequired",
            Invalid { .. } => "FieldValueInvalid",
            TypeInvalid { .. } => "FieldValueTypeInvalid",
            NotSupported { .. } => "FieldValueNotSupported",
            Duplicate { .. } => "FieldValueDuplicate",
            Forbidden { .. } => "FieldValueForbidden",
            TooLong { .. } => "FieldValueTooLong",
            TooMany { .. } => "FieldValueTooMany",
            NotFound { .. } => "FieldValueNotFound",
        }
    }

    /// The text without the path, as it stands in a cause.
    pub fn body(&self) -> String {
        use FieldError::*;
        let with = |head: String, detail: &str| {
            if detail.is_empty() { head } else { format!("{head}: {detail}") }
        };
        match self {
            Required { detail, .. } => with("Required value".into(), detail),
            Invalid { value, detail, .. } | TypeInvalid { value, detail, .. } => {
                with(format!("Invalid value: {}", shown(value)), detail)
            }
            NotSupported { value, supported, .. } => {
                let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
                format!(
                    "Unsupported value: {}: supported values: {}",
                    shown(value),
                    list.join(", ")
                )
            }
            Duplicate { value, .. } => format!("Duplicate value: {}", shown(value)),
            Forbidden { detail, .. } => with("Forbidden".into(), detail),
            TooLong { max, .. } => format!("Too long: may not be more than {max} bytes"),
            TooMany { actual, max, .. } => {
                format!("Too many: {actual}: must have at most {max} items")
            }
            NotFound { value, .. } => format!("Not found: {}", shown(value)),
        }
    }

    /// This error as a cause of a `Status`.
    pub fn cause(&self) -> Cause {
        Cause { reason: self.reason().into(), message: self.body(), field: self.path().into() }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path(), self.body())
    }
}

/// A refusal or failure, as the client gets to see it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Why, as a word a program can test.
    pub reason: Reason,
    /// Why, as a sentence.
    pub message: String,
    /// `details.group`, `details.kind` (for most errors upstream puts the resource's plural here), `details.name`.
    pub group: String,
    /// See `group`.
    pub kind: String,
    /// See `group`.
    pub name: String,
    /// `details.uid`.
    pub uid: String,
    /// One entry a fault.
    pub causes: Vec<Cause>,
    /// `details.retryAfterSeconds`; also sent as the `Retry-After` header.
    pub retry_after_seconds: Option<u32>,
    /// `metadata.continue`: where a list whose token expired may go on, inconsistently.
    pub continue_token: Option<String>,
}

impl ApiError {
    /// An error without details.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        ApiError {
            reason,
            message: message.into(),
            group: String::new(),
            kind: String::new(),
            name: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: None,
            continue_token: None,
        }
    }

    fn about(mut self, group: &str, resource: &str, name: &str) -> Self {
        self.group = group.into();
        self.kind = resource.into();
        self.name = name.into();
        self
    }

    /// 400 with this text.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// 500 with this text.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {message}"))
    }

    /// 404: `pods "x" not found`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::new(Reason::NotFound, format!("{} {name:?} not found", qualified(resource, group)))
            .about(group, resource, name)
    }

    /// 404 of a route that does not exist.
    pub fn no_route() -> Self {
        Self::new(Reason::NotFound, "the server could not find the requested resource")
    }

    /// 409: the name is taken.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::new(
            Reason::AlreadyExists,
            format!("{} {name:?} already exists", qualified(resource, group)),
        )
        .about(group, resource, name)
    }

    /// 409: a precondition failed, with what is wrong.
    pub fn conflict(group: &str, resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(
            Reason::Conflict,
            format!(
                "Operation cannot be fulfilled on {} {name:?}: {why}",
                qualified(resource, group)
            ),
        )
        .about(group, resource, name)
    }

    /// 409 of an optimistic lock.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 403 with the reason.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let head = if name.is_empty() {
            format!("{} is forbidden", qualified(resource, group))
        } else {
            format!("{} {name:?} is forbidden", qualified(resource, group))
        };
        Self::new(Reason::Forbidden, format!("{head}: {why}")).about(group, resource, name)
    }

    /// 422 with one cause for each faulty field. `kind` is the kind (`Pod`), not the resource.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let why = match list.len() {
            1 => list[0].clone(),
            _ => format!("[{}]", list.join(", ")),
        };
        let mut error = Self::new(
            Reason::Invalid,
            format!("{} {name:?} is invalid: {why}", qualified(kind, group)),
        )
        .about(group, kind, name);
        error.causes = errors.iter().map(FieldError::cause).collect();
        error
    }

    /// 410: the history does not go back that far.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// The `Status` object of this error (`v1`, kind `Status`).
    pub fn to_status(&self) -> Value {
        let mut details = serde_json::Map::new();
        let mut put = |k: &str, v: &str| {
            if !v.is_empty() {
                details.insert(k.into(), v.into());
            }
        };
        put("name", &self.name);
        put("group", &self.group);
        put("kind", &self.kind);
        put("uid", &self.uid);
        if !self.causes.is_empty() {
            let causes: Vec<Value> = self
                .causes
                .iter()
                .map(|c| {
                    let mut v = json!({"reason": c.reason, "message": c.message});
                    if !c.field.is_empty() {
                        v["field"] = c.field.clone().into();
                    }
                    v
                })
                .collect();
            details.insert("causes".into(), causes.into());
        }
        if let Some(seconds) = self.retry_after_seconds {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason.as_str(), "code": self.reason.code(),
        });
        if let Some(token) = &self.continue_token {
            status["metadata"]["continue"] = token.clone().into();
        }
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}

/// `deployments.apps`, or `pods` in the core group.
fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.into() } else { format!("{resource}.{group}") }
}
