//! The releases of the operating system on this machine: the one it was started with, and the one it takes.
//!
//! ```text
//!   core --order--> take --missing chunks--> source (what a stick brought, peers, web, registry)
//!                    |                          |
//!                    +---- slot: spare slot <---+
//!   core --start--> running: boot menu, reboot
//! ```

mod brought;
mod running;
mod slot;
mod source;
mod take;

pub use brought::Brought;
pub use running::Running;
pub(crate) use running::os_release;
pub use source::{MAX_RANGE_BYTES, Part, Sources};
pub use take::Taking;
