//! How far a score would move with other images of the same kind: percentile intervals by bootstrap.
//!
//! They cover the sampling of the evaluated images, and nothing else: not the seed of a training, not its data.

use rand_distr::{Binomial, Distribution};
use serde::Serialize;

use super::multi_label::map_of;
use crate::init::generator;

/// Resamples of [`of_share`], which cost a draw each.
const SHARE_RESAMPLES: usize = 10_000;
/// Resamples of [`of_map`], each of which is an evaluation.
const MAP_RESAMPLES: u64 = 1_000;
/// RNG stream of the resamples.
const STREAM: &str = "bootstrap";

/// A score between 0 and 1 and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// On all images.
    pub value: f64,
    /// Bounds of the 95 % percentile interval over resampled images.
    pub interval: [f64; 2],
}

/// The share of `right` among `images` images, with its interval. The same counts always give the same interval.
///
/// A resample draws as many images as there are, with replacement. How many of them are right is binomially distributed, so
/// one draw stands for a whole resample.
pub fn of_share(right: usize, images: usize) -> Estimate {
    let value = right as f64 / images.max(1) as f64;
    let mut rng = generator(0, STREAM);
    let resamples = match Binomial::new(images as u64, value) {
        Ok(counts) => {
            (0..SHARE_RESAMPLES).map(|_| counts.sample(&mut rng) as f64 / images.max(1) as f64).collect()
        }
        Err(_) => vec![value], // of a share in [0, 1] there is always a distribution
    };
    Estimate { value, interval: percentiles(resamples) }
}

/// The mean average precision of `logits [n, C]`, row by row, against the classes of each image, with its interval; `None`
/// if no image has any class. In a resample, too, a class without an image does not count.
pub fn of_map(logits: &[f32], sets: &[Vec<u32>], classes: usize) -> Option<Estimate> {
    let ranked = Ranked::new(logits, sets, classes);
    let value = map_of(&ranked.all(&vec![1; sets.len()]))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let resample = |number: u64| {
        let mut rng = generator(number, STREAM);
        let mut counts = vec![0u32; sets.len()];
        for _ in 0..sets.len() {
            counts[rand::RngExt::random_range(&mut rng, 0..sets.len())] += 1;
        }
        map_of(&ranked.all(&counts))
    };
    let mut resamples: Vec<f64> = std::thread::scope(|scope| {
        let part = |thread: u64| (thread..MAP_RESAMPLES).step_by(threads as usize).filter_map(resample);
        let workers: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || part(thread).collect::<Vec<f64>>())).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    if resamples.is_empty() {
        resamples.push(value); // of very few positive images every resample may have missed all
    }
    Some(Estimate { value, interval: percentiles(resamples) })
}

/// For every class the images by falling score.
struct Ranked(Vec<Vec<Place>>);

/// An image's place in such an order.
struct Place {
    image: u32,
    /// Its score is lower than that of the one before.
    begins: bool,
    /// It has the class.
    positive: bool,
}

impl Ranked {
    fn new(logits: &[f32], sets: &[Vec<u32>], classes: usize) -> Self {
        let of_class = |class: usize| {
            let score = |image: usize| logits[image * classes + class];
            let mut order: Vec<usize> = (0..sets.len()).collect();
            order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
            let entry = |at: usize| {
                let image = order[at];
                let begins = at == 0 || score(order[at - 1]) != score(image);
                Place { image: image as u32, begins, positive: sets[image].contains(&(class as u32)) }
            };
            (0..order.len()).map(entry).collect()
        };
        Self((0..classes).map(of_class).collect())
    }

    /// Each class's average precision where image i counts `counts[i]` times.
    fn all(&self, counts: &[u32]) -> Vec<Option<f64>> {
        let of_class = |ranked: &Vec<Place>| {
            let (mut seen, mut hits, mut new, mut sum) = (0u64, 0u64, 0u64, 0.0);
            for &Place { image, begins, positive } in ranked {
                if begins && new > 0 {
                    sum += new as f64 * (hits as f64 / seen as f64);
                    new = 0;
                }
                let count = u64::from(counts[image as usize]);
                seen += count;
                if positive {
                    (hits, new) = (hits + count, new + count);
                }
            }
            if new > 0 {
                sum += new as f64 * (hits as f64 / seen as f64);
            }
            (hits > 0).then(|| sum / hits as f64)
        };
        self.0.iter().map(of_class).collect()
    }
}

