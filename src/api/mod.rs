//! The socket's language: wire types (twins of engine types), the route table, the server
//! that turns requests into `Call`s, the typed client.
//!
//! Refuses: engine types, and any field that is a command, a path, an environment or a URL.

pub mod access;
pub mod body;
pub mod call;
pub mod client;
pub mod drills;
pub mod exchange;
pub mod openapi;
pub mod refusals;
pub mod request;
pub mod routes;
pub mod rules;
pub mod server;
pub mod slots;
pub mod stall;
pub mod tcp;
pub mod token;
pub mod timing;
pub mod types;
pub mod summary;
pub mod uniform;
