//! The daemon's parts. Each acts; what to do is decided in `hivemind-core`.

/// The daemon's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub mod agent;
pub mod api;
pub mod clock;
pub mod discovery;
pub mod dns;
mod hardware;
pub mod identity;
mod netlink;
pub mod network;
pub mod recent;
mod registry;
pub mod release;
pub mod runtime;
mod screen;
mod stick;
pub mod store;
mod support;
pub mod transport;
pub mod underlay;
