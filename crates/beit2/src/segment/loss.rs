//! The losses of both heads (docs/method.md §5).

use beit2_kernels::{Backend, loss_sum, pixel_cross_entropy, upload_ints};
use burn::tensor::{Int, Tensor, TensorData};

use super::model::TrainLogits;
use crate::error::{Error, config_error};

/// Losses and accuracies of one pass, each `[1]`.
#[derive(Debug, Clone)]
pub struct PixelLosses<B: Backend> {
    /// What is trained on: the decode head's loss and the weighted loss of the auxiliary head.
    pub total: Tensor<B, 1>,
    /// Loss of the decode head.
    pub decode: Tensor<B, 1>,
    /// Loss of the auxiliary head, not yet weighted.
    pub auxiliary: Option<Tensor<B, 1>>,
    /// Share of all pixels that the decode head has right; those without a class count as wrong.
    pub decode_acc: Tensor<B, 1>,
    /// The same of the auxiliary head.
    pub auxiliary_acc: Option<Tensor<B, 1>>,
}

/// Class ids of a batch on the device, `[B, H, W]` row by row; [`IGNORE`](super::IGNORE) marks pixels without a
/// class.
///
/// # Errors
/// A number of ids that is not B·H·W, an id that is no class.
pub fn label_tensor<B: Backend>(
    ids: Vec<u8>,
    [batch, height, width]: [usize; 3],
    classes: usize,
    device: &B::Device,
) -> Result<Tensor<B, 3, Int>, Error> {
    if ids.len() != batch * height * width {
        return config_error(format!(
            "{} labels for {batch} masks of {width}×{height} px, expected {}",
            ids.len(),
            batch * height * width
        ));
    }
    if let Some(id) = ids.iter().find(|id| usize::from(**id) >= classes && **id != super::IGNORE) {
        return config_error(format!("a mask holds class {id}, which is not one of {classes} classes"));
    }
    Ok(upload_ints(TensorData::new(ids, [batch, height, width]), device))
}

/// Cross entropy of both heads against `labels [B, H, W]` at the labels' size; the mean is over all pixels, those
/// without a class included (as in mmsegmentation).
pub fn pixel_losses<B: Backend>(
    logits: &TrainLogits<B>,
    labels: Tensor<B, 3, Int>,
    aux_weight: f64,
) -> PixelLosses<B> {
    let (decode, decode_acc) = pixel_cross_entropy(logits.decode.clone(), labels.clone());
    let (auxiliary, auxiliary_acc) = match &logits.auxiliary {
        Some(logits) => {
            let (loss, acc) = pixel_cross_entropy(logits.clone(), labels);
            (Some(loss), Some(acc))
        }
        None => (None, None),
    };
    let total = match &auxiliary {
        Some(loss) => loss_sum(decode.clone(), loss.clone(), aux_weight),
        None => decode.clone(),
    };
    PixelLosses { total, decode, auxiliary, decode_acc, auxiliary_acc }
}
