//! What a call to the runtime can fail with.

use thiserror::Error;

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The named sandbox, container or image does not exist.
    NotFound,
    /// Nobody answers on the runtime's socket.
    Unavailable,
    /// The call took longer than it may.
    DeadlineExceeded,
    /// The runtime does not know the call.
    Unimplemented,
    /// The runtime refused the request as malformed.
    InvalidArgument,
    /// Everything else.
    Other,
}

/// A failed call: what was tried on what, and the runtime's own words.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error("{operation}{}{subject}: {message}", if subject.is_empty() { "" } else { " " })]
pub struct CriError {
    /// The call's name in CRI.
    pub operation: &'static str,
    /// Id or name of what it was for.
    pub subject: String,
    /// The kind of failure.
    pub code: Code,
    /// The runtime's message.
    pub message: String,
}

impl CriError {
    /// An error of `operation` on `subject`.
    pub fn new(
        operation: &'static str,
        subject: &str,
        code: Code,
        message: impl Into<String>,
    ) -> Self {
        Self { operation, subject: subject.to_owned(), code, message: message.into() }
    }

    /// Whether the subject does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }

    pub(crate) fn from_status(
        operation: &'static str,
        subject: &str,
        status: &tonic::Status,
    ) -> Self {
        let code = match status.code() {
            tonic::Code::NotFound => Code::NotFound,
            tonic::Code::Unavailable => Code::Unavailable,
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => Code::DeadlineExceeded,
            tonic::Code::Unimplemented => Code::Unimplemented,
            tonic::Code::InvalidArgument => Code::InvalidArgument,
            _ => Code::Other,
        };
        Self::new(operation, subject, code, grpc_text(status))
    }
}

/// The status as gRPC clients of other languages print it; users know this form from `describe`.
fn grpc_text(status: &tonic::Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_becomes_a_code_and_the_known_text() {
        let status = tonic::Status::not_found("no such image");
        let error = CriError::from_status("PullImage", "busybox", &status);
        assert!(error.is_not_found());
        assert_eq!(
            error.to_string(),
            "PullImage busybox: rpc error: code = NotFound desc = no such image"
        );
        let all = CriError::from_status("ListContainers", "", &status).to_string();
        assert!(all.starts_with("ListContainers: rpc error"), "{all}");
    }
}
