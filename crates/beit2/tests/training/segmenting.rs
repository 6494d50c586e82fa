//! Segmentation: that it learns, what it starts from, whole images from windows, and what it refuses.

use std::path::Path;

use beit2::segment::{
    InferConfig, MasksConfig, Mode, Predictor, SegmentRecipe, Segmenter, SegmenterConfig, UperNet, evaluate,
    load_backbone,
};
use beit2::train::{Assets, Env, Files, Outcome, SCRATCH, Silent};
use beit2::weights::StateFile;
use beit2::{params, pixels, segment};
use beit2_data::segment::IGNORE;
use beit2_run::{StopFlag, metrics};
use beit2_weights::resize::TableResize;
use burn::backend::Flex;

use super::scene::{self, Auto};

fn train(recipe: &SegmentRecipe, dir: &Path) -> Result<Outcome, beit2::Error> {
    let files = Files::default();
    segment::train::<Auto>(recipe, Env::new(dir, &mut Silent, &files), &Default::default())
}

#[test]
fn it_learns_and_the_result_opens_and_segments_images_of_any_size() {
    let root = tempfile::tempdir().unwrap();
    scene::masks(&root.path().join("scenes"), 12);
    let mut recipe = scene::segment(root.path(), SCRATCH);
    (recipe.schedule.grad_accum_steps, recipe.schedule.steps, recipe.optimizer.lr) = (1, Some(120), 3e-3);
    (recipe.model.dropout, recipe.model.vit.drop_path, recipe.groups.layer_decay) = (0.0, 0.0, 1.0);
    let run = root.path().join("run");
    train(&recipe, &run).unwrap();
    let records = metrics::read_jsonl(&run.join("metrics.jsonl")).unwrap().records;
    let values = records.iter().flat_map(|record| &record.values);
    let miou = values.filter(|(name, _)| name == "val_miou").map(|(_, value)| *value).next_back().unwrap();
    assert!(miou > 0.8, "{miou}");

    let found = Segmenter::open(&run).unwrap();
    assert_eq!(found.config.class_names, ["ground", "box"]);
    assert_eq!(found.infer, recipe.infer);
    // What the run said of its held-out images is what the opened model says.
    let source = Files::default()
        .segment_source(&recipe.data.train, &MasksConfig::default().options(recipe.data.decode_options()))
        .unwrap();
    let again = |infer: &InferConfig| {
        let predictor = Predictor::new(&found.model, &found.config, infer).unwrap();
        evaluate(&predictor, &source, 1, 0, &mut Silent, &StopFlag::new()).unwrap().confusion.scores().miou
    };
    assert!((again(&found.infer) - miou).abs() < 1e-6);
    // The other ways of looking agree with it nearly.
    let many = InferConfig { scales: vec![1.0, 1.25], flip: true, ..found.infer.clone() };
    let whole = InferConfig { mode: Mode::Whole, ..found.infer.clone() };
    for (way, other) in [("scales and flip", again(&many)), ("whole", again(&whole))] {
        assert!(other > miou - 0.15, "{way}: {other} against {miou}");
    }
    // Smaller than a window, and larger than many.
    let predictor = Predictor::new(&found.model, &found.config, &found.infer).unwrap();
    for (width, height) in [(5, 9), (150, 61)] {
        let image = beit2_data::Image::new(width, height, vec![90; (width * height * 3) as usize]).unwrap();
        let map = predictor.label(&image).unwrap();
        assert_eq!((map.width, map.height), (width, height));
        assert!(map.data.iter().all(|&id| id < 2));
    }
}

#[test]
fn whole_images_on_the_trained_grid_are_what_the_model_says() {
    let device = Default::default();
    let config = SegmenterConfig { classes: Some(2), ..scene::segment(Path::new("."), SCRATCH).model };
    let model = UperNet::<Flex>::zeros(&config, &device).unwrap().initialise(&config, 3);
    let bytes: Vec<u8> = (0..64 * 64 * 3).map(|at| (at * 7 % 251) as u8).collect();
    let x = pixels::from_bytes::<Flex>(&[&bytes], [64, 64, 3], &device);
    let plain = model.forward(x.clone()).unwrap();
    let same = model.clone().on_grid(8, 8).unwrap().forward(x.clone()).unwrap();
    assert!((plain - same).abs().max().into_scalar() == 0.0);
    // A smaller grid takes the rows of the table for its distances, a larger one resizes the table.
    for (rows, columns) in [(4, 7), (8, 5), (10, 8), (9, 12)] {
        let other = model.clone().on_grid(rows, columns).unwrap();
        let x = x.clone().repeat_dim(2, 2).repeat_dim(3, 2).slice([0..1, 0..3, 0..rows * 8, 0..columns * 8]);
        assert_eq!(other.forward(x).unwrap().dims(), [1, rows * 2, columns * 2, 2]);
    }
}

