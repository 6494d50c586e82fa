//! `beit2 weights inspect`: what a file holds, and whether its values are numbers.

use beit2_weights::Checkpoint;
use beit2_weights::inspect::{ModelSummary, Pooling, RelativeBias, inspect};
use beit2_weights::layout::{Account, LayoutError, account};
use beit2_weights::verify::verify;
use serde_json::{Value, json};

use super::{about, describe_format, describe_use};
use beit2_run::thousands;

use crate::errors::Ending;
use crate::flags::{JsonArgs, WeightFileArgs};
use crate::output;

/// Flags of `weights inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
    Examples:\n\
    \x20 beit2 weights inspect runs/mim\n\
    \x20 beit2 weights inspect runs/mim --keys\n\
    \x20 beit2 weights inspect checkpoint.pth --entry model_ema --json")]
pub struct Args {
    #[command(flatten)]
    source: WeightFileArgs,

    /// List every key with its type, its shape and what it is used for
    #[arg(long)]
    keys: bool,

    #[command(flatten)]
    output: JsonArgs,
}

/// What a state dict is, if it is a model of this program.
type Found = Result<(Account, ModelSummary), LayoutError>;

/// Prints it. Tensors that are no BEiT are listed all the same; then the command fails with the reason, except for
/// teachers that this program made.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    let checkpoint = args.source.open()?;
    let names = checkpoint.tensors.keys().map(String::as_str);
    let found: Found = account(names).and_then(|account| {
        let summary = inspect(&checkpoint.tensors)?
            .with_metadata(&checkpoint.metadata)
            .with_sizes(&checkpoint.beside.sizes);
        Ok((account, summary))
    });
    let contradiction = found.as_ref().ok().and_then(|(_, summary)| checkpoint.beside.check(summary).err());
    let mut problems = super::verify::not_finite(&checkpoint)?;
    problems.extend(contradiction.map(|error| error.to_string()));
    if let Ok((_, summary)) = &found {
        problems.extend(verify(&checkpoint.tensors).err().map(|error| error.to_string()));
        problems.extend(summary.contradiction(&checkpoint.metadata));
    }
    if args.output.json {
        output::json(&as_json(&checkpoint, &found, &problems, args.keys))?;
    } else {
        output::result(&as_text(&checkpoint, &found, &problems, args.keys))?;
    }
    match found {
        Err(_) if stage(&checkpoint) == Some("distill") => {}
        found => {
            about(found, &checkpoint)?;
        }
    }
    Ok(Ending::Done)
}

/// The stage of a run of this program.
fn stage(checkpoint: &Checkpoint) -> Option<&str> {
    checkpoint.metadata.get("beit2.stage").map(String::as_str)
}

fn as_text(checkpoint: &Checkpoint, found: &Found, problems: &[String], keys: bool) -> String {
    let bytes: usize = checkpoint.tensors.values().map(|tensor| tensor.byte_len()).sum();
    let mut rows = vec![
        ("file", checkpoint.path().display().to_string()),
        ("format", describe_format(checkpoint)),
        ("tensors", format!("{} of {} bytes", checkpoint.tensors.len(), thousands(bytes as u64))),
    ];
    for (name, key) in [("stage", "beit2.stage"), ("config", "beit2.config"), ("epoch", "epoch")] {
        rows.extend(checkpoint.metadata.get(key).map(|value| (name, output::printable(value))));
    }
    rows.extend(checkpoint.notes().into_iter().map(|note| ("read", output::printable(&note))));
    rows.extend(problems.iter().map(|problem| ("problem", problem.clone())));
    if let Some(first) = checkpoint.ignored.first() {
        let count = checkpoint.ignored.len();
        rows.push(("objects", format!("{count} not rebuilt, such as {}", output::printable(first))));
    }
    // As wide as the lines of `ModelSummary`.
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect();
    match found {
        Ok((account, summary)) => {
            let [used, derived, ignored] = account.counts();
            text += &format!("{summary}{:<12} {used} used, {derived} derived, {ignored} ignored\n", "keys");
        }
        Err(_) if stage(checkpoint) == Some("distill") => {
            text += &format!("{:<12} a teacher made by `beit2 teacher distill`, not a BEiT\n", "layout");
        }
        Err(_) => text += &format!("{:<12} unknown\n", "layout"),
    }
    if keys {
        let row = |(at, (name, tensor)): (usize, (&String, &beit2_weights::TensorView))| {
            let usage = found.as_ref().map_or(String::new(), |(account, _)| describe_use(account, at));
            vec![output::printable(name), tensor.dtype().to_string(), format!("{:?}", tensor.shape()), usage]
        };
        let rows: Vec<_> = checkpoint.tensors.iter().enumerate().map(row).collect();
        text += &format!("\n{}", output::columns(&rows));
    }
    text
}

