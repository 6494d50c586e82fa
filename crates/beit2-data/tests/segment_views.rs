//! Properties of the training view of segmentation: crops stay inside, image and mask stay together.
#![allow(clippy::unwrap_used)]

use beit2_data::segment::{IGNORE, LabelMap, SegmentTrainConfig, SegmentTrainParams, SegmentTrainView};
use beit2_data::{Image, Key, RngStream};
use proptest::prelude::*;

fn key(index: u64) -> Key {
    Key { seed: 9, epoch: 0, index, stream: RngStream::Augment }
}

/// An image whose colour says the class: 8 classes in blocks of 16 x 16.
fn coded(width: u32, height: u32) -> (Image, LabelMap) {
    let class = |x: u32, y: u32| ((x / 16 + 3 * (y / 16)) % 8) as u8;
    let classes = (0..height).flat_map(|y| (0..width).map(move |x| class(x, y)));
    let mask = LabelMap::new(width, height, classes.collect()).unwrap();
    let colors = mask.data.iter().flat_map(|&class| code(class)).collect();
    (Image::new(width, height, colors).unwrap(), mask)
}

fn code(class: u8) -> [u8; 3] {
    [0, 1, 2].map(|bit| if class >> bit & 1 == 1 { 200 } else { 40 })
}

/// Checks that padding is padding, and that pixels away from the borders of classes have their class's
/// colour; gives their number.
///
/// Why away from borders: the two rules of resizing differ by up to half a pixel, as in the reference.
fn aligned(
    config: &SegmentTrainConfig,
    params: &SegmentTrainParams,
    view: &SegmentTrainView,
    width: u32,
    height: u32,
) -> Result<usize, String> {
    let (size, (content_w, content_h)) = (config.crop_size as i64, view.content);
    let enlarged = |to: u32, from: u32| i64::from(to.div_ceil(from));
    let reach = 1 + enlarged(params.resized.0, width).max(enlarged(params.resized.1, height));
    let inside = |x: i64, y: i64| (0..content_w.into()).contains(&x) && (0..content_h.into()).contains(&y);
    let class = |x: i64, y: i64| view.mask.data[(y * size + x) as usize];
    let mut compared = 0;
    for (x, y) in (0..size).flat_map(|y| (0..size).map(move |x| (x, y))) {
        let (pixel, own) = (&view.image.data[(y * size + x) as usize * 3..][..3], class(x, y));
        let mut around = (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (x + dx, y + dy)));
        let expected = match inside(x, y) {
            false if own != IGNORE => return Err(format!("({x}, {y}) is padding of class {own}")),
            false => config.pad_color,
            true if around.all(|(x, y)| inside(x, y) && class(x, y) == own) => {
                compared += 1;
                code(own)
            }
            true => continue,
        };
        if pixel != expected {
            return Err(format!("({x}, {y}) of class {own} has {pixel:?}"));
        }
    }
    Ok(compared)
}

#[test]
fn whole_classes_keep_their_colour() {
    let (image, mask) = coded(150, 120);
    let config = SegmentTrainConfig {
        base: [200, 100],
        crop_size: 90,
        use_photometric: false,
        ..SegmentTrainConfig::default()
    };
    let mut compared = 0;
    for index in 0..40 {
        let params = SegmentTrainParams::draw(&config, &mask, &key(index)).unwrap();
        let view = params.apply(&config, &image, &mask).unwrap();
        compared += aligned(&config, &params, &view, 150, 120).unwrap();
    }
    // A quarter of all pixels.
    assert!(compared > 40 * 90 * 90 / 4, "{compared}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn image_and_mask_stay_together(
        index: u64,
        width in 1u32..200,
        height in 1u32..200,
        crop_size in 1u32..120,
    ) {
        let (image, mask) = coded(width, height);
        let config = SegmentTrainConfig {
            base: [160, 80],
            crop_size,
            use_photometric: false,
            ..SegmentTrainConfig::default()
        };
        let params = SegmentTrainParams::draw(&config, &mask, &key(index)).unwrap();
        prop_assert_eq!(params, SegmentTrainParams::draw(&config, &mask, &key(index)).unwrap());
        prop_assert!(params.area.check(params.resized.0, params.resized.1).is_ok());
        let view = params.apply(&config, &image, &mask).unwrap();
        prop_assert_eq!(
            (view.image.width, view.image.height, view.mask.width, view.mask.height),
            (crop_size, crop_size, crop_size, crop_size)
        );
        let outcome = aligned(&config, &params, &view, width, height);
        prop_assert!(outcome.is_ok(), "{:?}", outcome);
    }

    #[test]
    fn crops_stay_inside(index: u64, width in 1u32..3000, height in 1u32..3000) {
        let mask = LabelMap::new(width, height, vec![0; (width * height) as usize]).unwrap();
        let config = SegmentTrainConfig { cat_max_ratio: 1.0, ..SegmentTrainConfig::default() };
        let params = SegmentTrainParams::draw(&config, &mask, &key(index)).unwrap();
        prop_assert!(params.area.check(params.resized.0, params.resized.1).is_ok());
        prop_assert_eq!(params.area.width, params.resized.0.min(512));
        prop_assert_eq!(params.area.height, params.resized.1.min(512));
    }
}
