//! Sums through the memory of the host, in the order of ranks.
//!
//! Between processes each rank sums one part of a tensor and sends it to all: so every connection carries two parts of
//! `world`, in each direction, whatever the number of ranks. Small tensors go to everybody at once instead, in half the time.

use std::ops::Add;
use std::sync::Arc;

use beit2_ranks::{Channel, Group, Payload};
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
            let sum = between_processes(group, Numbers(own.into_vec::<E>().unwrap_or_default()))?;
            let count = sum.len();
            return Ok(TensorData::new(sum, [count]));
        }
        let parts = self.gather(own)?;
        let like = parts[0].as_slice::<E>().unwrap_or_default();
        let parts: Vec<&[u8]> = parts.iter().map(TensorData::as_bytes).collect();
        let Some(sum) = in_order(&parts, like) else { panic!("ranks were asked to sum different tensors") };
        let count = sum.len();
        Ok(TensorData::new(sum, [count]))
    }
}

/// Numbers that are sent as they lie in memory.
struct Numbers<E>(Vec<E>);

impl<E: Pod> AsRef<[u8]> for Numbers<E> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

fn between_processes<E>(group: &Group, own: Numbers<E>) -> Result<Vec<E>, PeerLeft>
where
    E: Pod + Add<Output = E> + Send + Sync,
{
    let (rank, world, size, count) = (group.rank(), group.world(), size_of::<E>(), own.0.len());
    let (own, bytes) = shared(own);
    if count * size <= SMALL {
        let brought = group.gather(Channel::Training, bytes)?;
        let brought: Vec<&[u8]> = brought.iter().map(|bytes| (**bytes).as_ref()).collect();
        return in_order(&brought, &own.0).ok_or_else(|| out_of_step(group));
    }
    let part = |rank: usize| count * rank / world..count * (rank + 1) / world;
    let brought =
        group.scatter(Channel::Training, &bytes, |to| part(to).start * size..part(to).end * size)?;
    let mine = &own.0[part(rank)];
    let brought: Vec<&[u8]> =
        brought.iter().map(|bytes| bytes.as_deref().unwrap_or_else(|| bytemuck::cast_slice(mine))).collect();
    let sum = in_order(&brought, mine).ok_or_else(|| out_of_step(group))?;
    let (_, sum) = shared(Numbers(sum));
    let sums = group.gather(Channel::Training, sum)?;
    let mut all = vec![E::zeroed(); count];
    for (from, sum) in sums.iter().enumerate() {
        let (to, sum) = (bytemuck::cast_slice_mut::<E, u8>(&mut all[part(from)]), (**sum).as_ref());
        if to.len() != sum.len() {
            return Err(out_of_step(group));
        }
        to.copy_from_slice(sum);
    }
    Ok(all)
}

/// Numbers, and the same as bytes to send.
fn shared<E: Pod + Send + Sync>(numbers: Numbers<E>) -> (Arc<Numbers<E>>, Payload) {
    let numbers = Arc::new(numbers);
    (numbers.clone(), numbers)
}

/// The sum of rows of one length, the first one first, which may lie anywhere in memory; `None` if one has another length than
/// `like`.
fn in_order<E>(parts: &[&[u8]], like: &[E]) -> Option<Vec<E>>
where
    E: Pod + Add<Output = E> + Send + Sync,
{
    let size = size_of::<E>();
    if parts.iter().any(|part| part.len() != size_of_val(like)) {
        return None;
    }
    let mut sum = vec![E::zeroed(); like.len()];
    sum.par_chunks_mut(GRAIN).enumerate().for_each(|(at, sum)| {
        let piece = at * GRAIN * size..(at * GRAIN + sum.len()) * size;
        bytemuck::cast_slice_mut::<E, u8>(sum).copy_from_slice(&parts[0][piece.clone()]);
        for part in &parts[1..] {
            let numbers = part[piece.clone()].chunks_exact(size).map(bytemuck::pod_read_unaligned::<E>);
            sum.iter_mut().zip(numbers).for_each(|(sum, x)| *sum = *sum + x);
        }
    });
    Some(sum)
}
