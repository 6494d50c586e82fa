//! Fine-tuning a classifier.

use beit2::classify::finetune::{self, FinetuneRecipe};
use beit2::cost::{self, Cost};
use beit2::train::{
    Assets, Division, Env, LoggingConfig, OptimizerConfig, Outcome, Plan, ScheduleConfig, TrainConfig,
};
use beit2::visualize::{self, Look};
use beit2::{Error, Precision};
use beit2_bench::Size;
use beit2_data::check::Findings;
use beit2_kernels::{AutodiffBackend, Backend};
use beit2_run::report::Examples;

use super::{Sources, Stage, Tables, at_epochs, vit_of_size};
use crate::fit::Crop;

impl Stage for FinetuneRecipe {
    const NAME: &'static str = "finetune";
    const COMMAND: &'static str = "finetune";
    const DEFAULT_RECIPE: Option<&'static str> = Some("finetune_base_1600e");
    const USES_CLASSES: bool = true;
    const IMAGES: &'static str = "Labelled training images: a folder with one sub-folder per class, tar or parquet shards, \
        a table of paths and labels, IDX files, or bundled:train; repeatable, with :weight=N for how often an epoch has \
        each image";
    const VALIDATION: &'static str = "Labelled validation images, with classes of the same names";

    fn tables(&self) -> Tables<'_> {
        let Self { data, schedule, optimizer, init, .. } = self;
        Tables { data, schedule, optimizer, weights: ("init.weights", &init.weights), init: None }
    }

    fn channels(&self) -> usize {
        self.model.vit.in_chans
    }

    const IMAGE_SIZE: &'static str = "model.vit.image_size";
    const IMAGE_SIZE_FROM_WEIGHTS: Option<&'static str> = Some("init.image_size_from_weights");

    fn tables_mut(&mut self) -> (&mut ScheduleConfig, &mut OptimizerConfig) {
        (&mut self.schedule, &mut self.optimizer)
    }

    fn train_mut(&mut self) -> &mut TrainConfig {
        &mut self.train
    }

    fn of_size(size: Size) -> Vec<(&'static str, String)> {
        vit_of_size(size, size.student().vit.layer_scale_init)
    }

    fn sizes_from(&self) -> Option<&str> {
        let Self { init, .. } = self;
        (init.sizes_from_weights && !init.weights.is_empty() && !self.is_from_scratch())
            .then_some(&init.weights)
    }

    fn crop(&self) -> Option<Crop> {
        let augment = self.augmentation();
        (!augment.is_padded()).then_some(Crop {
            input: self.model.vit.image_size,
            patch: self.model.vit.patch_size,
            min_scale: augment.min_crop_scale,
            key: "augment.min_crop_scale",
        })
    }

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        Self::resolve(self, assets)
    }

    fn notes(&self, assets: &dyn Assets) -> Result<Vec<String>, Error> {
        let mut notes: Vec<String> = self
            .validation(assets)?
            .into_iter()
            .flat_map(|val| val.warnings)
            .map(|warning| format!("warning: {warning}"))
            .collect();
        if !self.is_from_scratch() {
            let classes = assets.source(&self.data.train)?.classes().to_vec();
            let head = finetune::load_plan(self, &classes, assets)?.head;
            notes.extend(head.map(|head| format!("head: {}", head.summary)));
        }
        Ok(notes)
    }

    fn findings(&self, assets: &dyn Assets) -> Result<Findings, Error> {
        let sources = Sources::open(self, assets)?;
        let mut findings = sources.of_labels(&self.data);
        findings.extend(sources.of_images(&self.data.of_channels(self.channels())));
        Ok(findings)
    }

    fn division(&self, devices: usize) -> Result<Division, Error> {
        Self::division(self, devices)
    }

    fn evaluations(&self, plan: &Plan) -> u64 {
        at_epochs(&self.logging, plan)
    }

    fn logging(&self) -> &LoggingConfig {
        &self.logging
    }

    fn logging_mut(&mut self) -> &mut LoggingConfig {
        &mut self.logging
    }

    fn fewest_images(&self) -> usize {
        1 + usize::from(self.mix.is_on())
    }

    fn precision(&self) -> Option<Precision> {
        Some(self.precision)
    }

    fn keeps_averages(&self) -> bool {
        self.ema_decay.is_some()
    }

    fn cost(&self, assets: &dyn Assets) -> Result<Cost, Error> {
        Ok(cost::finetune(self, assets.source(&self.data.train)?.classes().len()))
    }

    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error> {
        finetune::train::<B>(self, env, device)
    }

    fn examples<B: Backend>(
        &self,
        look: &mut Look<'_>,
        device: &B::Device,
    ) -> Result<Option<Examples>, Error> {
        visualize::of_classifier::<B>(self, look, device).map(Some)
    }
}
