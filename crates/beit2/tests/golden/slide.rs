//! Suite G: whole images from windows – slide inference, resizing, mirrored images.

use beit2::segment::{Rows, Sizes, Stitcher, UperNet};
use burn::backend::Flex;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor, TensorData};

use super::checks::check;
use super::folder::{Auto, Case, each_case};
use super::segmentation::{model, models};

/// The rows of a standardised image, resized to `size` and mirrored back if it was mirrored.
fn rows(
    case: &Case,
    model: &UperNet<Flex>,
    x: Tensor<Flex, 4>,
    size: (usize, usize),
    mirrored: bool,
) -> Vec<f32> {
    let [_, _, height, width] = x.dims();
    let (side, classes) = (case.size("img"), case.size("classes"));
    let sizes = Sizes {
        image: (height, width),
        window: (side, side),
        stride: (case.size("stride"), case.size("stride")),
        logits: (side / 4, side / 4),
        classes,
    };
    let stitcher = Stitcher::new(sizes, |places: &[(usize, usize)]| {
        let window = |&(top, left): &(usize, usize)| {
            let x = x.clone().slice([0..1, 0..3, top..top + side, left..left + side]);
            Ok(model.forward(x)?.into_data().into_vec::<f32>().unwrap())
        };
        places.iter().map(window).collect()
    });
    let mut rows = Rows::new(stitcher, size, mirrored);
    // In strips, as images are segmented.
    (0..size.0).step_by(7).flat_map(|from| rows.rows(from, (from + 7).min(size.0)).unwrap()).collect()
}

fn softmax(values: Vec<f32>, classes: usize) -> Vec<f32> {
    let shares = Tensor::<Flex, 2>::from_data(
        TensorData::new(values.clone(), [values.len() / classes, classes]),
        &Default::default(),
    );
    burn::tensor::activation::softmax(shares, 1).into_data().into_vec().unwrap()
}

fn best(values: &[f32], classes: usize) -> Vec<i64> {
    let at = |row: &[f32]| (0..classes).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64;
    values.chunks(classes).map(at).collect()
}

/// Values `[H, W, C]` as PyTorch has them, `[1, C, H, W]`.
fn channels_first(values: Vec<f32>, (height, width): (usize, usize), classes: usize) -> TensorData {
    let data = TensorData::new(values, [1, height, width, classes]);
    Tensor::<Flex, 4>::from_data(data, &Default::default()).permute([0, 3, 1, 2]).into_data()
}

#[test]
fn golden_g_slide() {
    let slide = || {
        let mut models = models();
        models.retain(|case| case.has("slide/logits"));
        models
    };
    each_case(slide, whole_images);
}

fn whole_images(case: &Case) {
    let model = model::<Auto>(case, DType::F32).valid();
    let x: Tensor<Flex, 4> = case.tensor("input/big", DType::F32);
    let [_, _, height, width] = x.dims();
    let (big, classes) = ((height, width), case.size("classes"));
    let logits = rows(case, &model, x.clone(), big, false);
    case.check("slide/logits", &channels_first(logits, big, classes));
    let sides = case.sizes("ori");
    let size = (sides[0], sides[1]);
    let logits = rows(case, &model, x.clone(), size, false);
    check_labels(case, "slide/pred", &logits, classes);
    let plain = softmax(logits.clone(), classes);
    let turned = softmax(rows(case, &model, x.clone().flip([3]), size, true), classes);
    if case.has("slide/logits_rescaled") {
        case.check("slide/logits_rescaled", &channels_first(logits, size, classes));
        case.check("slide/softmax_rescaled", &channels_first(plain.clone(), size, classes));
        case.check("slide/softmax_flip", &channels_first(turned.clone(), size, classes));
    }
    let mean: Vec<f32> = plain.iter().zip(&turned).map(|(a, b)| (a + b) / 2.0).collect();
    check_labels(case, "slide/aug_pred", &mean, classes);
}

/// Labels may differ only where the two best classes are equal up to rounding.
fn check_labels(case: &Case, name: &str, values: &[f32], classes: usize) {
    let margin = |row: &[f32]| -> f64 {
        let mut row = row.to_vec();
        row.sort_by(|a, b| b.total_cmp(a));
        f64::from(row[0] - row[1])
    };
    let margins: Vec<f64> = values.chunks(classes).map(margin).collect();
    check(classes > 1, || format!("{}: {classes} classes", case.name));
    case.check_ids(name, &best(values, classes), Some(&margins));
}