/// The 2.5 % and the 97.5 % percentile, linear between neighbours.
fn percentiles(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    [0.025, 0.975].map(|share| {
        let at = share * last as f64;
        let (below, above) = (values[at.floor() as usize], values[(at.ceil() as usize).min(last)]);
        below + (above - below) * at.fract()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::classify::average_precision;
    use rand::RngExt;

    /// `scipy.stats.binom(n, p).ppf([0.025, 0.975]) / n`.
    #[test]
    fn a_share_has_the_interval_of_the_binomial_distribution() {
        for (right, images, expected) in [
            (531, 1000, [0.500, 0.562]),
            (9, 10, [0.7, 1.0]),
            (215, 409, [195.0 / 409.0, 235.0 / 409.0]),
            (0, 7, [0.0, 0.0]),
            (7, 7, [1.0, 1.0]),
        ] {
            let found = of_share(right, images);
            assert_eq!(found, of_share(right, images));
            assert_eq!(found.value, right as f64 / images as f64);
            for (found, expected) in found.interval.iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 2.5e-3,
                    "{right} of {images}: {found} instead of {expected}"
                );
            }
        }
        assert_eq!(of_share(0, 0).interval, [0.0, 0.0]);
    }

    /// The slow way: images drawn one by one, correctness averaged.
    #[test]
    fn a_draw_stands_for_a_resample() {
        let right: Vec<bool> = (0..200).map(|image| image % 10 < 7).collect();
        let mut rng = generator(5, "test");
        let resample = |_| {
            let hits = (0..right.len()).filter(|_| right[rng.random_range(0..right.len())]).count();
            hits as f64 / right.len() as f64
        };
        let slow = percentiles((0..10_000).map(resample).collect());
        let fast = of_share(140, 200).interval;
        assert!(
            slow.iter().zip(fast).all(|(slow, fast)| (slow - fast).abs() <= 0.0051),
            "{slow:?} and {fast:?}"
        );
    }

    #[test]
    fn mean_average_precision_is_resampled_by_images() {
        let (images, classes) = (120, 3);
        let mut rng = generator(6, "test");
        let sets: Vec<Vec<u32>> = (0..images)
            .map(|_| (0..classes as u32).filter(|_| rng.random_range(0..3) == 0).collect())
            .collect();
        // Scores in steps of a tenth, so that many are equal.
        let logits: Vec<f32> = (0..images * classes)
            .map(|at| {
                let own = sets[at / classes].contains(&((at % classes) as u32));
                ((rng.random::<f32>() + if own { 0.3 } else { 0.0 }) * 10.0).floor()
            })
            .collect();
        let map = |drawn: &[usize]| {
            let of_class = |class: usize| {
                let scores: Vec<f32> = drawn.iter().map(|&image| logits[image * classes + class]).collect();
                let positive: Vec<bool> =
                    drawn.iter().map(|&image| sets[image].contains(&(class as u32))).collect();
                average_precision(&scores, &positive)
            };
            map_of(&(0..classes).map(of_class).collect::<Vec<_>>()).unwrap()
        };
        let found = of_map(&logits, &sets, classes).unwrap();
        assert!((found.value - map(&(0..images).collect::<Vec<_>>())).abs() < 1e-12);
        let slow = (0..1000)
            .map(|_| map(&(0..images).map(|_| rng.random_range(0..images)).collect::<Vec<_>>()))
            .collect();
        let slow = percentiles(slow);
        assert!(
            slow.iter().zip(found.interval).all(|(slow, fast)| (slow - fast).abs() < 0.02),
            "{slow:?} and {found:?}"
        );
        assert_eq!(found, of_map(&logits, &sets, classes).unwrap());
        assert!(of_map(&[0.5], &[vec![]], 1).is_none());
    }
}
