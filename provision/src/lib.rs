//! The operator's side of Hivemind: keys, tokens, images, Compose files, and the signed client of
//! the API. The `hivemind` command is a thin shell around it.
//!
//! Nothing here is trusted by the cluster: it makes documents and signs them; every node checks
//! them again.

pub mod archive;
pub mod bundle;
pub mod cli;
pub mod client;
pub mod command;
pub mod compose;
pub mod deploy;
pub mod failure;
pub mod image;
pub mod native;
pub mod oci_archive;
pub mod quantity;
pub mod registry;
pub mod release;
pub mod secret;
pub mod terminal;
pub mod token;
