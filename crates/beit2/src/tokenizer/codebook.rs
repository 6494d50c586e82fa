//! The codebook during training: its initialisation by k-means, and the revival of unused codes.

use beit2_data::{Key, Loader};
use beit2_kernels::{AutodiffBackend, Backend, Rank, unit_rows, upload_all};
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};
use rand::RngExt;

use super::{CodeUsage, CodebookHealth, TokenizerRecipe, VqKd, draw_start, kmeans};
use crate::error::Error;
use crate::init::generator;
use crate::train::{Item, to_device};

/// Rounds of k-means, as in the reference.
const KMEANS_ROUNDS: usize = 10;

/// The codes `[K, C]` that k-means finds among the encoder's vectors, and the members of each `[K]`.
///
/// It takes as many batches as `codebook.kmeans_rows_per_code` asks for, at most `most`. They come from a loader of
/// their own, so that the run itself does not move and can be repeated exactly. All of a batch counts; the encoder sees
/// `at_once` images of it at a time.
pub(super) fn initial_codes<B: AutodiffBackend>(
    model: &VqKd<B>,
    recipe: &TokenizerRecipe,
    batches: Loader<Item>,
    (most, at_once): (u64, usize),
    device: &B::Device,
) -> Result<(TensorData, TensorData), Error> {
    let encoder = model.valid();
    let wanted = recipe.model.codebook_size * recipe.codebook.kmeans_rows_per_code.max(1);
    let (mut vectors, mut count) = (Vec::new(), 0);
    for batch in batches.take(most as usize) {
        for items in batch?.items.chunks(at_once) {
            let (images, _) = to_device::<B::InnerBackend>(items, device)?;
            let z = encoder.encode(encoder.preprocess(images));
            let [size, patches, width] = z.dims();
            count += size * patches;
            vectors.push(unit_rows(z.reshape([size * patches, width])));
        }
        if count >= wanted {
            break;
        }
    }
    let mut rng = generator(recipe.seed, "k-means");
    let first = draw_start(count, recipe.model.codebook_size, &mut rng);
    let found = kmeans(Tensor::cat(vectors, 0), &first, KMEANS_ROUNDS);
    Ok((found.means.into_data(), found.members.into_data()))
}

/// Replaces codes that no patch has used for `limit` steps by random vectors of the batch. `z [n, C]` are those of this rank,
/// of all its micro-batches; `bins` counts the uses of this step, on all ranks.
pub(super) fn revive_codes<B: AutodiffBackend>(
    mut model: VqKd<B>,
    z: &Tensor<B, 2>,
    bins: Tensor<B, 1>,
    limit: u32,
    unused_for: &mut Vec<u32>,
    key: Key,
    rank: &Rank,
) -> VqKd<B> {
    let bins: Vec<f32> = bins.into_data().iter::<f32>().collect();
    unused_for.resize(bins.len(), 0);
    for (unused, bin) in unused_for.iter_mut().zip(&bins) {
        *unused = if *bin > 0.0 { 0 } else { *unused + 1 };
    }
    let dead: Vec<u32> =
        (0..).zip(&*unused_for).filter(|(_, n)| **n >= limit).map(|(code, _)| code).collect();
    if dead.is_empty() {
        return model;
    }
    dead.iter().for_each(|&code| unused_for[code as usize] = 0);

    // All ranks draw the same vectors of the whole batch. Each gives those that it has, and zeros for the others.
    let own = z.dims()[0] as i32;
    let first = own * rank.index() as i32;
    let mut rng = key.rng();
    let (mut picks, mut has) = (Vec::new(), Vec::new());
    for _ in &dead {
        let pick = rng.random_range(0..own * rank.world() as i32) - first;
        let is_own = (0..own).contains(&pick);
        picks.push(if is_own { pick } else { 0 });
        has.push(if is_own { 1.0f32 } else { 0.0 });
    }
    let device = z.device();
    let data = vec![TensorData::new(picks, [dead.len()]), TensorData::new(has, [dead.len(), 1])];
    let mut sent = upload_all::<B>(data, &device);
    let (picks, has) = (sent.int::<1>(), sent.float::<2>());
    let vectors = rank.sum(z.clone().select(0, picks) * has);
    model.quantize = model.quantize.replace_codes(&dead, vectors);
    model
}

/// The health of a codebook whose codes were used `bins` `[K]` times.
pub(super) fn health_of<I: Backend>(bins: Tensor<I, 1>) -> CodebookHealth {
    let mut usage = CodeUsage::new(bins.dims()[0]);
    usage.add_counts(bins.into_data().iter::<f32>().map(|count| count as u64));
    usage.health()
}
