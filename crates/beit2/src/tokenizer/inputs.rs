//! The frozen half of a step: what the encoder sees, and the teacher's features that it has to rebuild.

use beit2_data::Loader;
use beit2_kernels::{Backend, PatchSpec};
use burn::tensor::Tensor;

use super::teachers::{FeatureMoments, Teacher};
use super::vqkd::preprocess;
use super::{ProcessType, TokenizerRecipe};
use crate::error::Error;
use crate::pixels;
use crate::train::{Item, patches_to_device, to_device};
use crate::vit::Pixels;

/// Crops whose features tell mean and covariance for `targets.whiten`; fewer, where an epoch has fewer.
const CROPS_TO_WHITEN_BY: usize = 1024;

/// Makes the inputs of a step.
#[derive(Clone)]
pub(super) struct Inputs<I: Backend> {
    teacher: Teacher<I>,
    /// What the encoder's patches are.
    spec: PatchSpec<'static>,
    process_type: ProcessType,
    bands: Option<[u32; 3]>,
    device: I::Device,
}

impl<I: Backend> Inputs<I> {
    /// With a teacher for a recipe, and an encoder that sees patches of `spec`.
    pub(super) fn new(
        teacher: Teacher<I>,
        spec: PatchSpec<'static>,
        recipe: &TokenizerRecipe,
        device: &I::Device,
    ) -> Self {
        let (process_type, bands) = (recipe.model.process_type, recipe.data.teacher_bands);
        Self { teacher, spec, process_type, bands, device: device.clone() }
    }

    /// What the encoder sees of the images, and the teacher's features `[B, N, teacher_dim]`.
    pub(super) fn of(&self, items: &[Item]) -> Result<(Pixels<I>, Tensor<I, 3>), Error> {
        let Self { teacher, process_type, device, .. } = self;
        // A teacher sees [−1, 1]: of a view of its own, else of what the model sees.
        let is_signed = |item: &Item| item.token.is_some() || *process_type == ProcessType::Default;
        if self.bands.is_none() && items.iter().all(is_signed) {
            let specs = [self.spec, teacher.patch_spec()];
            let [x, teacher_x] = patches_to_device::<I>(items, specs, device)?;
            return Ok((x, teacher.features(teacher_x)));
        }
        let (images, second) = to_device::<I>(items, device)?;
        let x = preprocess(images.clone(), *process_type);
        let teacher_x = match (second, self.bands) {
            (second, Some(bands)) => pixels::to_signed(pixels::bands(second.unwrap_or(images), bands)),
            (Some(second), None) => pixels::to_signed(second),
            (None, None) => x.clone(),
        };
        Ok((Pixels::Images(x), teacher.forward(teacher_x)))
    }

    /// Mean and covariance of the teacher's features of the first training crops. `batches` are those that the run begins with,
    /// which are the same whenever it is continued; at most `most` of them count, and the teacher sees `at_once` images at a time.
    pub(super) fn moments(
        &self,
        batches: Loader<Item>,
        (most, at_once): (u64, usize),
    ) -> Result<FeatureMoments, Error> {
        let mut moments = FeatureMoments::new(self.teacher.dim());
        let mut crops = 0;
        for batch in batches.take(most as usize) {
            let items = batch?.items;
            let parts: Result<Vec<_>, Error> =
                items.chunks(at_once).map(|items| Ok(self.of(items)?.1)).collect();
            // Sums over whole batches, so that the division changes no target.
            moments.add(Tensor::cat(parts?, 0));
            crops += items.len();
            if crops >= CROPS_TO_WHITEN_BY {
                break;
            }
        }
        Ok(moments)
    }
}
