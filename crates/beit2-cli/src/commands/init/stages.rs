//! The settings of tokenizer and pretraining, with the reason for each that was chosen.

use beit2::cost::{self, Cost};
use beit2::pretrain::{MaskConfig, MimConfig, PretrainAugment, PretrainRecipe, TokenizerSource};
use beit2::tokenizer::teachers::TeacherConfig;
use beit2::tokenizer::{CodebookOptions, TokenizerAugment, TokenizerConfig, TokenizerRecipe};
use beit2::train::{DataConfig, LoggingConfig, OptimizerConfig, ScheduleConfig};
use beit2::vit::VitConfig;
use beit2_data::check::crops_to_enlarge;

use super::length::{Budget, Length};
use super::plan::{Facts, Planned, Settings};
use super::sizes::{Pixels, Rate, Size, codes, intermediate_layer, mask};

pub use super::tasks::{finetune, segment};

/// Smallest learning rate of a schedule, unless the peak is not far above it.
const MIN_LR: f64 = 1e-5;
/// From this many codes on the paper's codebook needs no help: so many come with so much data only.
const MANY_CODES: usize = 4096;

/// The tokenizer's stage.
pub fn tokenizer(facts: &Facts<'_>, size: Size, pixels: Pixels) -> anyhow::Result<Planned> {
    let (data, teacher) = (facts.data, facts.teacher);
    let own = size.tokenizer();
    let (width, depth, heads) = own.shape();
    let mut recipe = TokenizerRecipe {
        seed: facts.wish.seed,
        precision: facts.wish.precision,
        model: TokenizerConfig {
            image_size: pixels.image,
            patch_size: pixels.patch,
            width,
            depth,
            heads,
            decoder_width: width,
            decoder_depth: own.decoder_depth(),
            decoder_heads: heads,
            codebook_size: 1024,
            code_dim: 16,
            teacher_dim: teacher.dim,
            kmeans_init: true,
            ..TokenizerConfig::default()
        },
        teacher: TeacherConfig {
            kind: teacher.kind,
            weights: teacher.weights.clone(),
            ..TeacherConfig::default()
        },
        data: data_table(facts),
        augment: TokenizerAugment {
            min_crop_scale: crop_scale(facts, pixels),
            ..TokenizerAugment::default()
        },
        ..TokenizerRecipe::default()
    };
    let cost = cost::tokenizer(&recipe, &(teacher.cost)(pixels.grid()));
    let budget = Budget {
        batch: facts.batch_in_memory(size, "tokenizer", size.batches()[0], &cost)?,
        most_epochs: 300.0,
        ..budget(facts, 0, facts.machine.speed.tokenizer, &cost)
    };
    let length = budget.length();
    let patches = (pixels.grid() * pixels.grid()) as f64;
    let seen = length.steps as f64 * length.batch as f64 * patches;
    let codebook = codes(seen, data.images as f64 * patches);
    recipe.model.codebook_size = codebook;
    recipe.model.code_dim = if codebook <= 1024 { 16 } else { 32 };
    recipe.optimizer =
        OptimizerConfig { weight_decay: 1e-4, beta2: 0.99, ..optimizer(own.tokenizer_rate(), length.batch) };
    schedule(&mut recipe.schedule, &length, 0.1);
    let few = codebook < MANY_CODES;
    if few {
        recipe.codebook = CodebookOptions {
            kmeans_warmup_steps: length.part(0.2),
            kmeans_rows_per_code: 16,
            revive_after_steps: Some(40),
        };
    }
    recipe.logging = logging(&length);
    let mut comments = shared_comments(facts, pixels, &length, own.tokenizer_rate());
    comments.extend([
        ("model.image_size", format!("{0} × {0} patches of {1} px", pixels.grid(), pixels.patch)),
        ("model.codebook_size", format!("each code is seen {:.0} times on average", seen / codebook as f64)),
        ("model.code_dim", "narrow codes stay in use; the paper has 32 with 8192 codes".to_owned()),
        ("model.teacher_dim", "the width of the teacher's features, from its file".to_owned()),
        (
            "model.decoder_depth",
            format!("the paper has 1 to 3 blocks; {} for a {} model", own.decoder_depth(), own.name()),
        ),
        ("teacher.weights", "what the tokens are learned from".to_owned()),
    ]);
    if few {
        comments.extend([
            (
                "codebook.kmeans_warmup_steps",
                "k-means on an untrained encoder ends with a dead codebook".to_owned(),
            ),
            ("codebook.revive_after_steps", "a small codebook keeps all of its codes in use".to_owned()),
        ]);
    }
    Ok(planned(
        "tokenizer",
        Settings::Tokenizer(Box::new(recipe)),
        comments,
        &length,
        &budget,
        length.batch,
        &cost,
    ))
}