fn as_json(checkpoint: &Checkpoint, found: &Found, problems: &[String], keys: bool) -> Value {
    let mut object = json!({
        "file": checkpoint.path().display().to_string(),
        "format": describe_format(checkpoint),
        "entry": checkpoint.root.to_string(),
        "entries": checkpoint.entries,
        "notes": checkpoint.notes(),
        "problems": problems,
        "tensors": checkpoint.tensors.len(),
        "bytes": checkpoint.tensors.values().map(|tensor| tensor.byte_len()).sum::<usize>(),
        "metadata": checkpoint.metadata,
        "ignored_objects": checkpoint.ignored,
        "model": found.as_ref().ok().map(|(_, summary)| summary_json(summary)),
        "problem": found.as_ref().err().map(ToString::to_string),
    });
    if keys {
        let key = |(at, (name, tensor)): (usize, (&String, &beit2_weights::TensorView))| {
            json!({
                "name": name,
                "dtype": tensor.dtype().to_string(),
                "shape": tensor.shape(),
                "use": found.as_ref().ok().map(|(account, _)| describe_use(account, at)),
            })
        };
        object["keys"] = checkpoint.tensors.iter().enumerate().map(key).collect();
    }
    object
}

/// The summary of a model, for scripts.
pub(super) fn summary_json(summary: &ModelSummary) -> Value {
    let dtypes = summary.dtypes.iter().map(|(dtype, count)| (dtype.to_string(), Value::from(*count)));
    json!({
        "names": summary.layout.family.to_string(),
        "kind": summary.layout.kind.to_string(),
        "depth": summary.depth,
        "width": summary.width,
        "heads": summary.heads,
        "mlp_width": summary.mlp_width,
        "channels": summary.channels,
        "patch_size": summary.patch,
        "image_size": summary.image_px(),
        "rel_pos_bias": match summary.bias {
            RelativeBias::None => "none",
            RelativeBias::Shared => "shared",
            RelativeBias::PerBlock => "per block",
        },
        "abs_pos_embed": summary.abs_pos,
        "layer_scale": summary.layer_scale,
        "qkv_bias": summary.qkv_bias,
        "pooling": summary.pooling.map(|pooling| if pooling == Pooling::Mean { "mean" } else { "cls" }),
        "classes": summary.classes,
        "vocab_size": summary.vocab_size,
        "patch_aggregation": summary.patch_aggregation.map(|head| json!({
            "head_layers": head.head_layers,
            "shared_lm_head": head.shared_lm_head,
            "intermediate_layer": head.intermediate_layer,
        })),
        "tokenizer": summary.tokenizer.map(|sizes| json!({
            "codebook_size": sizes.codebook_size,
            "code_dim": sizes.code_dim,
            "decoder_depth": sizes.decoder_depth,
            "decoder_width": sizes.decoder_width,
            "teacher_dim": sizes.teacher_dim,
        })),
        "parameters": summary.parameters,
        "dtypes": dtypes.collect::<serde_json::Map<_, _>>(),
    })
}
