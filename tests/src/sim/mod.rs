//! The simulator: whole [`hivemind_core::node::Node`]s in a seeded world, without sockets, files or
//! real time.
//!
//! ```text
//!              seed
//!               |
//!   life ----> world ---- network   who reaches whom, how late, how often
//!    |           |------- machine   power, clock, disk, and the fake containerd
//!    |           +------> ledger    what was promised to whom; checked after every event
//!    +-- faults, pushes, then peace: everything must come right within a bound
//! ```
//!
//! Events are ordered by (time, sequence) and all chance comes from the seed, so a seed always
//! gives the same life. It will not tell what the edge does wrong: for that there are the clusters
//! of the real image.

pub mod cast;
pub mod ledger;
pub mod life;
pub mod machine;
pub mod network;
pub mod runtime;
pub mod trace;
pub mod world;
