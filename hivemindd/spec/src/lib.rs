//! What the daemon and the operator's CLI must agree on: documents, identities, signatures and
//! API types.
//!
//! Nothing in this crate knows of sockets, files, clocks or randomness: keys, times and nonces
//! are arguments.

pub mod api;
pub mod certificate;
pub mod document;
pub mod dsse;
pub mod exec;
pub mod http_signature;
pub mod id;
pub mod key;
pub mod machine;
pub mod namespace;
pub mod problem;
pub mod release;
pub mod schema;
pub mod secret;
pub mod stick;
pub mod volume;
pub mod words;
pub mod workload;
