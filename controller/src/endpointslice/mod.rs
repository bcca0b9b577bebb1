//! EndpointSlices: the addresses of the pods that a Service selects.

mod endpoint;
mod plan;
mod shell;

pub use plan::{Action, Rule, View};
pub(crate) use shell::start;
