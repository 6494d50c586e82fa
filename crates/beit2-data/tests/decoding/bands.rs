//! Images of other than three channels: TIFF, NumPy arrays, files of one band each.

use std::fs;
use std::io::Cursor;

use beit2_data::source::open;
use beit2_data::{
    AugmentOp, DecodeOptions, EvalConfig, FinetuneConfig, FinetuneParams, Image, Key, PixelRange, RngStream,
    TwoViewConfig, ViewParams, decode,
};
use tiff::encoder::{TiffEncoder, colortype};

fn options(channels: u32) -> DecodeOptions {
    DecodeOptions { channels, ..DecodeOptions::default() }
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out.extend(data);
    out
}

fn gray_tiff(width: u32, values: &[u16]) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let height = values.len() as u32 / width;
    TiffEncoder::new(&mut out).unwrap().write_image::<colortype::Gray16>(width, height, values).unwrap();
    out.into_inner()
}

#[test]
fn arrays_in_both_layouts() {
    let hwc: Vec<u8> = (0..2 * 3 * 5).collect();
    let image = decode(&npy("|u1", "(2, 3, 5)", &hwc), &options(5)).unwrap();
    assert_eq!((image.width, image.height, image.channels), (3, 2, 5));
    assert_eq!(image.data, hwc);
    let chw: Vec<u8> = (0..5).flat_map(|c| (0..6).map(move |at| at * 5 + c)).collect();
    assert_eq!(decode(&npy("|u1", "(5, 2, 3)", &chw), &options(5)).unwrap(), image);
    let wide: Vec<u8> = hwc.iter().flat_map(|&value| (u16::from(value) * 257).to_be_bytes()).collect();
    let wide = npy(">u2", "(2, 3, 5)", &wide);
    let why = decode(&wide, &options(5)).unwrap_err().to_string();
    assert!(why.contains("values from 0 to 7453"), "{why}");
    let full = DecodeOptions { range: PixelRange::Full, ..options(5) };
    assert_eq!(decode(&wide, &full).unwrap(), image);
    let floats: Vec<u8> =
        hwc.iter().flat_map(|&value| (f32::from(value) / 10.0 - 1.0).to_le_bytes()).collect();
    let bounds = DecodeOptions { range: PixelRange::bounds(-1.0, 24.5).unwrap(), ..options(5) };
    assert_eq!(decode(&npy("<f4", "(2, 3, 5)", &floats), &bounds).unwrap(), image);
    assert_eq!(decode(&npy("|u1", "(2, 5)", &hwc[..10]), &options(1)).unwrap().data, hwc[..10]);

    let why = |bytes: Vec<u8>, channels| decode(&bytes, &options(channels)).unwrap_err().to_string();
    assert!(why(npy("|u1", "(2, 3, 5)", &hwc), 4).contains("the image has 2 channels, but 4 were expected"));
    assert!(
        why(npy("|u1", "(5, 2, 5)", &[0; 50]), 5).contains("can be [H, W, C] and [C, H, W] for 5 channels")
    );
    assert!(why(npy("|u1", "(2, 3, 5)", &hwc[..29]), 5).contains("truncated"));
    assert!(why(npy("<c8", "(2, 3, 5)", &hwc), 5).contains("NumPy type '<c8'"));
    assert!(why(npy("|u1", "(9, 2, 3, 5)", &hwc), 5).contains("is no image"));
    assert!(why(npy("|u1", "(99999999, 99999999, 5)", &hwc), 5).contains("above the limit"));
}

#[test]
fn grey_is_one_channel() {
    let ppm = b"P6 2 1 255\n\x0a\x14\x1e\xff\xff\xff".to_vec();
    // Pillow: (10·19595 + 20·38470 + 30·7471 + 32768) >> 16.
    assert_eq!(decode(&ppm, &options(1)).unwrap().data, [18, 255]);
    assert_eq!(decode(b"P5 2 1 255\n\x07\x09", &options(1)).unwrap().data, [7, 9]);
    let why = decode(&ppm, &options(5)).unwrap_err().to_string();
    assert!(why.contains("the image has 3 channels, but 5 were expected"), "{why}");
}