/// Pretraining with the tokenizer `tokens`.
pub fn pretrain(
    facts: &Facts<'_>,
    size: Size,
    pixels: Pixels,
    tokens: &TokenizerConfig,
) -> anyhow::Result<Planned> {
    let (width, depth, heads) = size.shape();
    let (masked, min_block) = mask(pixels.grid());
    let mut recipe = PretrainRecipe {
        seed: facts.wish.seed,
        precision: facts.wish.precision,
        model: MimConfig {
            vit: VitConfig {
                image_size: pixels.image,
                patch_size: pixels.patch,
                width,
                depth,
                heads,
                layer_scale_init: layer_scale(size),
                drop_path: 0.0,
                ..VitConfig::default()
            },
            vocab_size: tokens.codebook_size,
            intermediate_layer: intermediate_layer(depth),
            ..MimConfig::default()
        },
        tokenizer: TokenizerSource {
            weights: format!("{}/tokenizer", facts.runs),
            ..TokenizerSource::default()
        },
        mask: MaskConfig { patches: masked, min_block, ..MaskConfig::default() },
        data: data_table(facts),
        augment: PretrainAugment { min_crop_scale: crop_scale(facts, pixels), ..PretrainAugment::default() },
        ..PretrainRecipe::default()
    };
    let cost = cost::pretrain(&recipe, tokens);
    let budget = Budget {
        batch: facts.batch_in_memory(size, "pretrain", size.batches()[1], &cost)?,
        most_epochs: 1600.0,
        ..budget(facts, 1, facts.machine.speed.pretrain, &cost)
    };
    let length = budget.length();
    let long = length.epochs >= 500.0 && length.steps >= 100_000;
    recipe.model.vit.drop_path = if long && size >= Size::Base { 0.1 } else { 0.0 };
    recipe.optimizer = OptimizerConfig {
        weight_decay: 0.05,
        clip_grad: Some(3.0),
        beta2: if long { 0.999 } else { 0.98 },
        ..optimizer(size.pretrain_rate(), length.batch)
    };
    schedule(&mut recipe.schedule, &length, 0.075);
    recipe.logging = logging(&length);
    let mut comments = shared_comments(facts, pixels, &length, size.pretrain_rate());
    comments.extend([
        (
            "model.vit.image_size",
            format!("{0} × {0} patches of {1} px, as the tokenizer's", pixels.grid(), pixels.patch),
        ),
        ("model.vit.width", format!("a {} model", size.name())),
        ("model.vocab_size", "the tokenizer's number of codes".to_owned()),
        ("model.intermediate_layer", "the paper's 9 of 12 blocks, at this depth".to_owned()),
        ("mask.patches", format!("of {}, the paper's share of 75 of 196", pixels.grid() * pixels.grid())),
        (
            "mask.min_block",
            format!("a square of 4/14 of the side of {} patches, as in the paper", pixels.grid()),
        ),
        ("tokenizer.weights", "the run of the stage before".to_owned()),
        ("optimizer.beta2", "0.98 for short schedules, 0.999 for the paper's 1600 epochs".to_owned()),
    ]);
    Ok(planned(
        "pretrain",
        Settings::Pretrain(Box::new(recipe)),
        comments,
        &length,
        &budget,
        length.batch,
        &cost,
    ))
}

/// Initial layer scale: the paper's for 12 and for 24 blocks.
pub(super) fn layer_scale(size: Size) -> f64 {
    if size == Size::Large { 1e-5 } else { 0.1 }
}

/// `[data]` of stages that see images only.
pub(super) fn data_table(facts: &Facts<'_>) -> DataConfig {
    let data = facts.data;
    DataConfig {
        train: data.train.clone(),
        val: data.val.clone(),
        workers: facts.machine.cores.clamp(2, 16),
        range: data.range,
        ..DataConfig::default()
    }
}

