//! The settings of fine-tuning and segmentation.

use beit2::classify::finetune::{FinetuneRecipe, GroupsConfig, InitConfig};
use beit2::classify::{ClassifierConfig, EvalTable};
use beit2::cost::{self, Cost};
use beit2::segment::{
    InferConfig, MasksConfig, SegmentEval, SegmentGroups, SegmentInit, SegmentRecipe, SegmenterConfig,
};
use beit2::train::{DataConfig, OptimizerConfig};
use beit2::vit::{RelPosKind, VitConfig};
use beit2_data::segment::SegmentTrainConfig;
use beit2_data::{EraseConfig, FinetuneConfig, MixConfig, TrainCrop};

use super::length::Budget;
use super::plan::{Facts, MEMORY_SHARE, Planned, Settings};
use super::sizes::{Pixels, Size};
use super::stages::{
    budget, crop_scale, data_table, layer_scale, logging, optimizer, planned, schedule, shared_comments,
};
use crate::errors::usage;

/// Epochs from which strong augmentation and mixing pay off.
const LONG: f64 = 30.0;

/// Fine-tuning of the pretrained model.
pub fn finetune(facts: &Facts<'_>, size: Size, pixels: Pixels) -> anyhow::Result<Planned> {
    let (width, depth, heads) = size.shape();
    let (rate, layer_decay) = size.finetune_rate();
    let vit = VitConfig {
        image_size: pixels.image,
        patch_size: pixels.patch,
        width,
        depth,
        heads,
        layer_scale_init: layer_scale(size),
        rel_pos_bias: RelPosKind::PerBlock,
        drop_path: match size {
            Size::Mini => 0.0,
            Size::Large => 0.2,
            _ => 0.1,
        },
        ..VitConfig::default()
    };
    let mut recipe = FinetuneRecipe {
        seed: facts.wish.seed,
        precision: facts.wish.precision,
        init: InitConfig { weights: format!("{}/pretrain", facts.runs), ..InitConfig::default() },
        model: ClassifierConfig { vit, ..ClassifierConfig::default() },
        data: data_table(facts),
        groups: GroupsConfig { layer_decay, ..GroupsConfig::default() },
        eval: EvalTable::default(),
        ..FinetuneRecipe::default()
    };
    let cost = cost::finetune(&recipe, facts.data.classes);
    let wanted = Budget {
        batch: size.batches()[2],
        most_epochs: 100.0,
        good_steps: 300,
        evaluations: 10,
        ..budget(facts, 2, facts.machine.speed.task, &cost)
    };
    let length = wanted.length();
    let strong = length.epochs >= LONG;
    let mixes = strong && size > Size::Mini;
    recipe.augment = FinetuneConfig {
        crop: TrainCrop::Resized,
        min_crop_scale: crop_scale(facts, pixels),
        use_rand_augment: strong,
        color_jitter: if strong { 0.4 } else { 0.2 },
        erase: EraseConfig { prob: if mixes { 0.25 } else { 0.0 }, ..EraseConfig::default() },
        ..FinetuneConfig::default()
    };
    if !mixes {
        recipe.mix = MixConfig { mixup: 0.0, cutmix: 0.0, ..MixConfig::default() };
    }
    recipe.schedule.grad_accum_steps = micro_batches(facts, size, "finetune", length.batch, 2, &cost)?;
    recipe.optimizer = OptimizerConfig {
        min_lr: 1e-6,
        weight_decay: 0.05,
        clip_grad: (size == Size::Mini).then_some(3.0),
        ..optimizer(rate, length.batch)
    };
    schedule(&mut recipe.schedule, &length, 0.1);
    recipe.logging = logging(&length);
    // An evaluation is cheap beside training, and the best checkpoint is the one to use.
    recipe.logging.eval_every_epochs =
        facts.data.val.as_ref().map(|_| (length.epochs / 10.0).ceil().max(1.0) as u64);
    let mut comments = shared_comments(facts, pixels, &length, rate);
    comments.extend([
        ("init.weights", "the pretrained model; its sizes are taken too".to_owned()),
        ("groups.layer_decay", "each block learns this much slower than the one above".to_owned()),
        (
            "augment.use_rand_augment",
            match strong {
                true => format!("{:.0} epochs are long enough for strong augmentation", length.epochs),
                false => format!("strong augmentation pays off from {LONG} epochs on"),
            },
        ),
        (
            "mix.mixup",
            match mixes {
                true => "as in the paper".to_owned(),
                false => format!("mixing pays off in long training of larger models, from {LONG} epochs on"),
            },
        ),
        ("logging.eval_every_epochs", "about ten evaluations; the best checkpoint is kept".to_owned()),
        (
            "schedule.grad_accum_steps",
            "parts that a step's images are divided into, to save memory".to_owned(),
        ),
    ]);
    let micro_batch = length.batch / recipe.schedule.grad_accum_steps;
    Ok(planned(
        "finetune",
        Settings::Finetune(Box::new(recipe)),
        comments,
        &length,
        &wanted,
        micro_batch,
        &cost,
    ))
}

