//! Clusters of the real image, as an operator sees them: machines, the `hivemind` command, and
//! what it prints. And clusters of the pure core alone, in a world where everything goes wrong
//! ([`sim`]).

pub mod api;
pub mod cluster;
pub mod command;
pub mod console;
pub mod disk;
pub mod health;
pub mod probe;
pub mod registry;
pub mod release;
pub mod scale;
pub mod sim;
pub mod wait;
pub mod web;

/// A number from the environment, for runs that are longer than usual or have another seed.
pub fn setting(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
