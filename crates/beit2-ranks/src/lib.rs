//! Ranks in processes of their own, on one machine or many: rendezvous, links, exchanges.
//!
//! ```text
//! place       which rank this process is, by its launcher's variables or by flags
//! rendezvous  rank 0 listens, the others come; all prove that they know the token and state what must be equal
//! link        a connection to one peer: frames, heartbeats, how it ended
//! group       exchanges between all ranks, in the same order on all of them
//! ```
//!
//! Every two ranks have one connection. What goes over it is neither encrypted nor compressed: it is meant for a cluster's
//! own network. The token itself never goes over it.

mod door;
mod frame;
mod group;
mod hello;
mod link;
mod nodelist;
mod place;
mod rendezvous;

pub use group::{Channel, Group, Lost, Payload};
pub use place::{Launcher, Place, PlaceError};
pub use rendezvous::{JoinError, Limits, Statement, join};

/// Bytes of a value.
///
/// # Panics
/// Never for types of numbers, texts, lists, options and structs of these.
pub fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    match postcard::to_allocvec(value) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("a value without bytes: {error}"),
    }
}

/// The value of bytes that [`encode`] gave; `None` if they are something else.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}
