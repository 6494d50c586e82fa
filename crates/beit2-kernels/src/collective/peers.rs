//! The other ranks of a group: threads, or processes.

use std::sync::Arc;

use beit2_ranks::{Channel, Group, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::rendezvous::Rendezvous;

/// Another rank of the group ended before this one was done: what was waited for never comes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerLeft {
    pub(super) why: Option<Arc<str>>,
}

impl std::fmt::Display for PeerLeft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.why.as_deref().unwrap_or("the part of the run on another device ended early"))
    }
}

impl std::error::Error for PeerLeft {}

impl From<beit2_ranks::Lost> for PeerLeft {
    fn from(lost: beit2_ranks::Lost) -> Self {
        Self { why: Some(lost.why().clone()) }
    }
}

/// What ranks can tell each other, also in other processes.
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Message for T {}

/// How the ranks of a group reach each other.
pub(super) enum Peers {
    Threads(Rendezvous),
    Processes { group: Arc<Group>, channel: Channel },
}

impl Peers {
    /// What every rank brings, in the order of ranks. Everybody must bring the same type.
    pub fn gather<T: Message>(&self, rank: usize, value: T) -> Result<Arc<Vec<T>>, PeerLeft> {
        let (group, channel) = match self {
            Self::Threads(rendezvous) => return rendezvous.gather(rank, value),
            Self::Processes { group, channel } => (group, *channel),
        };
        let mut own = Some(value);
        let bytes = own.as_ref().map(encode).unwrap_or_default();
        let brought = group.gather(channel, Arc::new(bytes))?;
        let values = brought.iter().enumerate().map(|(from, bytes)| match from == rank {
            true => own.take(),
            false => decode((**bytes).as_ref()),
        });
        match values.collect() {
            Some(values) => Ok(Arc::new(values)),
            None => Err(out_of_step(group)),
        }
    }

    /// Tells all others not to wait any more.
    pub fn leave(&self, why: Option<&str>) {
        match self {
            Self::Threads(rendezvous) => rendezvous.leave(why),
            Self::Processes { group, .. } => group.leave(why),
        }
    }
}

/// Ends a group whose ranks do not do the same: a mistake in this program, or another program.
pub(super) fn out_of_step(group: &Group) -> PeerLeft {
    let why = "the ranks exchanged different things, which is an error in the program";
    group.leave(Some(why));
    PeerLeft { why: Some(why.into()) }
}
