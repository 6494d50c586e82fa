//! Settings that follow others, and lines about settings that can mean little.
//!
//! A recipe's learning rate, warm-up and masks are meant for its own batch, length and grid. Where a flag changes one of
//! these and not the others, the others follow by the rules below, and a line says so; what a person gives is used as it is.
//! What follows is decided by layers: a value counts as given in the flags, in the recipe's text, or in the defaults, and
//! it is meant for the batch, length and grid of its own layer.
//!
//! - Learning rate: linear in the batch, `lr × batch_size / base_batch_size`.
//! - Warm-up: at most a tenth of the run, or the recipe's share of it where that is more.
//! - Start of the codebook: at most the recipe's share of the run.
//! - Masks: the recipe's share of the patches.

use std::collections::BTreeSet;

use beit2::pretrain::PretrainRecipe;
use beit2::segment::SegmentRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::train::Plan;
use beit2_data::Source;
use beit2_data::check::crops_to_enlarge;
use beit2_run::thousands;

use crate::flags::OutputArgs;
use crate::output;
use crate::stage::Stage;

/// A warm-up is at most this share of a run whose length was changed, unless the recipe's own is larger.
const WARM_UP: f64 = 0.1;

/// A warm-up of more than this share of the run is doubtful.
const LONG_WARM_UP: f64 = 0.5;

/// Fewer steps than this teach little.
const FEW_STEPS: u64 = 100;

/// Masked patches of the paper: 75 of 196.
const PAPER_MASK: f64 = 75.0 / 196.0;

/// What was changed, and what can mean little.
#[derive(Debug, Default)]
pub struct Fitted {
    /// What follows something else now.
    pub notes: Vec<String>,
    /// What is doubtful.
    pub warnings: Vec<String>,
}

impl Fitted {
    /// Adds those of another look.
    pub fn extend(&mut self, other: Self) {
        self.notes.extend(other.notes);
        self.warnings.extend(other.warnings);
    }

    /// Says it on stderr; notes not with --quiet.
    pub fn tell(&self, output: OutputArgs) {
        if !output.quiet {
            self.notes.iter().for_each(|note| output::note(note));
        }
        self.warnings.iter().for_each(|warning| output::warning(warning));
    }
}

/// Where the values of settings come from.
pub struct Layers<S> {
    /// The recipe without flags.
    pub recipe: S,
    /// The defaults that it rests on.
    pub defaults: S,
    /// Keys that the recipe's text gives.
    pub text: BTreeSet<String>,
    /// Keys that flags give.
    pub given: BTreeSet<String>,
    /// Whether the recipe is one of the program's.
    pub is_bundled: bool,
    /// Training images of an epoch, where they can be opened.
    pub images: Option<usize>,
}

impl<S: Stage> Layers<S> {
    /// Whether flags give one of these.
    fn given(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.given.contains(*key))
    }

    /// The layer below the flags that gives one of these, and how sentences call it.
    fn below(&self, keys: &[&str]) -> (&'static str, &S) {
        match self.in_text(keys) {
            true => ("the recipe's", &self.recipe),
            false => ("the default", &self.defaults),
        }
    }

    fn in_text(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.text.contains(*key))
    }

    /// Whether the run's length was changed after the values of `keys` were given.
    fn is_of_another_length(&self, keys: &[&str]) -> bool {
        self.given(&LENGTH) || (self.in_text(&LENGTH) && !self.in_text(keys))
    }

    /// Steps of the run and of its warm-up; `None` when they depend on images that are not there.
    fn steps(&self, settings: &S) -> Option<(f64, f64)> {
        let schedule = settings.tables().schedule;
        let epoch = self.images.map(|images| (images / schedule.batch_size.max(1)).max(1) as f64);
        let total = match schedule.steps {
            Some(steps) => steps as f64,
            None => schedule.epochs as f64 * epoch?,
        };
        let warmup = match schedule.warmup_steps {
            Some(steps) => steps as f64,
            None => schedule.warmup_epochs * epoch?,
        };
        Some((total, warmup))
    }

    /// The warm-up's share of the run.
    fn warmup_share(&self, settings: &S) -> Option<f64> {
        let schedule = settings.tables().schedule;
        if (schedule.steps, schedule.warmup_steps) == (None, None) {
            return Some(schedule.warmup_epochs / schedule.epochs.max(1) as f64);
        }
        self.steps(settings).map(|(total, warmup)| warmup / total.max(1.0))
    }
}

