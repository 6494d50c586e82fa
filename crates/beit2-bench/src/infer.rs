//! Forward passes of a classifier, measured.

use beit2::init::{InitRule, initialise};
use beit2::pixels;
use beit2::train::to_device;
use beit2::vit::{DropPath, Pooling, VisionTransformer};
use beit2::{Error, InferPrecision};
use beit2_kernels::Backend;
use burn::tensor::Tensor;

use crate::images::{Images, Stream};
use crate::size::CLASSES;
use crate::{Parts, Size, Watch, flops};

/// A classifier of a thousand classes with random weights.
pub struct InferBench<I: Backend> {
    model: VisionTransformer<I>,
    images: Stream,
    size: Size,
    batch: usize,
    device: I::Device,
}

impl<I: Backend> InferBench<I> {
    /// A model that classifies `batch` images at once.
    ///
    /// # Errors
    /// A precision that the device does not have, images that cannot be read.
    pub fn new(
        size: Size,
        batch: usize,
        precision: InferPrecision,
        images: Images,
        device: &I::Device,
    ) -> Result<Self, Error> {
        precision.check::<I>(device)?;
        let vit = size.classifier();
        let rule = InitRule::Finetune { head_scale: 1.0, gamma: vit.layer_scale_init };
        let mut model = initialise(VisionTransformer::new(&vit, Pooling::Mean, CLASSES, device), rule, 0);
        model.set_precision(precision.of_floats());
        if precision.is_int8() {
            model.set_int8();
        }
        let images = Stream::new(images, batch, vit.image_size)?;
        Ok(Self { model: model.freeze(), images, size, batch, device: device.clone() })
    }

    /// Floating-point operations of the matmuls for a batch.
    pub fn step_flops(&self) -> f64 {
        flops::inference(self.size) * self.batch as f64
    }

    /// Bytes of one batch to logits on the host; data and forward of the parts.
    ///
    /// # Errors
    /// Images that cannot be read, a device that fails.
    pub fn batch(&mut self) -> Result<Parts, Error> {
        let mut watch = Watch::<I>::start(&self.device)?;
        let Some(batch) = self.images.next() else {
            return Err(Error::Training("the images came to an end".into()));
        };
        let images: Tensor<I, 4> = to_device(&batch?, &self.device)?.0;
        let x = pixels::standardise(images, pixels::IMAGENET_MEAN, pixels::IMAGENET_STD);
        let data = watch.lap()?;
        let logits = self.model.forward(x, &DropPath::none()).into_data();
        if logits.iter::<f32>().any(|logit| !logit.is_finite()) {
            return Err(Error::Training("the device computes logits that are not finite".into()));
        }
        Ok(Parts { data, forward: watch.lap()?, ..Parts::default() })
    }
}