/// The smallest crop as a share of the image, in tenths: so large that less than a third of the crops have fewer pixels
/// than the input and are enlarged.
pub(super) fn crop_scale(facts: &Facts<'_>, pixels: Pixels) -> f64 {
    let sizes = [(facts.data.long, facts.data.short); 64];
    let scales = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
    let fits = |scale: &f64| crops_to_enlarge(&sizes, pixels.image as u32, *scale) <= 0.3;
    scales.into_iter().find(fits).unwrap_or(0.8)
}

/// What stage `at` can spend, with the bounds that most stages share.
pub(super) fn budget(facts: &Facts<'_>, at: usize, flops: f64, cost: &Cost) -> Budget {
    Budget {
        seconds: facts.stage_seconds(at),
        images_per_second: flops / cost.flops_per_image,
        images: facts.data.images,
        val_images: facts.data.val_images,
        batch: 16,
        least_steps: 100,
        good_steps: 500,
        most_epochs: 100.0,
        evaluations: 20,
    }
}

pub(super) fn optimizer(rate: Rate, batch: usize) -> OptimizerConfig {
    let peak = rate.lr * batch as f64 / rate.base as f64;
    OptimizerConfig {
        lr: rate.lr,
        base_batch_size: Some(rate.base),
        min_lr: if peak > 2.0 * MIN_LR { MIN_LR } else { 0.0 },
        ..OptimizerConfig::default()
    }
}

pub(super) fn schedule(schedule: &mut ScheduleConfig, length: &Length, warmup: f64) {
    (schedule.steps, schedule.warmup_steps) = (Some(length.steps), Some(length.part(warmup)));
    schedule.batch_size = length.batch;
}

pub(super) fn logging(length: &Length) -> LoggingConfig {
    LoggingConfig {
        checkpoint_every: Some(length.checkpoint_every),
        eval_every_epochs: length.eval_every_epochs,
        ..LoggingConfig::default()
    }
}

/// Comments on what all stages have.
pub(super) fn shared_comments(
    facts: &Facts<'_>,
    pixels: Pixels,
    length: &Length,
    rate: Rate,
) -> Vec<(&'static str, String)> {
    let Facts { data, .. } = facts;
    let mut comments = vec![
        ("schedule.steps", length.why()),
        ("schedule.warmup_steps", "while the learning rate rises from 0".to_owned()),
        ("schedule.batch_size", format!("{} steps an epoch", (data.images / length.batch).max(1))),
        (
            "optimizer.lr",
            format!("for {} images; at {} it is {:.1e}", rate.base, length.batch, peak(rate, length.batch)),
        ),
        (
            "optimizer.base_batch_size",
            "the batch that lr is meant for; the rate follows the batch".to_owned(),
        ),
        (
            "augment.min_crop_scale",
            format!(
                "less than a third of the crops are enlarged to {0} × {0} px; the images have {1} × {2}",
                pixels.image, data.long, data.short
            ),
        ),
        ("data.train", format!("{} images", data.images)),
        ("data.workers", "threads that decode; the result does not depend on it".to_owned()),
        ("logging.checkpoint_every", "steps; an interrupted run continues from the last one".to_owned()),
    ];
    if data.val.is_some() {
        comments.push(("data.val", format!("{} images that are not trained on", data.val_images)));
    }
    if data.range != beit2_data::PixelRange::Auto {
        comments.push((
            "data.range",
            "of more than 8 bits: each image's own percentiles; [low, high] if values mean the same everywhere".to_owned(),
        ));
    }
    comments
}

fn peak(rate: Rate, batch: usize) -> f64 {
    rate.lr * batch as f64 / rate.base as f64
}

pub(super) fn planned(
    name: &'static str,
    settings: Settings,
    comments: Vec<(&'static str, String)>,
    length: &Length,
    budget: &Budget,
    micro_batch: usize,
    cost: &Cost,
) -> Planned {
    Planned {
        name,
        settings,
        comments,
        steps: length.steps,
        batch: length.batch,
        epochs: length.epochs,
        images_per_second: budget.images_per_second,
        seconds: length.seconds,
        bytes: cost.bytes(length.batch, micro_batch),
        cost: *cost,
    }
}
