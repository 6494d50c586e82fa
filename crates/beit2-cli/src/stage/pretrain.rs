//! Masked image modeling.

use beit2::cost::{self, Cost};
use beit2::pretrain::{self, MimModel, PretrainRecipe};
use beit2::train::{Assets, Env, LoggingConfig, OptimizerConfig, Outcome, Plan, ScheduleConfig, TrainConfig};
use beit2::visualize::{self, Look};
use beit2::{Error, Precision};
use beit2_bench::Size;
use beit2_kernels::{AutodiffBackend, Backend};
use beit2_run::report::Examples;
use burn::backend::Flex;

use super::{Stage, Tables, at_epochs, init_table, vit_of_size};
use crate::fit::{self, Crop, Fitted, Layers};

impl Stage for PretrainRecipe {
    const NAME: &'static str = "pretrain";
    const COMMAND: &'static str = "pretrain";
    const DEFAULT_RECIPE: Option<&'static str> = Some("mim_base_1600e");
    const HAS_MONITORS: bool = true;

    fn tables(&self) -> Tables<'_> {
        let Self { data, schedule, optimizer, tokenizer, init, .. } = self;
        let weights = ("tokenizer.weights", tokenizer.weights.as_str());
        Tables { data, schedule, optimizer, weights, init: init.named() }
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
        let model = size.student();
        let mut all = vit_of_size(size, model.vit.layer_scale_init);
        all.push(("model.intermediate_layer", model.intermediate_layer.to_string()));
        all
    }

    fn fit(&mut self, layers: &Layers<Self>, said: &mut Fitted) {
        fit::masks(self, layers, said);
    }

    fn doubts(&self) -> Vec<String> {
        fit::odd_mask(self).into_iter().collect()
    }

    fn crop(&self) -> Option<Crop> {
        Some(Crop {
            input: self.model.vit.image_size,
            patch: self.model.vit.patch_size,
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
        let model = MimModel::<Flex>::zeros(&self.model, &Default::default())?;
        Ok(pretrain::load_plan(self, &model, assets)?.iter().map(init_table).collect())
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

    fn leave_out(&mut self) {
        self.tokenizer.cache = None;
    }

    fn precision(&self) -> Option<Precision> {
        Some(self.precision)
    }

    fn cost(&self, assets: &dyn Assets) -> Result<Cost, Error> {
        let (tokenizer, _) = self.tokenizer.open::<Flex>(assets, &Default::default())?;
        Ok(cost::pretrain(self, &tokenizer))
    }

    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error> {
        pretrain::train::<B>(self, env, device)
    }

    fn examples<B: Backend>(
        &self,
        look: &mut Look<'_>,
        device: &B::Device,
    ) -> Result<Option<Examples>, Error> {
        visualize::of_masked_image_model::<B>(self, look, device).map(Some)
    }
}
