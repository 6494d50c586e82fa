//! What a model's features are worth while it trains, measured now and then on a few images.
//!
//! A tokenizer's loss and a masked image model's loss say little about that: both keep falling while features get worse. A
//! monitor measures k-NN accuracy, effective rank, uniformity, and how far features have moved since the start, on images
//! that the caller chooses ([`MonitorConfig`]). No weight depends on it.
//!
//! Imports go one way: training loops → `monitor` → `train`.

mod config;
mod images;
mod measures;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use beit2_kernels::Backend;
use beit2_run::atomic::write_bytes_atomic;
use burn::tensor::{Int, Tensor, TensorData};

pub use self::config::{FOLLOWED, MonitorConfig};
use self::images::Chosen;
use self::measures::{Vectors, distance, effective_rank, pairs};
use crate::code_usage::CodeUsage;
use crate::error::{Error, config_error};
use crate::train::{Assets, DataConfig, EvaluationData, Event, Plan, Session, to_device, unusable};
use crate::weights::{self, Tensors};

/// File of a run directory with the features of its start.
const START: &str = "monitor_start.safetensors";

/// What a model makes of a batch of images.
pub struct Tokens<B: Backend> {
    /// `[B, N+1, D]`, CLS first.
    pub tokens: Tensor<B, 3>,
    /// Code of each patch `[B, N]`, of a tokenizer that has a codebook already.
    pub ids: Option<Tensor<B, 2, Int>>,
}

