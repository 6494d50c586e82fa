//! `beit2 weights convert`: the same bits under other names, with the files that other libraries want beside them.

mod card;
mod facts;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;
use beit2::weights::{self, StateFile};
use beit2_run::atomic::{AtomicFile, FileError};
use beit2_weights::convert::{Converted, Facts, convert, hf_config, hf_preprocessor, timm_config};
use beit2_weights::inspect::{ModelSummary, inspect};
use beit2_weights::layout::{Family, Kind, Layout, LayoutError, account};
use beit2_weights::verify::verify;
use beit2_weights::{Checkpoint, Format, write_safetensors_to};
use clap::ValueHint;
use serde_json::json;

use self::card::Card;
use super::about;
use crate::errors::{Ending, usage};
use crate::flags::{JsonArgs, NamesArg, WeightFileArgs};
use crate::output;

/// Flags of `weights convert`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 weights convert runs/classifier --to hf --out classifier_hf\n\
    \x20 beit2 weights convert runs/classifier --to timm --out classifier_timm\n\
    \x20 beit2 weights convert classifier_hf --to official --out classifier.safetensors\n\
    \n\
    Values keep their types and bits; what the other layout cannot hold is listed.\n\
    If --out ends in .safetensors, it is a file. Else it is a folder, which gets\n\
    model.safetensors and, for timm and hf, config.json and a model card\n\
    (README.md); for hf also preprocessor_config.json. These open it:\n\
    \x20 pipeline(\"image-classification\", \"classifier_hf\")\n\
    \x20 timm.create_model(\"local-dir:classifier_timm\", pretrained=True)")]
pub struct Args {
    #[command(flatten)]
    source: WeightFileArgs,

    /// Names to write
    #[arg(long, value_name = "NAMES")]
    to: NamesArg,

    /// Output file (*.safetensors) or folder
    #[arg(long, short, value_name = "OUT", value_hint = ValueHint::AnyPath)]
    out: PathBuf,

    /// Names that the file has [default: recognised by its keys]
    #[arg(long, value_name = "NAMES")]
    from: Option<NamesArg>,

    /// Number of attention heads for config.json, where neither the weights nor their metadata show it
    #[arg(long, value_name = "N")]
    heads: Option<usize>,

    /// Replace existing files
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    output: JsonArgs,
}

/// The files that will be written.
struct Target {
    model: PathBuf,
    /// The folder that gets the files beside the model.
    folder: Option<PathBuf>,
}

impl Target {
    /// Every file, the model last: a folder that has it is complete.
    fn files(&self, to: NamesArg) -> Vec<PathBuf> {
        let beside: &[&str] = match to {
            NamesArg::Official => &[],
            NamesArg::Timm => &[CONFIG, CARD],
            NamesArg::Hf => &[CONFIG, PREPROCESSOR, CARD],
        };
        let beside = self.folder.iter().flat_map(|folder| beside.iter().map(|name| folder.join(name)));
        beside.chain([self.model.clone()]).collect()
    }
}

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const CARD: &str = "README.md";

/// Converts it.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    let target = target(&args.out)?;
    let files = target.files(args.to);
    if target.folder.is_none() {
        output::check_new_file(&target.model, args.force)?;
    }
    for file in files.iter().rev().filter(|file| file.exists()) {
        output::check_new_file(file, args.force)?;
    }
    let checkpoint = args.source.open()?;
    let from = match args.from {
        Some(names) => Some(forced(&checkpoint, names.into())?),
        None => None,
    };
    for note in checkpoint.notes() {
        output::note(&format!("{}: {note}", args.source.file));
    }
    let kind = match from {
        Some(layout) => layout,
        None => about(account(checkpoint.tensors.keys().map(String::as_str)), &checkpoint)?.layout,
    };
    // Half a model under other names would only be found out by whoever loads it.
    let summary = about(verify(&checkpoint.tensors), &checkpoint)?;
    if let Some(problem) = summary.contradiction(&checkpoint.metadata) {
        bail!("{}: {problem}", checkpoint.path().display());
    }
    let converted = about(convert(checkpoint.load_all()?, from, args.to.into()), &checkpoint)?;
    let (beside, notes) = match args.to {
        NamesArg::Official => (Vec::new(), lost(&checkpoint)),
        to => beside(args, to, &target, &converted, &checkpoint)?,
    };
    let metadata = metadata(&checkpoint, kind.kind == converted.layout.kind);
    write(&target, &beside, &converted, &metadata)?;
    report(args, kind, &files, &converted, &notes)?;
    Ok(Ending::Done)
}