#[test]
fn bands_in_files_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    for (class, base) in [("field", 0u16), ("forest", 1000)] {
        fs::create_dir(dir.path().join(class)).unwrap();
        for image in 0..2u16 {
            for band in [2u16, 3, 8] {
                let values: Vec<u16> = (0..6).map(|at| base + image * 100 + band * 10 + at).collect();
                let name = format!("{class}/s{image}_B0{band}.tif");
                fs::write(dir.path().join(name), gray_tiff(3, &values)).unwrap();
            }
        }
    }
    fs::remove_file(dir.path().join("forest/s1_B03.tif")).unwrap();
    fs::write(dir.path().join("field/s0_preview.ppm"), b"P6 1 1 255\nabc").unwrap();
    let spec = format!("{}:bands=_B08+_B02+_B03", dir.path().display());
    let source = open(&spec).unwrap();
    assert_eq!(
        source.account().to_string(),
        "3 used, 2 skipped: 1 file of no band, 1 image without all bands"
    );
    assert_eq!((source.classes().len(), source.label(0), source.label(2)), (2, Some(0), Some(1)));
    let range = PixelRange::bounds(0.0, 2550.0).unwrap();
    let image = decode(&source.read(2).unwrap(), &DecodeOptions { range, ..options(3) }).unwrap();
    assert_eq!((image.width, image.height), (3, 2));
    let expected = |value: f64| (value / 10.0).round() as u8;
    assert_eq!(image.data[..3], [expected(1080.0), expected(1020.0), expected(1030.0)]);
    assert_eq!(image.data[3..6], [expected(1081.0), expected(1021.0), expected(1031.0)]);

    let why =
        |bands: &str| open(&format!("{}:bands={bands}", dir.path().display())).err().unwrap().to_string();
    assert!(why("_B02").contains("does not tell files apart"));
    assert!(why("_B02+B02").contains("does not tell files apart"));
    assert!(why("_B05+_B06").contains("no image has all bands"));
    fs::write(dir.path().join("field/s0_B02.tif"), gray_tiff(2, &[1, 2, 3, 4])).unwrap();
    let why = open(&spec).unwrap().read(0).unwrap_err().to_string();
    assert!(why.contains("s0_B02.tif") && why.contains("2 x 2 pixels, and the first one 3 x 2"), "{why}");
}

/// Every transform gives each channel what it gives it in an image of three equal channels.
#[test]
fn transforms_treat_every_channel_alike() {
    let (width, height, channels) = (40, 31, 5);
    let value = |at: usize| (at.wrapping_mul(2_654_435_761) >> 7) as u8;
    let data: Vec<u8> = (0..width * height * channels).map(value).collect();
    let image = Image::with_channels(width as u32, height as u32, channels as u32, data).unwrap();
    let alone = |channel: usize| {
        let data = image.data.chunks_exact(channels).flat_map(|pixel| [pixel[channel]; 3]).collect();
        Image::new(width as u32, height as u32, data).unwrap()
    };
    let check = |transform: &dyn Fn(&Image) -> Image| {
        let all = transform(&image);
        for channel in 0..channels {
            let one = transform(&alone(channel));
            let found: Vec<u8> = all.data.iter().skip(channel).step_by(channels).copied().collect();
            let expected: Vec<u8> = one.data.iter().step_by(3).copied().collect();
            assert_eq!(found, expected, "channel {channel}");
        }
    };
    let key = Key { seed: 1, epoch: 2, index: 3, stream: RngStream::Augment };
    let views =
        TwoViewConfig { input_size: 24, second_size: 16, color_jitter: 0.0, ..TwoViewConfig::default() };
    let params = ViewParams::draw(&views, width as u32, height as u32, &key);
    check(&|image| params.apply(&views, image).unwrap().patch);
    check(&|image| params.apply(&views, image).unwrap().token.unwrap());
    check(&|image| EvalConfig::of_size(28).apply(image).unwrap());
    for size in [24, 33] {
        let mut config = FinetuneConfig { input_size: size, ..FinetuneConfig::default() };
        // One colour for all channels, or they would differ by it.
        config.rand_augment.fill = [9; 3];
        let mut params = FinetuneParams::draw(&config, width as u32, height as u32, &key);
        params.color = beit2_data::finetune::Color::RandAugment(vec![
            AugmentOp::Rotate { degrees: 11.0 },
            AugmentOp::Equalize,
            AugmentOp::Sharpness { factor: 1.7 },
            AugmentOp::ShearX { factor: 0.1 },
            AugmentOp::Posterize { bits: 4 },
            AugmentOp::Brightness { factor: 0.7 },
        ]);
        check(&|image| params.apply(&config, image).unwrap());
    }
}

#[test]
fn jitter_without_colours() {
    let image = Image::with_channels(2, 1, 2, vec![10, 20, 30, 200]).unwrap();
    let mut found = image.clone();
    AugmentOp::Color { factor: 0.3 }.apply(&mut found, [0; 3]).unwrap();
    assert_eq!(found, image, "there is no saturation");
    AugmentOp::Brightness { factor: 0.5 }.apply(&mut found, [0; 3]).unwrap();
    assert_eq!(found.data, [5, 10, 15, 100]);
    // The mean of all values is 32.5, rounded up.
    AugmentOp::Contrast { factor: 0.5 }.apply(&mut found, [0; 3]).unwrap();
    assert_eq!(found.data, [19, 21, 24, 66]);
}
