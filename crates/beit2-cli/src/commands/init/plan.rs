//! From facts about data and machine to a plan: a pure function, so that every rule can be tested.

use beit2::classify::finetune::FinetuneRecipe;
use beit2::cost::{Cost, FrozenVit};
use beit2::pretrain::PretrainRecipe;
use beit2::segment::SegmentRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::tokenizer::teachers::TeacherKind;
use beit2_data::PixelRange;
use beit2_data::segment::{IdMap, ReduceZeroLabel};
use beit2_kernels::Precision;

use super::sizes::{Pixels, Size};
use super::stages;
use crate::errors::usage;

/// What the models are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Features.
    Pretrain,
    /// A classifier.
    Finetune,
    /// Classes of pixels.
    Segment,
}

impl Goal {
    pub const ALL: [Self; 3] = [Self::Pretrain, Self::Finetune, Self::Segment];

    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Finetune => "finetune",
            Self::Segment => "segment",
        }
    }

    /// Shares of the time: tokenizer, pretraining, and fine-tuning or segmentation. What is left is for evaluations, reports
    /// and errors of the estimate.
    pub fn shares(self) -> [f64; 3] {
        match self {
            Self::Pretrain => [0.3, 0.6, 0.0],
            Self::Finetune => [0.22, 0.43, 0.25],
            Self::Segment => [0.2, 0.35, 0.35],
        }
    }
}

/// What the user wants.
#[derive(Debug, Clone)]
pub struct Wish {
    pub goal: Goal,
    /// Time for everything.
    pub seconds: f64,
    /// `None`: as time, images and memory allow.
    pub size: Option<Size>,
    pub precision: Precision,
    pub seed: u64,
}

/// The teacher's facts.
pub struct TeacherFacts {
    pub weights: String,
    pub kind: Option<TeacherKind>,
    /// Width of its features.
    pub dim: usize,
    /// What it costs for a grid of this side.
    pub cost: Box<dyn Fn(usize) -> FrozenVit>,
}

/// What the images are.
#[derive(Debug, Clone)]
pub struct DataFacts {
    /// Training and validation images as recipes name them.
    pub train: String,
    pub val: Option<String>,
    /// Training images.
    pub images: usize,
    pub val_images: usize,
    /// Classes of the training images; 0 without labels.
    pub classes: usize,
    /// Median of the shorter and of the longer sides, in pixels.
    pub short: u32,
    pub long: u32,
    /// How values become 8 bits.
    pub range: PixelRange,
    /// For segmentation.
    pub masks: Option<MaskFacts>,
}

/// Images with masks, as segmentation recipes name them.
#[derive(Debug, Clone)]
pub struct MaskFacts {
    pub train: String,
    pub val: Option<String>,
    pub classes: usize,
    pub reduce_zero_label: ReduceZeroLabel,
    pub map: IdMap,
    /// What was decided about the classes, where no list says it.
    pub note: Option<String>,
}

/// Floating-point operations a second that the stages achieve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    pub tokenizer: f64,
    pub pretrain: f64,
    /// Fine-tuning or segmentation.
    pub task: f64,
}

impl Speed {
    /// That of two slow cores. It is used instead of a measurement for the bundled images, so that their plan is the same
    /// everywhere.
    pub const NOMINAL: Self = Self { tokenizer: 77.4e9, pretrain: 61.3e9, task: 40.0e9 };

    /// Before anything was measured but large matmuls: the part of their speed that a whole step of a small model reaches.
    pub fn of_matmuls(flops: f64) -> Self {
        Self { tokenizer: 0.3 * flops, pretrain: 0.4 * flops, task: 0.4 * flops }
    }
}

/// What computes.
#[derive(Debug, Clone)]
pub struct MachineFacts {
    pub cores: usize,
    /// Memory of the device in bytes, where it is known.
    pub memory: Option<u64>,
    pub speed: Speed,
}

/// Share of the memory that a plan may use.
pub const MEMORY_SHARE: f64 = 0.8;

/// Fewest images that a project is made for, those for validation included when they are divided.
pub const FEWEST: usize = 20;
/// Of them, the fewest to train on.
const FEWEST_TRAINED: usize = 16;

/// The settings of a stage.
#[derive(Debug, Clone)]
pub enum Settings {
    Tokenizer(Box<TokenizerRecipe>),
    Pretrain(Box<PretrainRecipe>),
    Finetune(Box<FinetuneRecipe>),
    Segment(Box<SegmentRecipe>),
}

/// A stage with what is expected of it.
#[derive(Debug, Clone)]
pub struct Planned {
    /// `tokenizer`, `pretrain`, `finetune` or `segment`: names its recipe and its run.
    pub name: &'static str,
    pub settings: Settings,
    /// Full keys and why they have their value.
    pub comments: Vec<(&'static str, String)>,
    pub steps: u64,
    pub batch: usize,
    pub epochs: f64,
    pub images_per_second: f64,
    /// Seconds in all, evaluations included.
    pub seconds: f64,
    /// Most bytes held.
    pub bytes: u64,
    /// What an image costs.
    pub cost: Cost,
}

/// All stages, in order.
#[derive(Debug, Clone)]
pub struct Plan {
    pub size: Size,
    pub pixels: Pixels,
    pub stages: Vec<Planned>,
    /// What was chosen for all stages: name, value and why.
    pub choices: Vec<(&'static str, String, String)>,
}

/// Everything that a plan follows from.
pub struct Facts<'a> {
    pub wish: &'a Wish,
    pub data: &'a DataFacts,
    pub machine: &'a MachineFacts,
    pub teacher: &'a TeacherFacts,
    /// The folder of the runs, as recipes name it.
    pub runs: &'a str,
}

impl Facts<'_> {
    /// Makes the plan.
    ///
    /// # Errors
    /// Too few images, one class for fine-tuning, more memory than there is: one sentence each.
    pub fn plan(&self) -> anyhow::Result<Plan> {
        let Self { wish, data, .. } = self;
        if data.images < FEWEST_TRAINED {
            return usage(few(data.images));
        }
        if wish.goal == Goal::Finetune && data.classes < 2 {
            return usage(match data.classes {
                0 => "--goal finetune needs images in one sub-folder per class, and these have no classes; sort them into \
                      folders, or leave --goal out to pretrain without labels"
                    .to_owned(),
                _ => "--goal finetune needs at least two classes, one sub-folder each, and these images have one".to_owned(),
            });
        }
        let size = match wish.size {
            Some(size) => size,
            None => self.affordable(),
        };
        self.of_size(size)
    }

