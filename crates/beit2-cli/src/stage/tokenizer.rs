//! The tokenizer: vector-quantized knowledge distillation.

use beit2::cost::{self, Cost};
use beit2::tokenizer::{self, TokenizerRecipe, VqKd};
use beit2::train::{Assets, Env, LoggingConfig, OptimizerConfig, Outcome, Plan, ScheduleConfig, TrainConfig};
use beit2::visualize::{self, Look};
use beit2::{Error, Precision};
use beit2_bench::Size;
use beit2_kernels::{AutodiffBackend, Backend};
use beit2_run::report::Examples;
use burn::backend::Flex;

use super::{Stage, Tables, at_epochs, init_table, teacher};
use crate::fit::{self, Crop, Fitted, Layers};

impl Stage for TokenizerRecipe {
    const NAME: &'static str = "tokenizer";
    const COMMAND: &'static str = "tokenizer train";
    const DEFAULT_RECIPE: Option<&'static str> = Some("vqkd_base_clip_100e");
    const HAS_MONITORS: bool = true;

    fn tables(&self) -> Tables<'_> {
        let Self { data, schedule, optimizer, teacher, init, .. } = self;
        let weights = ("teacher.weights", teacher.weights.as_str());
        Tables { data, schedule, optimizer, weights, init: init.named() }
    }

    fn channels(&self) -> usize {
        self.model.in_chans
    }

    const IMAGE_SIZE: &'static str = "model.image_size";
    const IMAGE_SIZE_FROM_WEIGHTS: Option<&'static str> = Some("init.image_size_from_weights");

    fn tables_mut(&mut self) -> (&mut ScheduleConfig, &mut OptimizerConfig) {
        (&mut self.schedule, &mut self.optimizer)
    }

    fn train_mut(&mut self) -> &mut TrainConfig {
        &mut self.train
    }

    fn of_size(size: Size) -> Vec<(&'static str, String)> {
        // The decoder is as wide as the encoder, as in the registered tokenizers; its depth stays the recipe's.
        let vit = size.student().vit;
        vec![
            ("model.width", vit.width.to_string()),
            ("model.depth", vit.depth.to_string()),
            ("model.heads", vit.heads.to_string()),
            ("model.decoder_width", vit.width.to_string()),
            ("model.decoder_heads", vit.heads.to_string()),
        ]
    }

    fn check_steps(&self, total: u64) -> Result<(), Error> {
        Self::check_steps(self, total)
    }

    fn fit(&mut self, layers: &Layers<Self>, said: &mut Fitted) {
        fit::kmeans_start(self, layers, said);
    }

    fn crop(&self) -> Option<Crop> {
        Some(Crop {
            input: self.model.image_size,
            patch: self.model.patch_size,
            min_scale: self.augment.min_crop_scale,
            key: "augment.min_crop_scale",
        })
    }

    fn sizes_from(&self) -> Option<&str> {
        self.init.named().filter(|_| self.init.sizes_from_weights)
    }

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        Self::resolve(self, assets)
    }

    fn notes(&self, assets: &dyn Assets) -> Result<Vec<String>, Error> {
        if self.init.named().is_none() {
            return Ok(Vec::new());
        }
        let model = VqKd::<Flex>::zeros(&self.model, &Default::default())?;
        Ok(tokenizer::load_plan(self, &model, assets)?.iter().map(init_table).collect())
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

    fn check_run(&self, steps: u64, devices: usize) -> Result<(), Error> {
        self.check_steps(steps)?;
        self.division(devices).map(drop)
    }

    /// K-means needs more vectors than a few images have.
    fn leave_out(&mut self) {
        self.model.kmeans_init = false;
        self.codebook.kmeans_warmup_steps = 0;
    }

    fn precision(&self) -> Option<Precision> {
        Some(self.precision)
    }

    fn cost(&self, assets: &dyn Assets) -> Result<Cost, Error> {
        let teacher = teacher(&self.teacher, assets)?;
        Ok(cost::tokenizer(self, &teacher.cost(self.model.grid())))
    }

    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error> {
        tokenizer::train::<B>(self, env, device)
    }

    fn examples<B: Backend>(
        &self,
        look: &mut Look<'_>,
        device: &B::Device,
    ) -> Result<Option<Examples>, Error> {
        visualize::of_tokenizer::<B>(self, look, device).map(Some)
    }
}
