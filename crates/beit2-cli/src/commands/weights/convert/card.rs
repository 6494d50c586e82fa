//! The model card: `README.md` with what is known of a model and of the run that made it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use beit2_run::metrics::{Kind as RecordKind, Record, read_jsonl};
use beit2_run::thousands;
use beit2_weights::convert::Facts;
use beit2_weights::inspect::ModelSummary;
use beit2_weights::layout::{Family, Kind};
use toml::{Table, Value};

use crate::machine::SOFTWARE;

/// What the card is about.
pub(super) struct Card<'a> {
    /// Name of the model: that of its folder.
    pub(super) name: &'a str,
    /// Whose names it has now.
    pub(super) to: Family,
    /// Sizes.
    pub(super) summary: &'a ModelSummary,
    pub(super) facts: &'a Facts,
    /// The weight file it was made from.
    pub(super) source: &'a Path,
    /// Its stage, when this program wrote it.
    pub(super) stage: Option<&'a str>,
    /// What [`super::facts::notes`] says.
    pub(super) notes: &'a [String],
}

/// The run that a weight file belongs to.
struct Run {
    settings: Table,
    step: u64,
    record: Option<Record>,
}

/// `RUN/checkpoints/step-0001234/model.safetensors`, if it is one.
fn run_of(source: &Path) -> Option<Run> {
    let file: PathBuf = fs::canonicalize(source).ok()?;
    let checkpoint = file.parent()?;
    let run = checkpoint.parent()?.parent()?;
    let step = checkpoint.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
    let settings: Table = fs::read_to_string(run.join("run.toml")).ok()?.parse().ok()?;
    let records = read_jsonl(&run.join("metrics.jsonl")).map(|read| read.records).unwrap_or_default();
    let evaluated = |record: &&Record| {
        record.kind == RecordKind::Epoch
            && record.step <= step
            && record.values.iter().any(|(name, _)| name.contains("val_"))
    };
    let last = records.iter().rfind(|record| record.kind == RecordKind::Epoch && record.step <= step);
    let record = records.iter().rev().find(evaluated).or(last).cloned();
    Some(Run { settings, step, record })
}

