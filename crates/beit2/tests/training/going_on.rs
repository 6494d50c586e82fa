//! Tokenizers and students that go on from weights: what is taken, what is resized, what starts anew, what is refused.

use std::path::{Path, PathBuf};

use beit2::pretrain::{self, MimModel, PretrainRecipe};
use beit2::tokenizer::{self, TokenizerRecipe, VqKd};
use beit2::train::{Env, Files, Outcome, Silent};
use beit2::{Error, weights};
use beit2_weights::plan::{Plan, Source};
use burn::backend::Flex;
use burn::tensor::TensorData;

use super::scene::{self, Auto};

/// Images, a teacher, a tokenizer that has its codes, and a pretrained student.
struct Scene {
    root: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        scene::images(&root.path().join("images"), 14);
        scene::teacher(&root.path().join("teacher.safetensors"));
        let scene = Self { root };
        let mut recipe = scene::tokenizer(scene.root.path());
        recipe.schedule.steps = Some(4);
        scene.tokenizer(&recipe, "tokenizer").unwrap();
        let mut recipe = scene.student();
        recipe.schedule.steps = Some(2);
        scene.pretrain(&recipe, "student").unwrap();
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn named(&self, name: &str) -> Option<String> {
        Some(self.at(name).to_string_lossy().into_owned())
    }

    fn student(&self) -> PretrainRecipe {
        scene::pretrain(self.root.path(), &self.at("tokenizer"))
    }

    fn tokenizer(&self, recipe: &TokenizerRecipe, out: &str) -> Result<Outcome, Error> {
        let files = Files::default();
        tokenizer::train::<Auto>(recipe, Env::new(self.at(out), &mut Silent, &files), &Default::default())
    }

    fn pretrain(&self, recipe: &PretrainRecipe, out: &str) -> Result<Outcome, Error> {
        let files = Files::default();
        pretrain::train::<Auto>(recipe, Env::new(self.at(out), &mut Silent, &files), &Default::default())
    }

    /// The plan of a student, after its recipe has taken over what other files decide.
    fn plan(&self, recipe: &mut PretrainRecipe) -> Result<Plan, Error> {
        let files = Files::default();
        recipe.resolve(&files)?;
        let model = MimModel::<Flex>::zeros(&recipe.model, &Default::default())?;
        Ok(pretrain::load_plan(recipe, &model, &files)?.unwrap())
    }

    fn tokenizer_plan(&self, recipe: &mut TokenizerRecipe) -> Result<Plan, Error> {
        let files = Files::default();
        recipe.resolve(&files)?;
        let model = VqKd::<Flex>::zeros(&recipe.model, &Default::default())?;
        Ok(tokenizer::load_plan(recipe, &model, &files)?.unwrap())
    }
}

fn floats(data: &TensorData) -> Vec<f32> {
    data.clone().convert::<f32>().into_vec().unwrap()
}

/// The trained tensors of a run.
fn model(run: &Path) -> weights::Tensors {
    let mut tensors = weights::open(run).unwrap().tensors;
    tensors.retain(|name, _| !name.ends_with("relative_position_index"));
    tensors
}

#[test]
fn a_student_goes_on_from_its_own_weights() {
    let scene = Scene::new();
    let mut recipe = scene.student();
    recipe.init.weights = scene.named("student");
    let plan = scene.plan(&mut recipe).unwrap();
    assert!(plan.fresh.is_empty(), "{plan}");
    assert!(plan.used.values().all(|how| *how == Source::Same), "{plan}");

    // A step that moves nothing leaves what was loaded.
    recipe.optimizer.lr = 1e-20;
    (recipe.optimizer.min_lr, recipe.optimizer.weight_decay, recipe.optimizer.weight_decay_end) =
        (0.0, 0.0, None);
    (recipe.schedule.steps, recipe.schedule.warmup_steps) = (Some(1), Some(0));
    scene.pretrain(&recipe, "again").unwrap();
    let (before, after) = (model(&scene.at("student")), model(&scene.at("again")));
    assert_eq!(before.len(), after.len());
    for (name, data) in &before {
        assert_eq!(floats(data), floats(&after[name]), "{name}");
    }

    // It is continued from its checkpoint: the weights that it began with do not count any more.
    recipe.schedule.steps = Some(3);
    recipe.optimizer.lr = 1e-3;
    let stopped = scene.at("stopped");
    let whole = scene.pretrain(&recipe, "whole").unwrap();
    let stop = beit2_run::StopFlag::new();
    stop.request();
    let (files, mut silent) = (Files::default(), Silent);
    let env = Env { stop, ..Env::new(&stopped, &mut silent, &files) };
    assert!(!pretrain::train::<Auto>(&recipe, env, &Default::default()).unwrap().complete);
    let second = scene.pretrain(&recipe, "stopped").unwrap();
    let bytes = |outcome: &Outcome| std::fs::read(outcome.checkpoint.join("model.safetensors")).unwrap();
    assert!(bytes(&whole) == bytes(&second), "a stop changed the run");
}

