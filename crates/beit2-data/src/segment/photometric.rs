//! Photometric distortion: brightness, contrast, saturation and hue of a training image, with the
//! arithmetic of mmsegmentation 0.11 on 8-bit values.
//!
//! Every operation is drawn with a probability of its own and leaves 8-bit values behind: brightness,
//! contrast and saturation in single precision, clipped to 0 to 255, the fraction cut off; saturation and
//! hue in OpenCV's 8-bit HSV (`hsv.rs`), each with its own way there and back.

use serde::{Deserialize, Serialize};

use crate::error::TransformError;
use crate::image::Image;
use crate::rng::{Rng, below, uniform, unit};
use crate::segment::hsv;

/// What photometric distortion draws. The defaults are the paper's recipe (docs/method.md §5).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PhotometricConfig {
    /// Probability of each of the four operations. Default 0.5.
    pub prob: f64,
    /// Most that brightness adds or takes away, of 255. Default 32.
    pub brightness: f64,
    /// Smallest and largest factor of contrast. Default 0.5 and 1.5.
    pub contrast: [f64; 2],
    /// Smallest and largest factor of saturation. Default 0.5 and 1.5.
    pub saturation: [f64; 2],
    /// Most that hue turns, in steps of 2 degrees: from `-hue` to `hue - 1`, as in the reference. Default
    /// 18.
    pub hue: u8,
}

impl Default for PhotometricConfig {
    fn default() -> Self {
        Self { prob: 0.5, brightness: 32.0, contrast: [0.5, 1.5], saturation: [0.5, 1.5], hue: 18 }
    }
}

impl PhotometricConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence naming the first setting that is out of range ([`TransformError::Setting`]).
    pub fn validate(&self) -> Result<(), TransformError> {
        let bad = |name, value: String, expected| Err(TransformError::Setting { name, value, expected });
        if !(0.0..=1.0).contains(&self.prob) {
            return bad("photometric.prob", self.prob.to_string(), "a probability from 0 to 1");
        }
        if !(0.0..=255.0).contains(&self.brightness) {
            return bad("photometric.brightness", self.brightness.to_string(), "0 (off) to 255");
        }
        for (name, [low, high]) in
            [("photometric.contrast", self.contrast), ("photometric.saturation", self.saturation)]
        {
            if !(low >= 0.0 && low <= high && high.is_finite()) {
                let expected = "a smallest and a largest factor, such as [0.5, 1.5]";
                return bad(name, format!("[{low}, {high}]"), expected);
            }
        }
        if self.hue > 90 {
            return bad("photometric.hue", self.hue.to_string(), "0 (off) to 90 steps of 2 degrees");
        }
        Ok(())
    }

    /// Draws the operations.
    pub fn sample(&self, rng: &mut impl Rng) -> PhotometricParams {
        let brightness = self.maybe(rng, [-self.brightness, self.brightness]);
        let contrast_first = below(rng, 2) == 1;
        let contrast = self.maybe(rng, self.contrast);
        let saturation = self.maybe(rng, self.saturation);
        let shifted = unit(rng) < self.prob;
        let hue = shifted.then(|| below(rng, 2 * u64::from(self.hue)) as i32 - i32::from(self.hue));
        PhotometricParams { brightness, contrast, contrast_first, saturation, hue }
    }

    /// A number of the range, or none.
    fn maybe(&self, rng: &mut impl Rng, [low, high]: [f64; 2]) -> Option<f64> {
        (unit(rng) < self.prob).then(|| uniform(rng, low, high))
    }
}

/// The drawn operations; `None` is not done. The default does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PhotometricParams {
    /// Added to every value. Done first.
    pub brightness: Option<f64>,
    /// Factor on every value.
    pub contrast: Option<f64>,
    /// Whether contrast comes before saturation and hue, else after them.
    pub contrast_first: bool,
    /// Factor on the saturation.
    pub saturation: Option<f64>,
    /// Added to the hue, steps of 2 degrees. Done after saturation.
    pub hue: Option<i32>,
}

impl PhotometricParams {
    /// Distorts an image in place.
    pub fn apply(&self, image: &mut Image) {
        let pixels = image.data.as_chunks_mut::<3>().0;
        let contrast = self.contrast.map(|factor| table(factor, 0.0));
        let brightness = self.brightness.map(|added| table(1.0, added));
        let [before, after] = if self.contrast_first { [contrast, None] } else { [None, contrast] };
        for table in [brightness, before].into_iter().flatten() {
            look_up(pixels, &table);
        }
        if let Some(factor) = self.saturation {
            let table = table(factor, 0.0);
            in_hsv(pixels, |[h, s, v]| [h, table[usize::from(s)], v]);
        }
        if let Some(turn) = self.hue {
            let table: [u8; 256] = std::array::from_fn(|hue| (hue as i32 + turn).rem_euclid(180) as u8);
            in_hsv(pixels, |[h, s, v]| [table[usize::from(h)], s, v]);
        }
        if let Some(table) = after {
            look_up(pixels, &table);
        }
    }
}

