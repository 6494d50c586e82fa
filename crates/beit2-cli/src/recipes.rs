//! Recipes by name (inside the program) or by path, and the settings they resolve to.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use beit2::train::SCHEDULE_ALTERNATIVES;
use beit2_run::{recipe, suggest};

use crate::assets::AssetStore;
use crate::errors::usage;
use crate::fit::{self, Fitted, Layers};
use crate::stage::Stage;

include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// A recipe's text and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// File name without `.toml`; names the run.
    pub name: String,
    /// For messages: the path, or `recipe NAME`.
    pub origin: String,
    /// TOML.
    pub text: String,
}

impl Recipe {
    /// What the recipe is for: `tokenizer`, `pretrain`, `distill`; `None` when it does not say.
    pub fn stage(&self) -> Option<String> {
        let table: toml::Table = toml::from_str(&self.text).ok()?;
        Some(table.get("stage")?.as_str()?.to_owned())
    }

    /// Whether it is one of those inside the program.
    pub fn is_bundled(&self) -> bool {
        RECIPES.iter().any(|&(name, text)| name == self.name && text == self.text)
    }

    /// The first sentence of its comment.
    pub fn title(&self) -> String {
        let line = recipe::header(&self.text).lines().next().unwrap_or_default();
        line.trim_start_matches(['#', ' ']).to_owned()
    }
}

/// All recipes inside the program, by name.
pub fn all() -> impl Iterator<Item = Recipe> {
    RECIPES.iter().map(|&(name, text)| Recipe {
        name: name.to_owned(),
        origin: format!("recipe {name}"),
        text: text.to_owned(),
    })
}

/// The recipe that a user means: a file when it looks like one or exists, else a name.
pub fn find(what: &str) -> anyhow::Result<Recipe> {
    let path = Path::new(what);
    if path.join("run.toml").is_file() {
        return usage(format!(
            "{what} is a run, not a recipe; to continue it, give the command that began it, with --out {what}"
        ));
    }
    if what.contains(['/', '\\']) && !what.ends_with(".toml") && !path.is_file() {
        return usage(format!(
            "there is no recipe {what}; a recipe is a name from `beit2 recipes` or a .toml file, and a run is named with --out"
        ));
    }
    if what.ends_with(".toml") || what.contains(['/', '\\']) || path.is_file() {
        let text = match std::fs::read_to_string(path) {
            Err(_) if path.is_dir() => {
                return usage(format!(
                    "{what} is a folder, and a recipe was expected here: a name (`beit2 recipes` lists them) or a .toml file; images are named with --data"
                ));
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return usage(format!(
                    "{what} is no recipe, which is a text; `beit2 recipes` lists those inside"
                ));
            }
            text => text.with_context(|| format!("cannot read the recipe {what}"))?,
        };
        if let Some(command) = command_of_run(&text) {
            return usage(format!(
                "{what} is the record of a run, not a recipe; to continue or repeat the run (with another --out), use its command: {command}"
            ));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Recipe { name, origin: what.to_owned(), text });
    }
    if let Some(found) = all().find(|recipe| recipe.name == what) {
        return Ok(found);
    }
    let names: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
    let hint = match suggest(what, names.iter().copied()) {
        Some(name) => format!("did you mean `{name}`? (`beit2 recipes` lists them all)"),
        None => "`beit2 recipes` lists them, and a path to a .toml file works too".to_owned(),
    };
    usage(format!("no recipe is called `{what}`; {hint}"))
}

/// Keys of which the first takes the second away where a recipe or the flags give only the first: the schedule's, and a
/// learning rate given without its batch, which is meant as it is.
const ALTERNATIVES: [(&str, &str); 4] = [
    SCHEDULE_ALTERNATIVES[0],
    SCHEDULE_ALTERNATIVES[1],
    SCHEDULE_ALTERNATIVES[2],
    ("optimizer.lr", "optimizer.base_batch_size"),
];

/// The settings of a recipe with overrides by name, complete; those that follow others are fitted to them.
pub fn fitted<S: Stage>(
    recipe: &Recipe,
    overrides: &[(String, String)],
    assets: &AssetStore,
) -> anyhow::Result<(S, Fitted)> {
    let mut settings: S = resolve(recipe, overrides)?;
    // What is missing is said by a later check, which also names the flags.
    let tables = settings.tables();
    if !tables.data.train.is_empty() && !tables.weights.1.is_empty() {
        settings.resolve(assets)?;
    }
    let layers = Layers {
        recipe: resolve(recipe, &[])?,
        defaults: S::default(),
        text: recipe::text_keys(&recipe.text).into_iter().collect(),
        given: recipe::given::<S>(overrides)?.into_keys().collect(),
        is_bundled: recipe.is_bundled(),
        images: settings.source(assets, &settings.tables().data.train).ok().map(|train| train.epoch_len()),
    };
    let said = fit::fit(&mut settings, &layers);
    Ok((settings, said))
}

/// The command of a run, if this is the text of its `run.toml`.
fn command_of_run(text: &str) -> Option<String> {
    let table: toml::Table = text.parse().ok()?;
    table.get("fingerprint")?;
    Some(table.get("environment")?.get("command")?.as_str()?.to_owned())
}

