//! Exchanges between all ranks of a group. All of them call the same ones in the same order on each channel.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::link::{End, Inbox, Link};

/// Threads of a rank that exchange something in their own order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The thread that trains.
    Training = 0,
    /// The thread that fills the device's queue.
    Queue = 1,
}

pub(crate) const CHANNELS: usize = 2;

/// Bytes that are sent to several ranks without a copy.
pub type Payload = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A rank is gone, so that an exchange cannot be completed; neither can any later one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Lost {
    why: Arc<str>,
}

impl Lost {
    pub(crate) fn new(why: String) -> Self {
        Self { why: why.into() }
    }

    /// Which one and how: one sentence.
    pub fn why(&self) -> &Arc<str> {
        &self.why
    }
}

/// This process's place among the ranks that it is connected to.
pub struct Group {
    rank: usize,
    /// By rank; `None` for this one.
    links: Vec<Option<Link>>,
    inbox: Arc<Inbox>,
    left: Mutex<bool>,
}

/// How long to wait for a peer to take the last words: it may be busy with work that cannot be interrupted.
const GOODBYE: Duration = Duration::from_secs(3);

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process of rank {} of {}", self.rank, self.links.len())
    }
}

impl Group {
    pub(crate) fn new(rank: usize, links: Vec<Option<Link>>, inbox: Arc<Inbox>) -> Self {
        Self { rank, links, inbox, left: Mutex::new(false) }
    }

    /// This process's rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Processes in the group.
    pub fn world(&self) -> usize {
        self.links.len()
    }

    /// What every rank brings, in the order of ranks.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn gather(&self, channel: Channel, own: Payload) -> Result<Vec<Payload>, Lost> {
        let all = 0..(*own).as_ref().len();
        self.links.iter().flatten().for_each(|link| link.send(channel as u8, own.clone(), all.clone()));
        (0..self.world())
            .map(|from| match from == self.rank {
                true => Ok(own.clone()),
                false => self.inbox.next(from, channel as u8).map(|bytes| Arc::new(bytes) as Payload),
            })
            .collect()
    }

    /// What every other rank brings for this one, in the order of ranks, with `None` in this one's place. `parts` says which of
    /// the bytes are for which rank.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn scatter(
        &self,
        channel: Channel,
        bytes: &Payload,
        parts: impl Fn(usize) -> Range<usize>,
    ) -> Result<Vec<Option<Vec<u8>>>, Lost> {
        for (to, link) in self.links.iter().enumerate() {
            if let Some(link) = link {
                link.send(channel as u8, bytes.clone(), parts(to));
            }
        }
        (0..self.world())
            .map(|from| match from == self.rank {
                true => Ok(None),
                false => self.inbox.next(from, channel as u8).map(Some),
            })
            .collect()
    }

    /// Why the group cannot exchange anything any more; `None` while it can.
    pub fn failure(&self) -> Option<Lost> {
        self.inbox.failure()
    }

    /// Tells all others that this rank is done, or in one sentence why it cannot go on. What this rank is still waiting for in
    /// other threads fails with the same sentence. The first call counts.
    pub fn leave(&self, why: Option<&str>) {
        if std::mem::replace(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner), true) {
            return;
        }
        let words = match (why, self.failure()) {
            (None, _) => String::new(),
            // All of them should name the one that was lost, not the one that noticed first.
            (Some(_), Some(lost)) => lost.why().to_string(),
            (Some(why), None) => format!("rank {} stopped: {why}", self.rank),
        };
        if !words.is_empty() {
            self.inbox.ended(self.rank, End::Failed(words.clone()));
        }
        self.links.iter().flatten().for_each(|link| link.leave(words.clone()));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.leave(std::thread::panicking().then_some("its program failed"));
        let until = Instant::now() + GOODBYE;
        self.links.iter().flatten().for_each(|link| link.close(until));
    }
}