/// `value * factor + added` for each 8-bit value, clipped, the fraction cut off.
fn table(factor: f64, added: f64) -> [u8; 256] {
    // The cast clips.
    std::array::from_fn(|value| (value as f32 * factor as f32 + added as f32) as u8)
}

fn look_up(pixels: &mut [[u8; 3]], table: &[u8; 256]) {
    for value in pixels.as_flattened_mut() {
        *value = table[usize::from(*value)];
    }
}

fn in_hsv(pixels: &mut [[u8; 3]], change: impl Fn([u8; 3]) -> [u8; 3]) {
    for pixel in pixels {
        *pixel = hsv::to_rgb(change(hsv::from_rgb(*pixel)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Key, RngStream};

    fn image() -> Image {
        Image::new(2, 2, vec![0, 100, 255, 10, 20, 30, 200, 200, 200, 255, 0, 0]).unwrap()
    }

    fn applied(params: PhotometricParams) -> Vec<u8> {
        let mut image = image();
        params.apply(&mut image);
        image.data
    }

    #[test]
    fn operations_by_hand() {
        let none = PhotometricParams::default();
        assert_eq!(applied(none), image().data);
        let lighter = PhotometricParams { brightness: Some(20.7), ..none };
        assert_eq!(applied(lighter)[..6], [20, 120, 255, 30, 40, 50]);
        let darker = PhotometricParams { brightness: Some(-10.5), ..none };
        assert_eq!(applied(darker)[..6], [0, 89, 244, 0, 9, 19]);
        let contrast = PhotometricParams { contrast: Some(1.5), ..none };
        assert_eq!(applied(contrast)[..6], [0, 150, 255, 15, 30, 45]);
        let gray = PhotometricParams { saturation: Some(0.0), ..none };
        assert_eq!(applied(gray)[6..], [200, 200, 200, 255, 255, 255]);
        let shifted = PhotometricParams { hue: Some(-60), ..none };
        assert_eq!(applied(shifted)[6..], [200, 200, 200, 0, 0, 255]);
    }

    #[test]
    fn contrast_has_two_places() {
        let both = PhotometricParams { saturation: Some(0.5), contrast: Some(1.4), ..Default::default() };
        let first = PhotometricParams { contrast_first: true, ..both };
        assert_ne!(applied(both), applied(first));
        let by_hand = |params: [PhotometricParams; 2]| {
            let mut image = image();
            params.iter().for_each(|one| one.apply(&mut image));
            image.data
        };
        let saturation = PhotometricParams { contrast: None, ..both };
        let contrast = PhotometricParams { saturation: None, ..both };
        assert_eq!(applied(first), by_hand([contrast, saturation]));
        assert_eq!(applied(both), by_hand([saturation, contrast]));
    }

    #[test]
    fn draws_have_the_recipe_s_ranges_and_probabilities() {
        let config = PhotometricConfig::default();
        let draw =
            |index| config.sample(&mut Key { seed: 3, epoch: 0, index, stream: RngStream::Augment }.rng());
        let all: Vec<PhotometricParams> = (0..4000).map(draw).collect();
        let count = |test: &dyn Fn(&PhotometricParams) -> bool| all.iter().filter(|p| test(p)).count();
        // Binomial(4000, 0.5): mean 2000, standard deviation 32; five of those.
        for found in [
            count(&|p| p.brightness.is_some()),
            count(&|p| p.contrast.is_some()),
            count(&|p| p.contrast_first),
            count(&|p| p.saturation.is_some()),
            count(&|p| p.hue.is_some()),
        ] {
            assert!((1840..=2160).contains(&found), "{found}");
        }
        assert!(all.iter().filter_map(|p| p.brightness).all(|b| (-32.0..32.0).contains(&b)));
        assert!(all.iter().filter_map(|p| p.contrast).all(|c| (0.5..1.5).contains(&c)));
        let hues: std::collections::BTreeSet<i32> = all.iter().filter_map(|p| p.hue).collect();
        assert_eq!(hues, (-18..18).collect());
        assert_eq!(PhotometricConfig { prob: 0.0, ..config }.sample(&mut key().rng()).hue, None);
        let still = PhotometricConfig { prob: 1.0, hue: 0, ..config }.sample(&mut key().rng());
        assert_eq!(still.hue, Some(0));
    }

    fn key() -> Key {
        Key { seed: 0, epoch: 0, index: 0, stream: RngStream::Augment }
    }

    #[test]
    fn settings_are_checked() {
        let config = PhotometricConfig::default();
        assert!(config.validate().is_ok());
        for bad in [
            PhotometricConfig { prob: 1.5, ..config },
            PhotometricConfig { brightness: f64::NAN, ..config },
            PhotometricConfig { contrast: [1.5, 0.5], ..config },
            PhotometricConfig { saturation: [-1.0, 0.5], ..config },
            PhotometricConfig { hue: 91, ..config },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
