//! k-NN on the features of the pretrained model, and on raw pixels to compare with.

use beit2::classify::bootstrap::Estimate;
use beit2::classify::{
    Embedder, EmbedderOptions, FeatureKind, Features, KnnConfig, extract, knn, pixel_features,
};
use beit2::train::{Assets, DataConfig, EvaluationData};
use beit2_data::classes::{ClassesBy, Target, match_classes};
use beit2_kernels::AutodiffBackend;
use serde_json::{Value, json};

use super::project::Project;
use crate::device::DeviceSpec;
use crate::display::estimate;
use crate::errors::usage;
use crate::flags::OutputArgs;
use crate::output;
use crate::session::{Job, Session};

/// Top-1 accuracies in [0, 1].
pub struct Neighbours {
    k: usize,
    val: usize,
    pretrained: Estimate,
    pixels: Estimate,
}

impl Neighbours {
    /// A line.
    pub fn text(&self) -> String {
        format!(
            "\nk-NN top-1 of the pretrained model's features, k = {}, {} validation images: {}; raw pixels: {}\n",
            self.k,
            self.val,
            estimate(self.pretrained, 1),
            estimate(self.pixels, 1)
        )
    }

    /// An object.
    pub fn json(&self) -> Value {
        json!({
            "k": self.k,
            "val_images": self.val,
            "top1": self.pretrained.value,
            "top1_interval": self.pretrained.interval,
            "pixels_top1": self.pixels.value,
            "pixels_top1_interval": self.pixels.interval,
        })
    }
}

/// Measures the pretrained model, if the images have labels.
pub fn neighbours(
    project: &Project,
    device: &DeviceSpec,
    output: OutputArgs,
    session: &mut Session<'_>,
) -> anyhow::Result<Option<Neighbours>> {
    let stage = project.stages.iter().find(|entry| entry.stage == "pretrain");
    let (true, Some(val), Some(stage)) = (project.images.labels, &project.images.val, stage) else {
        return Ok(None);
    };
    let run = project.dir.join(&stage.run);
    if !output.quiet {
        output::note("\nk-NN of the pretrained model's features");
    }
    session
        .on(
            &device.first(),
            Measurement { train: &project.images.train, val, run: run.display().to_string() },
        )
        .map(Some)
}

struct Measurement<'a> {
    train: &'a str,
    val: &'a str,
    run: String,
}

impl Job for Measurement<'_> {
    type Output = Neighbours;

    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Neighbours> {
        let Session { assets, signals, progress } = session;
        let (train, val) = (assets.source(self.train)?, assets.source(self.val)?);
        let target = Target { owner: self.train, count: train.classes().len(), names: train.classes() };
        let matched = match_classes(self.val, val, target, ClassesBy::Auto)
            .or_else(|error| usage(error.to_string()))?;
        let file = assets.weights(&self.run)?;
        let model =
            Embedder::<B::InnerBackend>::from_file(file, &self.run, &EmbedderOptions::default(), device)?;
        let config = data_of(&self.run)?;
        let mut sets: Vec<[Features; 2]> = Vec::new();
        for (source, what) in [(&train, "training"), (&matched.source, "validation")] {
            let data = EvaluationData {
                view: model.view(),
                ..EvaluationData::of_size(source, &config, model.image_px)
            };
            let own = extract(&model.net, FeatureKind::Mean, &data, what, progress, &signals.stop, device)?;
            let data = EvaluationData::of_size(source, &config, model.image_px.min(32));
            sets.push([own, pixel_features(&data, progress, &signals.stop)?]);
        }
        let k = 10.min(train.len());
        let config = KnnConfig { k: vec![k], ..KnnConfig::default() };
        let mut measure = |at: usize| -> anyhow::Result<Estimate> {
            let [train, val] = [&sets[0][at], &sets[1][at]];
            let found = knn::<B::InnerBackend>(train, val, &config, progress, &signals.stop, device)?;
            found.first().copied().ok_or_else(|| anyhow::anyhow!("k-NN found nothing"))
        };
        Ok(Neighbours { k, val: matched.source.len(), pretrained: measure(0)?, pixels: measure(1)? })
    }
}

/// How the run decoded its images.
fn data_of(run: &str) -> anyhow::Result<DataConfig> {
    let text = std::fs::read_to_string(std::path::Path::new(run).join("run.toml"))?;
    let table: toml::Table = text.parse()?;
    Ok(match table.get("data") {
        Some(data) => data.clone().try_into()?,
        None => DataConfig::default(),
    })
}
