//! The socket's language: wire types (twins of engine types), the route table, the server
//! that turns requests into `Call`s, the typed client.
//!
//! Refuses: engine types, and any field that is a command, a path, an environment or a URL.

pub mod call;
pub mod types;