/// Writes all files or none: where one cannot be written, what was there before is there again.
fn write(
    target: &Target,
    beside: &[(&str, String)],
    converted: &Converted,
    metadata: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let mut made = Made::default();
    if let Some(folder) = &target.folder {
        made.folders(folder)?;
    }
    let mut files = Vec::new();
    for (name, text) in target.folder.iter().flat_map(|_| beside) {
        let path = target.folder.as_deref().unwrap_or(Path::new("")).join(name);
        let mut file = AtomicFile::create(&path)?;
        // Flushed here and below, so that a full disk is found out before any file takes its name.
        let written = file.write_all(text.as_bytes()).and_then(|()| file.flush());
        written.map_err(|error| FileError::new("write", &path, error))?;
        files.push((path, file));
    }
    let tensors = converted.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let mut model = AtomicFile::create(&target.model)?;
    write_safetensors_to(&mut model, &target.model, tensors, metadata)?;
    model.flush().map_err(|error| FileError::new("write", &target.model, error))?;
    files.push((target.model.clone(), model));
    for (path, file) in files {
        let new = !path.exists();
        file.commit()?;
        made.files.extend(new.then_some(path));
    }
    made.keep();
    Ok(())
}

/// Files and folders that this command made, and that go away again when it fails.
#[derive(Default)]
struct Made {
    files: Vec<PathBuf>,
    /// The outermost first.
    folders: Vec<PathBuf>,
}

impl Made {
    fn folders(&mut self, folder: &Path) -> Result<(), FileError> {
        let parents = folder.ancestors().filter(|path| !path.as_os_str().is_empty());
        let mut missing: Vec<PathBuf> =
            parents.take_while(|path| !path.exists()).map(Path::to_path_buf).collect();
        missing.reverse();
        fs::create_dir_all(folder).map_err(|e| FileError::new("create the folder", folder, e))?;
        self.folders = missing;
        Ok(())
    }

