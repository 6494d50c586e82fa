//! What training costs, from the settings alone: parameters, floating-point operations, memory.
//!
//! A multiply-add counts two operations. Only matmuls and convolutions are counted, as this software computes them (rows
//! that nothing reads are left out); a backward pass counts twice its forward pass, and what it computes again is not
//! counted.
//!
//! Memory is that of one process on a CPU, with what a checkpoint copies. It is counted from what the operations keep for
//! their backward pass; the few constants were fitted to the measured peak of runs.

mod segmenter;
#[cfg(test)]
mod tests;
mod transformer;

use beit2_kernels::Precision;

use crate::classify::finetune::FinetuneRecipe;
use crate::pretrain::{MimConfig, PretrainRecipe};
use crate::segment::SegmentRecipe;
use crate::tokenizer::teachers::DistillRecipe;
use crate::tokenizer::{TokenizerConfig, TokenizerRecipe};
use crate::train::ScheduleConfig;
use crate::vit::VitConfig;
use transformer::{block, dense, trunk};

pub use transformer::{FrozenVit, matmul};

/// What training a recipe costs.
///
/// Memory agrees within 25 % with the measured peak of runs on a CPU with AVX-512, in f32 and bf16: of all stages with widths
/// of 128 or 384 and batches of 4 to 256 images, and of fine-tuning at base size. A GPU keeps the same tensors and needs
/// room for its kernels besides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Values that are trained.
    pub parameters: usize,
    /// Floating-point operations of a step for each of its images, frozen models included.
    pub flops_per_image: f64,
    /// Bytes whatever the batch: weights, gradients, moments, averages, frozen models, a checkpoint's copies, the program.
    pub fixed_bytes: u64,
    /// Bytes for each image of a micro-batch: what the backward pass needs of the forward pass.
    pub bytes_per_image: u64,
    /// Bytes for each image of a whole step, whatever the micro-batches: images and inputs that wait for their turn.
    pub waiting_bytes_per_image: u64,
}

impl Cost {
    /// Bytes of a checkpoint without averages. While it is written, they are in memory.
    pub fn checkpoint_bytes(&self) -> u64 {
        SAVED_PER_PARAMETER * self.parameters as u64
    }

    /// Bytes that training needs on one device, whose part of a step is `batch` images in micro-batches of `micro_batch`.
    pub fn bytes(&self, batch: usize, micro_batch: usize) -> u64 {
        let each = |bytes: u64, images: usize| bytes.saturating_mul(images as u64);
        self.fixed_bytes
            .saturating_add(each(self.bytes_per_image, micro_batch))
            .saturating_add(each(self.waiting_bytes_per_image, batch))
    }
}

impl Cost {
    /// The largest of the equal micro-batches of a step of `batch` images on one device that take at most `memory` bytes;
    /// `None`: not even one image fits.
    pub fn largest_micro_batch(&self, batch: usize, memory: u64) -> Option<usize> {
        (1..=batch)
            .rev()
            .filter(|images| batch.is_multiple_of(*images))
            .find(|&images| self.bytes(batch, images) <= memory)
    }
}

/// Of a checkpoint: weights and two moments.
const SAVED_PER_PARAMETER: u64 = 4 * 3;

/// Bytes of the program itself, its threads and its libraries.
const PROGRAM: f64 = 30e6;

/// Bytes for each trained value: weight, gradient, two moments, and the copies of weight and moments that a checkpoint
/// writes.
const PER_PARAMETER: f64 = 4.0 * 4.0 + SAVED_PER_PARAMETER as f64;

/// [`PER_PARAMETER`], and the sum of the gradients of earlier micro-batches where a step has several.
fn per_parameter(schedule: &ScheduleConfig) -> f64 {
    PER_PARAMETER + if schedule.accumulates() { 4.0 } else { 0.0 }
}

/// The inputs of this many batches are there at once: of the running step, one that is ready and one that is prepared.
const INPUTS_AHEAD: f64 = 3.0;

/// Decoded images wait as bytes: those of [`INPUTS_AHEAD`] and the batches that a loader prefetches.
const IMAGES_AHEAD: f64 = INPUTS_AHEAD + 2.0;

/// Bytes of images of this side that wait for their turn: as bytes, and as the models' inputs.
fn waiting(side: usize, channels: usize, inputs: f64) -> f64 {
    (side * side * channels) as f64 * (IMAGES_AHEAD + 4.0 * INPUTS_AHEAD * inputs)
}

fn cost(parameters: usize, flops: f64, fixed: f64, per_image: f64, waiting: f64) -> Cost {
    Cost {
        parameters,
        flops_per_image: flops,
        fixed_bytes: (PROGRAM + fixed) as u64,
        bytes_per_image: per_image as u64,
        waiting_bytes_per_image: waiting as u64,
    }
}

