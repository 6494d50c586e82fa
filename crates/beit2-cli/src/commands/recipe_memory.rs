//! `beit2 recipes memory`: what a recipe needs on devices of several sizes, by the memory model alone.

use beit2::classify::finetune::FinetuneRecipe;
use beit2::cost::{self, Cost, FrozenVit};
use beit2::pretrain::PretrainRecipe;
use beit2::segment::SegmentRecipe;
use beit2::tokenizer::{TokenizerConfig, TokenizerRecipe};
use beit2::train::{ActivationCheckpointing, ScheduleConfig};
use beit2_run::environment::format_bytes;
use beit2_run::thousands;
use serde_json::{Value, json};

use crate::errors::{Ending, usage};
use crate::flags::key_value;
use crate::stage::Stage;
use crate::{output, recipes};

/// Flags of `recipes memory`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recipe: a name from the list or a .toml file, of any stage but distillation
    recipe: String,

    /// Memory of the devices to ask about, in GB (10^9 bytes)
    #[arg(long, value_name = "GB,GB", value_delimiter = ',', default_value = "24,40,80")]
    device_memory: Vec<u32>,

    /// Devices that share each step
    #[arg(long, value_name = "N", default_value_t = 1)]
    devices: usize,

    /// Change a setting of the recipe, by its full key or an unambiguous ending of it; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Share of a device's memory that a step may take: kernels, libraries and the allocator need the rest.
const USABLE: f64 = 0.9;

/// Classes where the recipe leaves them to the images: ImageNet-1k's, ADE20K's.
const CLASSES: [usize; 2] = [1000, 150];

/// What the memory model says of a recipe.
struct Needs {
    /// As the recipe says, and with blocks computed again.
    costs: [Cost; 2],
    schedule: ScheduleConfig,
    precision: String,
}

impl Needs {
    fn of<S: Stage>(mut settings: S, cost: impl Fn(&S) -> Cost) -> Self {
        let precision =
            settings.precision().map_or_else(|| "f32".to_owned(), |precision| precision.to_string());
        let schedule = settings.tables().schedule.clone();
        let costs = [ActivationCheckpointing::None, ActivationCheckpointing::Blocks].map(|which| {
            settings.train_mut().activation_checkpointing = which;
            // Whoever needs several micro-batches needs their sum too.
            settings.tables_mut().0.grad_accum_steps = 2;
            cost(&settings)
        });
        Self { costs, schedule, precision }
    }
}

/// Computes and prints.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    let recipe = recipes::find(&args.recipe)?;
    let set = &args.set;
    let needs = match recipe.stage().as_deref() {
        Some(TokenizerRecipe::NAME) => {
            Needs::of(recipes::resolve::<TokenizerRecipe>(&recipe, set)?, |settings| {
                let (encoder, outputs) = (settings.model.encoder(), settings.model.teacher_dim);
                cost::tokenizer(settings, &FrozenVit::of(&encoder, outputs))
            })
        }
        Some(PretrainRecipe::NAME) => {
            Needs::of(recipes::resolve::<PretrainRecipe>(&recipe, set)?, |settings| {
                let vit = &settings.model.vit;
                let tokenizer = TokenizerConfig {
                    image_size: vit.image_size,
                    patch_size: vit.patch_size,
                    in_chans: vit.in_chans,
                    codebook_size: settings.model.vocab_size,
                    ..TokenizerConfig::default()
                };
                cost::pretrain(settings, &tokenizer)
            })
        }
        Some(FinetuneRecipe::NAME) => {
            Needs::of(recipes::resolve::<FinetuneRecipe>(&recipe, set)?, |settings| {
                cost::finetune(settings, settings.model.classes.unwrap_or(CLASSES[0]))
            })
        }
        Some(SegmentRecipe::NAME) => {
            let mut settings = recipes::resolve::<SegmentRecipe>(&recipe, set)?;
            settings.model.classes.get_or_insert(CLASSES[1]);
            Needs::of(settings, cost::segment)
        }
        _ => {
            return usage(format!(
                "{} is no recipe of a tokenizer, pretraining, fine-tuning or segmentation",
                recipe.origin
            ));
        }
    };
    let batch = needs.schedule.division(args.devices, 1)?.per_rank;
    let rows: Vec<(u32, [Option<usize>; 2])> = args
        .device_memory
        .iter()
        .map(|&gb| {
            let memory = (USABLE * 1e9 * f64::from(gb)) as u64;
            (gb, needs.costs.map(|cost| cost.largest_micro_batch(batch, memory)))
        })
        .collect();
    match args.json {
        true => output::json(&as_json(&recipe.name, &needs, batch, &rows))?,
        false => output::result(&as_text(&recipe.name, &needs, batch, &rows))?,
    }
    Ok(Ending::Done)
}

fn as_text(name: &str, needs: &Needs, batch: usize, rows: &[(u32, [Option<usize>; 2])]) -> String {
    let [plain, again] = &needs.costs;
    let facts = [
        ("recipe", format!("{name}: {} images a step, {}", needs.schedule.batch_size, needs.precision)),
        ("parameters", thousands(plain.parameters as u64)),
        ("whatever the batch", format_bytes(plain.fixed_bytes)),
        ("each image of a step", format_bytes(plain.waiting_bytes_per_image)),
        (
            "each image of a micro-batch",
            format!(
                "{}, or {} with blocks computed again",
                format_bytes(plain.bytes_per_image),
                format_bytes(again.bytes_per_image)
            ),
        ),
        ("at once", format!("{} on each device", format_bytes(plain.bytes(batch, batch)))),
    ];
    let cell = |images: Option<usize>| match images {
        Some(images) if images == batch => format!("{images} (at once)"),
        Some(images) => format!("{images} ({} parts)", batch / images),
        None => "does not fit".to_owned(),
    };
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|(gb, [plain, again])| vec![format!("{gb} GB"), cell(*plain), cell(*again)])
        .collect();
    let columns = ["device", "largest micro-batch", "with activation_checkpointing = \"blocks\""];
    let table = output::table(&columns, &lines);
    let of = "Estimated by the memory model, for 90 % of a device's memory; set schedule.max_micro_batch.";
    format!("{}\n{table}\n{of}", output::pairs(&facts))
}

fn as_json(name: &str, needs: &Needs, batch: usize, rows: &[(u32, [Option<usize>; 2])]) -> Value {
    let [plain, again] = &needs.costs;
    let devices: Vec<Value> = rows
        .iter()
        .map(|(gb, [plain, again])| {
            json!({ "device_gb": gb, "max_micro_batch": plain, "max_micro_batch_recomputing_blocks": again })
        })
        .collect();
    json!({
        "recipe": name,
        "batch_size": needs.schedule.batch_size,
        "images_on_each_device": batch,
        "precision": needs.precision,
        "parameters": plain.parameters,
        "fixed_bytes": plain.fixed_bytes,
        "bytes_per_image_of_a_step": plain.waiting_bytes_per_image,
        "bytes_per_image_of_a_micro_batch": plain.bytes_per_image,
        "bytes_per_image_of_a_micro_batch_recomputing_blocks": again.bytes_per_image,
        "bytes_at_once": plain.bytes(batch, batch),
        "estimated": true,
        "devices": devices,
    })
}
