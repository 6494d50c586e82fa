//! Plans of many kinds of data and machines: each is a set of recipes that can run.

#![allow(clippy::unwrap_used)]

use beit2::classify::finetune::FinetuneRecipe;
use beit2::cost::FrozenVit;
use beit2::pretrain::PretrainRecipe;
use beit2::segment::SegmentRecipe;
use beit2::tokenizer::TokenizerRecipe;
use beit2::tokenizer::teachers::TeacherKind;
use beit2::train::{OptimizerConfig, ScheduleConfig};
use beit2::vit::VitConfig;
use beit2_data::PixelRange;
use beit2_data::check::crops_to_enlarge;
use beit2_data::segment::{IdMap, ReduceZeroLabel};
use beit2_kernels::Precision;
use beit2_run::recipe;

use super::plan::{
    DataFacts, Facts, Goal, MEMORY_SHARE, MachineFacts, MaskFacts, Plan, Settings, Speed, TeacherFacts, Wish,
};
use super::sizes::Size;
use super::text::recipe_text;
use crate::recipes;

/// Two cores of a laptop.
fn laptop() -> MachineFacts {
    MachineFacts { cores: 2, memory: Some(8 << 30), speed: Speed::of_matmuls(150e9) }
}

fn teacher() -> TeacherFacts {
    TeacherFacts {
        weights: "bundled:teacher".into(),
        kind: Some(TeacherKind::Distilled),
        dim: 384,
        cost: Box::new(|grid| {
            let (image_size, patch_size, width, depth, heads) = (8 * grid, 8, 192, 6, 3);
            let vit = VitConfig { image_size, patch_size, width, depth, heads, ..VitConfig::default() };
            FrozenVit::of(&vit, 384)
        }),
    }
}

fn images(count: usize, classes: usize, short: u32, long: u32) -> DataFacts {
    DataFacts {
        train: "/data/train.jsonl".into(),
        val: Some("/data/val.jsonl".into()),
        images: count - count / 8,
        val_images: count / 8,
        classes,
        short,
        long,
        range: PixelRange::Auto,
        masks: None,
    }
}

fn minutes(goal: Goal, minutes: f64) -> Wish {
    Wish { goal, seconds: 60.0 * minutes, size: None, precision: Precision::F32, seed: 0 }
}

fn plan(wish: &Wish, data: &DataFacts, machine: &MachineFacts) -> anyhow::Result<Plan> {
    Facts { wish, data, machine, teacher: &teacher(), runs: "/project/runs" }.plan()
}

/// The images of the quickstart as `init` sees them.
fn drawings() -> DataFacts {
    DataFacts {
        train: "bundled:train".into(),
        val: Some("bundled:val".into()),
        images: 2012,
        val_images: 409,
        ..images(2421, 16, 96, 112)
    }
}

#[test]
fn the_bundled_images_give_the_quickstart_at_64_px() {
    let machine = MachineFacts { speed: Speed::NOMINAL, ..laptop() };
    let plan = plan(&minutes(Goal::Pretrain, super::MINUTES), &drawings(), &machine).unwrap();
    let [tokenizer, pretrain] = plan.stages.as_slice() else { panic!("two stages") };
    let (Settings::Tokenizer(tokenizer), Settings::Pretrain(pretrain)) =
        (&tokenizer.settings, &pretrain.settings)
    else {
        panic!("tokenizer and pretraining")
    };
    let set = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    // What was measured on these drawings only: smaller images in more steps, and another start of weights and codes.
    let others = set(&[
        ("init.std", "0.02"),
        ("targets.whiten", "false"),
        ("model.image_size", "64"),
        ("model.code_dim", "16"),
        ("codebook.kmeans_warmup_steps", "160"),
        ("schedule.steps", "800"),
        ("schedule.warmup_steps", "80"),
        ("logging.checkpoint_every", "400"),
    ]);
    let mut expected: TokenizerRecipe =
        recipes::resolve(&recipes::find("quickstart_tokenizer").unwrap(), &others).unwrap();
    expected.optimizer.base_batch_size.get_or_insert(16);
    assert_eq!(**tokenizer, expected);
    let others = set(&[
        ("tokenizer.weights", "/project/runs/tokenizer"),
        ("init.std", "0.02"),
        ("model.vit.image_size", "64"),
        ("mask.patches", "25"),
        ("schedule.steps", "2000"),
        ("schedule.warmup_steps", "150"),
        ("logging.checkpoint_every", "500"),
    ]);
    let mut expected: PretrainRecipe =
        recipes::resolve(&recipes::find("quickstart_pretrain").unwrap(), &others).unwrap();
    expected.optimizer.base_batch_size.get_or_insert(16);
    assert_eq!(**pretrain, expected);
}