#[test]
fn a_backbone_comes_from_a_pretrained_run() {
    let root = tempfile::tempdir().unwrap();
    scene::masks(&root.path().join("scenes"), 6);
    scene::classes(&root.path().join("classes"), 7);
    let mut classifier = scene::finetune(root.path(), SCRATCH);
    classifier.model.vit.depth = 4;
    let run = root.path().join("classifier");
    let (files, mut silent) = (Files::default(), Silent);
    let env = Env::new(&run, &mut silent, &files);
    beit2::classify::finetune::train::<Auto>(&classifier, env, &Default::default()).unwrap();
    let mut recipe = scene::segment(root.path(), &run.to_string_lossy());
    (recipe.model.vit.width, recipe.schedule.steps) = (96, Some(2));
    recipe.resolve(&files).unwrap();
    assert_eq!((recipe.model.vit.width, recipe.model.vit.image_size), (24, 64));
    assert_eq!((recipe.model.classes, recipe.model.palette.len()), (Some(2), 2));
    assert!(train(&recipe, &root.path().join("run")).unwrap().complete);
    // A segmentation model gives its heads too, whatever sizes the recipe has.
    recipe.init.weights = root.path().join("run").to_string_lossy().into_owned();
    (recipe.model.channels, recipe.model.aux_channels) = (32, 4);
    recipe.resolve(&files).unwrap();
    assert_eq!((recipe.model.channels, recipe.model.aux_channels), (16, 8));
    let model = UperNet::<Flex>::zeros(&recipe.model, &Default::default()).unwrap();
    let state = StateFile::new(files.weights(&recipe.init.weights).unwrap(), "run").unwrap();
    let (_, plan) = load_backbone(model, &recipe.model, state, TableResize::Spline).unwrap();
    assert!(
        plan.fresh.is_empty() && plan.used.contains_key("decode_head.conv_seg.weight"),
        "{:?}",
        plan.fresh
    );
    assert!(train(&recipe, &root.path().join("again")).unwrap().complete);
}

#[test]
fn statistics_of_norms_are_saved_and_not_trained() {
    let config = SegmenterConfig { classes: Some(2), ..scene::segment(Path::new("."), SCRATCH).model };
    let model = UperNet::<Auto>::zeros(&config, &Default::default()).unwrap();
    let infos = params::list(&model);
    let statistics: Vec<_> = infos.iter().filter(|info| info.name.contains("running_")).collect();
    assert!(!statistics.is_empty() && statistics.iter().all(|info| !info.trainable));
}

#[test]
fn what_cannot_work_is_one_sentence() {
    let root = tempfile::tempdir().unwrap();
    scene::masks(&root.path().join("scenes"), 6);
    scene::masks(&root.path().join("other"), 6);
    std::fs::write(root.path().join("other/classes.txt"), "ground\ncrate\n").unwrap();
    let fails = |change: &dyn Fn(&mut SegmentRecipe), part: &str| {
        let mut recipe = scene::segment(root.path(), SCRATCH);
        change(&mut recipe);
        let text = train(&recipe, &root.path().join("never")).unwrap_err().to_string();
        assert!(text.contains(part), "`{part}` is not in: {text}");
        assert!(!root.path().join("never").exists(), "{text}");
    };
    let at = |name: &str| root.path().join(name).to_string_lossy().into_owned();
    fails(&|r| r.data.val = Some(at("other")), "has the class `crate`, which");
    fails(&|r| r.data.train = at("nowhere"), "nowhere");
    fails(&|r| r.model.classes = Some(4), "model.classes is 4, but");
    fails(&|r| r.init.weights = String::new(), "init.weights is empty");
    fails(&|r| r.schedule.grad_accum_steps = 3, "cannot be divided into 3 equal micro-batches");
    fails(&|r| r.schedule.grad_accum_steps = 4, "leaves one crop to each");
    fails(&|r| r.groups.layer_decay = 1.5, "groups.layer_decay 1.5");
    fails(&|r| r.optimizer.min_lr = 1e-6, "falls to 0");
    fails(&|r| r.infer.stride = Some(65), "infer.stride 65 is larger than a window of 64");
    fails(&|r| r.infer.scales = Vec::new(), "infer.scales");
    assert_eq!(IGNORE, 255);
}
