//! The agent: drives the core, and carries out what it decides.
//!
//! ```text
//!   transport, runtime, discovery, underlay  --Event-->  loop: Node::step  --Action-->  hands
//!                         API  --question-->  loop
//! ```
//!
//! One task owns the core. It never waits for the world: whatever takes time is a task of its own
//! that reports back with an event.

mod facts;
mod handle;
mod hands;
mod happened;
mod run;
mod turn;

pub(crate) use self::facts::meminfo;
pub use self::handle::AgentHandle;
pub use self::happened::Happened;
pub use self::run::run;
