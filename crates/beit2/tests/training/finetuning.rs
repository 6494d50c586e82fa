//! Fine-tuning: what it starts from, that it learns, and what it refuses.

use std::path::Path;

use beit2::classify::finetune::{self, FinetuneRecipe, Loading, load_plan};
use beit2::classify::{Classifier, ClassifierOptions};
use beit2::train::{Env, Files, Outcome, SCRATCH, Silent};
use beit2::{Image, pixels};
use beit2_run::metrics;
use burn::backend::Flex;

use super::scene::{self, Auto};

fn train(recipe: &FinetuneRecipe, dir: &Path) -> Result<Outcome, beit2::Error> {
    let files = Files::default();
    finetune::train::<Auto>(recipe, Env::new(dir, &mut Silent, &files), &Default::default())
}

fn plain(root: &Path) -> FinetuneRecipe {
    let mut recipe = scene::finetune(root, SCRATCH);
    (recipe.schedule.grad_accum_steps, recipe.ema_decay, recipe.label_smoothing) = (1, None, 0.0);
    (recipe.mix.mixup, recipe.mix.cutmix, recipe.augment.erase.prob) = (0.0, 0.0, 0.0);
    (recipe.augment.use_rand_augment, recipe.augment.color_jitter) = (false, 0.0);
    (recipe.model.vit.drop_path, recipe.optimizer.lr) = (0.0, 5e-3);
    recipe
}

#[test]
fn it_learns_and_the_result_opens_as_a_classifier() {
    let root = tempfile::tempdir().unwrap();
    scene::classes(&root.path().join("classes"), 7);
    let mut recipe = plain(root.path());
    recipe.schedule.steps = Some(60);
    (recipe.init.head_scale, recipe.groups.layer_decay) = (1.0, 1.0);
    let run = root.path().join("run");
    train(&recipe, &run).unwrap();
    let records = metrics::read_jsonl(&run.join("metrics.jsonl")).unwrap().records;
    let last = |name: &str| {
        let values = records.iter().flat_map(|record| &record.values);
        values.filter(|(n, _)| n == name).map(|(_, value)| *value).next_back().unwrap()
    };
    assert_eq!((last("val_acc1"), last("val_acc5")), (1.0, 1.0));
    assert!(last("class_acc") > 0.8, "{}", last("class_acc"));

    let classifier = Classifier::open(&run).unwrap();
    assert_eq!(classifier.config.class_names, ["dark", "gray", "light"]);
    let gray = pixels::from_bytes(&[&[120; 32 * 32 * 3]], [32, 32, 3], &Default::default());
    let class = classifier.logits(gray).argmax(1).into_data().convert::<i64>().into_vec::<i64>().unwrap();
    assert_eq!(class, [1]);
    let gray = Image::new(40, 36, vec![120; 40 * 36 * 3]).unwrap();
    let best = classifier.predict(&gray).unwrap();
    assert_eq!((best.class, best.name.as_deref()), (1, Some("gray")));
    assert!(best.probability > 0.5, "{best:?}");
    // Another image size resizes the tables.
    let options = ClassifierOptions { image_size: Some(48), ..ClassifierOptions::default() };
    let larger = Classifier::<Flex>::open_with(&run, &options, &Default::default()).unwrap();
    let gray = pixels::from_bytes(&[&[120; 48 * 48 * 3]], [48, 48, 3], &Default::default());
    assert_eq!(larger.logits(gray).dims(), [1, 3]);
}