const LENGTH: [&str; 2] = ["schedule.epochs", "schedule.steps"];
const WARM_UP_KEYS: [&str; 2] = ["schedule.warmup_epochs", "schedule.warmup_steps"];
const LEARNING_RATE: [&str; 2] = ["optimizer.lr", "optimizer.base_batch_size"];

/// Lets everything follow that was not given.
pub fn fit<S: Stage>(settings: &mut S, layers: &Layers<S>) -> Fitted {
    let mut said = Fitted::default();
    learning_rate(settings, layers, &mut said);
    warm_up(settings, layers, &mut said);
    settings.fit(layers, &mut said);
    said.warnings.extend(settings.doubts());
    said
}

fn learning_rate<S: Stage>(settings: &mut S, layers: &Layers<S>, said: &mut Fitted) {
    let (whose, from) = layers.below(&LEARNING_RATE);
    let meant = from.tables();
    let (lr, own_batch) = (meant.optimizer.lr, meant.schedule.batch_size);
    let base = meant.optimizer.base_batch_size.unwrap_or(own_batch);
    let own_peak = meant.optimizer.peak_lr(own_batch);
    // In the text, `none` says that the rate does not depend on the batch.
    let is_absolute = meant.optimizer.base_batch_size.is_none()
        && layers.in_text(&["optimizer.base_batch_size"])
        && !layers.given(&["optimizer.base_batch_size"]);
    let is_given = layers.given(&LEARNING_RATE);
    let (_, of_end) = layers.below(&["optimizer.min_lr", LEARNING_RATE[0], LEARNING_RATE[1]]);
    let (end, end_batch) = (of_end.tables().optimizer.min_lr, of_end.tables().schedule.batch_size);

    let (schedule, optimizer) = settings.tables_mut();
    let batch = schedule.batch_size;
    let by_rule = lr * batch as f64 / base.max(1) as f64;
    if !is_given && !is_absolute && batch != own_batch {
        optimizer.base_batch_size = Some(base);
    }
    let peak = optimizer.peak_lr(batch);
    if !layers.given(&["optimizer.min_lr"]) {
        if !is_given && !is_absolute && batch != end_batch {
            optimizer.min_lr = end * batch as f64 / end_batch.max(1) as f64;
        }
        if optimizer.min_lr > peak {
            optimizer.min_lr = (end * peak / own_peak).min(peak);
        }
    }
    let falls = match optimizer.min_lr == end {
        true => String::new(),
        false => format!(", falling to {}", short(optimizer.min_lr)),
    };
    let rule = format!("{} × {batch} / {base}", short(lr));
    if is_given && !near(peak, by_rule) {
        said.notes.push(format!(
            "learning rate {}{falls}, as given; by {whose} rule it would be {} ({rule})",
            short(peak),
            short(by_rule)
        ));
    } else if is_absolute && batch != own_batch && !is_given {
        said.notes.push(format!(
            "learning rate {}{falls}: the recipe does not let it follow the batch (base_batch_size = \"none\"); for {batch} \
             images instead of {own_batch} the linear rule gives {}: --lr RATE sets it",
            short(peak),
            short(by_rule)
        ));
    } else if !near(peak, own_peak) || !falls.is_empty() {
        said.notes.push(format!(
            "learning rate {}{falls}: {rule}, because {whose} rate is meant for batches of {base}; --lr RATE sets another",
            short(peak)
        ));
    }
}

fn warm_up<S: Stage>(settings: &mut S, layers: &Layers<S>, said: &mut Fitted) {
    let Some(share) = layers.warmup_share(settings) else { return };
    if !layers.given(&WARM_UP_KEYS) && layers.is_of_another_length(&WARM_UP_KEYS) {
        let (whose, from) = layers.below(&WARM_UP_KEYS);
        let own = layers.warmup_share(from).unwrap_or(0.0);
        let most = own.max(WARM_UP);
        // By less than a step it is the same.
        if share <= most * (1.0 + 1e-9) {
            return;
        }
        let (schedule, _) = settings.tables_mut();
        let before = match schedule.warmup_steps {
            Some(steps) => format!("{} steps", thousands(steps)),
            None => format!("{} epochs", short(schedule.warmup_epochs)),
        };
        let (now, key) = match schedule.steps {
            Some(steps) => {
                let warmup = (most * steps as f64).round() as u64;
                schedule.warmup_steps = Some(warmup);
                (format!("{} steps", thousands(warmup)), "warmup_steps")
            }
            None => {
                schedule.warmup_steps = None;
                schedule.warmup_epochs = most * schedule.epochs as f64;
                (format!("{} epochs", short(schedule.warmup_epochs)), "warmup_epochs")
            }
        };
        let why = match own > WARM_UP {
            true => format!("{} of the run, {whose} share", percent(most)),
            false => "a tenth of the run".to_owned(),
        };
        said.notes.push(format!(
            "warm-up {now} instead of {before}: at most {why}; --set schedule.{key}=N sets another"
        ));
    } else if share > LONG_WARM_UP && share <= 1.0 && (layers.given(&WARM_UP_KEYS) || !layers.is_bundled) {
        said.warnings.push(format!(
            "the warm-up takes {} of the run, so that the full learning rate comes late; a tenth is usual: --set \
             schedule.warmup_{}",
            percent(share),
            match settings.tables().schedule {
                schedule if schedule.steps.is_some() =>
                    format!("steps={}", (WARM_UP * schedule.steps.unwrap_or_default() as f64).ceil()),
                schedule => format!("epochs={}", short(WARM_UP * schedule.epochs as f64)),
            }
        ));
    }
}

