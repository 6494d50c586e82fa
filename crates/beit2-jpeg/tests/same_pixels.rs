//! The same pixels as libjpeg-turbo's code, of every kind of file that this crate reads, whole and by region.
#![allow(clippy::unwrap_used)]

use beit2_jpeg::{Jpeg, Region};
use mozjpeg::{ColorSpace, Compress, Decompress};
use proptest::prelude::*;

/// How a test image is encoded.
#[derive(Clone, Copy, Debug)]
struct Kind {
    width: usize,
    height: usize,
    quality: u8,
    /// Pixels per sample of colour, across and down; `None`: grey.
    sampling: Option<(u8, u8)>,
    progressive: bool,
    /// Level of the noise on top of a smooth pattern.
    noise: u8,
    seed: u32,
}

fn encode(kind: Kind) -> Vec<u8> {
    let space = if kind.sampling.is_some() { ColorSpace::JCS_RGB } else { ColorSpace::JCS_GRAYSCALE };
    let channels = if kind.sampling.is_some() { 3 } else { 1 };
    let mut out = Compress::new(space);
    out.set_size(kind.width, kind.height);
    out.set_quality(kind.quality.into());
    out.set_fastest_defaults();
    out.set_quality(kind.quality.into());
    if let Some(sizes) = kind.sampling {
        out.set_chroma_sampling_pixel_sizes(sizes, sizes);
    }
    if kind.progressive {
        out.set_progressive_mode();
    }
    let mut state = kind.seed | 1;
    let mut pixels = Vec::with_capacity(kind.width * kind.height * channels);
    for at in 0..kind.width * kind.height * channels {
        let (x, y, band) = (at / channels % kind.width, at / channels / kind.width, at % channels);
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let smooth = 128.0 + 90.0 * ((x as f64 / 17.0 + band as f64).sin() * (y as f64 / 11.0).cos());
        let noise = (state >> 24) as f64 / 255.0 - 0.5;
        pixels.push((smooth + noise * f64::from(kind.noise)).clamp(0.0, 255.0) as u8);
    }
    let mut started = out.start_compress(Vec::new()).unwrap();
    started.write_scanlines(&pixels).unwrap();
    started.finish().unwrap()
}

fn reference(bytes: &[u8]) -> Vec<u8> {
    let mut image = Decompress::new_mem(bytes).unwrap().rgb().unwrap();
    let out = image.read_scanlines::<u8>().unwrap();
    image.finish().unwrap();
    out
}

fn cut(whole: &[u8], width: u32, region: Region) -> Vec<u8> {
    let rows = whole.chunks_exact(width as usize * 3).skip(region.top as usize).take(region.height as usize);
    let (left, right) = (region.left as usize * 3, (region.left + region.width) as usize * 3);
    rows.flat_map(|row| &row[left..right]).copied().collect()
}

/// Panics unless all pixels are the same.
fn compare(bytes: &[u8], regions: &[Region]) {
    let whole = reference(bytes);
    let jpeg = Jpeg::open(bytes).unwrap();
    let (width, height) = (jpeg.width(), jpeg.height());
    for &region in [Region { left: 0, top: 0, width, height }].iter().chain(regions) {
        let (found, expected) = (jpeg.decode(region).unwrap(), cut(&whole, width, region));
        assert_eq!(found.len(), expected.len());
        let off = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        let first = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(off, 0, "{off} of {} values differ in {region:?}, first {first:?}", expected.len());
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    let sampling = prop_oneof![
        Just(None),
        Just(Some((1, 1))),
        Just(Some((2, 1))),
        Just(Some((1, 2))),
        Just(Some((2, 2)))
    ];
    let noise = prop_oneof![Just(0u8), Just(30), Just(255)];
    (5usize..120, 1usize..120, 1u8..=100, sampling, any::<bool>(), noise, any::<u32>()).prop_map(
        |(width, height, quality, sampling, progressive, noise, seed)| Kind {
            width,
            height,
            quality,
            sampling,
            progressive,
            noise,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_kind_and_region(kind in kinds(), places: [u16; 4]) {
        let part = |length: usize, from: u16, to: u16| {
            let (a, b) = (from as usize % length, to as usize % length);
            (a.min(b) as u32, (a.max(b) - a.min(b) + 1) as u32)
        };
        let ((left, width), (top, height)) = (part(kind.width, places[0], places[1]), part(kind.height, places[2], places[3]));
        compare(&encode(kind), &[Region { left, top, width, height }]);
    }

    // Whatever is done to a file, there is a result or a refusal, and no panic.
    #[test]
    fn damage_is_refused_or_harmless(kind in kinds(), places in proptest::collection::vec((any::<u32>(), any::<u8>()), 1..6), cut: u32) {
        let mut bytes = encode(kind);
        for (at, value) in places {
            let at = at as usize % bytes.len();
            bytes[at] = value;
        }
        if cut % 3 == 0 {
            bytes.truncate(cut as usize / 3 % bytes.len());
        }
        if let Ok(jpeg) = Jpeg::open(&bytes) && jpeg.width() * jpeg.height() < 1 << 20 {
            let _ = jpeg.decode(Region { left: 0, top: 0, width: jpeg.width(), height: jpeg.height() });
        }
    }
}