/// Metrics of an epoch's record.
pub type Values = Vec<(&'static str, f64)>;

/// The images that are watched, and where their features began.
pub struct Monitor {
    watched: Vec<Watched>,
    every: u64,
    data: DataConfig,
    image_px: usize,
    codes: usize,
}

/// A folder.
struct Watched {
    names: &'static Names,
    chosen: Chosen,
    start: Option<Start>,
}

/// Names of a folder's metrics.
struct Names {
    knn: &'static str,
    cls_knn: &'static str,
    rank: &'static str,
    uniformity: &'static str,
    drift: &'static str,
    usage: Option<&'static str>,
    perplexity: Option<&'static str>,
    lost: Option<&'static str>,
    /// In the file of the start: features, numbers of the images, k-NN accuracy.
    kept: [&'static str; 3],
}

const MONITORED: Names = Names {
    knn: "monitor_knn_top1",
    cls_knn: "monitor_cls_knn_top1",
    rank: "monitor_effective_rank",
    uniformity: "monitor_uniformity",
    drift: "monitor_drift",
    usage: Some("monitor_codebook_usage"),
    perplexity: Some("monitor_codebook_perplexity"),
    lost: None,
    kept: ["monitor.features", "monitor.images", "monitor.top1"],
};

const FORGETTING: Names = Names {
    knn: "forgetting_knn_top1",
    cls_knn: "forgetting_cls_knn_top1",
    rank: "forgetting_effective_rank",
    uniformity: "forgetting_uniformity",
    drift: "forgetting_drift",
    usage: None,
    perplexity: None,
    lost: Some("forgetting_top1_lost"),
    kept: ["forgetting.features", "forgetting.images", "forgetting.top1"],
};

/// Features of a folder at the start of a run.
struct Start {
    /// Row of each image that could be read, by its number in the folder.
    rows: HashMap<usize, usize>,
    mean: Vectors,
    /// k-NN accuracy by them; `None` without classes.
    top1: Option<f64>,
}

/// Features of the images of a folder that can be read.
#[derive(Default)]
struct Found {
    /// Their places among the chosen images.
    places: Vec<usize>,
    /// CLS tokens.
    cls: Vectors,
    /// Means of the patch tokens.
    mean: Vectors,
    usage: Option<CodeUsage>,
}

impl Monitor {
    /// Chooses the images and how often they are looked at; `None`: monitors are off, or the run is too short to pay for
    /// them and nobody asked for them. `image_px`: side of what the model sees, `codes` the size of the codebook.
    ///
    /// # Errors
    /// Settings that contradict each other, folders that cannot be opened, a metric to follow that these images do not have.
    pub fn open(
        config: &MonitorConfig,
        data: &DataConfig,
        assets: &dyn Assets,
        plan: &Plan,
        image_px: usize,
        codes: usize,
    ) -> Result<Option<Self>, Error> {
        config.validate(data.val.is_some())?;
        if config.max_images == 0 {
            return Ok(None);
        }
        let most = match (config.is_asked_for(), config.affordable(plan)) {
            (true, _) => config.max_images,
            (false, Some(most)) => most,
            (false, None) => return Ok(None),
        };
        let own = config.folder.as_ref().map(|_| "monitor.folder");
        let folder = config.folder.as_ref().or(data.val.as_ref()).unwrap_or(&data.train);
        let mut watched = vec![Watched {
            names: &MONITORED,
            chosen: images::choose(assets.source(folder)?, most, own)?,
            start: None,
        }];
        if let Some(folder) = &config.forgetting_folder {
            let chosen = images::choose(assets.source(folder)?, most, Some("monitor.forgetting_folder"))?;
            watched.push(Watched { names: &FORGETTING, chosen, start: None });
        }
        let followed = config.followed()?.name;
        for Watched { names, chosen, .. } in &watched {
            if [names.knn, names.cls_knn].contains(&followed) && chosen.classes.is_none() {
                return config_error(format!(
                    "monitor.best is {followed}, but these images have no classes for k-NN; give a folder with one \
                     sub-folder per class (--monitor)"
                ));
            }
        }
        let images = watched.iter().map(|watched| watched.chosen.numbers.len()).sum();
        let every = config.every(images, plan);
        // Nothing of a folder to watch is left out silently, and its images may be smaller than those of training.
        let data = DataConfig { min_side_px: 0, ..data.clone() };
        Ok(Some(Self { watched, every, data, image_px, codes }))
    }

    /// What a line about it says: images and how often.
    pub fn summary(&self) -> (String, String) {
        let folders = self.watched.iter().map(|Watched { names, chosen, .. }| {
            let what = if names.lost.is_some() { " for forgetting" } else { "" };
            let classes = chosen.classes.as_ref().map_or(String::new(), |(labels, _)| {
                let distinct: std::collections::BTreeSet<u32> = labels.iter().copied().collect();
                format!(" of {} classes", distinct.len())
            });
            format!("{} images{classes}{what}", chosen.numbers.len())
        });
        let every =
            if self.every == 1 { "every epoch".to_owned() } else { format!("every {} epochs", self.every) };
        ("monitors".into(), format!("{}, {every}", folders.collect::<Vec<_>>().join(", ")))
    }

    /// Measures the model that a run starts from, or finds the features of its start again when it is continued. Only the
    /// leader does it; a rehearsal does not. False if a run on one device was told to stop meanwhile: it ends before its first
    /// step then, and begins with this when it is continued.
    ///
    /// # Errors
    /// More unreadable images than `data.max_bad_fraction` allows; a disk that cannot be written.
    pub(crate) fn begin<I: Backend>(
        &mut self,
        session: &mut Session<'_, I>,
        model: &dyn Fn(Tensor<I, 4>) -> Tokens<I>,
        device: &I::Device,
    ) -> Result<bool, Error> {
        if session.is_rehearsal() || !session.leads() {
            return Ok(true);
        }
        let file = session.dir().join(START);
        if session.state.step > 0 {
            if let Err(why) = self.recall(&file) {
                session.warn(format!(
                    "the features of the start are not there ({why}), so drift is not measured"
                ));
            }
            return Ok(true);
        }
        let alone: usize = self.watched.iter().map(|watched| watched.chosen.alone).sum();
        if alone > 0 {
            session.note(format!("k-NN of the monitors leaves out {alone} classes with one image"));
        }
        session.evaluation_begins();
        let mut values = Values::new();
        let (mut kept, mut told) = (Tensors::new(), BTreeMap::new());
        for at in 0..self.watched.len() {
            // Several ranks wait for each other in the first step.
            let can_stop = session.rank().world() == 1;
            let Some(found) = self.look(at, session, model, can_stop, device)? else { return Ok(false) };
            let watched = &mut self.watched[at];
            let (measured, top1) = watched.measure::<I>(&found, device);
            values.extend(measured);
            let numbers: Vec<usize> =
                found.places.iter().map(|&place| watched.chosen.numbers[place]).collect();
            let rows = numbers.len();
            let [features, images, accuracy] = watched.names.kept;
            let of_rows = numbers.iter().map(|&number| number as i64).collect();
            kept.insert(images.into(), TensorData::new::<i64, _>(of_rows, [rows]));
            kept.insert(features.into(), TensorData::new(found.mean.values.clone(), [rows, found.mean.dim]));
            told.extend(top1.map(|top1| (accuracy.to_owned(), top1.to_string())));
            told.insert(features.to_owned(), watched.chosen.source.fingerprint());
            let rows = numbers.into_iter().zip(0..).collect();
            watched.start = Some(Start { rows, mean: found.mean, top1 });
        }
        write_bytes_atomic(&file, &weights::encode(&kept, &told)?)?;
        session.starts_with(&values)?;
        Ok(true)
    }

    /// What the last record of an epoch gets: values if they are due after it.
    ///
    /// # Errors
    /// As [`Monitor::begin`].
    pub(crate) fn after_epoch<I: Backend>(
        &mut self,
        epoch: u64,
        session: &mut Session<'_, I>,
        model: &dyn Fn(Tensor<I, 4>) -> Tokens<I>,
        device: &I::Device,
    ) -> Result<Values, Error> {
        let due = (epoch + 1).is_multiple_of(self.every) || session.is_complete();
        if session.is_rehearsal() || !session.leads() || !due {
            return Ok(Values::new());
        }
        session.evaluation_begins();
        let mut values = Values::new();
        for at in 0..self.watched.len() {
            // To the end, as evaluations: the record belongs to this step.
            let Some(found) = self.look(at, session, model, false, device)? else { continue };
            values.extend(self.watched[at].measure::<I>(&found, device).0);
        }
        Ok(values)
    }

    /// Features of the images of a folder; `None` if it `can_stop` and the run was told to.
    fn look<I: Backend>(
        &self,
        at: usize,
        session: &mut Session<'_, I>,
        model: &dyn Fn(Tensor<I, 4>) -> Tokens<I>,
        can_stop: bool,
        device: &I::Device,
    ) -> Result<Option<Found>, Error> {
        let source = &self.watched[at].chosen.source;
        let total = source.len() as u64;
        let mut found = Found::default();
        for batch in EvaluationData::of_size(source, &self.data, self.image_px).loader()? {
            if can_stop && session.is_told_to_stop() {
                return Ok(None);
            }
            let batch = batch?;
            unusable(&batch).for_each(|sentence| session.warn(sentence));
            if batch.items.is_empty() {
                continue;
            }
            let (images, _) = to_device::<I>(&batch.items, device)?;
            let Tokens { tokens, ids } = model(images);
            let [count, length, dim] = tokens.dims();
            let host = |tensor: Tensor<I, 2>| -> Vec<f32> {
                tensor.into_data().convert::<f32>().into_vec().unwrap_or_default()
            };
            let cls = tokens.clone().narrow(1, 0, 1).reshape([count, dim]);
            let mean = tokens.narrow(1, 1, length - 1).mean_dim(1).reshape([count, dim]);
            found.cls.values.extend(host(cls));
            found.mean.values.extend(host(mean));
            (found.cls.dim, found.mean.dim) = (dim, dim);
            found.places.extend(batch.indices.iter().map(|&index| index as usize));
            if let Some(ids) = ids {
                let ids: Vec<i64> = ids.into_data().convert::<i64>().into_vec().unwrap_or_default();
                let usage = found.usage.get_or_insert_with(|| CodeUsage::new(self.codes));
                usage.add(ids.into_iter().map(|id| id as usize));
            }
            let (what, done) = ("monitors: images".to_owned(), found.places.len() as u64);
            session.observer().event(Event::Progress { what, done, total });
        }
        Ok(Some(found))
    }

    /// Takes the features of the start from the run directory.
    fn recall(&mut self, file: &Path) -> Result<(), String> {
        let kept = weights::read(file).map_err(|error| error.to_string())?;
        for Watched { names, chosen, start } in &mut self.watched {
            let [features, images, accuracy] = names.kept;
            if kept.metadata.get(features) != Some(&chosen.source.fingerprint()) {
                return Err(format!("{} has those of other images", file.display()));
            }
            let tensors = kept.tensors.get(features).zip(kept.tensors.get(images));
            let found = tensors.and_then(|(features, numbers)| {
                let dim = *features.shape.as_slice().get(1)?;
                let mean = Vectors { values: features.to_vec().ok()?, dim };
                let numbers: Vec<i64> = numbers.to_vec().ok()?;
                let rows: HashMap<usize, usize> =
                    numbers.iter().map(|&number| number as usize).zip(0..).collect();
                let top1 = kept.metadata.get(accuracy).and_then(|text| text.parse().ok());
                (rows.len() == mean.len()).then_some(Start { rows, mean, top1 })
            });
            *start = Some(found.ok_or_else(|| format!("{} is not what this run wrote", file.display()))?);
        }
        Ok(())
    }
}

impl Watched {
    /// What is said of features, and their k-NN accuracy.
    fn measure<B: Backend>(&self, found: &Found, device: &B::Device) -> (Values, Option<f64>) {
        let Self { names, chosen, start } = self;
        let labels: Option<Vec<u32>> = chosen
            .classes
            .as_ref()
            .map(|(labels, _)| found.places.iter().map(|&place| labels[place]).collect());
        let classes = labels.as_deref().zip(chosen.classes.as_ref().map(|(_, count)| *count));
        let of_mean = pairs::<B>(&found.mean, classes, device);
        let of_cls = pairs::<B>(&found.cls, classes, device);
        let mut values = Values::new();
        values.extend(of_mean.top1.map(|top1| (names.knn, top1)));
        values.extend(of_cls.top1.map(|top1| (names.cls_knn, top1)));
        values.push((names.rank, effective_rank(&found.mean)));
        values.push((names.uniformity, of_cls.uniformity));
        if let Some(start) = start {
            let both = (0..).zip(&found.places).filter_map(|(row, &place)| {
                let before = *start.rows.get(&chosen.numbers[place])?;
                Some((start.mean.row(before), found.mean.row(row)))
            });
            values.push((names.drift, distance(both)));
            let lost = names.lost.zip(start.top1).zip(of_mean.top1);
            values.extend(lost.map(|((name, before), now)| (name, before - now)));
        }
        if let (Some(usage), Some(name), Some(perplexity)) = (&found.usage, names.usage, names.perplexity) {
            let health = usage.health();
            values.extend([(name, health.usage()), (perplexity, health.perplexity)]);
        }
        (values, of_mean.top1)
    }
}
