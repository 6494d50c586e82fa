//! What the quickstart measures once its models are trained.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use beit2::classify::bootstrap::Estimate;
use beit2::classify::{
    FeatureKind, FeaturesOf, Featurizer, KnnConfig, LinearProbe, LinearProbeConfig, extract_all, knn,
    linear_probe,
};
use beit2::pretrain::{self, MimEvaluation, MimModel, PretrainRecipe};
use beit2::tokenizer::teachers::Teacher;
use beit2::tokenizer::{self, CodebookHealth, TokenizerRecipe};
use beit2::train::{Assets, EvaluationData};
use beit2::{visualize, weights};
use beit2_data::Source;
use beit2_kernels::AutodiffBackend;
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
    pub knn: Estimate,
    /// Linear probe.
    pub probe: LinearProbe,
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
    /// Steps of both trainings.
    pub steps: [u64; 2],
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

        let last = config.vit.depth;
        let random = MimModel::with_std(&config, self.pretrain.init.std, self.pretrain.seed, device)?;
        let [random, pretrained] = [random, model].map(|net| Featurizer::Mim(Box::new(net), last).freeze());
        let encoder = Featurizer::Encoder(Box::new(tokenizer));
        let teacher = Featurizer::Teacher(Box::new(teacher));
        // Every image is decoded once and every model runs once: of CLS and mean patch together, the first half is CLS.
        let wanted = [
            FeaturesOf::Pixels,
            FeaturesOf::Model(&random, FeatureKind::Concat),
            FeaturesOf::Model(&encoder, FeatureKind::Mean),
            FeaturesOf::Model(&pretrained, FeatureKind::Concat),
            FeaturesOf::Model(&teacher, FeatureKind::Mean),
        ];
        let Session { progress, signals, .. } = session;
        let mut features = |source: &Arc<dyn Source>, what| {
            let data = EvaluationData::of_size(source, &self.pretrain.data, config.vit.image_size);
            extract_all(&wanted, &data, what, progress, &signals.stop, device)
        };
        let all = [features(&train, "training images")?, features(&val, "validation images")?];
        let mut rows = Vec::new();
        for (at, key, label, name) in [
            (0, "pixels", "raw pixels", "all"),
            (1, "random", "same ViT, random", "CLS"),
            (1, "random_concat", "same ViT, random", "CLS + mean"),
            (2, "encoder", "tokenizer's encoder", "mean"),
            (3, "pretrained", "pretrained ViT", "CLS"),
            (3, "pretrained_concat", "pretrained ViT", "CLS + mean"),
            (4, "teacher", "teacher", "mean"),
        ] {
            let [train, val] = &all;
            let cls = (name == "CLS").then(|| [train[at].cls_of_concat(), val[at].cls_of_concat()]);
            let [train, val] = cls.as_ref().map_or([&train[at], &val[at]], |[train, val]| [train, val]);
            let stop = &signals.stop;
            let found = knn::<B::InnerBackend>(train, val, &KnnConfig::default(), progress, stop, device)?;
            let probe = linear_probe::<B>(train, val, &LinearProbeConfig::default(), progress, stop, device)?;
            rows.extend(found.first().map(|&knn| Row { key, label, features: name, knn, probe }));
        }

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
            steps: [&self.tokenizer.schedule, &self.pretrain.schedule].map(|s| s.steps.unwrap_or_default()),
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}
