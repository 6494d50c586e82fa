//! What `beit2 init` prints.

use std::path::Path;

use beit2_run::{format_duration, thousands};
use serde_json::{Value, json};

use super::plan::{Goal, Plan};
use crate::output;

/// What was looked at, for the first lines.
pub struct Summary<'a> {
    pub out: &'a Path,
    pub goal: Goal,
    pub machine: String,
    /// How the speed is known.
    pub speed: String,
    /// How validation images were chosen, in a sentence.
    pub validation: String,
    pub images: usize,
    pub val_images: usize,
    pub classes: usize,
    pub short: u32,
    pub long: u32,
    /// Seconds that were wanted.
    pub wanted: f64,
}

impl Summary<'_> {
    /// As text.
    pub fn text(&self, plan: &Plan) -> String {
        let mut rows = vec![
            vec!["project".to_owned(), self.out.display().to_string(), String::new()],
            vec!["machine".to_owned(), self.machine.clone(), self.speed.clone()],
            vec![
                "images".to_owned(),
                format!(
                    "{} to train on, {} to validate",
                    thousands(self.images as u64),
                    thousands(self.val_images as u64)
                ),
                self.validation.clone(),
            ],
        ];
        rows.extend(
            plan.choices
                .iter()
                .map(|(name, value, why)| vec![(*name).to_owned(), value.clone(), why.clone()]),
        );
        for stage in &plan.stages {
            let key = |wanted: &str| {
                stage.comments.iter().find(|(key, _)| *key == wanted).map(|(_, why)| why.clone())
            };
            rows.push(vec![
                stage.name.to_owned(),
                format!("{} steps of {} images", thousands(stage.steps), stage.batch),
                key("schedule.steps").unwrap_or_default(),
            ]);
            for (name, value, wanted) in chosen(stage.name, &stage.settings) {
                rows.push(vec![String::new(), format!("{name} {value}"), key(wanted).unwrap_or_default()]);
            }
        }
        let mut stages: Vec<Vec<String>> = plan
            .stages
            .iter()
            .map(|stage| {
                vec![
                    stage.name.to_owned(),
                    format!("{:.0}", stage.images_per_second),
                    format_duration(stage.seconds),
                    beit2_run::environment::format_bytes(stage.bytes),
                ]
            })
            .collect();
        let total = total(plan);
        stages.push(vec!["all".to_owned(), String::new(), format_duration(total), String::new()]);
        let table = output::table(&["stage", "images/s", "time, about", "memory, about"], &stages);
        let mut text = format!("{}\n{table}", output::columns(&rows));
        if total > 1.15 * self.wanted {
            text.push_str(&format!(
                "This is more than the {} that were wanted: fewer steps would teach nothing.\n",
                format_duration(self.wanted)
            ));
        } else if total < 0.6 * self.wanted {
            text.push_str(&format!(
                "This is less than the {} that were wanted: with so few images, more epochs would not help.\n",
                format_duration(self.wanted)
            ));
        }
        text.push_str(&format!(
            "\nRead the recipes in {0}, change what you like, then: beit2 run {0}\n",
            shown(self.out)
        ));
        text
    }

    /// As the object of `--json`.
    pub fn json(&self, plan: &Plan) -> Value {
        let stages: Vec<Value> = plan
            .stages
            .iter()
            .map(|stage| {
                json!({
                    "stage": stage.name,
                    "recipe": self.out.join(format!("{}.toml", stage.name)),
                    "run": self.out.join("runs").join(stage.name),
                    "steps": stage.steps,
                    "batch_size": stage.batch,
                    "epochs": stage.epochs,
                    "images_per_second": stage.images_per_second,
                    "seconds": stage.seconds,
                    "memory_bytes": stage.bytes,
                    "choices": stage.comments.iter().map(|(key, why)| json!({ "key": key, "why": why })).collect::<Vec<_>>(),
                })
            })
            .collect();
        let choices: Vec<Value> = plan
            .choices
            .iter()
            .map(|(name, value, why)| json!({ "name": name, "value": value, "why": why }))
            .collect();
        json!({
            "project": self.out,
            "goal": self.goal.name(),
            "machine": self.machine,
            "speed": self.speed,
            "size": plan.size.name(),
            "images": self.images,
            "val_images": self.val_images,
            "classes": self.classes,
            "median_sides": [self.short, self.long],
            "validation": self.validation,
            "choices": choices,
            "stages": stages,
            "seconds": total(plan),
            "next": format!("beit2 run {}", shown(self.out)),
        })
    }
}

fn total(plan: &Plan) -> f64 {
    plan.stages.iter().map(|stage| stage.seconds).sum()
}

/// A folder relative to the current one where it lies inside, as a person would type it.
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let short = path.strip_prefix(&here).unwrap_or(path).display().to_string();
    match short.contains(' ') {
        true => format!("'{short}'"),
        false => short,
    }
}

/// The settings of a stage that the table shows: name, value, full key.
fn chosen(_: &str, settings: &super::plan::Settings) -> Vec<(&'static str, String, &'static str)> {
    use super::plan::Settings;
    match settings {
        Settings::Tokenizer(recipe) => vec![
            ("codebook_size", recipe.model.codebook_size.to_string(), "model.codebook_size"),
            ("lr", format!("{:e}", recipe.optimizer.lr), "optimizer.lr"),
        ],
        Settings::Pretrain(recipe) => vec![
            ("mask.patches", recipe.mask.patches.to_string(), "mask.patches"),
            ("min_crop_scale", recipe.augment.min_crop_scale.to_string(), "augment.min_crop_scale"),
            ("lr", format!("{:e}", recipe.optimizer.lr), "optimizer.lr"),
        ],
        Settings::Finetune(recipe) => vec![
            ("lr", format!("{:e}", recipe.optimizer.lr), "optimizer.lr"),
            ("use_rand_augment", recipe.augment.use_rand_augment.to_string(), "augment.use_rand_augment"),
        ],
        Settings::Segment(recipe) => vec![
            ("lr", format!("{:e}", recipe.optimizer.lr), "optimizer.lr"),
            ("base", format!("{:?}", recipe.augment.base), "augment.base"),
        ],
    }
}
