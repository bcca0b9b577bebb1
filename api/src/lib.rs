//! Kubernetes objects, without any I/O.
//!
//! A kind is declared, not coded: its types stand in one table ([`schema`]), its names, columns and
//! rules in one [`registry`] entry. Decoding, defaulting, validation, patches, tables, OpenAPI and
//! protobuf all follow from those two. This crate has no clock, no randomness, no async and no
//! files: what needs a time or a uid is handed one.

pub mod error;
pub mod jsonpath;
pub mod meta;
pub mod patch;
pub mod quantity;
pub mod registry;
pub mod schema;
pub mod selector;
pub mod yaml;

pub use error::{ApiError, Cause, FieldError, Reason};
pub use meta::{GroupVersionKind, GroupVersionResource};