impl Card<'_> {
    /// The card, with the front matter that the Hugging Face Hub reads.
    pub(super) fn text(&self) -> String {
        let mut text = self.front_matter();
        let ModelSummary { depth, width, patch, .. } = *self.summary;
        let image = self.summary.image_px().or(self.facts.image_px).unwrap_or_default();
        let parameters = thousands(self.summary.parameters);
        let kind = match self.summary.layout.kind {
            Kind::Classifier => "image classifier",
            Kind::Segmentation => "segmentation model (UPerNet)",
            Kind::Pretraining => "masked image model",
            _ => "backbone",
        };
        let classes = self.summary.classes.map_or(String::new(), |classes| format!(", {classes} classes"));
        let _ = write!(
            text,
            "# {}\n\nBEiT v2 ([arXiv 2208.06366](https://arxiv.org/abs/2208.06366)): {kind}, {depth} blocks of width {width}, \
             patches of {patch} px, images of {image} px{classes}, {parameters} parameters.\nWritten by \
             `beit2 weights convert` ({SOFTWARE}).\n\nNobody has chosen a license for these weights: set `license` above.\n",
            escaped(self.name),
        );
        self.write_run(&mut text);
        self.write_usage(&mut text);
        self.write_images(&mut text);
        if !self.notes.is_empty() {
            text += "\n## Notes\n\n";
            for note in self.notes {
                let _ = writeln!(text, "- {}", escaped(note));
            }
        }
        text
    }

    fn task(&self) -> &'static str {
        match self.summary.layout.kind {
            Kind::Classifier => "image-classification",
            Kind::Segmentation => "image-segmentation",
            _ => "image-feature-extraction",
        }
    }

    fn front_matter(&self) -> String {
        let library = if self.to == Family::Timm { "timm" } else { "transformers" };
        let task = self.task();
        format!(
            "---\nlicense: unknown\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- {task}\n- {library}\n- beit\n\
             - beit2\n---\n\n"
        )
    }

    fn write_run(&self, text: &mut String) {
        let Some(run) = run_of(self.source) else {
            let name = self.source.file_name().unwrap_or_default().to_string_lossy();
            let stage = self.stage.map_or(String::new(), |stage| format!(", stage {stage}"));
            let _ = write!(
                text,
                "\n## Training\n\nConverted from `{}`{stage}, without the run directory that made it.\n",
                code(&name)
            );
            return;
        };
        let mut rows: Vec<(&str, String)> = Vec::new();
        let mut row =
            |name: &'static str, value: Option<String>| rows.extend(value.map(|value| (name, value)));
        let setting = |table: &str, key: &str| {
            run.settings.get(table).and_then(|table| table.get(key)).and_then(|value| match value {
                Value::String(text) if text.is_empty() => None,
                Value::String(text) => Some(text.clone()),
                Value::Table(_) | Value::Array(_) => None,
                other => Some(other.to_string()),
            })
        };
        row("stage", self.stage.map(str::to_owned));
        row("recipe", setting("environment", "recipe"));
        row("data", setting("data", "train").map(|path| short(&path)));
        row("validation data", setting("data", "val").map(|path| short(&path)));
        for (name, table) in [("initial weights", "init"), ("tokenizer", "tokenizer"), ("teacher", "teacher")]
        {
            row(name, setting(table, "weights").map(|path| short(&path)));
        }
        row("epochs", run.record.as_ref().map(|record| record.epoch.to_string()));
        row("steps", Some(thousands(run.step)));
        row("software", setting("environment", "software"));
        row("device", setting("environment", "device"));
        *text += "\n## Training\n\n| | |\n|---|---|\n";
        for (name, value) in rows {
            let _ = writeln!(text, "| {name} | {} |", escaped(&value));
        }
        if let Some(command) = setting("environment", "command") {
            let _ = write!(text, "\n    {}\n", command.replace('\n', " "));
        }
        let averages = self.source.file_name().is_some_and(|name| name.to_string_lossy().contains("ema"));
        let metrics: Vec<(&str, f64)> =
            run.record.iter().flat_map(|record| metrics(record, averages)).collect();
        if !metrics.is_empty() {
            *text += "\n## Results\n\nFractions lie between 0 and 1.\n\n| metric | value |\n|---|---|\n";
            for (name, value) in metrics {
                let _ = writeln!(text, "| {name} | {} |", rounded(value));
            }
        }
    }

    fn write_usage(&self, text: &mut String) {
        let usage = match (self.to, self.summary.layout.kind) {
            (Family::Timm, _) => {
                "import timm\nmodel = timm.create_model(\"local-dir:FOLDER\", pretrained=True).eval()\n\
                 view = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
            }
            (_, Kind::Classifier) => {
                "from transformers import pipeline\nclassify = pipeline(\"image-classification\", \"FOLDER\")\n\
                 classify(\"image.jpg\")"
            }
            (_, Kind::Segmentation) => {
                "from transformers import pipeline\nsegment = pipeline(\"image-segmentation\", \"FOLDER\")\n\
                 segment(\"image.jpg\")"
            }
            (_, Kind::Pretraining) => {
                "from transformers import AutoImageProcessor, BeitForMaskedImageModeling\n\
                 processor = AutoImageProcessor.from_pretrained(\"FOLDER\")\n\
                 model = BeitForMaskedImageModeling.from_pretrained(\"FOLDER\")\n\
                 # Features: AutoModel.from_pretrained(\"FOLDER\"), `last_hidden_state`; `pooler_output` has an untrained norm."
            }
            _ => {
                "from transformers import AutoImageProcessor, AutoModel\n\
                 processor = AutoImageProcessor.from_pretrained(\"FOLDER\")\n\
                 model = AutoModel.from_pretrained(\"FOLDER\")"
            }
        };
        let _ = write!(text, "\n## Use\n\n```python\n{usage}\n```\n");
    }

    fn write_images(&self, text: &mut String) {
        *text += "\n## Images\n\n";
        let Facts { mean, std, preprocessing, .. } = self.facts;
        if self.summary.layout.kind == Kind::Segmentation {
            let side = self.summary.image_px().or(self.facts.image_px).unwrap_or_default();
            let _ = writeln!(text, "- squashed to {side} × {side} px, bilinear");
        } else if let Some(view) = preprocessing {
            let sides = if view.squash { "both sides" } else { "shorter side" };
            let (resized, size, filter) =
                (view.resized, view.size, format!("{:?}", view.filter).to_lowercase());
            let _ = writeln!(
                text,
                "- {sides} resized to {resized} px ({filter}), the centre of {size} × {size} px cut out (crop_pct {})",
                rounded(view.crop_pct)
            );
        }
        let _ =
            writeln!(text, "- values in [0, 1], minus mean {mean:?}, divided by standard deviation {std:?}");
    }
}

/// The metrics of an evaluation, or of training when there was none.
fn metrics(record: &Record, averages: bool) -> impl Iterator<Item = (&str, f64)> {
    let values = || record.values.iter().map(|(name, value)| (name.as_str(), *value));
    let evaluated = values().any(|(name, _)| name.contains("val_"));
    values().filter(move |(name, _)| match (evaluated, name.strip_prefix("ema_")) {
        (true, Some(_)) => averages,
        (true, None) => name.starts_with("val_") && !averages,
        (false, _) => *name == "loss",
    })
}

fn rounded(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The last two parts of a path: what stands before belongs to one machine.
fn short(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// For a line or a table cell of Markdown.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => escaped.push(' '),
            '|' | '<' | '[' | ']' | '*' | '#' => {
                escaped.push('\\');
                escaped.push(c);
            }
            c => escaped.push(c),
        }
    }
    escaped
}

fn code(text: &str) -> String {
    text.replace(['`', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_what_belongs_to_one_machine() {
        assert_eq!(short("/home/me/data/imagenet/train"), "imagenet/train");
        assert_eq!(short("bundled:train"), "bundled:train");
        assert_eq!(short("/data"), "data");
    }

    #[test]
    fn numbers_and_cells() {
        assert_eq!([rounded(0.875), rounded(1.0), rounded(0.00004)], ["0.875", "1", "0"]);
        assert_eq!(escaped("a|b\nc"), "a\\|b c");
    }
}