/// The settings of a recipe with overrides by name, complete and checked.
pub fn resolve<S: Stage>(recipe: &Recipe, overrides: &[(String, String)]) -> anyhow::Result<S> {
    // Before the keys: all of another stage's keys would be unknown.
    if let Some(stage) = recipe.stage().filter(|stage| stage != S::NAME) {
        let right = crate::stage::command_of(&stage);
        let right = right.map(|command| format!("; use `beit2 {command}`")).unwrap_or_default();
        return usage(format!(
            "{} is a recipe for stage `{stage}`, but `beit2 {}` needs one for `{}`{right}",
            recipe.origin,
            S::COMMAND,
            S::NAME
        ));
    }
    Ok(recipe::resolve(&recipe.text, &recipe.origin, overrides, &ALTERNATIVES)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use beit2::classify::finetune::FinetuneRecipe;
    use beit2::pretrain::PretrainRecipe;
    use beit2::segment::{SegmentRecipe, SegmenterConfig};
    use beit2::tokenizer::TokenizerRecipe;
    use beit2::tokenizer::teachers::DistillRecipe;

    #[test]
    fn every_recipe_is_strict_and_says_what_it_is() {
        assert!(all().count() >= 7);
        for recipe in all() {
            let stage = recipe.stage().unwrap_or_default();
            let checked = match stage.as_str() {
                TokenizerRecipe::NAME => resolve::<TokenizerRecipe>(&recipe, &[]).map(|r| r.validate()),
                PretrainRecipe::NAME => resolve::<PretrainRecipe>(&recipe, &[]).map(|r| r.validate()),
                FinetuneRecipe::NAME => {
                    let any = [("init.weights".to_owned(), "scratch".to_owned())];
                    resolve::<FinetuneRecipe>(&recipe, &any).map(|r| r.validate())
                }
                SegmentRecipe::NAME => {
                    let any = [("init.weights", "scratch"), ("model.classes", "150")];
                    let any = any.map(|(key, value)| (key.to_owned(), value.to_owned()));
                    resolve::<SegmentRecipe>(&recipe, &any).map(|r| r.validate())
                }
                DistillRecipe::NAME => resolve::<DistillRecipe>(&recipe, &[]).map(|r| r.model.validate()),
                _ => panic!("{} does not say its stage", recipe.name),
            };
            checked.unwrap().unwrap();
            let header = recipe::header(&recipe.text);
            for part in ["Source", "Hardware", "Time", "Expect", "Run"] {
                assert!(header.contains(&format!("\n# {part}")), "{} lacks `{part}`", recipe.name);
            }
            assert!(header.contains(&format!("beit2 {}", crate::stage::command_of(&stage).unwrap())));
        }
    }

    #[test]
    fn intervals_of_zero_are_refused() {
        fn check<S: Stage>(keys: &[&str]) {
            for key in keys {
                let zero = [((*key).to_owned(), "0".to_owned())];
                let settings: S = recipe::resolve("", "x.toml", &zero, &[]).unwrap();
                let text = settings.check().unwrap_err().to_string();
                assert!(text.contains(&format!("{key} is 0")), "{}: {text}", S::NAME);
            }
        }
        let shared = ["logging.checkpoint_every", "logging.eval_every_epochs"];
        let with = |own: &[&'static str]| [&shared[..], own].concat();
        check::<TokenizerRecipe>(&with(&["codebook.revive_after_steps"]));
        check::<PretrainRecipe>(&shared);
        check::<FinetuneRecipe>(&shared);
        check::<SegmentRecipe>(&with(&["eval.every"]));
        check::<DistillRecipe>(&with(&["view_epochs"]));
    }

    #[test]
    fn optional_keys_can_be_taken_away_and_stay_away() {
        fn check<S: Stage + PartialEq + std::fmt::Debug>(optional: &[&str]) {
            let none: Vec<_> = optional.iter().map(|key| ((*key).to_owned(), "none".to_owned())).collect();
            let settings: S = recipe::resolve("", "x.toml", &none, &[]).unwrap();
            let text = recipe::to_toml(&settings).unwrap();
            let printed = toml::Value::Table(text.parse().unwrap());
            for key in optional {
                let value = key.split('.').try_fold(&printed, |at, part| at.get(part));
                assert!(
                    value.is_none_or(|value| value.as_str() == Some("none")),
                    "{}: {key} is still there",
                    S::NAME
                );
            }
            // A continued run reads its own recipe: nothing that was taken away may come back.
            assert_eq!(recipe::resolve::<S>(&text, "x.toml", &[], &[]).unwrap(), settings);
        }
        let shared = [
            "data.val",
            "optimizer.base_batch_size",
            "optimizer.weight_decay_end",
            "optimizer.clip_grad",
            "schedule.steps",
            "schedule.warmup_steps",
            "logging.checkpoint_every",
            "logging.eval_every_epochs",
        ];
        let with = |own: &[&'static str]| [&shared[..], own].concat();
        check::<TokenizerRecipe>(&with(&["teacher.heads", "teacher.layer", "codebook.revive_after_steps"]));
        check::<PretrainRecipe>(&with(&["tokenizer.variant", "tokenizer.cache", "mask.max_block"]));
        check::<FinetuneRecipe>(&with(&[
            "ema_decay",
            "model.classes",
            "eval.crop_pct",
            "eval.images_per_batch",
        ]));
        check::<SegmentRecipe>(&with(&["model.classes", "eval.every", "infer.stride"]));
        check::<DistillRecipe>(&with(&["teacher.heads", "teacher.layer", "view_epochs"]));
    }

    /// The values of docs/method.md §2.6 and §3.5 that the paper's tables rest on.
    #[test]
    fn paper_recipes_hold_the_papers_values() {
        let get = |name: &str| find(name).unwrap();
        for (name, decoder, dim) in [
            ("vqkd_base_clip_100e", 3, 512),
            ("vqkd_base_dino_100e", 1, 768),
            ("vqkd_base_clip_dec1_100e", 1, 512),
        ] {
            let r: TokenizerRecipe = resolve(&get(name), &[]).unwrap();
            assert_eq!((r.model.decoder_depth, r.model.teacher_dim), (decoder, dim), "{name}");
            assert_eq!((r.model.codebook_size, r.model.code_dim, r.model.kmeans_init), (8192, 32, true));
            assert_eq!((r.schedule.epochs, r.schedule.batch_size), (100, 512));
            assert!((r.optimizer.peak_lr(512) - 2e-4).abs() < 1e-12 && r.optimizer.beta2 == 0.99);
            assert_eq!((r.optimizer.weight_decay, r.optimizer.clip_grad), (1e-4, None));
        }
        for (name, epochs, early, beta2, drop, gamma) in [
            ("mim_base_300e", 300, 9, 0.98, 0.0, 0.1),
            ("mim_base_1600e", 1600, 9, 0.999, 0.1, 0.1),
            ("mim_large_300e", 300, 21, 0.98, 0.0, 1e-5),
            ("mim_large_1600e", 1600, 21, 0.999, 0.1, 1e-5),
        ] {
            let r: PretrainRecipe = resolve(&get(name), &[]).unwrap();
            assert_eq!((r.schedule.epochs, r.schedule.batch_size), (epochs, 2048), "{name}");
            assert_eq!(
                (r.model.intermediate_layer, r.model.head_layers, r.model.shared_lm_head),
                (early, 2, true)
            );
            assert_eq!((r.optimizer.beta2, r.model.vit.drop_path), (beta2, drop), "{name}");
            assert_eq!((r.model.vit.layer_scale_init, r.mask.patches), (gamma, 75), "{name}");
            assert_eq!((r.optimizer.peak_lr(2048), r.optimizer.clip_grad), (1.5e-3, Some(3.0)));
        }
    }

    /// The values of docs/method.md §5.
    #[test]
    fn segmentation_recipes_hold_the_papers_values() {
        for (name, lr, decay, drop, gamma, channels) in [
            ("segment_base_ade20k", 5e-5, 0.75, 0.15, 0.1, 768),
            ("segment_base_21k_ade20k", 5e-5, 0.85, 0.15, 0.1, 768),
            ("segment_large_ade20k", 4e-5, 0.9, 0.2, 1e-6, 1024),
            ("segment_large_21k_ade20k", 3e-5, 0.9, 0.2, 1e-6, 1024),
        ] {
            let r: SegmentRecipe = resolve(&find(name).unwrap(), &[]).unwrap();
            assert_eq!((r.optimizer.peak_lr(16), r.groups.layer_decay), (lr, decay), "{name}");
            assert_eq!((r.model.vit.drop_path, r.model.vit.layer_scale_init), (drop, gamma), "{name}");
            assert_eq!((r.model.channels, r.model.vit.width), (channels, channels), "{name}");
            assert_eq!(r.model.out_indices, SegmenterConfig::taps(r.model.vit.depth), "{name}");
            assert_eq!(
                (r.schedule.steps, r.schedule.warmup_steps, r.schedule.batch_size),
                (Some(160_000), Some(1500), 16)
            );
            assert_eq!(
                (r.augment.base, r.model.vit.image_size, r.infer.stride),
                ([2048, 512], 512, Some(341))
            );
            assert_eq!((r.optimizer.weight_decay, r.optimizer.clip_grad), (0.05, None));
        }
    }

    #[test]
    fn mistakes_are_named() {
        let text = find("mim_bas_300e").unwrap_err().to_string();
        assert!(text.contains("did you mean `mim_base_300e`"), "{text}");
        let mim = find("mim_base_300e").unwrap();
        let text = resolve::<TokenizerRecipe>(&mim, &[]).unwrap_err().to_string();
        assert!(text.contains("use `beit2 pretrain`"), "{text}");
        let lr = [("optimiser.lr".to_owned(), "1".to_owned())];
        let text = resolve::<PretrainRecipe>(&mim, &lr).unwrap_err().to_string();
        assert!(text.contains("did you mean `optimizer.lr`"), "{text}");
    }
}
