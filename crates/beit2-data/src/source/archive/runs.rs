//! Packed shards are read in runs of neighbouring members: a disk or network that is slow at going to places gives some
//! megabytes at one place in about the time of one image.
//!
//! Only shards in a drawn order are read so. In others, neighbours are of one class or one scene, and an epoch has to mix
//! more of them than fit into memory.

use super::shard::Shard;
use super::{Member, RUN_BYTES};
use crate::order::Units;
use crate::source::pieces::{self, Pieces};

/// Runs of members and those of them that are in memory.
#[derive(Debug)]
pub(super) struct Runs {
    runs: Vec<Run>,
    units: Units,
    in_memory: Pieces<Vec<u8>>,
}

/// Members that lie behind one another in one shard.
#[derive(Debug)]
struct Run {
    /// Number of its first member.
    first: usize,
    shard: u32,
    offset: u64,
    bytes: u64,
}

impl Runs {
    /// Cuts members into runs of at most [`RUN_BYTES`]; a larger member is a run of its own.
    pub(super) fn of(members: &[Member]) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (first, member) in members.iter().enumerate() {
            let end = member.offset.saturating_add(member.size);
            let last = runs.last_mut().filter(|run| {
                run.shard == member.shard
                    && member.offset >= run.offset + run.bytes
                    && end - run.offset <= RUN_BYTES
            });
            match last {
                Some(run) => run.bytes = end - run.offset,
                None => {
                    runs.push(Run { first, shard: member.shard, offset: member.offset, bytes: member.size })
                }
            }
        }
        let window = pieces::window(runs.iter().map(|run| run.bytes).sum(), runs.len());
        let ends = runs.iter().skip(1).map(|run| run.first).chain([members.len()]);
        let of_samples = runs.iter().zip(ends).map(|(run, end)| (run.first as u64, end as u64)).collect();
        let units = Units { runs: of_samples, window };
        Self { runs, units, in_memory: Pieces::of_window(window) }
    }

    /// The runs as the order of an epoch needs them.
    pub(super) fn units(&self) -> &Units {
        &self.units
    }

    /// Bytes of member `index`, by its run; `None` when the run cannot be read, although the member alone might.
    pub(super) fn read(&self, index: usize, member: &Member, shard: &Shard) -> Option<Vec<u8>> {
        let number = self.runs.partition_point(|run| run.first <= index).checked_sub(1)?;
        let run = self.runs.get(number)?;
        let read = || {
            let mut whole = vec![0; usize::try_from(run.bytes).map_err(|error| error.to_string())?];
            shard.read_at(&mut whole, run.offset).map_err(|error| error.to_string())?;
            Ok(whole)
        };
        let whole = self.in_memory.get(number, read).ok()?;
        let start = usize::try_from(member.offset.checked_sub(run.offset)?).ok()?;
        whole.get(start..)?.get(..usize::try_from(member.size).ok()?).map(<[u8]>::to_vec)
    }
}