#[test]
fn other_sizes_of_images_resize_and_other_channels_repeat() {
    let scene = Scene::new();
    let mut recipe = scene.student();
    recipe.init.weights = scene.named("student");
    recipe.model.vit.image_size = 48;
    let plan = scene.plan(&mut recipe).unwrap();
    let table = &plan.used["rel_pos_bias.relative_position_bias_table"];
    assert_eq!(*table, Source::Resized { from: 4, to: 6, shared: false });
    assert!(plan.summary().contains("1 resized from 4×4 patches to 6×6"), "{}", plan.summary());

    // Sizes are taken, the image size and the channels stay the recipe's.
    let mut recipe = scene.student();
    recipe.init.weights = scene.named("student");
    recipe.init.sizes_from_weights = true;
    (recipe.model.vit.width, recipe.model.vit.depth, recipe.model.vit.in_chans) = (96, 5, 4);
    (recipe.model.vocab_size, recipe.model.intermediate_layer) = (8192, 5);
    recipe.data.train.clear();
    let plan = scene.plan(&mut recipe).unwrap();
    let vit = &recipe.model.vit;
    assert_eq!((vit.width, vit.depth, vit.in_chans, vit.drop_path), (24, 3, 4, 0.3));
    assert_eq!((recipe.model.vocab_size, recipe.model.intermediate_layer), (24, 2));
    assert_eq!(plan.used["patch_embed.proj.weight"], Source::Channels { from: 3, to: 4 });
    assert!(plan.fresh.is_empty(), "{plan}");

    let mut recipe = scene::tokenizer(scene.root.path());
    recipe.init.weights = scene.named("tokenizer");
    (recipe.model.image_size, recipe.model.in_chans) = (48, 5);
    let plan = scene.tokenizer_plan(&mut recipe).unwrap();
    for name in ["encoder.pos_embed", "decoder.pos_embed"] {
        assert_eq!(plan.used[name], Source::Resized { from: 4, to: 6, shared: false });
    }
    assert_eq!(plan.used["encoder.patch_embed.proj.weight"], Source::Channels { from: 3, to: 5 });
    assert!(plan.fresh.is_empty(), "{plan}");
}