    fn keep(mut self) {
        self.files.clear();
        self.folders.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // What cannot be removed stays; the command has failed with a better reason.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        for folder in self.folders.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The official layout is tensors alone.
fn lost(checkpoint: &Checkpoint) -> Vec<String> {
    let beside = &checkpoint.beside;
    match beside.is_empty() {
        true => Vec::new(),
        false => vec![format!(
            "the official layout has no place for what {} says; name it when you use the file (--normalization, --heads, \
             --names)",
            beside.files.join(" and ")
        )],
    }
}

/// Where to write, by the name of OUT.
fn target(out: &Path) -> anyhow::Result<Target> {
    let ending = out.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    match ending.as_str() {
        "safetensors" => return Ok(Target { model: out.to_owned(), folder: None }),
        "onnx" => {
            return usage(format!("{}: `beit2 weights export` writes ONNX files", out.display()));
        }
        "pth" | "pt" | "bin" | "ckpt" | "pkl" | "npz" | "json" => {
            return usage(format!(
                "{}: weights are written as safetensors; name a file *.safetensors or a folder",
                out.display()
            ));
        }
        _ => {}
    }
    if out.is_file() {
        return usage(format!("{} is a file; name a file *.safetensors or a folder", out.display()));
    }
    Ok(Target { model: out.join("model.safetensors"), folder: Some(out.to_owned()) })
}

/// The layout that `--from` asks for: the family is given, the model in it is found.
fn forced(checkpoint: &Checkpoint, family: Family) -> anyhow::Result<Layout> {
    let names = checkpoint.tensors.keys().map(String::as_str);
    let kind: Kind = about(account(names), checkpoint)?.layout.kind;
    Ok(Layout { family, kind })
}

/// Names and contents of the files beside the model, and what the user should know. Made for a single file too: what cannot
/// be configured there is refused here.
#[allow(clippy::type_complexity)] // two lists
fn beside(
    args: &Args,
    to: NamesArg,
    target: &Target,
    converted: &Converted,
    checkpoint: &Checkpoint,
) -> anyhow::Result<(Vec<(&'static str, String)>, Vec<String>)> {
    let summary = about(inspect(&converted.tensors), checkpoint)?;
    let mut file = weights::open(args.source.entry.reading().spec(&args.source.file))?;
    let warnings = std::mem::take(&mut file.warnings);
    let facts = facts::of(&StateFile::new(file, &args.source.file)?, args.heads)?;
    if summary.heads.is_none() && facts.heads.is_none() {
        return usage(format!(
            "{}: weights without relative position bias do not show the number of attention heads; give it with --heads N",
            checkpoint.path().display()
        ));
    }
    let configs = about(configs(to, &summary, &facts), checkpoint)?;
    let kind = summary.layout.kind;
    let mut notes = warnings;
    notes.extend(facts::notes(&facts, kind, summary.classes, to == NamesArg::Hf));
    let mut files = Vec::new();
    for (name, config) in configs {
        files.push((name, serde_json::to_string_pretty(&config)? + "\n"));
    }
    let folder = target.folder.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let card = Card {
        name: if folder.is_empty() { "BEiT v2" } else { &folder },
        to: to.into(),
        summary: &summary,
        facts: &facts,
        source: checkpoint.path(),
        stage: checkpoint.metadata.get("beit2.stage").map(String::as_str),
        notes: &notes,
    };
    files.push((CARD, card.text()));
    Ok((files, notes))
}

fn configs(
    to: NamesArg,
    summary: &ModelSummary,
    facts: &Facts,
) -> Result<Vec<(&'static str, serde_json::Value)>, LayoutError> {
    Ok(match to {
        NamesArg::Hf => {
            vec![(CONFIG, hf_config(summary, facts)?), (PREPROCESSOR, hf_preprocessor(summary, facts)?)]
        }
        NamesArg::Timm | NamesArg::Official => vec![(CONFIG, timm_config(summary, facts)?)],
    })
}

/// What the new file says about itself. `format` is what transformers asks for; what this program wrote about its own runs
/// stays while it is the same model, so that converting there and back gives the same file.
fn metadata(checkpoint: &Checkpoint, same_model: bool) -> BTreeMap<String, String> {
    let own = checkpoint.metadata.iter().filter(|(name, _)| name.starts_with("beit2."));
    let own = own.filter(|_| same_model && checkpoint.format == Format::Safetensors);
    let mut metadata: BTreeMap<String, String> = own.map(|(k, v)| (k.clone(), v.clone())).collect();
    metadata.insert("format".to_owned(), "pt".to_owned());
    metadata
}

fn report(
    args: &Args,
    from: Layout,
    files: &[PathBuf],
    converted: &Converted,
    notes: &[String],
) -> anyhow::Result<()> {
    let files: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    if args.output.json {
        let left_out = converted.left_out.iter().map(|(name, why)| json!({ "name": name, "why": why }));
        return output::json(&json!({
            "files": files,
            "from": from.to_string(),
            "to": converted.layout.to_string(),
            "tensors": converted.tensors.len(),
            "left_out": left_out.collect::<Vec<_>>(),
            "notes": notes,
        }));
    }
    output::result(&format!(
        "{}: {from} to {}, {} tensors",
        files.join(", "),
        converted.layout,
        converted.tensors.len()
    ))?;
    // One line per reason: a teacher has hundreds of keys of one fate.
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (name, why) in &converted.left_out {
        match reasons.iter_mut().find(|(known, _)| known == why) {
            Some((_, names)) => names.push(output::printable(name)),
            None => reasons.push((why, vec![output::printable(name)])),
        }
    }
    for (why, names) in reasons {
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        output::result(&format!("left out: {}{more} ({why})", names[0]))?;
    }
    for note in notes {
        output::result(&format!("note: {note}"))?;
    }
    Ok(())
}