/// The step at which k-means starts the codebook, in a run of another length.
pub fn kmeans_start(settings: &mut TokenizerRecipe, layers: &Layers<TokenizerRecipe>, said: &mut Fitted) {
    let keys = ["codebook.kmeans_warmup_steps"];
    let (_, from) = layers.below(&keys);
    let before = settings.codebook.kmeans_warmup_steps;
    if layers.given(&keys) || before == 0 || !layers.is_of_another_length(&keys) {
        return;
    }
    let (Some((total, _)), Some((own_total, _))) = (layers.steps(settings), layers.steps(from)) else {
        return;
    };
    let now = ((before as f64 / own_total.max(1.0)).min(1.0) * total).round() as u64;
    let now = now.max(1);
    if now < before {
        settings.codebook.kmeans_warmup_steps = now;
        said.notes.push(format!(
            "the codebook starts after {} steps instead of {}, the recipe's share of the run; --set \
             codebook.kmeans_warmup_steps=N sets another",
            thousands(now),
            thousands(before)
        ));
    }
}

/// Masks on another grid.
pub fn masks(settings: &mut PretrainRecipe, layers: &Layers<PretrainRecipe>, said: &mut Fitted) {
    let patches = settings.model.vit.patches();
    let share = |from: &PretrainRecipe| patches as f64 / from.model.vit.patches().max(1) as f64;
    let scaled = |n: usize, share: f64| ((n as f64 * share).round() as usize).max(1);
    let before = (settings.mask.patches, settings.mask.min_block);
    let (whose, from) = layers.below(&["mask.patches"]);
    if !layers.given(&["mask.patches"]) && from.mask.patches > 0 {
        settings.mask.patches = scaled(from.mask.patches, share(from));
    }
    let (_, of_block) = layers.below(&["mask.min_block"]);
    if !layers.given(&["mask.min_block"]) && of_block.model.vit.patches() != patches {
        settings.mask.min_block =
            scaled(of_block.mask.min_block, share(of_block)).min(settings.mask.patches.max(1));
    }
    let (_, of_largest) = layers.below(&["mask.max_block"]);
    let follows = !layers.given(&["mask.max_block"]) && of_largest.model.vit.patches() != patches;
    if let (Some(most), true) = (of_largest.mask.max_block, follows) {
        settings.mask.max_block = Some(scaled(most, share(of_largest)).max(settings.mask.min_block));
    }
    if (settings.mask.patches, settings.mask.min_block) != before {
        said.notes.push(format!(
            "masks of {} of {patches} patches, in blocks of at least {}: {whose} share ({} of {}, at least {}); --set \
             mask.patches=N sets another",
            settings.mask.patches,
            settings.mask.min_block,
            from.mask.patches,
            from.model.vit.patches(),
            of_block.mask.min_block
        ));
    }
}

/// A mask that is far from the paper's share.
pub fn odd_mask(settings: &PretrainRecipe) -> Option<String> {
    let (masked, patches) = (settings.mask.patches, settings.model.vit.patches());
    let share = masked as f64 / patches.max(1) as f64;
    (masked <= patches && !(0.15..=0.75).contains(&share)).then(|| {
        format!(
            "masks hide {} of the patches ({masked} of {patches}); the paper hides {}, which is {} here: --set \
             mask.patches={}",
            percent(share),
            percent(PAPER_MASK),
            (PAPER_MASK * patches as f64).round(),
            (PAPER_MASK * patches as f64).round()
        )
    })
}

