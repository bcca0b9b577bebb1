//! One request and its answer, without an object decoded that nobody looks at.

use http::{Method, Request, StatusCode};
use kube::client::Body;
use kube::core::Status;
use serde_json::Value;
use thiserror::Error;

/// A request that failed.
#[derive(Debug, Error)]
pub enum HollowError {
    /// The API server refused it.
    #[error("{method} {path}: {message} ({code})")]
    Refused {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// The answer's status code.
        code: StatusCode,
        /// What the API server said.
        message: String,
    },
    /// There was no answer.
    #[error("{method} {path}: {source}")]
    Unanswered {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
}

impl HollowError {
    /// The answer's status code, if there was an answer.
    pub fn code(&self) -> Option<StatusCode> {
        match self {
            HollowError::Refused { code, .. } => Some(*code),
            HollowError::Unanswered { .. } => None,
        }
    }
}

/// What a request says in its body.
pub enum Content {
    /// Nothing.
    Nothing,
    /// An object or options.
    Json(Value),
    /// A change, merged by the rules of the object's type.
    StrategicMerge(Value),
    /// A change, merged as RFC 7396 says.
    Merge(Value),
}

impl Content {
    fn media_type(&self) -> Option<&'static str> {
        match self {
            Content::Nothing => None,
            Content::Json(_) => Some("application/json"),
            Content::StrategicMerge(_) => Some("application/strategic-merge-patch+json"),
            Content::Merge(_) => Some("application/merge-patch+json"),
        }
    }

    fn bytes(self) -> Vec<u8> {
        match self {
            Content::Nothing => Vec::new(),
            Content::Json(v) | Content::StrategicMerge(v) | Content::Merge(v) => {
                v.to_string().into_bytes()
            }
        }
    }
}

/// Sends a request; gives the body of a good answer.
pub async fn send(
    client: &kube::Client,
    method: Method,
    path: &str,
    content: Content,
) -> Result<Vec<u8>, HollowError> {
    let unanswered = |source: kube::Error| HollowError::Unanswered {
        method: method.clone(),
        path: path.into(),
        source: Box::new(source),
    };
    let mut request = Request::builder()
        .method(method.clone())
        .uri(path)
        .header(http::header::USER_AGENT, "rkube-hollow");
    if let Some(media_type) = content.media_type() {
        request = request.header(http::header::CONTENT_TYPE, media_type);
    }
    let request = request.body(Body::from(content.bytes())).map_err(kube::Error::HttpError);
    let answer = client.send(request.map_err(unanswered)?).await.map_err(unanswered)?;
    let code = answer.status();
    let body = answer.into_body().collect_bytes().await.map_err(unanswered)?;
    if code.is_success() {
        return Ok(body.into());
    }
    Err(HollowError::Refused { method, path: path.into(), code, message: message(&body) })
}

fn message(body: &[u8]) -> String {
    match serde_json::from_slice::<Status>(body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(body).trim().to_string(),
    }
}
