//! The pure core: replicated state, membership, scheduling, replica life cycle and network
//! planning, as one deterministic state machine.
//!
//! ```text
//!             Event                     Actions
//!   edge  ------------->  Node::step  ----------->  edge
//! ```
//!
//! Nothing in this crate knows of sockets, clocks, files, threads or OS randomness: time and a
//! seed are arguments, and so the same events always give the same actions. Modules see the state
//! and the event and action types, never each other; `node::Node::step` composes them.

pub mod checking;
pub mod cluster;
pub mod dependencies;
pub mod device;
pub mod dns;
pub mod enrolment;
pub mod event;
#[cfg(test)]
pub(crate) mod fixture;
pub mod form;
pub mod image;
pub mod isolation;
pub mod job;
pub mod leader;
pub mod lease;
pub mod membership;
pub mod mutation;
pub mod node;
pub mod overlay;
pub mod permission;
pub mod picture;
pub mod record;
pub mod replica;
pub mod report;
pub mod rollout;
pub mod scheduler;
pub mod secret;
pub mod state;
pub mod statement;
pub mod sync;
pub mod time;
pub mod trust;
pub mod volume;
