//! The project's folder: written under another name and then renamed, so that it is complete or absent.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context;
use beit2_data::source::Spec;
use beit2_run::format_duration;
use toml::{Table, Value};

use super::look::{Found, Split};
use super::plan::{Goal, Plan, Planned};
use super::split;
use super::text::recipe_text;
use crate::errors::usage;

/// The list of stages in a project.
pub const PROJECT: &str = "project.toml";

/// Training and validation images in a project, where they were divided.
const TABLES: [&str; 2] = ["train.jsonl", "val.jsonl"];

/// A folder that becomes the project, and goes when that does not happen.
pub struct Staging {
    /// Where files are written now.
    pub at: PathBuf,
    /// Where they will be.
    pub out: PathBuf,
}

impl Staging {
    /// Begins, beside the final place.
    ///
    /// # Errors
    /// A place that cannot be written, or that is taken and may not be moved.
    pub fn new(out: &Path, force: bool) -> anyhow::Result<Self> {
        let out = std::path::absolute(out)?;
        if out.to_str().is_none() {
            return usage(format!(
                "{} is not UTF-8, and recipes name this folder; choose another --out",
                out.display()
            ));
        }
        let empty = fs::read_dir(&out).is_ok_and(|mut entries| entries.next().is_none());
        if out.exists() && !empty && !force {
            return usage(format!(
                "{} exists already; choose another folder with --out, or add --force, which moves it aside",
                out.display()
            ));
        }
        let name = out.file_name().context("--out names no folder")?.to_string_lossy();
        let parent = out.parent().context("--out names no folder")?;
        let at = parent.join(format!(".{name}.partial-{}", std::process::id()));
        fs::create_dir_all(&at).with_context(|| format!("cannot create {}", at.display()))?;
        Ok(Self { at, out })
    }

    /// Where a file will be, as recipes name it.
    pub fn later(&self, name: &str) -> String {
        self.out.join(name).display().to_string()
    }

    /// Where it is now.
    pub fn now(&self, name: &str) -> String {
        self.at.join(name).display().to_string()
    }

