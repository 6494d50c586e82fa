//! `beit2 weights convert`: the same bits under other names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;
use beit2_run::atomic::{FileError, write_bytes_atomic};
use beit2_weights::convert::{Converted, convert, hf_config, timm_config};
use beit2_weights::inspect::inspect;
use beit2_weights::layout::{Family, Kind, Layout, account};
use beit2_weights::{Checkpoint, Format, write_safetensors};
use clap::ValueHint;
use serde_json::json;

use super::about;
use crate::errors::{Ending, usage};
use crate::flags::{JsonArgs, NamesArg, WeightFileArgs};
use crate::output;

/// Flags of `weights convert`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Values keep their types and bits; whatever the other format cannot hold is listed. If OUT ends in .safetensors it \
    is a file. Any other OUT is a folder, which gets model.safetensors and, for timm and hf, config.json, so that \
    from_pretrained(OUT) and timm.create_model(\"local-dir:OUT\") can open it.\n\n\
    Examples:\n  beit2 weights convert beitv2_base_patch16_224_pt1k_ft1k.pth --to hf -o beitv2_base_hf\n  \
    beit2 weights convert beitv2_base_hf --to official -o beitv2_base.safetensors"
)]
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

    /// Number of attention heads for config.json; needed only for models without relative position bias
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
    config: Option<PathBuf>,
}

/// Converts it.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    let target = target(&args.out, args.to)?;
    for file in [Some(&target.model), target.config.as_ref()].into_iter().flatten() {
        if file.exists() && !args.force {
            bail!("{} already exists; choose another name, or replace it with --force", file.display());
        }
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
    let converted = about(convert(checkpoint.load_all()?, from, args.to.into()), &checkpoint)?;
    let config = match (&target.config, args.to) {
        (None, _) | (_, NamesArg::Official) => None,
        (Some(path), to) => Some((path, config(args, to, &converted, &checkpoint)?)),
    };
    let metadata = metadata(&checkpoint, kind.kind == converted.layout.kind);
    let folder = target.model.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| *folder == args.out) {
        fs::create_dir_all(folder).map_err(|e| FileError::new("create the folder", folder, e))?;
    }
    // The model comes last: a folder that has it is complete.
    if let Some((path, text)) = &config {
        write_bytes_atomic(path, text.as_bytes())?;
    }
    let tensors = converted.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    write_safetensors(&target.model, tensors, &metadata)?;
    report(args, kind, &target, &converted)?;
    Ok(Ending::Done)
}

/// Where to write, by the name of OUT.
fn target(out: &Path, to: NamesArg) -> anyhow::Result<Target> {
    let ending = out.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    match ending.as_str() {
        "safetensors" => return Ok(Target { model: out.to_owned(), config: None }),
        "pth" | "pt" | "bin" | "ckpt" | "pkl" | "onnx" | "npz" | "json" => {
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
    let config = (to != NamesArg::Official).then(|| out.join("config.json"));
    Ok(Target { model: out.join("model.safetensors"), config })
}

/// The layout that `--from` asks for: the family is given, the model in it is found.
fn forced(checkpoint: &Checkpoint, family: Family) -> anyhow::Result<Layout> {
    let names = checkpoint.tensors.keys().map(String::as_str);
    let kind: Kind = about(account(names), checkpoint)?.layout.kind;
    Ok(Layout { family, kind })
}

fn config(
    args: &Args,
    to: NamesArg,
    converted: &Converted,
    checkpoint: &Checkpoint,
) -> anyhow::Result<String> {
    let summary = about(inspect(&converted.tensors), checkpoint)?.with_metadata(&checkpoint.metadata);
    about(checkpoint.beside.check(&summary), checkpoint)?;
    let heads = args.heads.or(checkpoint.beside.sizes.heads);
    let value = match to {
        NamesArg::Hf => hf_config(&summary, heads),
        NamesArg::Timm | NamesArg::Official => timm_config(&summary, heads),
    };
    if summary.heads.is_none() && heads.is_none() && value.is_err() {
        return usage(format!(
            "{}: weights without relative position bias do not show the number of attention heads; give it with --heads N",
            checkpoint.path().display()
        ));
    }
    Ok(serde_json::to_string_pretty(&about(value, checkpoint)?)? + "\n")
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

fn report(args: &Args, from: Layout, target: &Target, converted: &Converted) -> anyhow::Result<()> {
    let files: Vec<String> = [Some(&target.model), target.config.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| path.display().to_string())
        .collect();
    if args.output.json {
        let left_out = converted.left_out.iter().map(|(name, why)| json!({ "name": name, "why": why }));
        return output::json(&json!({
            "files": files,
            "from": from.to_string(),
            "to": converted.layout.to_string(),
            "tensors": converted.tensors.len(),
            "left_out": left_out.collect::<Vec<_>>(),
        }));
    }
    output::result(&format!(
        "{}: {from} to {}, {} tensors",
        files.join(" and "),
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
    Ok(())
}
