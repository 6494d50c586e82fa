//! One row for each image into one file: streamed, resumable, complete or absent.
//!
//! Rows are collected in a folder `OUT.partial` beside the file ([`partial`]); when the last image is done they are
//! written in the wanted form ([`npy`], [`parquet`], [`safetensors`], [`json_lines`]) and the folder goes away. One way for all forms: what can be
//! continued is a list of rows, and no form needs to know how many there will be. An [`arrow`] stream on standard output is no file and
//! has no such folder.

mod arrow;
mod finished;
mod json_lines;
mod layout;
mod npy;
mod parquet;
mod partial;
mod safetensors;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use beit2::Error;
use beit2::train::{Event, Observer};
use beit2_data::{DecodeOptions, EvalConfig, Image, Sequence, SequenceConfig, Source};
use serde_json::{Value, json};

use beit2_run::thousands;
use finished::Finished;
pub use layout::{Element, Format, RowLayout};
use partial::{Partial, Sample};

use crate::account;
use crate::errors::usage;
use crate::flags::{ExportArgs, describe_decoding};
use crate::output;
use crate::session::Session;

/// Unusable images that are named one by one on the terminal.
const LISTED: usize = 10;

/// What files say about their rows, of those forms that have room for it.
const META: [&str; 6] = ["program", "weights", "features", "layer", "image_size", "precision"];

/// Where rows go, checked before any work.
pub struct Destination<'a> {
    args: &'a ExportArgs,
    format: Format,
}

impl<'a> Destination<'a> {
    /// Fails when the name's ending is none of `known`, when a file exists, or when its folder does not.
    pub fn new(args: &'a ExportArgs, known: &[Format]) -> anyhow::Result<Self> {
        let out = &args.out;
        if arrow::is_stdout(out) {
            return Ok(Self { args, format: Format::ArrowStream });
        }
        let ending = out.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let Some(&format) = known.iter().find(|format| format.ending().eq_ignore_ascii_case(ending)) else {
            let endings: Vec<String> = known.iter().map(|format| format!(".{}", format.ending())).collect();
            return usage(format!("{} must end in {}", out.display(), endings.join(", ")));
        };
        let destination = Self { args, format };
        for path in [Some(out.clone()), destination.list()].into_iter().flatten() {
            output::check_new_file(&path, args.force)?;
        }
        Ok(destination)
    }

    /// Refuses what a stream on standard output cannot have; before any work.
    pub fn check_stdout(&self, as_json: bool) -> anyhow::Result<()> {
        match self.format {
            Format::ArrowStream => arrow::check_stdout(as_json),
            _ => Ok(()),
        }
    }

    /// The list of paths beside files that hold numbers only.
    pub fn list(&self) -> Option<PathBuf> {
        self.format.needs_list().then(|| self.beside("paths.jsonl"))
    }

    /// `OUT.ending`. The whole name stays in front: `a.npy` and `a.safetensors` must not share a list.
    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.args.out.clone().into_os_string();
        name.push(".");
        name.push(ending);
        name.into()
    }
}

/// What is to be computed.
pub struct Export<'a> {
    /// Where to.
    pub to: Destination<'a>,
    /// Of which images.
    pub source: Arc<dyn Source>,
    /// How the model sees an image.
    pub view: EvalConfig,
    /// How images are decoded.
    pub decode: DecodeOptions,
    /// What a row is.
    pub layout: RowLayout,
    /// What else the values depend on: rows that were made with other values here are not continued.
    pub identity: Vec<(&'static str, String)>,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    rows: usize,
    shape: Vec<usize>,
    element: Element,
    /// Of the matmuls.
    precision: String,
    /// Names of the images that have no row, with reasons.
    skipped: Vec<(String, String)>,
    /// What is used and left out where the images are.
    account: Value,
}

