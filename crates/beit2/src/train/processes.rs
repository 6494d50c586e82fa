//! What ranks in processes of their own make sure of: that they were started alike, and that their models stay the same.
//!
//! Threads of one process have one recipe and one program, and need none of it.

use beit2_kernels::Rank;
use beit2_run::dir::{differences, list};
use beit2_run::recipe;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Table;

use super::state::Saved;
use crate::error::{Error, config_error};
use crate::weights::Tensors;

/// What may differ between ranks: where things lie on their machines, and how they read them. What is in them is in the run's
/// `fingerprint`, except for monitors, whose images only the leader looks at.
const MAY_DIFFER: [&str; 11] = [
    "environment",
    "data.cache",
    "data.workers",
    "data.train",
    "data.val",
    "teacher.weights",
    "tokenizer.weights",
    "tokenizer.cache",
    "init.weights",
    "monitor.folder",
    "monitor.forgetting_folder",
];

/// Refuses ranks that were started with other settings or inputs than rank 0.
///
/// # Errors
/// One sentence with what differs, the same on all ranks; another rank that ended.
pub(super) fn check_settings<R: Serialize + DeserializeOwned + Default>(
    rank: &Rank,
    recipe: &R,
    provenance: &str,
) -> Result<(), Error> {
    if !rank.is_process() {
        return Ok(());
    }
    let all = rank.gather(format!("{}\n{provenance}", recipe::to_toml(recipe)?))?;
    let tables: Result<Vec<Table>, _> = all.iter().map(|text| text.parse::<Table>()).collect();
    let tables = tables.map_err(|error| Error::Config(format!("the settings of a rank: {error}")))?;
    for (other, table) in tables.iter().enumerate().skip(1) {
        let found = differences(&tables[0], table, &MAY_DIFFER);
        if !found.is_empty() {
            return config_error(format!(
                "rank {other} was started with other settings or inputs than rank 0, it differs in {}; start all ranks with \
                 the same command on the same data, or with --rank 0/1 where each is a run of its own",
                list(&found)
            ));
        }
    }
    Ok(())
}

/// Compares the models and optimisers of all ranks, which are the same to the bit as long as nothing is wrong: machines that
/// round otherwise, damaged memory.
///
/// # Errors
/// One sentence with the first tensor that differs, the same on all ranks; another rank that ended.
pub(super) fn check_copies(rank: &Rank, saved: &Saved, step: u64) -> Result<(), Error> {
    let Saved { model, optimizer, averages } = saved;
    let tensors: Vec<&Tensors> = [model, optimizer].into_iter().chain(averages).collect();
    let names: Vec<&String> = tensors.iter().flat_map(|tensors| tensors.keys()).collect();
    let sums: Vec<u32> = tensors
        .iter()
        .flat_map(|tensors| tensors.values())
        .map(|data| crc32fast::hash(data.as_bytes()))
        .collect();
    let all = rank.gather(sums)?;
    for (other, sums) in all.iter().enumerate().skip(1) {
        let differing = names.iter().zip(all[0].iter().zip(sums)).find(|(_, (own, other))| own != other);
        if let Some((name, _)) = differing {
            return Err(Error::Training(format!(
                "the models of rank 0 and rank {other} have become different before step {step}, first in `{name}`: their \
                 machines compute otherwise, or one is damaged; the last checkpoint is intact"
            )));
        }
    }
    Ok(())
}