    /// The largest size that time, images and memory are enough for.
    fn affordable(&self) -> Size {
        let fits = |size: &Size| {
            let (seen, images) = size.worth();
            self.data.images >= images
                && self.of_size(*size).is_ok_and(|plan| {
                    let pretrain = &plan.stages[1];
                    pretrain.images_per_second * self.stage_seconds(1) >= seen
                })
        };
        Size::ALL.into_iter().rev().find(fits).unwrap_or(Size::Mini)
    }

    /// Seconds of stage 0, 1 or 2.
    pub fn stage_seconds(&self, at: usize) -> f64 {
        self.wish.seconds * self.wish.goal.shares()[at]
    }

    fn of_size(&self, size: Size) -> anyhow::Result<Plan> {
        let Self { wish, data, .. } = self;
        let pixels = Pixels::of(size, data.short, wish.goal == Goal::Segment);
        let tokenizer = stages::tokenizer(self, size, pixels)?;
        let Settings::Tokenizer(recipe) = &tokenizer.settings else { unreachable!("made by `tokenizer`") };
        let config = recipe.model.clone();
        let pretrain = stages::pretrain(self, size, pixels, &config)?;
        let mut plan =
            Plan { size, pixels, choices: self.choices(size, pixels), stages: vec![tokenizer, pretrain] };
        match wish.goal {
            Goal::Pretrain => {}
            Goal::Finetune => plan.stages.push(stages::finetune(self, size, pixels)?),
            Goal::Segment => plan.stages.push(stages::segment(self, size, pixels)?),
        }
        Ok(plan)
    }

    pub fn choices(&self, size: Size, pixels: Pixels) -> Vec<(&'static str, String, String)> {
        let Self { wish, data, teacher, .. } = self;
        let (width, depth, _) = size.shape();
        let grid = pixels.grid();
        let why = match wish.size {
            Some(_) => "as --size says".to_owned(),
            None => match Size::ALL.into_iter().find(|&larger| larger > size) {
                Some(larger) => {
                    let (seen, images) = larger.worth();
                    format!(
                        "{} pays off from {} images, each seen often: {} in all",
                        larger.name(),
                        short_number(images as f64),
                        short_number(seen)
                    )
                }
                None => "time, images and memory are enough for it".to_owned(),
            },
        };
        let input = format!("{} px, patches of {} px", pixels.image, pixels.patch);
        let seen =
            format!("a grid of {grid} × {grid}; the images have {} px on their shorter side", data.short);
        let teaches = match teacher.weights.as_str() {
            "bundled:teacher" => {
                "part of this program; one trained on images like yours is better (--teacher FILE)"
            }
            _ => "as --teacher says",
        };
        let mut choices = vec![
            ("model", format!("{}, width {width}, {depth} blocks", size.name()), why),
            ("input", input, seen),
            ("teacher", format!("{}, features of {}", teacher.weights, teacher.dim), teaches.to_owned()),
        ];
        if let Some(masks) = &data.masks {
            let why = masks.note.clone().unwrap_or_else(|| "as the class list says".to_owned());
            choices.push(("masks", format!("{} classes", masks.classes), why));
        }
        if data.range != PixelRange::Auto {
            choices.push((
                "values",
                data.range.to_string(),
                "the images have more than 8 bits; see data.range in the recipes".to_owned(),
            ));
        }
        choices
    }

    /// The largest batch up to `batch`, halved until the memory holds it.
    pub fn batch_in_memory(
        &self,
        size: Size,
        stage: &str,
        batch: usize,
        cost: &Cost,
    ) -> anyhow::Result<usize> {
        let Some(memory) = self.machine.memory else { return Ok(batch) };
        let room = memory as f64 * MEMORY_SHARE;
        let bytes = |batch: usize| cost.bytes(batch, batch) as f64;
        let least = batch.min(4);
        let mut fits = batch;
        while bytes(fits) > room && fits > least {
            fits = (fits / 2).max(least);
        }
        if bytes(fits) <= room {
            return Ok(fits);
        }
        usage(format!(
            "a {} model needs about {} for stage {stage}, more than {:.0} % of the memory of {}; choose a smaller --size",
            size.name(),
            beit2_run::environment::format_bytes(bytes(fits) as u64),
            100.0 * MEMORY_SHARE,
            beit2_run::environment::format_bytes(memory)
        ))
    }
}

/// That there are too few images.
pub fn few(images: usize) -> String {
    format!(
        "{images} training images are too few to learn from; at least {FEWEST} are needed, and some hundreds for a result that \
         means something"
    )
}

/// `300k`, `20M`.
pub fn short_number(value: f64) -> String {
    match value {
        1e6.. => format!("{}M", (value / 1e5).round() / 10.0),
        1e3.. => format!("{}k", (value / 1e2).round() / 10.0),
        _ => format!("{value:.0}"),
    }
}
