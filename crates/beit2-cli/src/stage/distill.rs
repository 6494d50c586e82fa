//! Distilling a small teacher.

use beit2::cost::{self, Cost};
use beit2::tokenizer::teachers::{DistillRecipe, distill};
use beit2::train::{Assets, Env, LoggingConfig, OptimizerConfig, Outcome, Plan, ScheduleConfig, TrainConfig};
use beit2::visualize::Look;
use beit2::{Error, Precision};
use beit2_bench::Size;
use beit2_kernels::{AutodiffBackend, Backend};
use beit2_run::report::Examples;

use super::{Stage, Tables, teacher};
use crate::fit::Crop;

impl Stage for DistillRecipe {
    const NAME: &'static str = "distill";
    const COMMAND: &'static str = "teacher distill";
    const DEFAULT_RECIPE: Option<&'static str> = None;

    fn tables(&self) -> Tables<'_> {
        let Self { data, schedule, optimizer, teacher, .. } = self;
        Tables { data, schedule, optimizer, weights: ("teacher.weights", &teacher.weights), init: None }
    }

    const IMAGE_SIZE: &'static str = "model.image_size";
    const HAS_PRECISION: bool = false;

    fn tables_mut(&mut self) -> (&mut ScheduleConfig, &mut OptimizerConfig) {
        (&mut self.schedule, &mut self.optimizer)
    }

    fn train_mut(&mut self) -> &mut TrainConfig {
        &mut self.train
    }

    fn of_size(size: Size) -> Vec<(&'static str, String)> {
        let vit = size.student().vit;
        vec![
            ("model.width", vit.width.to_string()),
            ("model.depth", vit.depth.to_string()),
            ("model.heads", vit.heads.to_string()),
        ]
    }

    fn crop(&self) -> Option<Crop> {
        Some(Crop {
            input: self.model.image_size,
            patch: self.model.patch_size,
            min_scale: self.min_crop_scale,
            key: "min_crop_scale",
        })
    }

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn evaluations(&self, _plan: &Plan) -> u64 {
        0
    }

    fn logging(&self) -> &LoggingConfig {
        &self.logging
    }

    fn logging_mut(&mut self) -> &mut LoggingConfig {
        &mut self.logging
    }

    /// The kept targets are a file of the run, and statistics need many images.
    fn leave_out(&mut self) {
        self.view_epochs = None;
        self.standardise = false;
    }

    fn precision(&self) -> Option<Precision> {
        None
    }

    fn cost(&self, assets: &dyn Assets) -> Result<Cost, Error> {
        let teacher = teacher(&self.teacher, assets)?;
        Ok(cost::distill(self, &teacher.cost(self.model.grid()), teacher.dim()))
    }

    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error> {
        distill::<B>(self, env, device)
    }

    fn examples<B: Backend>(&self, _: &mut Look<'_>, _: &B::Device) -> Result<Option<Examples>, Error> {
        Ok(None)
    }
}