/// Of training a tokenizer beside this teacher.
pub fn tokenizer(recipe: &TokenizerRecipe, teacher: &FrozenVit) -> Cost {
    let (config, precision) = (&recipe.model, recipe.precision);
    let (encoder, decoder) = (config.encoder(), config.decoder());
    let patches = encoder.patches();
    let parameters = tokenizer_parameters(config);
    let mut kept = transformer::kept(&encoder, recipe.train) + transformer::kept(&decoder, recipe.train);
    let tasks = 2 * config.width + 2 * config.decoder_width + 6 * config.code_dim + 2 * config.teacher_dim;
    kept.values += (patches * tasks) as f64;
    // Similarities to all codes are computed in pieces, and no piece outlives the search.
    let codebook = (4 * config.codebook_size * (3 * config.code_dim + 4)) as f64;
    let fixed =
        per_parameter(&recipe.schedule) * parameters as f64 + codebook + teacher.fixed_bytes(precision);
    let per_image = kept.bytes(precision) + teacher.bytes_per_image();
    let views = match teacher.side == config.image_size {
        true => waiting(config.image_size, config.in_chans, 1.0),
        false => {
            waiting(config.image_size, config.in_chans, 1.0) + waiting(teacher.side, config.in_chans, 0.0)
        }
    };
    let targets = 4.0 * INPUTS_AHEAD * (patches * config.teacher_dim) as f64;
    cost(parameters, tokenizer_flops(config, teacher), fixed, per_image, views + targets)
}

/// Of masked image modeling with targets of this tokenizer.
pub fn pretrain(recipe: &PretrainRecipe, tokenizer: &TokenizerConfig) -> Cost {
    let (config, precision) = (&recipe.model, recipe.precision);
    let (vit, masked) = (&config.vit, recipe.mask.patches);
    let (tokens, width) = (vit.patches() + 1, vit.width);
    let heads = if config.patch_aggregation { config.head_layers } else { 0 };
    let own_head = config.patch_aggregation && !config.shared_lm_head;
    let head = 2 * width + dense(width, config.vocab_size);
    let parameters = trunk(vit).parameters
        + width
        + head * if own_head { 2 } else { 1 }
        + heads * block(vit, tokens, tokens).parameters;
    let mut kept = transformer::kept(vit, recipe.train);
    if recipe.train.recomputes_blocks() {
        kept = kept + transformer::block_input(vit) * heads as f64;
    } else {
        let full = block(vit, tokens, tokens).kept;
        kept = kept - full + block(vit, tokens, masked + 1).kept;
        if heads > 0 {
            kept = kept + full * (heads - 1) as f64 + block(vit, tokens, masked).kept;
        }
    }
    // Logits, their exponentials and their gradient; the rows that they come from.
    let branches = if heads > 0 { 2 } else { 1 };
    kept.values += (branches * masked * (2 * config.vocab_size + 3 * width)) as f64;
    let encoder = tokenizer.encoder();
    let frozen = FrozenVit::of(&encoder, 0);
    let rest = 4.0 * (dense(encoder.width, encoder.width) + dense(encoder.width, tokenizer.code_dim)) as f64
        // The decoder and its task layer are loaded, too.
        + 4.0 * (tokenizer_parameters(tokenizer) - FrozenVit::of(&encoder, 0).parameters) as f64
        + 4.0 * (2 * tokenizer.codebook_size * tokenizer.code_dim) as f64;
    let fixed = per_parameter(&recipe.schedule) * parameters as f64 + frozen.fixed_bytes(precision) + rest;
    let views = match tokenizer.image_size == vit.image_size {
        true => waiting(vit.image_size, vit.in_chans, 1.0),
        false => {
            waiting(vit.image_size, vit.in_chans, 1.0)
                + waiting(tokenizer.image_size, tokenizer.in_chans, 0.0)
        }
    };
    let flops = pretrain_flops(config, tokenizer, masked);
    cost(parameters, flops, fixed, kept.bytes(precision) + frozen.bytes_per_image(), views)
}

/// Of fine-tuning a classifier of this many classes.
pub fn finetune(recipe: &FinetuneRecipe, classes: usize) -> Cost {
    let (vit, precision) = (&recipe.model.vit, recipe.precision);
    let parameters = trunk(vit).parameters + 2 * vit.width + dense(vit.width, classes);
    let averages = if recipe.ema_decay.is_some() { 8.0 } else { 0.0 };
    let fixed = (per_parameter(&recipe.schedule) + averages) * parameters as f64 + transformer::biases(vit);
    // Mixing makes a second copy of the inputs.
    let views = waiting(vit.image_size, vit.in_chans, 2.0);
    let kept = transformer::kept(vit, recipe.train).bytes(precision);
    cost(parameters, finetune_flops(vit, classes), fixed, kept, views)
}