/// Read again, the text gives the settings, and they are valid and fit each other.
fn check(name: &str, plan: &Plan, data: &DataFacts, machine: &MachineFacts) {
    let tokenizer = match &plan.stages[0].settings {
        Settings::Tokenizer(recipe) => recipe.model.clone(),
        other => panic!("{other:?}"),
    };
    for stage in &plan.stages {
        let text = recipe_text(stage, &["x".to_owned()]).unwrap();
        let what = format!("{name}, {}", stage.name);
        let (schedule, optimizer) = match &stage.settings {
            Settings::Tokenizer(settings) => {
                let read: TokenizerRecipe = recipe::resolve(&text, "x.toml", &[], &[]).unwrap();
                assert_eq!(read, **settings, "{what}");
                read.validate().unwrap();
                let warmup = read.codebook.kmeans_warmup_steps;
                assert!(warmup < read.schedule.steps.unwrap(), "{what}: k-means after {warmup}");
                (read.schedule, read.optimizer)
            }
            Settings::Pretrain(settings) => {
                let read: PretrainRecipe = recipe::resolve(&text, "x.toml", &[], &[]).unwrap();
                assert_eq!(read, **settings, "{what}");
                read.validate().unwrap();
                let vit = &read.model.vit;
                assert!(
                    read.mask.patches < vit.patches() && read.mask.min_block <= read.mask.patches,
                    "{what}"
                );
                assert_eq!(
                    (read.model.vocab_size, vit.grid()),
                    (tokenizer.codebook_size, tokenizer.grid()),
                    "{what}"
                );
                (read.schedule, read.optimizer)
            }
            Settings::Finetune(settings) => {
                let read: FinetuneRecipe = recipe::resolve(&text, "x.toml", &[], &[]).unwrap();
                assert_eq!(read, **settings, "{what}");
                read.validate().unwrap();
                (read.schedule, read.optimizer)
            }
            Settings::Segment(settings) => {
                let mut read: SegmentRecipe = recipe::resolve(&text, "x.toml", &[], &[]).unwrap();
                assert_eq!(read, **settings, "{what}");
                // The masks tell.
                read.model.classes = Some(13);
                read.validate().unwrap();
                (read.schedule, read.optimizer)
            }
        };
        lengths(&what, &schedule, &optimizer, data.images);
        assert!(stage.steps * stage.batch as u64 >= 100, "{what}");
        let memory = machine.memory.unwrap_or(u64::MAX) as f64 * MEMORY_SHARE;
        assert!(stage.bytes as f64 <= memory, "{what}: {} bytes", stage.bytes);
        if data.short >= 24 {
            crops(&what, &text, data, plan.pixels.image as u32);
        }
        for (key, why) in &stage.comments {
            let known = text.lines().any(|line| line.contains(&format!("# {why}")));
            assert!(known, "{what}: the reason of {key} is not in the recipe");
        }
    }
}

/// Most crops are not enlarged, so that training has nothing to warn of.
fn crops(what: &str, text: &str, data: &DataFacts, input: u32) {
    let Some(scale) = text.lines().find_map(|line| line.strip_prefix("min_crop_scale = ")) else { return };
    let scale: f64 = scale.split_whitespace().next().unwrap().parse().unwrap();
    let enlarged = crops_to_enlarge(&[(data.long, data.short); 64], input, scale);
    assert!(enlarged <= 0.5, "{what}: {enlarged} of the crops are enlarged");
}

fn lengths(what: &str, schedule: &ScheduleConfig, optimizer: &OptimizerConfig, images: usize) {
    let plan = beit2::train::Plan::new(schedule, optimizer, images).unwrap();
    let warmup = schedule.warmup_steps.unwrap();
    assert!(warmup < plan.total_steps, "{what}: warm-up of {warmup} in {}", plan.total_steps);
    assert!(schedule.batch_size <= images, "{what}: batch {}", schedule.batch_size);
}

fn segmentation() -> DataFacts {
    let masks = MaskFacts {
        train: "/data/train.jsonl".into(),
        val: Some("/data/val.jsonl".into()),
        classes: 13,
        reduce_zero_label: ReduceZeroLabel::No,
        map: IdMap::default(),
        note: None,
    };
    DataFacts { masks: Some(masks), ..images(2400, 0, 144, 192) }
}

