//! Augmentation on the device ([`crate::MixingOps`]): one copy from the host and one launch for all boxes, one launch for all
//! pairs.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::BoolElement;
use cubecl::cuda::CudaRuntime;

use super::upload::send;
use super::{Arg, Gpu, Recorded, is_native, native, native_reusing, one};
use crate::mixing::composed;
use crate::{ImageBox, MixingOps, PairMix};

/// Values that a block of threads writes; `BOX` in `kernels/mixing.cu`.
const VALUES: usize = 1024;

/// Most blocks of threads in the second axis of a grid.
const MOST: usize = 65_535;

fn is_plain(x: &Recorded, planes: usize) -> bool {
    is_native(x.client.device()) && x.dtype == DType::F32 && x.shape.num_elements() > 0 && planes <= MOST
}

impl<BT: BoolElement> MixingOps for Gpu<CudaRuntime, BT> {
    fn paste_boxes(x: FloatTensor<Self>, boxes: &[ImageBox], values: Vec<f32>) -> FloatTensor<Self> {
        let [_, channels, height, width] = [0, 1, 2, 3].map(|axis| x.shape[axis]);
        if !is_plain(&x, boxes.len()) || values.is_empty() || values.len() > i32::MAX as usize {
            return composed::paste_boxes::<Self>(x, boxes, values);
        }
        // Image, top, left, rows, columns, and where the values of the box begin.
        let mut table: Vec<i32> = Vec::with_capacity(6 * boxes.len());
        let (mut first, mut largest) = (0, 0);
        for place in boxes {
            let (rows, columns) = (place.rows.len(), place.columns.len());
            let row = [place.image, place.rows.start, place.columns.start, rows, columns, first];
            table.extend(row.map(|number| number as i32));
            let count = channels * rows * columns;
            (first, largest) = (first + count, largest.max(count));
        }
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>();
        let table_bytes: Vec<u8> = table.iter().flat_map(|number| number.to_ne_bytes()).collect();
        let (count, device) = (boxes.len(), x.client.device().clone());
        let sent = send::<BT>(
            &[
                (vec![&table_bytes], Shape::new([table.len()]), DType::I32),
                (vec![&bytes(&values)], Shape::new([values.len()]), DType::F32),
            ],
            &device,
        );
        let total = 4 * x.shape.num_elements();
        let outputs = vec![(x.shape.clone(), DType::F32)];
        let inputs: Vec<Recorded> = std::iter::once(x).chain(sent).collect();
        one(native_reusing::<BT>("paste_boxes", inputs, outputs, 0, &[(0, 0)], move |queue, from, to, _| {
            if from[0] != to[0] {
                queue.join_rows(from[0], total, to[0], total, 1);
            }
            let args = [
                Arg::Ptr(to[0]),
                Arg::Ptr(from[1]),
                Arg::Ptr(from[2]),
                Arg::U32(channels as u32),
                Arg::U32(height as u32),
                Arg::U32(width as u32),
            ];
            let grid = [largest.div_ceil(VALUES) as u32, count as u32, 1];
            queue.launch("paste_boxes", grid, [256, 1, 1], 0, &args);
        }))
    }

    fn mix_pairs(x: FloatTensor<Self>, mix: PairMix) -> FloatTensor<Self> {
        let [batch, channels, height, width] = [0, 1, 2, 3].map(|axis| x.shape[axis]);
        if !is_plain(&x, batch * channels) {
            return composed::mix_pairs::<Self>(x, mix);
        }
        // Where nothing is cut, the box has no rows.
        let (cut, lambda) = match mix {
            PairMix::Cut { rows, columns } => ([rows.start, rows.end, columns.start, columns.end], None),
            PairMix::Blend(lambda) => ([0; 4], Some(lambda)),
        };
        let share = |lambda: f64| Arg::F32(lambda as f32);
        let outputs = vec![(x.shape.clone(), DType::F32)];
        one(native::<BT>("mix_pairs", vec![x], outputs, 0, move |queue, from, to, _| {
            let mut args = vec![
                Arg::Ptr(from[0]),
                Arg::Ptr(to[0]),
                Arg::U32(channels as u32),
                Arg::U32(height as u32),
                Arg::U32(width as u32),
            ];
            args.extend(cut.map(|end| Arg::U32(end as u32)));
            args.extend([share(lambda.unwrap_or(1.0)), share(1.0 - lambda.unwrap_or(1.0))]);
            let grid = [(height * width).div_ceil(VALUES) as u32, (batch * channels) as u32, 1];
            queue.launch("mix_pairs", grid, [256, 1, 1], 0, &args);
        }))
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Cuda, Flex};
    use burn::tensor::{Tensor, TensorData};

    use crate::gpu::tests::on_cuda;
    use crate::{ImageBox, MixingOps, PairMix, mix_pairs, paste_boxes};

    fn images<B: MixingOps>(dims: [usize; 4], device: &B::Device) -> Tensor<B, 4> {
        let values: Vec<f32> =
            (0..dims.iter().product::<usize>()).map(|at| (at * 37 % 1009) as f32).collect();
        Tensor::from_data(TensorData::new(values, dims), device)
    }

    fn ways<B: MixingOps>(dims: [usize; 4], device: &B::Device) -> Vec<Vec<f32>> {
        let [batch, channels, height, width] = dims;
        let boxes: Vec<ImageBox> = (0..batch)
            .step_by(2)
            .map(|image| ImageBox { image, rows: image % height..height, columns: 0..width.div_ceil(2) })
            .collect();
        let count = |place: &ImageBox| channels * place.rows.len() * place.columns.len();
        let values: Vec<f32> = (0..boxes.iter().map(count).sum::<usize>()).map(|at| -(at as f32)).collect();
        let x = images::<B>(dims, device);
        let alone = paste_boxes(images::<B>(dims, device), &boxes, values.clone());
        // The second time, x is read again later.
        let pasted = paste_boxes(x.clone(), &boxes, values);
        let cut = PairMix::Cut { rows: 0..height.div_ceil(2), columns: width / 2..width };
        let found = [alone, pasted, mix_pairs(x.clone(), cut), mix_pairs(x.clone(), PairMix::Blend(0.3)), x];
        found.into_iter().map(|x| x.into_data().into_vec().unwrap()).collect()
    }

    #[test]
    fn boxes_and_pairs_on_cuda() {
        on_cuda(|device| {
            for dims in [[1, 1, 1, 1], [2, 3, 5, 7], [5, 1, 40, 33], [4, 3, 32, 48]] {
                let expected = ways::<Flex>(dims, &Default::default());
                for (way, (found, expected)) in ways::<Cuda>(dims, device).iter().zip(&expected).enumerate() {
                    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                        // NVRTC rounds once where the blend's product and sum are rounded one by one.
                        let limit = if way == 3 { 2e-7 * expected.abs() } else { 0.0 };
                        assert!(
                            (found - expected).abs() <= limit,
                            "{dims:?} {way} {at}: {found}, not {expected}"
                        );
                    }
                }
            }
        });
    }
}