#[test]
fn parts_of_a_step_give_the_gradient_of_the_whole() {
    let root = tempfile::tempdir().unwrap();
    scene::classes(&root.path().join("classes"), 7);
    // One step: over several, Adam divides rounding errors by small second moments.
    let mut whole = plain(root.path());
    (whole.schedule.steps, whole.schedule.warmup_steps, whole.schedule.warmup_epochs) = (Some(1), None, 0.0);
    let mut parts = whole.clone();
    parts.schedule.grad_accum_steps = 2;
    let first = |recipe: &FinetuneRecipe, name: &str| {
        let run = root.path().join(name);
        train(recipe, &run).unwrap();
        let values = metrics::read_jsonl(&run.join("metrics.jsonl")).unwrap().records.remove(0).values;
        ["loss", "grad_norm"].map(|wanted| values.iter().find(|(name, _)| name == wanted).unwrap().1)
    };
    let (whole, parts) = (first(&whole, "whole"), first(&parts, "parts"));
    for (a, b) in whole.iter().zip(&parts) {
        assert!(*a > 0.0 && (a - b).abs() < 1e-5 * a, "{whole:?} in one part, {parts:?} in two");
    }
}

#[test]
fn sizes_come_from_the_weights_and_the_head_is_fresh() {
    let root = tempfile::tempdir().unwrap();
    scene::classes(&root.path().join("classes"), 7);
    let first = root.path().join("first");
    train(&plain(root.path()), &first).unwrap();
    let mut recipe = scene::finetune(root.path(), &first.to_string_lossy());
    (recipe.model.vit.width, recipe.model.vit.depth, recipe.model.vit.image_size) = (96, 5, 48);
    let files = Files::default();
    recipe.resolve(&files).unwrap();
    let vit = &recipe.model.vit;
    assert_eq!((vit.width, vit.depth, vit.image_size, vit.heads, vit.drop_path), (24, 2, 48, 2, 0.3));
    assert_eq!(recipe.model.classes, Some(3));
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let Loading { plan, head } = load_plan(&recipe, &names(&["dark", "gray", "light"]), &files).unwrap();
    assert!(plan.fresh.is_empty() && plan.to_string().contains("resized"), "{plan}");
    assert_eq!(head.unwrap().summary, "3 classes by name");
    let Loading { plan, head } = load_plan(&recipe, &names(&["a", "b"]), &files).unwrap();
    assert_eq!(plan.fresh, ["head.weight", "head.bias"]);
    assert!(head.unwrap().summary.starts_with("fresh: "));
    let Loading { plan, head } = load_plan(&recipe, &names(&["white", "light", "dark"]), &files).unwrap();
    assert!(plan.fresh.is_empty());
    assert_eq!(head.unwrap().rows, [None, Some(2), Some(0)]);
}

#[test]
fn what_cannot_work_is_one_sentence() {
    let root = tempfile::tempdir().unwrap();
    scene::classes(&root.path().join("classes"), 7);
    scene::classes(&root.path().join("other"), 2);
    std::fs::rename(root.path().join("other/dark"), root.path().join("other/black")).unwrap();
    scene::images(&root.path().join("flat"), 8);
    let fails = |change: &dyn Fn(&mut FinetuneRecipe), part: &str| {
        let mut recipe = plain(root.path());
        change(&mut recipe);
        let text = train(&recipe, &root.path().join("never")).unwrap_err().to_string();
        assert!(text.contains(part), "`{part}` is not in: {text}");
        assert!(!root.path().join("never").exists(), "{text}");
    };
    let at = |name: &str| root.path().join(name).to_string_lossy().into_owned();
    fails(&|r| r.data.val = Some(at("other")), "has the class `black`, which");
    fails(&|r| r.data.train = at("flat"), "has 0 classes");
    fails(&|r| r.model.classes = Some(4), "model.classes is 4, but");
    fails(&|r| r.init.weights = String::new(), "init.weights is empty");
    fails(&|r| r.schedule.grad_accum_steps = 3, "cannot be divided into 3 equal micro-batches");
    fails(&|r| (r.mix.mixup, r.schedule.grad_accum_steps) = (0.8, 4), "1 is odd");
    fails(&|r| r.groups.layer_decay = 1.5, "groups.layer_decay 1.5");
    fails(&|r| r.model.vit.image_size = 0, "image_size is 0");
}