impl Export<'_> {
    /// Computes all rows that are not on disk yet, then writes the file. `compute` turns views `[B]` into the bytes of B
    /// rows.
    pub fn run(
        self,
        session: &mut Session<'_>,
        mut compute: impl FnMut(&[Image]) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Written> {
        if self.to.format == Format::ArrowStream {
            let mut meta = vec![("program".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
            meta.extend(self.identity.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
            meta.push(("image_size".to_owned(), self.view.size.to_string()));
            meta.retain(|(key, _)| META.contains(&key.as_str()));
            return self.stream(session, &meta, compute);
        }
        let Self { to, source, view, decode, layout, identity } = self;
        let Session { signals, progress, .. } = session;
        let (args, batch) = (to.args, to.args.batch_size as usize);
        let mut manifest = json!({
            "program": env!("CARGO_PKG_VERSION"),
            "images": source.fingerprint(),
            "image_size": view.size,
            "resized_to": view.resize_side(),
            "decoding": describe_decoding(&decode),
            "batch_size": batch,
            "dtype": layout.element.name(),
            "row": layout.shape,
        });
        for (name, value) in identity {
            manifest[name] = Value::String(value);
        }
        let total = source.len();
        let mut partial = Partial::open(&to.beside("partial"), &manifest, &layout, batch, total, args.force)?;
        if partial.samples() > 0 && partial.samples() < total {
            progress.note(&format!(
                "continues at image {} of {}",
                thousands(partial.samples() as u64 + 1),
                thousands(total as u64)
            ));
        }
        let unreadable = |name: &str, why: &str| {
            let name = named(name, why);
            anyhow::anyhow!("{name}; remove it, or skip such images with --skip-unreadable")
        };
        if let (Some((name, why)), false) = (partial.skipped()?.first(), args.skip_unreadable) {
            return Err(unreadable(name, why));
        }

        let config =
            SequenceConfig { start: partial.samples(), workers: args.workers, prefetch: 2 * batch, decode };
        let mut images = Sequence::new(config, source.clone(), move |image: &Image| view.apply(image))
            .map_err(Error::from)?;
        while partial.samples() < total {
            let mut views = Vec::with_capacity(batch);
            let mut samples = Vec::with_capacity(batch);
            for seen in images.by_ref().take(batch) {
                if signals.stop.is_set() {
                    partial.commit()?;
                    return Err(Error::Interrupted.into());
                }
                let (path, label) = (source.name(seen.index), source.label(seen.index));
                let path_bytes = path_bytes(source.as_ref(), seen.index);
                let label = label.and_then(|label| source.classes().get(label as usize).cloned());
                let error = match seen.item {
                    Ok(view) => {
                        views.push(view);
                        None
                    }
                    Err(why) if args.skip_unreadable => Some(why),
                    Err(why) => {
                        partial.commit()?;
                        return Err(unreadable(&path, &why));
                    }
                };
                samples.push(Sample { path, path_bytes, label, error });
            }
            let rows = if views.is_empty() { Vec::new() } else { compute(&views)? };
            partial.append(&rows, &samples)?;
            let (done, total) = (partial.samples() as u64, total as u64);
            progress.event(Event::Progress { what: layout.name.to_owned(), done, total });
        }
        partial.commit()?;
        if partial.rows() == 0 {
            bail!("none of the {} images can be read; nothing was written", thousands(total as u64));
        }
        let skipped = partial.skipped()?;
        let meta: Vec<(String, String)> =
            META.iter().filter_map(|key| Some(((*key).to_owned(), text_of(manifest.get(*key)?)))).collect();
        let labelled = !source.classes().is_empty();
        let finished = Finished { layout: &layout, meta: &meta, labelled, partial: &partial };
        if let Some(list) = to.list() {
            partial.publish(&list, |writer| finished.write_list(writer))?;
        }
        partial.publish(&args.out, |writer| match to.format {
            Format::Npy => npy::write(&finished, writer),
            Format::Parquet => parquet::write(&finished, writer),
            Format::Safetensors => safetensors::write(&finished, &args.out, writer),
            Format::JsonLines => json_lines::write(&finished, writer),
            Format::ArrowStream => bail!("a stream is not published"),
        })?;
        let written = Written {
            rows: partial.rows(),
            shape: layout.shape.clone(),
            element: layout.element,
            precision: text_of(&manifest["precision"]),
            skipped,
            account: account::json(&source.account()),
        };
        partial.remove();
        Ok(written)
    }
}

/// The bytes of an image's name in hexadecimal digits, when it is not UTF-8.
pub fn path_bytes(source: &dyn Source, index: usize) -> Option<String> {
    let bytes = source.name_bytes(index)?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `name: why`, unless the reason begins with the name.
pub fn named(name: &str, why: &str) -> String {
    if why.contains(name) { why.to_owned() } else { format!("{name}: {why}") }
}

/// Names images that were left out, on stderr.
pub fn tell_unreadable(skipped: &[(String, String)], what: &str) {
    for (name, why) in skipped.iter().take(LISTED) {
        output::note(&format!("{what}: {}", named(name, why)));
    }
    if skipped.len() > LISTED {
        output::note(&format!("{what}: {} more", thousands((skipped.len() - LISTED) as u64)));
    }
}

/// Unreadable images for `--json`.
pub fn unreadable_json(skipped: &[(String, String)]) -> Value {
    skipped.iter().map(|(path, error)| json!({ "path": path, "error": error })).collect()
}

impl Written {
    /// Tells what was written.
    pub fn report(&self, out: &Path, list: Option<PathBuf>, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            return output::json(&json!({
                "out": out.display().to_string(),
                "paths": list.map(|list| list.display().to_string()),
                "rows": self.rows,
                "row": self.shape,
                "dtype": self.element.name(),
                "precision": self.precision,
                "skipped": unreadable_json(&self.skipped),
                "account": self.account,
            }));
        }
        tell_unreadable(&self.skipped, "left out");
        if arrow::is_stdout(out) {
            // Rows are on standard output; there is nothing else to say there.
            return Ok(());
        }
        let shape: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let row = format!("{} values ({})", shape.join(" × "), self.element.name());
        let mut lines = vec![("written", out.display().to_string())];
        lines.extend(list.map(|list| ("paths", list.display().to_string())));
        lines.push(("rows", format!("{}, each of {row}", thousands(self.rows as u64))));
        if !self.skipped.is_empty() {
            lines.push(("left out", thousands(self.skipped.len() as u64)));
        }
        output::result(&output::pairs(&lines))
    }
}
