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
pub mod release;
pub mod scale;
pub mod sim;
pub mod wait;
pub mod web;