#[test]
fn every_plan_can_run() {
    let gpu = MachineFacts { cores: 16, memory: None, speed: Speed::of_matmuls(150e12) };
    let small = MachineFacts { memory: Some(2 << 30), ..laptop() };
    let slow = MachineFacts { speed: Speed::of_matmuls(10e9), ..laptop() };
    let xray = DataFacts { range: PixelRange::Percentile, ..images(3000, 2, 1024, 1024) };
    let cases: [(&str, DataFacts, MachineFacts); 9] = [
        ("300 photographs", images(300, 6, 3000, 4000), laptop()),
        ("10,000 images of 224 px", images(10_000, 10, 224, 224), laptop()),
        ("2,000 drawings of 64 px", images(2000, 16, 64, 64), laptop()),
        ("16-bit X-ray images", xray, small),
        ("a million images and a GPU", images(1_200_000, 1000, 375, 500), gpu),
        ("50 images", images(50, 2, 480, 640), laptop()),
        ("20 small images on a slow machine", images(20, 2, 28, 28), slow),
        ("scenes", segmentation(), laptop()),
        ("small scenes", DataFacts { short: 66, long: 72, ..segmentation() }, laptop()),
    ];
    for (name, data, machine) in &cases {
        for goal in Goal::ALL {
            if (goal == Goal::Segment) != data.masks.is_some() {
                continue;
            }
            for time in [0.5, 8.0, 60.0, 40.0 * 60.0] {
                for size in [None].into_iter().chain(Size::ALL.map(Some)) {
                    let wish = Wish { size, ..minutes(goal, time) };
                    let what = format!("{name}, {}, {time} minutes, {size:?}", goal.name());
                    match plan(&wish, data, machine) {
                        Ok(plan) => check(&what, &plan, data, machine),
                        // A size that was asked for may not fit; one that was chosen does.
                        Err(error) => assert!(
                            size.is_some() && error.to_string().contains("choose a smaller --size"),
                            "{what}: {error}"
                        ),
                    }
                }
            }
        }
    }
}

#[test]
fn sizes_follow_time_images_and_memory() {
    let gpu = MachineFacts { cores: 16, memory: None, speed: Speed::of_matmuls(150e12) };
    let size = |data: &DataFacts, machine: &MachineFacts, time: f64| {
        plan(&minutes(Goal::Pretrain, time), data, machine).unwrap().size
    };
    assert_eq!(size(&images(300, 6, 3000, 4000), &laptop(), 10.0), Size::Mini);
    assert_eq!(size(&images(1_200_000, 0, 375, 500), &gpu, 40.0 * 60.0), Size::Base);
    assert_eq!(size(&images(300, 6, 3000, 4000), &gpu, 40.0 * 60.0), Size::Mini);
    assert_eq!(size(&images(20_000, 6, 300, 400), &laptop(), 48.0 * 60.0), Size::Tiny);
}

#[test]
fn the_time_is_kept() {
    for time in [8.0, 30.0, 120.0] {
        let wish = minutes(Goal::Finetune, time);
        let plan = plan(&wish, &images(5000, 6, 480, 640), &laptop()).unwrap();
        let seconds: f64 = plan.stages.iter().map(|stage| stage.seconds).sum();
        assert!((0.75..1.05).contains(&(seconds / wish.seconds)), "{time} minutes: {seconds} s");
    }
}

#[test]
fn what_cannot_be_planned_is_a_sentence() {
    let sentence = |wish: &Wish, data: &DataFacts| plan(wish, data, &laptop()).unwrap_err().to_string();
    let few = sentence(&minutes(Goal::Pretrain, 8.0), &images(10, 0, 480, 640));
    assert!(few.contains("9 training images are too few"), "{few}");
    let one = sentence(&minutes(Goal::Finetune, 8.0), &images(300, 1, 480, 640));
    assert!(one.contains("at least two classes"), "{one}");
    let none = sentence(&minutes(Goal::Finetune, 8.0), &images(300, 0, 480, 640));
    assert!(none.contains("one sub-folder per class"), "{none}");
    let masks = sentence(&minutes(Goal::Segment, 8.0), &images(300, 0, 480, 640));
    assert!(masks.contains("images with masks"), "{masks}");
    let large = Wish { size: Some(Size::Large), ..minutes(Goal::Pretrain, 8.0) };
    let small = MachineFacts { memory: Some(2 << 30), ..laptop() };
    let much = plan(&large, &images(300, 0, 480, 640), &small).unwrap_err().to_string();
    assert!(much.contains("a large model needs about") && much.contains("choose a smaller --size"), "{much}");
}
