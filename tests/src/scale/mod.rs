//! What a large cluster costs each of its nodes.
//!
//! A thousand whole nodes that each hold thirty thousand replicas do not fit one computer, so one
//! node is whole and the others are stand-ins ([`crowd`]): their membership is the real one, they sign
//! real records, and they hold no map.

pub mod crowd;
pub mod figures;
pub mod plot;
