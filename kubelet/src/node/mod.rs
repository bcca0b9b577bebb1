//! The node as the API sees it: registered, alive (lease), and in this state (status).

pub mod lease;
pub mod machine;
pub mod register;
pub mod status;