#[test]
fn what_the_weights_lack_starts_anew_and_is_named() {
    let scene = Scene::new();
    // A student without heads, as other libraries keep it.
    let mut tensors = model(&scene.at("student"));
    tensors.retain(|name, _| !["lm_head", "cls_pt", "mask_token"].iter().any(|part| name.starts_with(part)));
    let bare = scene.at("bare.safetensors");
    std::fs::write(&bare, weights::encode(&tensors, &Default::default()).unwrap()).unwrap();
    let mut recipe = scene.student();
    recipe.init.weights = scene.named("bare.safetensors");
    let plan = scene.plan(&mut recipe).unwrap();
    let told = plan.summary();
    for part in ["new: mask_token", "lm_head (2 tensors)", "cls_pt_layers ("] {
        assert!(told.contains(part), "no `{part}` in: {told}");
    }
    scene.pretrain(&PretrainRecipe { seed: 6, ..recipe }, "from_bare").unwrap();

    // Another codebook: a new head, and the old one is said to be left.
    let mut recipe = scene.student();
    recipe.init.weights = scene.named("student");
    recipe.model.vocab_size = 30;
    let plan = scene.plan(&mut recipe).unwrap();
    assert_eq!(plan.fresh, ["lm_head.weight", "lm_head.bias"]);
    assert!(
        plan.to_string().contains("not used lm_head.bias: its shape is [24], the model's [30]"),
        "{plan}"
    );

    // A tokenizer of more codes starts its codebook by k-means, one of as many does not wait for it.
    let mut recipe = scene::tokenizer(scene.root.path());
    recipe.init.weights = scene.named("tokenizer");
    let plan = scene.tokenizer_plan(&mut recipe).unwrap();
    assert!(plan.fresh.is_empty(), "{plan}");
    assert_eq!(recipe.codebook.kmeans_warmup_steps, 0);
    let mut recipe = scene::tokenizer(scene.root.path());
    recipe.init.weights = scene.named("tokenizer");
    recipe.model.codebook_size = 32;
    let plan = scene.tokenizer_plan(&mut recipe).unwrap();
    assert!(plan.fresh.iter().all(|name| name.starts_with("quantize.")), "{plan}");
    assert_eq!(recipe.codebook.kmeans_warmup_steps, 2);
    scene.tokenizer(&recipe, "more_codes").unwrap();
    let codes = model(&scene.at("more_codes"));
    assert!(floats(&codes["quantize.embedding.weight"]).iter().any(|value| *value != 0.0));
}

#[test]
fn a_tokenizer_keeps_its_codes() {
    let scene = Scene::new();
    let mut recipe = scene::tokenizer(scene.root.path());
    recipe.init.weights = scene.named("tokenizer");
    (recipe.schedule.steps, recipe.schedule.warmup_steps) = (Some(1), Some(0));
    (recipe.optimizer.lr, recipe.model.ema_decay) = (1e-20, 0.999_999);
    recipe.codebook.revive_after_steps = None;
    scene.tokenizer(&recipe, "again").unwrap();
    let (before, after) = (model(&scene.at("tokenizer")), model(&scene.at("again")));
    // That one counts uses, and begins anew in every epoch.
    for (name, data) in before.iter().filter(|(name, _)| *name != "quantize.cluster_size") {
        let pairs = floats(data).into_iter().zip(floats(&after[name]));
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst < 1e-4, "{name} moved by {worst}");
    }
}

#[test]
fn other_families_and_sizes_are_one_sentence() {
    let scene = Scene::new();
    let student = |init: &str, change: &dyn Fn(&mut PretrainRecipe), parts: &[&str]| {
        let mut recipe = scene.student();
        recipe.init.weights = scene.named(init);
        change(&mut recipe);
        let text = scene.pretrain(&recipe, "never").unwrap_err().to_string();
        for part in parts {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
        assert!(!text.contains('\n') && !scene.at("never").exists(), "{text}");
    };
    student("tokenizer", &|_| (), &["holds a tokenizer", "goes on from a student"]);
    student("teacher.safetensors", &|_| (), &["is not part of the layout"]);
    student("student", &|r| r.model.vit.width = 48, &["width 24 instead of 48", "init.sizes_from_weights"]);
    student("student", &|r| r.model.vit.depth = 4, &["depth 3 instead of 4"]);
    student("student", &|r| r.model.intermediate_layer = 1, &["intermediate_layer 2 instead of 1"]);

    let mut recipe = scene::tokenizer(scene.root.path());
    recipe.init.weights = scene.named("student");
    let text = scene.tokenizer(&recipe, "never").unwrap_err().to_string();
    assert!(text.contains("a tokenizer goes on from a tokenizer"), "{text}");
    recipe.init.weights = scene.named("tokenizer");
    recipe.model.decoder_depth = 2;
    let text = scene.tokenizer(&recipe, "never").unwrap_err().to_string();
    assert!(text.contains("decoder depth 1 instead of 2"), "{text}");
    assert!(!scene.at("never").exists());

    // Without [init] nothing is loaded.
    let recipe = scene.student();
    let model = MimModel::<Flex>::zeros(&recipe.model, &Default::default()).unwrap();
    assert!(pretrain::load_plan(&recipe, &model, &Files::default()).unwrap().is_none());
}