/// Of training a segmentation model. The recipe is resolved: it knows its classes.
pub fn segment(recipe: &SegmentRecipe) -> Cost {
    let (vit, precision) = (&recipe.model.vit, recipe.precision);
    let (trunk, heads) = (trunk(vit), segmenter::heads(&recipe.model));
    let parameters = trunk.parameters + heads.parameters;
    let fixed = per_parameter(&recipe.schedule) * parameters as f64 + transformer::biases(vit);
    let flops = 3.0 * (trunk.flops + heads.flops) - transformer::embedding_flops(vit);
    let kept = transformer::kept(vit, recipe.train);
    let per_image = kept.bytes(precision) + heads.kept.bytes(Precision::F32);
    cost(parameters, flops, fixed, per_image, waiting(vit.image_size, vit.in_chans + 1, 1.0))
}

/// Of training a small teacher beside a large one. Its operations are those of the epochs in which the large teacher runs.
pub fn distill(recipe: &DistillRecipe, teacher: &FrozenVit, teacher_dim: usize) -> Cost {
    let vit = &recipe.model;
    let parameters = trunk(vit).parameters + 2 * vit.width + dense(vit.width, teacher_dim);
    let head = matmul(vit.patches(), vit.width, teacher_dim);
    let flops = 3.0 * (trunk(vit).flops + head) - transformer::embedding_flops(vit) + teacher.flops;
    let mut kept = transformer::kept(vit, recipe.train);
    kept.values += (vit.patches() * (2 * vit.width + 4 * teacher_dim)) as f64;
    let fixed = per_parameter(&recipe.schedule) * parameters as f64 + teacher.fixed_bytes(Precision::F32);
    let views = waiting(vit.image_size, vit.in_chans, 1.0) + waiting(teacher.side, vit.in_chans, 1.0);
    cost(parameters, flops, fixed, kept.bytes(Precision::F32) + teacher.bytes_per_image(), views)
}

fn tokenizer_parameters(config: &TokenizerConfig) -> usize {
    let half = |vit: &VitConfig| trunk(vit).parameters + 2 * vit.width;
    let task = |width: usize, outputs: usize| dense(width, width) + dense(width, outputs);
    half(&config.encoder())
        + half(&config.decoder())
        + task(config.width, config.code_dim)
        + task(config.decoder_width, config.teacher_dim)
}

/// Operations of one tokenizer step on one image.
pub fn tokenizer_flops(config: &TokenizerConfig, teacher: &FrozenVit) -> f64 {
    let [encoder, decoder] = [config.encoder(), config.decoder()];
    let patches = encoder.patches();
    let tasks = matmul(patches, config.width, config.width)
        + matmul(patches, config.width, config.code_dim)
        + matmul(patches, config.decoder_width, config.decoder_width)
        + matmul(patches, config.decoder_width, config.teacher_dim);
    let learned = trunk(&encoder).flops + trunk(&decoder).flops + tasks;
    let codes = matmul(patches, config.code_dim, config.codebook_size);
    // The images take no gradient.
    3.0 * learned - transformer::embedding_flops(&encoder) + codes + teacher.flops
}

/// Operations of one step of masked image modeling on one image of which `masked` patches are masked.
pub fn pretrain_flops(config: &MimConfig, tokenizer: &TokenizerConfig, masked: usize) -> f64 {
    let (vit, tokens) = (&config.vit, config.vit.patches() + 1);
    let full = block(vit, tokens, tokens).flops;
    let mut learned = transformer::embedding_flops(vit)
        + full * (vit.depth - 1) as f64
        + block(vit, tokens, masked + 1).flops
        + matmul(masked, vit.width, config.vocab_size);
    if config.patch_aggregation {
        learned += full * (config.head_layers - 1) as f64
            + block(vit, tokens, masked).flops
            + matmul(masked, vit.width, config.vocab_size);
    }
    let encoder = tokenizer.encoder();
    let tokens = encoder.patches() + 1;
    // A frozen block has the weights of queries, keys and values as one.
    let queries = matmul(tokens.saturating_sub(masked), encoder.width, encoder.width);
    let targets = transformer::embedding_flops(&encoder)
        + (encoder.depth - 1) as f64 * block(&encoder, tokens, tokens).flops
        + block(&encoder, tokens, masked).flops
        + queries
        + matmul(masked, tokenizer.width, tokenizer.width)
        + matmul(masked, tokenizer.width, tokenizer.code_dim)
        + matmul(masked, tokenizer.code_dim, tokenizer.codebook_size);
    3.0 * learned - transformer::embedding_flops(vit) + targets
}

/// Operations of one step of fine-tuning on one image.
pub fn finetune_flops(vit: &VitConfig, classes: usize) -> f64 {
    3.0 * classifier_flops(vit, classes) - transformer::embedding_flops(vit)
}

/// Operations of one forward pass of a classifier on one image.
pub fn classifier_flops(vit: &VitConfig, classes: usize) -> f64 {
    trunk(vit).flops + matmul(1, vit.width, classes)
}