/// The distance between windows of another size.
pub fn stride(settings: &mut SegmentRecipe, layers: &Layers<SegmentRecipe>, said: &mut Fitted) {
    let window = settings.model.vit.image_size;
    let (whose, from) = layers.below(&["infer.stride"]);
    let own_window = from.model.vit.image_size;
    if let (Some(own), false) = (from.infer.stride, layers.given(&["infer.stride"]) || window == own_window) {
        let now = (own * window / own_window.max(1)).max(1);
        settings.infer.stride = Some(now);
        said.notes.push(format!(
            "windows of {window} px lie {now} px apart: {whose} share ({own} for {own_window}); --set infer.stride=N sets \
             another"
        ));
    }
}

/// How images are cropped to the model's input.
#[derive(Debug, Clone, Copy)]
pub struct Crop {
    /// Side of the input, pixels.
    pub input: usize,
    /// Side of a patch, pixels.
    pub patch: usize,
    /// Smallest crop, as a share of the image's area.
    pub min_scale: f64,
    /// The setting that says so.
    pub key: &'static str,
}

/// What a look at the sizes of some images says about the crops.
pub fn look<S: Stage>(settings: &S, train: &dyn Source) -> Fitted {
    let data = settings.tables().data.of_channels(settings.channels());
    let warning = settings.crop().and_then(|crop| {
        let sizes = beit2_data::check::sizes(train, &data.decode_options(), data.workers);
        small_crops(crop, &sizes)
    });
    Fitted { notes: Vec::new(), warnings: warning.into_iter().collect() }
}

fn small_crops(crop: Crop, sizes: &[(u32, u32)]) -> Option<String> {
    let enlarged = |input: usize, min_scale: f64| crops_to_enlarge(sizes, input as u32, min_scale);
    let share = enlarged(crop.input, crop.min_scale);
    if sizes.is_empty() || share <= 0.5 {
        return None;
    }
    let fitting = (1..crop.input / crop.patch.max(1)).rev().map(|grid| grid * crop.patch);
    let input = fitting.into_iter().find(|&input| enlarged(input, crop.min_scale) <= 0.5);
    let scale = (1..=20).map(|step| f64::from(step) * 0.05).filter(|&scale| scale > crop.min_scale);
    let scale = scale.into_iter().find(|&scale| enlarged(crop.input, scale) <= 0.5);
    let mut ways: Vec<String> = input.map(|px| format!("--image-size {px}")).into_iter().collect();
    ways.extend(scale.map(|scale| format!("--set {}={}", crop.key, short(scale))));
    ways.push("larger images".to_owned());
    let mut areas: Vec<(u32, u32)> = sizes.to_vec();
    areas.sort_by_key(|&(width, height)| u64::from(width) * u64::from(height));
    let (width, height) = areas[areas.len() / 2];
    Some(format!(
        "about {} of the crops have fewer pixels than the model's input of {side} × {side} and are enlarged: a usual image \
         has {width} × {height} pixels, and crops take from {} of it; what would fit: {}",
        percent(share),
        percent(crop.min_scale),
        ways.join(" or "),
        side = crop.input
    ))
}

/// What the number of steps says.
pub fn length<S: Stage>(settings: &S, plan: &Plan) -> Fitted {
    let schedule = settings.tables().schedule;
    let total = plan.total_steps;
    let note = (total < FEW_STEPS).then(|| {
        let (batch, images) = (plan.batch_size, plan.images);
        match schedule.steps {
            Some(_) => format!("the run has only {total} steps, which teach little; --steps N gives more"),
            None => format!(
                "the run has only {total} steps, {} for each of {} epochs ({images} images in batches of {batch}), which \
                 teach little; --epochs N gives more, and so does a smaller --batch-size",
                plan.steps_per_epoch, schedule.epochs
            ),
        }
    });
    Fitted { notes: note.into_iter().collect(), warnings: Vec::new() }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// Three digits of a number, as one would type it.
fn short(value: f64) -> String {
    let rounded: f64 = format!("{value:.2e}").parse().unwrap_or(value);
    match rounded != 0.0 && !(1e-2..1e4).contains(&rounded.abs()) {
        true => format!("{rounded:e}"),
        false => rounded.to_string(),
    }
}

fn percent(share: f64) -> String {
    match share {
        0.1.. => format!("{:.0} %", 100.0 * share),
        _ => format!("{} %", short(100.0 * share)),
    }
}

#[cfg(test)]
mod tests;
