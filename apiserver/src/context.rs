//! What the handlers of one request share.

use crate::authn::Identity;
use crate::negotiate::{self, Accepted};
use crate::query::Query;
use crate::request_info::RequestInfo;
use http::{HeaderMap, header};
use jiff::Timestamp;
use parking_lot::Mutex;
use rkube_api::schema::FieldValidation;
use rkube_api::{ApiError, FieldError};

/// One request, authenticated and parsed.
pub struct Cx {
    /// What it is about.
    pub info: RequestInfo,
    /// Who asks.
    pub identity: Identity,
    /// The query.
    pub query: Query,
    /// The headers.
    pub headers: HeaderMap,
    /// The representation that is wanted.
    pub accepted: Accepted,
    /// The time of the request.
    pub now: Timestamp,
    /// The leader's term that a component of the control plane writes in: a write is refused once
    /// it is over.
    pub term: Option<u64>,
    /// Texts for `Warning` headers.
    warnings: Mutex<Vec<String>>,
}

impl Cx {
    /// A request's context.
    ///
    /// # Errors
    /// 406 if no acceptable representation exists.
    pub fn new(
        info: RequestInfo,
        identity: Identity,
        query: Query,
        headers: HeaderMap,
        now: Timestamp,
    ) -> Result<Self, ApiError> {
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
        let accepted = negotiate::accepted(accept)?;
        let warnings = Mutex::default();
        Ok(Cx { info, identity, query, headers, accepted, now, term: None, warnings })
    }

    /// The same for a write of a leader's term.
    pub fn in_term(self, term: Option<u64>) -> Self {
        Cx { term, ..self }
    }

    /// A header's text, empty if there is none.
    pub fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }

    /// Adds texts for `Warning` headers; each goes out once.
    pub fn warn(&self, texts: impl IntoIterator<Item = String>) {
        let mut warnings = self.warnings.lock();
        for text in texts {
            if !warnings.contains(&text) {
                warnings.push(text);
            }
        }
    }

    /// The warnings so far.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock())
    }

    /// Whether nothing may be kept. `options` names the kind of options in the refusal.
    ///
    /// # Errors
    /// 422 for anything but `All`.
    pub fn dry_run(&self, options: &str) -> Result<bool, ApiError> {
        check_dry_run(self.query.all("dryRun"), options)
    }

    /// How unknown fields are taken.
    ///
    /// # Errors
    /// 422 for anything but the three known words.
    pub fn field_validation(&self, options: &str) -> Result<FieldValidation, ApiError> {
        let text = self.query.get("fieldValidation").unwrap_or("");
        FieldValidation::parse(text).ok_or_else(|| {
            invalid_option(
                options,
                FieldError::NotSupported {
                    path: "fieldValidation".into(),
                    value: text.into(),
                    supported: ["", "Ignore", "Strict", "Warn"].map(String::from).into(),
                },
            )
        })
    }

    /// Who the fields of this write belong to: the parameter, else the user agent's first word.
    pub fn field_manager(&self) -> String {
        match self.query.text("fieldManager") {
            Some(manager) => manager.to_owned(),
            None => {
                let agent = self.header(header::USER_AGENT);
                let word = agent.split(['/', ' ']).next().unwrap_or("");
                if word.is_empty() { "unknown".into() } else { word.chars().take(128).collect() }
            }
        }
    }
}

/// Whether `dryRun` asks to keep nothing.
///
/// # Errors
/// 422 for anything but `All`.
pub fn check_dry_run<'a>(
    values: impl Iterator<Item = &'a str>,
    options: &str,
) -> Result<bool, ApiError> {
    let mut dry = false;
    for value in values {
        match value {
            "All" => dry = true,
            "" => {}
            other => {
                return Err(invalid_option(
                    options,
                    FieldError::NotSupported {
                        path: "dryRun".into(),
                        value: serde_json::json!([other]),
                        supported: vec!["All".into()],
                    },
                ));
            }
        }
    }
    Ok(dry)
}

/// 422 for a parameter, worded as upstream.
pub fn invalid_option(options: &str, error: FieldError) -> ApiError {
    ApiError::invalid("meta.k8s.io", options, "", &[error])
}
