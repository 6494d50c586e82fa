//! What the quickstart measures once its models are trained.

use std::path::Path;
use std::time::Instant;

use beit2::classify::{
    FeatureKind, Features, Featurizer, KnnConfig, LinearProbeConfig, extract, knn, linear_probe,
    pixel_features,
};
use beit2::pretrain::{self, MimEvaluation, MimModel, PretrainRecipe};
use beit2::tokenizer::teachers::Teacher;
use beit2::tokenizer::{self, CodebookHealth, TokenizerRecipe, VqKd};
use beit2::train::{Assets, DataConfig, EvaluationData, Observer};
use beit2::{visualize, weights};
use beit2_kernels::{AutodiffBackend, Backend};
use beit2_run::StopFlag;
use beit2_run::report::{Examples, Gallery};
use burn::tensor::DType;

use crate::assets::VAL_NAME;
use crate::session::{Job, Session};

/// Codes shown in the gallery, and patches of each.
const GALLERY: (usize, usize) = (32, 12);
/// Images shown with their masks.
const SAMPLES: usize = 8;

/// Accuracies of one kind of feature, in [0, 1].
pub struct Row {
    /// Key in the JSON object.
    pub key: &'static str,
    /// Label in the table.
    pub label: &'static str,
    /// Which of the tokens' features it is.
    pub features: &'static str,
    /// k-NN top-1.
    pub knn: f64,
    /// Linear probe top-1.
    pub probe: f64,
}

/// Everything the table and the report show.
pub struct Results {
    /// Share of held-out images in the largest class.
    pub majority: f64,
    /// Classes of the images.
    pub classes: usize,
    /// Held-out images.
    pub held_out: usize,
    /// Pixels, random, encoder, pretrained, teacher. The two masked image models are there twice: by CLS, into which
    /// patch aggregation gathers the image (docs/method.md §3.2), and by CLS and mean patch, which BEiT v1's probe read.
    pub rows: Vec<Row>,
    /// Over the training images.
    pub codebook: CodebookHealth,
    /// On held-out images.
    pub mim: MimEvaluation,
    /// Images under masks, and codes with their patches.
    pub examples: Examples,
    /// Seconds of all this.
    pub seconds: f64,
}

/// The measurement as work for a device.
pub struct Measurement<'a> {
    pub tokenizer: &'a TokenizerRecipe,
    pub tokenizer_dir: &'a Path,
    pub pretrain: &'a PretrainRecipe,
    pub pretrain_dir: &'a Path,
}

