//! Clusters of the real image, as an operator sees them: machines, the `hivemind` command, and
//! what it prints.

pub mod api;
pub mod cluster;
pub mod command;
pub mod disk;
pub mod health;
pub mod probe;
pub mod wait;
