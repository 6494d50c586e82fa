//! Training a segmentation model.

use std::sync::Arc;

use beit2::cost::{self, Cost};
use beit2::segment::{self, SegmentRecipe, SegmenterConfig};
use beit2::train::{Assets, Env, LoggingConfig, OptimizerConfig, Outcome, Plan, ScheduleConfig, TrainConfig};
use beit2::visualize::{self, Look};
use beit2::{Error, Precision};
use beit2_bench::Size;
use beit2_data::Source;
use beit2_data::check::{self, Findings, Set};
use beit2_kernels::{AutodiffBackend, Backend};
use beit2_run::report::Examples;

use super::{Sources, Stage, Tables, vit_of_size};
use crate::fit::{self, Fitted, Layers};

impl Stage for SegmentRecipe {
    const NAME: &'static str = "segment";
    const COMMAND: &'static str = "segment train";
    const DEFAULT_RECIPE: Option<&'static str> = Some("segment_base_ade20k");
    const USES_CLASSES: bool = true;
    const IMAGES: &'static str = "Training images with masks: a folder with images/, masks/ and classes.txt, or a split of \
        ADE20K such as ADEChallengeData2016/images/training";
    const VALIDATION: &'static str = "Validation images with masks, in the same layout";

    fn tables(&self) -> Tables<'_> {
        let Self { data, schedule, optimizer, init, .. } = self;
        Tables { data, schedule, optimizer, weights: ("init.weights", &init.weights), init: None }
    }

    // Its learning rate falls by a power of what is left, and not by a cosine.
    const CAN_BE_EXTENDED: bool = false;

    const IMAGE_SIZE: &'static str = "model.vit.image_size";

    fn tables_mut(&mut self) -> (&mut ScheduleConfig, &mut OptimizerConfig) {
        (&mut self.schedule, &mut self.optimizer)
    }

    fn train_mut(&mut self) -> &mut TrainConfig {
        &mut self.train
    }

    fn of_size(size: Size) -> Vec<(&'static str, String)> {
        let model =
            SegmenterConfig::named(if size == Size::Large { "large" } else { "base" }).unwrap_or_default();
        let vit = size.student().vit;
        let mut all = vit_of_size(size, model.vit.layer_scale_init);
        all.push(("model.channels", vit.width.to_string()));
        all.push(("model.out_indices", format!("{:?}", SegmenterConfig::taps(vit.depth))));
        all
    }

    fn sizes_from(&self) -> Option<&str> {
        let Self { init, .. } = self;
        (init.sizes_from_weights && !init.weights.is_empty() && !self.is_from_scratch())
            .then_some(&init.weights)
    }

    fn fit(&mut self, layers: &Layers<Self>, said: &mut Fitted) {
        fit::stride(self, layers, said);
    }

    fn check(&self) -> Result<(), Error> {
        self.validate()
    }

    fn resolve(&mut self, assets: &dyn Assets) -> Result<(), Error> {
        Self::resolve(self, assets)
    }

    fn source(&self, assets: &dyn Assets, spec: &str) -> Result<Arc<dyn Source>, Error> {
        Ok(assets.segment_source(spec, &self.masks.options(self.data.decode_options()))?)
    }

    fn findings(&self, assets: &dyn Assets) -> Result<Findings, Error> {
        let options = self.masks.options(self.data.decode_options());
        let train = assets.segment_source(&self.data.train, &options)?;
        let val = self.data.val.as_deref().map(|spec| assets.segment_source(spec, &options)).transpose()?;
        let set = Set { name: &self.data.train, source: &train };
        let val = self.data.val.as_deref().zip(val.as_ref()).map(|(name, source)| Set { name, source });
        let (mut findings, _) = check::masks(set, val, self.data.workers);
        findings.extend(Sources::open(self, assets)?.of_images(&self.data));
        Ok(findings)
    }

    fn evaluations(&self, plan: &Plan) -> u64 {
        self.eval.every.map_or(1, |every| plan.total_steps.div_ceil(every))
    }

    fn logging(&self) -> &LoggingConfig {
        &self.logging
    }

    fn logging_mut(&mut self) -> &mut LoggingConfig {
        &mut self.logging
    }

    fn leave_out(&mut self) {
        self.eval.every = None;
    }

    /// One crop has no variance for batch norm.
    fn fewest_images(&self) -> usize {
        2
    }

    fn precision(&self) -> Option<Precision> {
        Some(self.precision)
    }

    fn cost(&self, _assets: &dyn Assets) -> Result<Cost, Error> {
        Ok(cost::segment(self))
    }

    fn train<B: AutodiffBackend>(&self, env: Env<'_>, device: &B::Device) -> Result<Outcome, Error> {
        segment::train::<B>(self, env, device)
    }

    fn examples<B: Backend>(
        &self,
        look: &mut Look<'_>,
        device: &B::Device,
    ) -> Result<Option<Examples>, Error> {
        visualize::of_segmenter::<B>(self, look, device).map(Some)
    }
}
