//! What can go wrong, and how kubectl words it.

use serde_json::Value;
use std::collections::BTreeSet;

/// A verb's failure. `Display` is the text for stderr, as kubectl prints it, without a last newline.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused.
    #[error("{}", shown_status(.0))]
    Status(Box<Status>),
    /// No answer from the server.
    #[error("{0}")]
    Unreachable(String),
    /// A fault found here.
    #[error("error: {0}")]
    Message(String),
    /// The whole text stands as it is.
    #[error("{0}")]
    Plain(String),
    /// Several at once, a line each.
    #[error("{}", joined(.0))]
    Many(Vec<Error>),
    /// Nothing to say, only an exit code to end with.
    #[error("exit status {0}")]
    Exit(u8),
}

/// The result of a verb.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A server's `Status`, as far as it is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// HTTP's code.
    pub code: u16,
    /// `NotFound`, …
    pub reason: String,
    /// The sentence.
    pub message: String,
    /// `details.kind`
    pub kind: String,
    /// `details.name`
    pub name: String,
    /// Field and text of each cause.
    pub causes: Vec<(String, String)>,
    /// `details.retryAfterSeconds`
    pub retry_after_seconds: u64,
    /// Whether the body was a `Status` at all.
    pub proper: bool,
}

impl Status {
    /// From an answer's code and body.
    pub fn parse(code: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(v) if v["kind"] == "Status" => Self::from_value(&v, code),
            _ => Self::from_text(code, &String::from_utf8_lossy(body)),
        }
    }

    /// From a `Status` object.
    pub fn from_value(v: &Value, code: u16) -> Self {
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        let details = &v["details"];
        let causes = details["causes"].as_array().map(Vec::as_slice).unwrap_or(&[]);
        Status {
            code: v["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(code),
            reason: text(&v["reason"]),
            message: text(&v["message"]),
            kind: text(&details["kind"]),
            name: text(&details["name"]),
            causes: causes.iter().map(|c| (text(&c["field"]), text(&c["message"]))).collect(),
            retry_after_seconds: details["retryAfterSeconds"].as_u64().unwrap_or(0),
            proper: true,
        }
    }

    fn from_text(code: u16, body: &str) -> Self {
        let (reason, message) = match code {
            400 => ("BadRequest", "the server rejected our request for an unknown reason"),
            401 => ("Unauthorized", "the server has asked for the client to provide credentials"),
            403 => ("Forbidden", "the server does not allow access to the requested resource"),
            404 => ("NotFound", "the server could not find the requested resource"),
            405 => (
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ),
            409 => ("Conflict", "the server reported a conflict"),
            415 => ("UnsupportedMediaType", "the server does not support the media type"),
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "the server was unable to return a response in the time allotted"),
            _ => (
                "InternalError",
                "an error on the server has prevented the request from succeeding",
            ),
        };
        let mut message = message.to_owned();
        let body = body.trim();
        if matches!(code, 400 | 403 | 500) && !body.is_empty() {
            message = body.to_owned();
        }
        Status { code, reason: reason.into(), message, ..Status::default() }
    }
}

impl Error {
    /// A fault found here.
    pub fn msg(text: impl Into<String>) -> Self {
        Error::Message(text.into())
    }

    /// The server's refusal, if it is one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Status(s) => Some(s),
            _ => None,
        }
    }

    /// Whether the server said that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|s| s.code == 404)
    }

    /// Whether the server said that somebody else was faster.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|s| s.reason == "Conflict")
    }

    /// Whether the name is taken.
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|s| s.reason == "AlreadyExists")
    }

    /// Whether the server has no such route at all (and so no such resource).
    pub fn is_no_route(&self) -> bool {
        self.status().is_some_and(|s| s.code == 404 && s.name.is_empty())
    }

    /// Says what was being done to which file.
    pub fn in_source(self, verb: &str, source: &str) -> Self {
        if source.is_empty() {
            return self;
        }
        match self {
            Error::Status(mut s) => {
                s.message = format!("error when {verb} {source:?}: {}", s.message);
                Error::Status(s)
            }
            Error::Message(m) => Error::Message(format!("error when {verb} {source:?}: {m}")),
            other => other,
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Error::Exit(code) => *code,
            _ => 1,
        }
    }

    /// One error from none, one or several.
    pub fn collect(mut errors: Vec<Error>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Many(errors)),
        }
    }

    /// The text without `error: ` or `Error from server (…): `.
    pub fn bare(&self) -> String {
        match self {
            Error::Status(s) => s.message.clone(),
            Error::Message(m) => m.clone(),
            other => other.to_string(),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Error::Message(e.to_string())
    }
}

fn joined(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn shown_status(s: &Status) -> String {
    match s.reason.as_str() {
        "Invalid" if s.proper => invalid(s),
        "Unauthorized" => format!("error: You must be logged in to the server ({})", s.message),
        "" => format!("Error from server: {}", s.message),
        reason => format!("Error from server ({reason}): {}", s.message),
    }
}

/// `The Pod "x" is invalid: ` and each fault once.
fn invalid(s: &Status) -> String {
    let head = match s.kind.as_str() {
        "" => "The request is invalid".to_owned(),
        kind => format!("The {kind} {:?} is invalid", s.name),
    };
    let mut seen = BTreeSet::new();
    let faults: Vec<String> = s
        .causes
        .iter()
        .map(
            |(field, text)| {
                if field.is_empty() { text.clone() } else { format!("{field}: {text}") }
            },
        )
        .filter(|f| seen.insert(f.clone()))
        .collect();
    match faults.as_slice() {
        [] => format!("{head}: {}", s.message),
        [one] => format!("{head}: {one}"),
        many => {
            let lines: Vec<String> = many.iter().map(|f| format!("\n* {f}")).collect();
            format!("{head}: {}", lines.concat())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn refusals_read_like_kubectls() {
        let not_found = Status::from_value(
            &json!({"reason": "NotFound", "message": "pods \"x\" not found", "code": 404}),
            404,
        );
        let shown = Error::Status(Box::new(not_found)).to_string();
        assert_eq!(shown, "Error from server (NotFound): pods \"x\" not found");

        let one = json!({"kind": "Status", "reason": "Invalid", "code": 422, "message": "m",
            "details": {"kind": "Pod", "name": "x", "causes": [
                {"field": "spec.a", "message": "Required value"},
                {"field": "spec.a", "message": "Required value"}]}});
        let shown = Error::Status(Box::new(Status::from_value(&one, 422))).to_string();
        assert_eq!(shown, "The Pod \"x\" is invalid: spec.a: Required value");

        let mut two = one;
        two["details"]["causes"][1]["field"] = json!("spec.b");
        let shown = Error::Status(Box::new(Status::from_value(&two, 422))).to_string();
        assert_eq!(
            shown,
            "The Pod \"x\" is invalid: \n* spec.a: Required value\n* spec.b: Required value"
        );
    }
}
