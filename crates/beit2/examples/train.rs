//! Trains the three stages of BEiT v2 for a few steps each: a tokenizer, a model that predicts its tokens under masks, and a
//! classifier of 16 classes. Small models, and the images and the teacher of the quickstart: 80 seconds on two cores.
//!
//! ```sh
//! cargo run --release --example train -- runs/example
//! ```
//!
//! It prints the metrics of every 100th step and where the models are, for the other examples to open:
//!
//! ```text
//! tokenizer: 300 steps
//!   step 100  loss 0.622
//!   step 200  loss 0.455
//!   step 300  loss 0.415
//! pretrain: 400 steps
//!   step 100  loss 9.928  mim_acc_1 0.078
//!   …
//!   step 400  loss 8.586  mim_acc_1 0.166
//! finetune: 400 steps
//!   step 100  loss 2.709  class_acc 0.144
//!   …
//!   step 400  loss 2.547  class_acc 0.214
//! runs/example/tokenizer
//! runs/example/mim
//! runs/example/classifier
//! ```
//!
//! The same command continues a run that was stopped, and prints nothing new for one that is done. For images of your own,
//! name a folder with a sub-folder for each class as the second argument.

use std::error::Error;
use std::path::Path;

use beit2::classify::ClassifierConfig;
use beit2::classify::finetune::{self, FinetuneRecipe, InitConfig};
use beit2::pretrain::{self, MaskConfig, MimConfig, PretrainRecipe, TokenizerSource};
use beit2::tokenizer::teachers::{TeacherConfig, TeacherKind};
use beit2::tokenizer::{self, CodebookOptions, TokenizerConfig, TokenizerRecipe};
use beit2::train::{DataConfig, Env, Event, Files, LoggingConfig, Observer, ScheduleConfig};
use beit2::vit::VitConfig;
use burn::backend::{Autodiff, Flex};

/// The CPU, with gradients.
type B = Autodiff<Flex>;

/// The quickstart's images and teacher.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../beit2-quickstart-data/data");

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (out, images) = match args.as_slice() {
        [out] => (Path::new(out), format!("{DATA}/train-{{000..001}}.tar")),
        [out, images] => (Path::new(out), images.clone()),
        _ => return Err("expected: OUT [IMAGES]".into()),
    };
    let [tokenizer_dir, mim_dir, classifier_dir] =
        ["tokenizer", "mim", "classifier"].map(|name| out.join(name));
    let files = Files::default();
    let data = DataConfig { train: images, ..DataConfig::default() };
    let logging = LoggingConfig { log_every: 100, ..LoggingConfig::default() };
    let schedule = |steps: u64| ScheduleConfig {
        steps: Some(steps),
        warmup_steps: Some(steps / 10),
        batch_size: 16,
        ..ScheduleConfig::default()
    };
    let vit =
        VitConfig { image_size: 64, patch_size: 8, width: 128, depth: 4, heads: 4, ..VitConfig::default() };

    // 1. A codebook of 256 codes, and a decoder that rebuilds the teacher's features from them.
    let mut recipe = TokenizerRecipe {
        model: TokenizerConfig {
            image_size: vit.image_size,
            patch_size: vit.patch_size,
            width: vit.width,
            depth: vit.depth,
            heads: vit.heads,
            decoder_width: vit.width,
            decoder_depth: 1,
            decoder_heads: vit.heads,
            codebook_size: 256,
            code_dim: 16,
            teacher_dim: 384,
            ..TokenizerConfig::default()
        },
        teacher: TeacherConfig {
            kind: Some(TeacherKind::Distilled),
            weights: format!("{DATA}/tiny_teacher.safetensors"),
            ..TeacherConfig::default()
        },
        // So short a run finds its codes late, and replaces those that nothing uses.
        codebook: CodebookOptions {
            kmeans_warmup_steps: 100,
            kmeans_rows_per_code: 16,
            revive_after_steps: Some(20),
        },
        data: data.clone(),
        schedule: schedule(300),
        logging: logging.clone(),
        ..TokenizerRecipe::default()
    };
    (recipe.optimizer.lr, recipe.optimizer.base_batch_size) = (1e-3, None);
    tokenizer::train::<B>(&recipe, Env::new(&tokenizer_dir, &mut Print, &files), &Default::default())?;

    // 2. A model that sees 39 of 64 patches and predicts the codes of the other 25.
    let mut recipe = PretrainRecipe {
        model: MimConfig {
            vit: vit.clone(),
            vocab_size: 256,
            intermediate_layer: 3,
            head_layers: 2,
            ..MimConfig::default()
        },
        tokenizer: TokenizerSource {
            weights: tokenizer_dir.display().to_string(),
            ..TokenizerSource::default()
        },
        mask: MaskConfig { patches: 25, min_block: 4, ..MaskConfig::default() },
        data: data.clone(),
        schedule: schedule(400),
        logging: logging.clone(),
        ..PretrainRecipe::default()
    };
    (recipe.optimizer.lr, recipe.optimizer.clip_grad) = (3e-3, Some(3.0));
    pretrain::train::<B>(&recipe, Env::new(&mim_dir, &mut Print, &files), &Default::default())?;

    // 3. The same Transformer with a head for the images' classes.
    let mut recipe = FinetuneRecipe {
        init: InitConfig { weights: mim_dir.display().to_string(), ..InitConfig::default() },
        model: ClassifierConfig { vit, ..ClassifierConfig::default() },
        data,
        schedule: schedule(400),
        logging,
        ..FinetuneRecipe::default()
    };
    (recipe.optimizer.lr, recipe.optimizer.clip_grad, recipe.groups.layer_decay) = (2e-3, Some(3.0), 1.0);
    // The defaults suit 100 epochs. So short a run learns most from images as they are.
    (recipe.mix.prob, recipe.augment.erase.prob, recipe.augment.use_rand_augment) = (0.0, 0.0, false);
    recipe.augment.min_crop_scale = 0.5;
    finetune::train::<B>(&recipe, Env::new(&classifier_dir, &mut Print, &files), &Default::default())?;
    for dir in [tokenizer_dir, mim_dir, classifier_dir] {
        println!("{}", dir.display());
    }
    Ok(())
}

/// Prints the records of a run.
struct Print;

impl Observer for Print {
    fn event(&mut self, event: Event) {
        match event {
            Event::Started { stage, total_steps, .. } => println!("{stage}: {total_steps} steps"),
            Event::Step { step, values, .. } if !values.is_empty() => {
                let wanted = ["loss", "mim_acc_1", "class_acc"];
                let values = values.iter().filter(|(name, _)| wanted.contains(&name.as_str()));
                let values: Vec<String> = values.map(|(name, value)| format!("{name} {value:.3}")).collect();
                println!("  step {step:>3}  {}", values.join("  "));
            }
            Event::Warning(text) => println!("  {text}"),
            _ => {}
        }
    }
}