impl Job for Measurement<'_> {
    type Output = Results;

    fn run<B: AutodiffBackend>(
        self,
        session: &mut Session<'_>,
        device: &B::Device,
    ) -> anyhow::Result<Results> {
        let assets = &session.assets;
        let started = Instant::now();
        let (origin, file) = (self.pretrain_dir.display().to_string(), weights::open(self.pretrain_dir)?);
        let (config, model) = pretrain::load::<B::InnerBackend>(file, &origin, device)?;
        let (origin, file) = (self.tokenizer_dir.display().to_string(), weights::open(self.tokenizer_dir)?);
        let (tokenizer_config, tokenizer) = tokenizer::load::<B::InnerBackend>(file, &origin, None, device)?;
        let teacher = assets.weights(&self.tokenizer.teacher.weights)?;
        let teacher =
            Teacher::<B::InnerBackend>::from_file(&self.tokenizer.teacher, teacher, DType::F32, device)?
                .freeze();
        let tokenizer = tokenizer.freeze_encoder();
        let train = assets.source(&self.pretrain.data.train)?;
        let val = assets.source(self.pretrain.data.val.as_deref().unwrap_or(VAL_NAME))?;

        let mim = pretrain::evaluate(&model, &tokenizer, val.clone(), self.pretrain, device)?;
        let samples = visualize::mim_samples(
            &model,
            &tokenizer,
            tokenizer_config.image_size,
            val.clone(),
            self.pretrain,
            SAMPLES,
            device,
        )?;
        let (gallery, usage) = visualize::gallery(
            &tokenizer,
            tokenizer_config.codebook_size,
            tokenizer_config.image_size,
            train.clone(),
            &self.pretrain.data,
            GALLERY,
            device,
        )?;

        let mut bench = Bench::<B> {
            train: train.clone(),
            val: val.clone(),
            data: &self.pretrain.data,
            size: config.vit.image_size,
            stop: &session.signals.stop,
            observer: &mut session.progress,
            device,
            rows: Vec::new(),
        };
        bench.pixels()?;
        let last = config.vit.depth;
        let random = MimModel::new(&config, self.pretrain.seed, device)?;
        let [random, model] = [random, model].map(|net| Featurizer::Mim(Box::new(net), last).freeze());
        bench.model("random", "same ViT, random", &random, FeatureKind::Cls)?;
        bench.model("random_concat", "same ViT, random", &random, FeatureKind::Concat)?;
        bench.model("encoder", "tokenizer's encoder", &encoder(tokenizer), FeatureKind::Mean)?;
        bench.model("pretrained", "pretrained ViT", &model, FeatureKind::Cls)?;
        bench.model("pretrained_concat", "pretrained ViT", &model, FeatureKind::Concat)?;
        bench.model("teacher", "teacher", &Featurizer::Teacher(Box::new(teacher)), FeatureKind::Mean)?;
        let rows = bench.rows;

        let mut per_class = vec![0usize; val.classes().len()];
        for index in 0..val.len() {
            if let Some(label) = val.label(index) {
                per_class[label as usize] += 1;
            }
        }
        let largest = per_class.iter().copied().max().unwrap_or(0);
        Ok(Results {
            majority: largest as f64 / val.len().max(1) as f64,
            classes: per_class.len(),
            held_out: val.len(),
            rows,
            codebook: usage.health(),
            mim,
            examples: Examples {
                mim_samples: samples,
                gallery: Some(Gallery { counts: usage.counts().to_vec(), codes: gallery }),
                ..Examples::default()
            },
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

fn encoder<B: Backend>(tokenizer: VqKd<B>) -> Featurizer<B> {
    Featurizer::Encoder(Box::new(tokenizer))
}

struct Bench<'a, B: AutodiffBackend> {
    train: std::sync::Arc<dyn beit2_data::Source>,
    val: std::sync::Arc<dyn beit2_data::Source>,
    data: &'a DataConfig,
    size: usize,
    stop: &'a StopFlag,
    observer: &'a mut dyn Observer,
    device: &'a B::Device,
    rows: Vec<Row>,
}

impl<B: AutodiffBackend> Bench<'_, B> {
    fn pixels(&mut self) -> anyhow::Result<()> {
        let train = pixel_features(
            &EvaluationData::of_size(&self.train, self.data, self.size),
            self.observer,
            self.stop,
        )?;
        let val = pixel_features(
            &EvaluationData::of_size(&self.val, self.data, self.size),
            self.observer,
            self.stop,
        )?;
        self.add("pixels", "raw pixels", "all", &train, &val)
    }

    fn model(
        &mut self,
        key: &'static str,
        label: &'static str,
        model: &Featurizer<B::InnerBackend>,
        kind: FeatureKind,
    ) -> anyhow::Result<()> {
        let mut features = |source: &std::sync::Arc<dyn beit2_data::Source>| {
            let data = EvaluationData::of_size(source, self.data, self.size);
            extract(model, kind, &data, label, self.observer, self.stop, self.device)
        };
        let (train, val) = (features(&self.train)?, features(&self.val)?);
        let name = match kind {
            FeatureKind::Cls => "CLS",
            FeatureKind::Mean => "mean",
            FeatureKind::Concat => "CLS + mean",
        };
        self.add(key, label, name, &train, &val)
    }

    fn add(
        &mut self,
        key: &'static str,
        label: &'static str,
        features: &'static str,
        train: &Features,
        val: &Features,
    ) -> anyhow::Result<()> {
        let knn = knn::<B::InnerBackend>(train, val, KnnConfig::default(), self.device)?;
        let probe = linear_probe::<B>(train, val, LinearProbeConfig::default(), self.device)?;
        self.rows.push(Row { key, label, features, knn, probe });
        Ok(())
    }
}
