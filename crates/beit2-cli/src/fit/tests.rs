use super::*;
use beit2::classify::finetune::FinetuneRecipe;
use beit2::tokenizer::teachers::DistillRecipe;

use crate::assets::AssetStore;
use crate::recipes::{self, Recipe};

fn owned(changes: &[(&str, &str)]) -> Vec<(String, String)> {
    changes.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn fitted_of<S: Stage>(recipe: &Recipe, changes: &[(&str, &str)]) -> (S, Vec<String>) {
    let (settings, said) = recipes::fitted::<S>(recipe, &owned(changes), &AssetStore::default()).unwrap();
    (settings, [said.notes, said.warnings].concat())
}

fn fitted<S: Stage>(name: &str, changes: &[(&str, &str)]) -> (S, Vec<String>) {
    fitted_of(&recipes::find(name).unwrap(), changes)
}

fn own(text: &str) -> Recipe {
    Recipe { name: "own".into(), origin: "own.toml".into(), text: text.into() }
}

#[track_caller]
fn one(said: &[String], parts: &[&str]) {
    let [line] = said else { panic!("{said:?}") };
    for part in parts {
        assert!(line.contains(part), "no `{part}` in: {line}");
    }
}

/// At its own batch every recipe has the learning rate that it had before it named the batch, to the bit.
#[test]
fn recipes_name_their_batch_and_keep_their_rates() {
    fn check<S: Stage>(recipe: &Recipe) {
        let (settings, said) = fitted_of::<S>(recipe, &[]);
        let unfitted: S = recipes::resolve(recipe, &[]).unwrap();
        assert_eq!(
            toml::to_string(&settings).unwrap(),
            toml::to_string(&unfitted).unwrap(),
            "{}",
            recipe.name
        );
        assert!(said.is_empty(), "{}: {said:?}", recipe.name);
        let tables = settings.tables();
        let (optimizer, batch) = (tables.optimizer, tables.schedule.batch_size);
        let base = optimizer.base_batch_size.unwrap_or_else(|| panic!("{} names no batch", recipe.name));
        if !recipe.name.starts_with("vqkd") {
            assert_eq!(base, batch, "{}", recipe.name);
            assert_eq!(optimizer.peak_lr(batch).to_bits(), optimizer.lr.to_bits(), "{}", recipe.name);
        }
    }
    for recipe in recipes::all() {
        match recipe.stage().unwrap().as_str() {
            TokenizerRecipe::NAME => check::<TokenizerRecipe>(&recipe),
            PretrainRecipe::NAME => check::<PretrainRecipe>(&recipe),
            FinetuneRecipe::NAME => check::<FinetuneRecipe>(&recipe),
            SegmentRecipe::NAME => check::<SegmentRecipe>(&recipe),
            _ => check::<DistillRecipe>(&recipe),
        }
    }
}

#[test]
fn the_learning_rate_follows_the_batch_in_every_stage() {
    fn check<S: Stage>(name: &str, lr: f64, batch: usize, base: usize) {
        let text = batch.to_string();
        let (settings, said) = fitted::<S>(name, &[("schedule.batch_size", &text)]);
        let peak = settings.tables().optimizer.peak_lr(batch);
        assert!(near(peak, lr * batch as f64 / base as f64), "{name}: {peak}");
        one(&said, &[&format!("× {batch} / {base}"), "learning rate", "--lr RATE"]);
    }
    check::<PretrainRecipe>("mim_base_300e", 1.5e-3, 32, 2048);
    check::<PretrainRecipe>("mim_base_300e", 1.5e-3, 4096, 2048);
    check::<TokenizerRecipe>("vqkd_base_clip_100e", 5e-5, 32, 128);
    check::<TokenizerRecipe>("quickstart_tokenizer", 1e-3, 32, 16);
    check::<FinetuneRecipe>("finetune_base_1600e", 5e-4, 6, 1024);
    check::<SegmentRecipe>("segment_base_ade20k", 5e-5, 2, 16);
    check::<DistillRecipe>("distill_tiny", 1e-3, 8, 64);
}

#[test]
fn the_last_rate_follows_too_and_never_exceeds_the_peak() {
    let (settings, said) = fitted::<PretrainRecipe>("mim_base_300e", &[("batch_size", "32")]);
    assert_eq!(settings.optimizer.min_lr, 1e-5 * 32.0 / 2048.0);
    one(&said, &["learning rate 2.34e-5, falling to 1.56e-7: 1.5e-3 × 32 / 2048"]);
    let changes = [("batch_size", "32"), ("min_lr", "1e-6")];
    let (settings, _) = fitted::<PretrainRecipe>("mim_base_300e", &changes);
    assert_eq!(settings.optimizer.min_lr, 1e-6);
    let (settings, _) = fitted::<PretrainRecipe>("mim_base_300e", &[("lr", "1e-6")]);
    assert!(near(settings.optimizer.min_lr, 1e-5 * 1e-6 / 1.5e-3), "{}", settings.optimizer.min_lr);
}

#[test]
fn a_given_rate_is_used_as_it_is() {
    let changes = [("optimizer.lr", "3e-4"), ("batch_size", "32")];
    let (settings, said) = fitted::<PretrainRecipe>("mim_base_300e", &changes);
    assert_eq!((settings.optimizer.peak_lr(32), settings.optimizer.base_batch_size), (3e-4, None));
    one(&said, &["learning rate 3e-4, as given", "it would be 2.34e-5 (1.5e-3 × 32 / 2048)"]);
    let changes = [("lr", "3e-4"), ("batch_size", "32"), ("base_batch_size", "64")];
    let (settings, _) = fitted::<PretrainRecipe>("mim_base_300e", &changes);
    assert_eq!(settings.optimizer.peak_lr(32), 1.5e-4);
    let (settings, said) = fitted::<PretrainRecipe>("mim_base_300e", &[("lr", "1.5e-3")]);
    assert!(said.is_empty() && settings.optimizer.peak_lr(2048) == 1.5e-3, "{said:?}");
}

#[test]
fn rates_of_own_recipes() {
    // A rate without its batch is meant for the recipe's batch, and follows another.
    let recipe =
        own("stage = \"pretrain\"\n[optimizer]\nlr = 1e-3\n[schedule]\nbatch_size = 64\nwarmup_epochs = 1\n");
    let (settings, said) = fitted_of::<PretrainRecipe>(&recipe, &[]);
    assert!(said.is_empty() && settings.optimizer.peak_lr(64) == 1e-3, "{said:?}");
    let (settings, said) = fitted_of::<PretrainRecipe>(&recipe, &[("batch_size", "16")]);
    assert_eq!(settings.optimizer.peak_lr(16), 2.5e-4);
    one(&said, &["1e-3 × 16 / 64"]);
    // The default rate is meant for the default batch.
    let recipe = own("stage = \"pretrain\"\n[schedule]\nbatch_size = 32\n");
    let (settings, said) = fitted_of::<PretrainRecipe>(&recipe, &[]);
    assert!(near(settings.optimizer.peak_lr(32), 1.5e-3 * 32.0 / 2048.0));
    one(&said, &["the default rate is meant for batches of 2048"]);
    // `none` in the recipe says that the rate does not depend on the batch.
    let text = "stage = \"pretrain\"\n[optimizer]\nlr = 1e-3\nbase_batch_size = \"none\"\n[schedule]\nbatch_size = 64\n";
    let (settings, said) = fitted_of::<PretrainRecipe>(&own(text), &[("batch_size", "16")]);
    assert_eq!(settings.optimizer.peak_lr(16), 1e-3);
    one(&said, &["does not let it follow the batch", "the linear rule gives 2.5e-4"]);
}

#[test]
fn warm_ups_fit_the_run() {
    let (settings, said) = fitted::<PretrainRecipe>("mim_base_300e", &[("epochs", "20")]);
    assert_eq!((settings.schedule.warmup_epochs, settings.schedule.warmup_steps), (2.0, None));
    one(&said, &["warm-up 2 epochs instead of 10", "a tenth of the run"]);
    let (settings, said) = fitted::<PretrainRecipe>("mim_base_300e", &[("epochs", "150")]);
    assert!(said.is_empty() && settings.schedule.warmup_epochs == 10.0, "{said:?}");
    let (settings, said) = fitted::<FinetuneRecipe>("finetune_base_1600e", &[("epochs", "30")]);
    assert!(near(settings.schedule.warmup_epochs, 6.0));
    one(&said, &["warm-up 6 epochs instead of 20", "20 % of the run, the recipe's share"]);
    let (settings, said) = fitted::<SegmentRecipe>("segment_base_ade20k", &[("steps", "500")]);
    assert_eq!((settings.schedule.steps, settings.schedule.warmup_steps), (Some(500), Some(50)));
    one(&said, &["warm-up 50 steps instead of 1,500"]);
    // Of epochs and steps, by way of the images: 48 in batches of 16.
    let data = [("data.train", "bundled:val"), ("schedule.epochs", "3")];
    let (settings, _) = fitted::<PretrainRecipe>("quickstart_pretrain", &data);
    assert!(near(settings.schedule.warmup_epochs, 0.3), "{:?}", settings.schedule);
    assert_eq!((settings.schedule.steps, settings.schedule.warmup_steps), (None, None));
    let given = [("epochs", "20"), ("warmup_epochs", "12")];
    let (settings, said) = fitted::<PretrainRecipe>("mim_base_300e", &given);
    assert_eq!(settings.schedule.warmup_epochs, 12.0);
    one(&said, &["the warm-up takes 60 % of the run", "schedule.warmup_epochs=2"]);
}

#[test]
fn the_codebook_starts_within_the_run() {
    let (settings, said) = fitted::<TokenizerRecipe>("quickstart_tokenizer", &[("steps", "100")]);
    assert_eq!((settings.codebook.kmeans_warmup_steps, settings.schedule.warmup_steps), (84, Some(10)));
    assert!(
        said.iter().any(|line| line.contains("the codebook starts after 84 steps instead of 1,350")),
        "{said:?}"
    );
    settings.check_steps(100).unwrap();
    let (settings, _) = fitted::<TokenizerRecipe>("quickstart_tokenizer", &[("steps", "8000")]);
    assert_eq!(settings.codebook.kmeans_warmup_steps, 1350);
    let given = [("steps", "100"), ("kmeans_warmup_steps", "100")];
    let (settings, _) = fitted::<TokenizerRecipe>("quickstart_tokenizer", &given);
    let error = settings.check_steps(100).unwrap_err().to_string();
    assert!(error.contains("kmeans_warmup_steps 100") && error.contains("fewer than 100"), "{error}");
}

#[test]
fn masks_follow_the_grid() {
    let (settings, said) = fitted::<PretrainRecipe>("mim_base_300e", &[("image_size", "192")]);
    assert_eq!((settings.mask.patches, settings.mask.min_block), (55, 12));
    one(&said, &["masks of 55 of 144 patches, in blocks of at least 12", "75 of 196"]);
    let (settings, _) = fitted::<PretrainRecipe>("mim_base_300e", &[("image_size", "32")]);
    assert_eq!((settings.mask.patches, settings.mask.min_block), (2, 1));
    settings.block_mask().validate().unwrap();
    let (settings, _) = fitted::<PretrainRecipe>("mim_base_300e", &[("image_size", "16")]);
    assert_eq!((settings.mask.patches, settings.mask.min_block), (1, 1));
    let (settings, _) = fitted::<PretrainRecipe>("mim_base_300e", &[("patch_size", "8")]);
    assert_eq!((settings.mask.patches, settings.mask.min_block), (300, 64));
    let given = [("image_size", "192"), ("mask.patches", "20")];
    let (settings, said) = fitted::<PretrainRecipe>("mim_base_300e", &given);
    assert_eq!((settings.mask.patches, settings.mask.min_block), (20, 12));
    let warning = said.iter().find(|line| line.contains("masks hide 14 % of the patches (20 of 144)"));
    assert!(warning.is_some_and(|line| line.contains("mask.patches=55")), "{said:?}");
    // On the recipe's own grid nothing but what is given changes.
    let (settings, said) = fitted::<PretrainRecipe>("mim_base_300e", &[("mask.patches", "10")]);
    assert_eq!((settings.mask.patches, settings.mask.min_block, said.len()), (10, 16, 1), "{said:?}");
    let recipe = own("stage = \"pretrain\"\n[model.vit]\nimage_size = 64\npatch_size = 8\n");
    let (settings, said) = fitted_of::<PretrainRecipe>(&recipe, &[]);
    assert_eq!((settings.mask.patches, settings.mask.min_block), (24, 5));
    one(&said, &["the default share (75 of 196"]);
}

#[test]
fn windows_follow_the_crop() {
    let (settings, said) = fitted::<SegmentRecipe>("segment_base_ade20k", &[("image_size", "256")]);
    assert_eq!(settings.infer.stride, Some(170));
    one(&said, &["windows of 256 px lie 170 px apart"]);
    settings.infer.validate(256).unwrap();
}

#[test]
fn small_images_are_told_with_what_would_fit() {
    let crop = Crop { input: 224, patch: 16, min_scale: 0.2, key: "augment.min_crop_scale" };
    assert_eq!(small_crops(crop, &[(500, 400); 20]), None);
    assert_eq!(small_crops(crop, &[]), None);
    let line = small_crops(crop, &[(240, 240); 20]).unwrap();
    for part in
        ["the model's input of 224 × 224", "240 × 240 pixels", "--image-size 160", "augment.min_crop_scale="]
    {
        assert!(line.contains(part), "no `{part}` in: {line}");
    }
    let line = small_crops(crop, &[(12, 12); 20]).unwrap();
    assert!(line.starts_with("about 100 % of the crops") && !line.contains("--"), "{line}");
}

#[test]
fn numbers_as_one_types_them() {
    let texts = [2.34375e-5, 1e-3, 0.05, 2.0, 1.5e-3, 12345.0].map(short);
    assert_eq!(texts, ["2.34e-5", "1e-3", "0.05", "2", "1.5e-3", "1.23e4"]);
}
