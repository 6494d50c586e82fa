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

use std::path::PathBuf;
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
use crate::shard::{self, Claim, Folder, Record, Shard};

/// Unusable images that are named one by one on the terminal.
const LISTED: usize = 10;

/// What files say about their rows, of those forms that have room for it.
const META: [&str; 6] = ["program", "weights", "features", "layer", "image_size", "precision"];

/// Where rows go, checked before any work.
pub struct Destination<'a> {
    args: &'a ExportArgs,
    command: &'static str,
    format: Format,
    /// The file.
    out: PathBuf,
    /// The folder that it is a part of.
    folder: Option<Folder>,
}

impl<'a> Destination<'a> {
    /// Fails when the name's ending is none of `known`, when a file exists, or when its folder does not; a part goes into a folder,
    /// which is made.
    pub fn new(args: &'a ExportArgs, command: &'static str, known: &[Format]) -> anyhow::Result<Self> {
        let out = &args.out;
        if arrow::is_stdout(out) {
            // As for a file: it is not divided.
            shard::division(out, &args.shard, true)?;
            if args.format.is_some() {
                return usage("--format is for the parts in a folder; --out - is an Arrow stream");
            }
            return Ok(Self { args, command, format: Format::ArrowStream, out: out.clone(), folder: None });
        }
        let ending = out.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let format = known.iter().find(|format| format.ending().eq_ignore_ascii_case(ending)).copied();
        let endings: Vec<String> = known.iter().map(|format| format!(".{}", format.ending())).collect();
        let endings = endings.join(", ");
        if let Some(folder) = shard::division(out, &args.shard, format.is_some())? {
            let format = args.format.unwrap_or(Format::Parquet);
            if !known.contains(&format) {
                return usage(format!("--format can be one of {endings} here"));
            }
            let out = folder.file(format.ending());
            return Ok(Self { args, command, format, out, folder: Some(folder) });
        }
        let Some(format) = format.filter(|_| !out.is_dir()) else {
            let name = out.display();
            return usage(match out.is_dir() {
                true => format!(
                    "{name} is a folder; give the path of a file, or with --shard I/N a part of the images"
                ),
                false => format!("{name} must end in {endings}; or be a folder, with --shard I/N"),
            });
        };
        if args.format.is_some() {
            return usage(format!(
                "--format is for the parts in a folder; {} says it by its ending",
                out.display()
            ));
        }
        let destination = Self { args, command, format, out: out.clone(), folder: None };
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
        let mut name = self.out.clone().into_os_string();
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
    /// What the user named as these images.
    pub spec: &'a str,
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
    out: PathBuf,
    /// Paths of the rows, where they have a file of their own.
    list: Option<PathBuf>,
    /// The part of the images, and whether it was complete before.
    part: Option<(Shard, bool)>,
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
        let Self { to, source: all, spec, view, decode, layout, identity } = self;
        let Session { signals, progress, .. } = session;
        let (args, batch) = (to.args, to.args.batch_size as usize);
        let mut manifest = json!({
            "program": env!("CARGO_PKG_VERSION"),
            "images": all.fingerprint(),
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
        let part = to.folder.as_ref().map(Folder::shard);
        let source = part.map_or(all.clone(), |shard| shard.of(all.clone()));
        if let Some(folder) = &to.folder
            && let Claim::Finished(record) =
                folder.claim(to.command, to.format.ending(), &manifest, args.force)?
        {
            return Ok(Written {
                out: to.out.clone(),
                list: to.list(),
                part: part.map(|shard| (shard, true)),
                rows: record.rows as usize,
                shape: layout.shape.clone(),
                element: layout.element,
                precision: text_of(&manifest["precision"]),
                skipped: record.skipped.into_iter().map(|one| (one.path, one.error)).collect(),
                account: account::json(&all.account()),
            });
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
        // Other parts may have rows.
        if partial.rows() == 0 && part.is_none() {
            bail!("none of the {} images can be read; nothing was written", thousands(total as u64));
        }
        let skipped = partial.skipped()?;
        let meta: Vec<(String, String)> =
            META.iter().filter_map(|key| Some(((*key).to_owned(), text_of(manifest.get(*key)?)))).collect();
        let labelled = !source.classes().is_empty();
        let odd_names = part.is_some() && (0..all.len()).any(|index| all.name_bytes(index).is_some());
        let finished = Finished { layout: &layout, meta: &meta, labelled, odd_names, partial: &partial };
        if let Some(list) = to.list() {
            partial.publish(&list, |writer| finished.write_list(writer))?;
        }
        partial.publish(&to.out, |writer| match to.format {
            Format::Npy => npy::write(&finished, writer),
            Format::Parquet => parquet::write(&finished, writer),
            Format::Safetensors => safetensors::write(&finished, &to.out, writer),
            Format::JsonLines => json_lines::write(&finished, writer),
            Format::ArrowStream => bail!("a stream is not published"),
        })?;
        if let Some(folder) = &to.folder {
            folder.finish(Record {
                file: to.out.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                bytes: 0,
                rows: partial.rows() as u64,
                images: total as u64,
                of_images: all.len() as u64,
                skipped: shard::skipped(&skipped),
                source: spec.to_owned(),
                made_with: manifest.as_object().cloned().unwrap_or_default(),
            })?;
        }
        let written = Written {
            out: to.out.clone(),
            list: to.list(),
            part: part.map(|shard| (shard, false)),
            rows: partial.rows(),
            shape: layout.shape.clone(),
            element: layout.element,
            precision: text_of(&manifest["precision"]),
            skipped,
            account: account::json(&all.account()),
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
    pub fn report(&self, as_json: bool) -> anyhow::Result<()> {
        let (out, list) = (&self.out, &self.list);
        if as_json {
            let mut object = json!({
                "out": out.display().to_string(),
                "paths": list.as_ref().map(|list| list.display().to_string()),
                "rows": self.rows,
                "row": self.shape,
                "dtype": self.element.name(),
                "precision": self.precision,
                "skipped": unreadable_json(&self.skipped),
                "account": self.account,
            });
            if let Some((shard, was_finished)) = self.part {
                object["part"] =
                    json!({ "index": shard.index, "of": shard.count, "was_finished": was_finished });
            }
            return output::json(&object);
        }
        if let Some((shard, true)) = self.part {
            return output::result(&format!(
                "part {} of {} is finished already: {}, {} rows",
                shard.index,
                shard.count,
                out.display(),
                thousands(self.rows as u64)
            ));
        }
        tell_unreadable(&self.skipped, "left out");
        if arrow::is_stdout(out) {
            // Rows are on standard output; there is nothing else to say there.
            return Ok(());
        }
        let shape: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let row = format!("{} values ({})", shape.join(" × "), self.element.name());
        let mut lines = vec![("written", out.display().to_string())];
        lines.extend(self.part.map(|(shard, _)| ("part", format!("{} of {}", shard.index, shard.count))));
        lines.extend(list.as_ref().map(|list| ("paths", list.display().to_string())));
        lines.push(("rows", format!("{}, each of {row}", thousands(self.rows as u64))));
        if !self.skipped.is_empty() {
            lines.push(("left out", thousands(self.skipped.len() as u64)));
        }
        output::result(&output::pairs(&lines))
    }
}