/// Parts of a batch, so that the memory holds one; each has at least `least` images and all have the same number.
fn micro_batches(
    facts: &Facts<'_>,
    size: Size,
    stage: &str,
    batch: usize,
    least: usize,
    cost: &Cost,
) -> anyhow::Result<usize> {
    let Some(memory) = facts.machine.memory else { return Ok(1) };
    let room = memory as f64 * MEMORY_SHARE;
    let fits = |parts: &usize| {
        let images = batch / parts;
        batch.is_multiple_of(*parts)
            && images >= least
            && images.is_multiple_of(2)
            && cost.bytes(batch, images) as f64 <= room
    };
    match (1..=batch).find(fits) {
        Some(parts) => Ok(parts),
        None => usage(format!(
            "a {} model needs about {} for stage {stage}, more than {:.0} % of the memory of {}; choose a smaller --size",
            size.name(),
            beit2_run::environment::format_bytes(cost.bytes(batch, least)),
            100.0 * MEMORY_SHARE,
            beit2_run::environment::format_bytes(memory)
        )),
    }
}

/// Segmentation with the pretrained model as its backbone.
pub fn segment(facts: &Facts<'_>, size: Size, pixels: Pixels) -> anyhow::Result<Planned> {
    let Some(masks) = &facts.data.masks else {
        return usage(
            "--goal segment needs images with masks: a folder with images/ and masks/, or a table of both",
        );
    };
    let (width, depth, heads) = size.shape();
    let (rate, layer_decay) = size.segment_rate();
    let crop = match size {
        Size::Mini | Size::Tiny => 2 * pixels.image.min(64),
        Size::Small => 224,
        Size::Base | Size::Large => 512,
    };
    // A multiple of the patch, and of the stride of the coarsest map.
    let crop = crop.max(64).div_ceil(32) * 32;
    let (short, long) = (f64::from(facts.data.short), f64::from(facts.data.long));
    // Images are brought to a size at which a crop shows most of them.
    let factor = (crop as f64 * 1.125 / short).min(1.0);
    let side = |pixels: f64| ((pixels * factor).round() as u32).max(crop as u32 / 2);
    let base = [side(long), side(short)];
    let (channels, aux_channels) = match size {
        Size::Mini => (64, 32),
        Size::Tiny | Size::Small => (width, width / 2),
        Size::Base | Size::Large => (width, 256),
    };
    let mut recipe = SegmentRecipe {
        seed: facts.wish.seed,
        precision: facts.wish.precision,
        init: SegmentInit { weights: format!("{}/pretrain", facts.runs), ..SegmentInit::default() },
        model: SegmenterConfig {
            vit: VitConfig {
                image_size: crop,
                patch_size: pixels.patch,
                width,
                depth,
                heads,
                layer_scale_init: layer_scale(size),
                rel_pos_bias: RelPosKind::PerBlock,
                drop_path: if size >= Size::Base { 0.15 } else { 0.05 },
                ..VitConfig::default()
            },
            out_indices: SegmenterConfig::taps(depth),
            channels,
            aux_channels,
            ..SegmenterConfig::default()
        },
        data: DataConfig { train: masks.train.clone(), val: masks.val.clone(), ..data_table(facts) },
        masks: MasksConfig {
            reduce_zero_label: masks.reduce_zero_label,
            map: masks.map.clone(),
            ..MasksConfig::default()
        },
        augment: SegmentTrainConfig {
            base,
            min_ratio: 0.75,
            max_ratio: 1.5,
            ..SegmentTrainConfig::default()
        },
        groups: SegmentGroups { layer_decay },
        infer: InferConfig {
            resize: factor < 1.0,
            long_side: base[0],
            short_side: base[1],
            windows_per_batch: 4,
            ..InferConfig::default()
        },
        ..SegmentRecipe::default()
    };
    let mut counted = recipe.clone();
    counted.model.classes = Some(masks.classes);
    let cost = cost::segment(&counted);
    let wanted = Budget {
        batch: size.batches()[3],
        most_epochs: 300.0,
        good_steps: 200,
        evaluations: 1,
        ..budget(facts, 2, facts.machine.speed.task, &cost)
    };
    let length = wanted.length();
    recipe.schedule.grad_accum_steps = micro_batches(facts, size, "segment", length.batch, 2, &cost)?;
    recipe.optimizer = OptimizerConfig { min_lr: 0.0, clip_grad: Some(3.0), ..optimizer(rate, length.batch) };
    schedule(&mut recipe.schedule, &length, 0.1);
    recipe.eval = SegmentEval { every: None };
    recipe.logging = logging(&length);
    recipe.logging.eval_every_epochs = None;
    let mut comments = shared_comments(facts, pixels, &length, rate);
    comments.retain(|(key, _)| *key != "augment.min_crop_scale");
    comments.extend([
        ("init.weights", "the pretrained model becomes the backbone; its sizes are taken too".to_owned()),
        ("model.vit.image_size", "the side of a crop".to_owned()),
        ("model.out_indices", "blocks whose tokens become the maps of the pyramid".to_owned()),
        ("masks.reduce_zero_label", "whether id 0 means no label, as the masks were read".to_owned()),
        ("augment.base", format!("a crop of {crop} px then shows most of an image")),
        ("infer.resize", "images are brought to the size that was trained on".to_owned()),
        ("groups.layer_decay", "each block learns this much slower than the one above".to_owned()),
        (
            "schedule.grad_accum_steps",
            "parts that a step's images are divided into, to save memory".to_owned(),
        ),
    ]);
    let micro_batch = length.batch / recipe.schedule.grad_accum_steps;
    Ok(planned(
        "segment",
        Settings::Segment(Box::new(recipe)),
        comments,
        &length,
        &wanted,
        micro_batch,
        &cost,
    ))
}
