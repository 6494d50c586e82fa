//! Sums through the memory of the host, in the order of ranks.
//!
//! Between processes each rank sums one part of a tensor and sends it to all: so every connection carries two parts of
//! `world`, in each direction, whatever the number of ranks. Small tensors go to everybody at once instead, in half the time.

use std::ops::Add;

use beit2_ranks::{Channel, Group};
use burn::tensor::{DType, Element, TensorData};
use bytemuck::Pod;
use rayon::prelude::*;

use super::peers::{Peers, out_of_step};
use super::{PeerLeft, Rank};

/// Bytes of a tensor that is not worth two exchanges.
const SMALL: usize = 1 << 16;

/// Elements of a piece that one thread sums: enough to be worth a thread.
const GRAIN: usize = 1 << 16;

impl Rank {
    /// The sum over the ranks of tensors of f64 or f32, as one row.
    pub(super) fn sum_on_host(&self, own: TensorData) -> Result<TensorData, PeerLeft> {
        match own.dtype {
            DType::F64 => self.sum_of::<f64>(own),
            _ => self.sum_of::<f32>(own),
        }
    }

    fn sum_of<E>(&self, own: TensorData) -> Result<TensorData, PeerLeft>
    where
        E: Element + Pod + Add<Output = E> + Sync,
    {
        if let Some(Peers::Processes { group, .. }) = self.peers.as_deref() {
            let values = own.into_vec::<E>().unwrap_or_default();
            let sum = between_processes(group, &values)?;
            let count = sum.len();
            return Ok(TensorData::new(sum, [count]));
        }
        let parts = self.gather(own)?;
        let parts: Vec<&[E]> = parts.iter().filter_map(|part| part.as_slice().ok()).collect();
        let sum = in_order(&parts);
        let count = sum.len();
        Ok(TensorData::new(sum, [count]))
    }
}

fn between_processes<E>(group: &Group, own: &[E]) -> Result<Vec<E>, PeerLeft>
where
    E: Pod + Add<Output = E> + Send + Sync,
{
    let world = group.world();
    // Numbers in what another process sent lie anywhere.
    let aligned = |bytes: &[u8]| bytemuck::pod_collect_to_vec::<u8, E>(bytes);
    let bytes = bytemuck::cast_slice::<E, u8>(own);
    if bytes.len() <= SMALL {
        let brought = group.gather(Channel::Training, bytes.to_vec())?;
        if brought.iter().any(|other| other.len() != bytes.len()) {
            return Err(out_of_step(group));
        }
        let parts: Vec<Vec<E>> = brought.iter().map(|bytes| aligned(bytes)).collect();
        return Ok(in_order(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    }
    let start = |rank: usize| own.len() * rank / world;
    let parts =
        (0..world).map(|rank| bytemuck::cast_slice(&own[start(rank)..start(rank + 1)]).to_vec()).collect();
    let brought = group.all_to_all(Channel::Training, parts)?;
    if brought.iter().any(|other| other.len() != brought[group.rank()].len()) {
        return Err(out_of_step(group));
    }
    let parts: Vec<Vec<E>> = brought.iter().map(|bytes| aligned(bytes)).collect();
    let sum = in_order(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let sums = group.gather(Channel::Training, bytemuck::cast_slice(&sum).to_vec())?;
    let mut all = Vec::with_capacity(own.len());
    for (rank, part) in sums.iter().enumerate() {
        if part.len() != (start(rank + 1) - start(rank)) * size_of::<E>() {
            return Err(out_of_step(group));
        }
        all.extend(aligned(part));
    }
    Ok(all)
}

/// The sum of rows of one length, the first one first.
fn in_order<E>(parts: &[&[E]]) -> Vec<E>
where
    E: Copy + Add<Output = E> + Send + Sync,
{
    let mut sum = parts[0].to_vec();
    sum.par_chunks_mut(GRAIN).enumerate().for_each(|(at, sum)| {
        for part in &parts[1..] {
            let part = &part[at * GRAIN..][..sum.len()];
            sum.iter_mut().zip(part).for_each(|(sum, x)| *sum = *sum + *x);
        }
    });
    sum
}