    /// Puts the folder into its place.
    pub fn publish(self) -> anyhow::Result<()> {
        // An empty folder is in nobody's way.
        if self.out.exists() && fs::remove_dir(&self.out).is_err() {
            let aside = (1..).map(|n| {
                let mut name = self.out.file_name().unwrap_or_default().to_owned();
                name.push(format!(".old-{n}"));
                self.out.with_file_name(name)
            });
            let aside = aside.take(10_000).find(|path| !path.exists()).context("too many old projects")?;
            fs::rename(&self.out, &aside)
                .with_context(|| format!("cannot move {} aside", self.out.display()))?;
        }
        fs::rename(&self.at, &self.out).with_context(|| format!("cannot create {}", self.out.display()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nothing is there after it was published.
        let _ = fs::remove_dir_all(&self.at);
    }
}

/// Writes the tables of divided images.
pub fn tables(staging: &Staging, found: &Found, divided: &Split) -> anyhow::Result<()> {
    for (name, val) in TABLES.into_iter().zip([false, true]) {
        let path = staging.at.join(name);
        let created = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut file = BufWriter::new(created);
        let wanted = |at: usize| divided.is_val[at] == val;
        match &found.masks {
            Some(masks) => split::write_pairs(&mut file, &masks.pairs, wanted)?,
            None => split::write_images(&mut file, found.source.as_ref(), wanted)?,
        }
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    }
    if let Some(masks) = &found.masks {
        fs::write(staging.at.join("classes.json"), &masks.list)?;
    }
    Ok(())
}

/// Names of training and validation images in a project, as recipes and commands use them.
pub struct Names {
    pub train: String,
    pub val: Option<String>,
}

impl Names {
    /// Of images, or of images with masks (`masks`), where `place` gives the place of a file of the project.
    pub fn of(
        found: &Found,
        divided: Option<&Split>,
        masks: bool,
        place: impl Fn(&str) -> String,
    ) -> anyhow::Result<Self> {
        if divided.is_some() {
            let [train, val] = TABLES.map(place);
            return Ok(Self { train, val: Some(val) });
        }
        // A folder with masks is more than its images.
        let images = |spec: &str| -> anyhow::Result<String> {
            match (&found.masks, masks) {
                (Some(_), false) if Path::new(spec).is_dir() => {
                    let options = beit2_data::segment::SegmentDataOptions {
                        // Of no matter for the images.
                        classes: Some(found.source.classes().len()),
                        ..beit2_data::segment::SegmentDataOptions::default()
                    };
                    let pairs = beit2_data::segment::open_segment(spec, &options)?;
                    super::look::absolute(&pairs.images_folder().display().to_string())
                }
                _ => super::look::absolute(spec),
            }
        };
        let val = found.val.as_ref().map(|(spec, _)| images(spec)).transpose()?;
        Ok(Self { train: images(&found.spec)?, val })
    }
}

/// Writes recipes, the list of stages and `run.sh`.
pub fn files(
    staging: &Staging,
    plan: &Plan,
    goal: Goal,
    names: &Names,
    labelled: bool,
) -> anyhow::Result<()> {
    let write = |name: &str, text: &str| {
        let path = staging.at.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    for stage in &plan.stages {
        write(&recipe_name(stage), &recipe_text(stage, &header(staging, stage))?)?;
    }
    write(PROJECT, &project(plan, goal, names, labelled)?)?;
    let script = staging.at.join("run.sh");
    write(
        "run.sh",
        "#!/bin/sh\n# All stages in order; the same command continues after an interruption.\nexec beit2 run \"$(dirname \"$0\")\" \"$@\"\n",
    )?;
    executable(&script)?;
    // What was written is on the disk before the folder gets its name.
    for entry in fs::read_dir(&staging.at)?.flatten().filter(|entry| entry.path().is_file()) {
        File::open(entry.path())?.sync_all()?;
    }
    Ok(())
}

/// The file of a stage's recipe.
pub fn recipe_name(stage: &Planned) -> String {
    format!("{}.toml", stage.name)
}

fn header(staging: &Staging, stage: &Planned) -> Vec<String> {
    let (recipe, run) = (staging.later(&recipe_name(stage)), staging.later(&format!("runs/{}", stage.name)));
    let what = match stage.name {
        "tokenizer" => "Stage 1: the tokenizer, which turns patches into tokens.",
        "pretrain" => "Stage 2: pretraining, which predicts the tokens of masked patches.",
        "finetune" => "Stage 3: a classifier, from the pretrained model.",
        _ => "Stage 3: segmentation, with the pretrained model as its backbone.",
    };
    let command = crate::stage::command_of(stage.name).unwrap_or(stage.name);
    let quoted = |path: &str| match path.chars().all(|c| c.is_alphanumeric() || "-_=./,+@%".contains(c)) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', r"'\''")),
    };
    vec![
        what.to_owned(),
        String::new(),
        "Source    made by `beit2 init` for these images and this machine; edit it as you like before its stage runs".to_owned(),
        format!(
            "Time      about {}, {} ({} steps of {} images at {:.0} images/s)",
            format_duration(stage.seconds),
            beit2_run::environment::format_bytes(stage.bytes),
            stage.steps,
            stage.batch,
            stage.images_per_second
        ),
        format!("Run       beit2 run {}", quoted(&staging.out.display().to_string())),
        format!("          or this stage alone: beit2 {command} {} --out {}", quoted(&recipe), quoted(&run)),
    ]
}

fn project(plan: &Plan, goal: Goal, names: &Names, labelled: bool) -> anyhow::Result<String> {
    let mut images = Table::new();
    images.insert("train".into(), names.train.as_str().into());
    if let Some(val) = &names.val {
        images.insert("val".into(), val.as_str().into());
    }
    images.insert("labels".into(), labelled.into());
    let stages = plan.stages.iter().map(|stage| {
        let mut table = Table::new();
        table.insert("stage".into(), stage.name.into());
        table.insert("recipe".into(), recipe_name(stage).into());
        table.insert("run".into(), format!("runs/{}", stage.name).into());
        table.insert("minutes".into(), ((stage.seconds / 6.0).round() / 10.0).into());
        Value::Table(table)
    });
    let mut table = Table::new();
    table.insert("version".into(), 1.into());
    table.insert("goal".into(), goal.name().into());
    table.insert("images".into(), images.into());
    table.insert("stages".into(), Value::Array(stages.collect()));
    Ok(format!(
        "# The stages of this project in order: `beit2 run` takes them one after the other. Recipes and runs are named from this\n\
         # folder; `minutes` is what `beit2 init` expected.\n\n{}",
        toml::to_string(&table)?
    ))
}

#[cfg(unix)]
fn executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn executable(_: &Path) -> anyhow::Result<()> {
    Ok(())
}

/// A folder for the project of these images, when none is named.
pub fn default_out(spec: &str) -> anyhow::Result<PathBuf> {
    let first = Spec::list(spec)?.into_iter().next().map(|spec| spec.path).unwrap_or_default();
    let name = match first.strip_prefix("bundled:") {
        Some(_) => "bundled".to_owned(),
        None => {
            let path = std::path::absolute(&first)?;
            let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
            stem.unwrap_or_default().to_string_lossy().into_owned()
        }
    };
    // Of a pattern, what is a name.
    let plain: String = name.chars().filter(|c| !"*?{}[],:".contains(*c)).collect();
    Ok(PathBuf::from(format!("{}-beit2", plain.trim_matches(['-', '.', ' ']))))
}
