//! How the images of a step are divided: among devices, and on each of them into micro-batches.

use beit2_kernels::Rank;

use super::ScheduleConfig;
use crate::error::{Error, config_error};

/// The images of a step on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    /// Images on each device.
    pub per_rank: usize,
    /// Equal parts that a device takes one after the other. Their gradients are added, and the step is made with the sum.
    pub micro_batches: usize,
}

impl Division {
    /// Images of a micro-batch.
    pub fn micro_batch(&self) -> usize {
        self.per_rank / self.micro_batches
    }

    /// The group of a step's backward passes: gradients are exchanged while the backward pass goes on if there is one in a
    /// step; those of several are added first.
    pub(crate) fn exchanging(&self, rank: &Rank) -> Rank {
        if self.micro_batches == 1 { rank.clone() } else { Rank::alone() }
    }

    /// What the start of a run says about it; nothing where a step is taken at once.
    pub(crate) fn summary(&self) -> Option<(String, String)> {
        let (parts, images) = (self.micro_batches, self.micro_batch());
        let images = if images == 1 { "1 image".to_owned() } else { format!("{images} images") };
        (parts > 1).then(|| ("memory".into(), format!("each step in {parts} micro-batches of {images}")))
    }
}

impl ScheduleConfig {
    /// How this many devices divide a step. A micro-batch that `max_micro_batch` decides is a multiple of `multiple`.
    ///
    /// # Errors
    /// A batch that does not divide evenly.
    pub fn division(&self, devices: usize, multiple: usize) -> Result<Division, Error> {
        let Self { batch_size: batch, grad_accum_steps: parts, max_micro_batch, .. } = *self;
        if max_micro_batch == Some(0) {
            return config_error(
                "schedule.max_micro_batch is 0; it must be at least 1, and \"none\" takes it away",
            );
        }
        let parts = if max_micro_batch.is_some() { 1 } else { parts };
        if parts == 0 || batch == 0 || !batch.is_multiple_of(parts) {
            return config_error(format!(
                "schedule.batch_size {batch} cannot be divided into {parts} equal micro-batches (schedule.grad_accum_steps)"
            ));
        }
        if !batch.is_multiple_of(devices * parts) {
            let each = match parts {
                1 => String::new(),
                _ => format!(", each in {parts} micro-batches"),
            };
            return config_error(format!(
                "schedule.batch_size {batch} cannot be shared equally by {devices} devices{each}; use a multiple of {}",
                devices * parts
            ));
        }
        let per_rank = batch / devices;
        let Some(most) = max_micro_batch else { return Ok(Division { per_rank, micro_batches: parts }) };
        let fits = |parts: &usize| {
            per_rank.is_multiple_of(*parts)
                && per_rank / parts <= most
                && (per_rank / parts).is_multiple_of(multiple)
        };
        match (1..=per_rank).find(fits) {
            Some(micro_batches) => Ok(Division { per_rank, micro_batches }),
            None => config_error(format!(
                "{per_rank} images of a step cannot be divided into equal micro-batches of at most {most} images \
                 (schedule.max_micro_batch) whose number is a multiple of {multiple}; change schedule.batch_size or \
                 schedule.max_micro_batch"
            )),
        }
    }

    /// Whether a step may be divided into micro-batches, whose gradients are added.
    pub fn accumulates(&self) -> bool {
        match self.max_micro_batch {
            Some(most) => most < self.batch_size,
            None => self.grad_accum_steps > 1,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn division(
        batch_size: usize,
        parts: usize,
        most: Option<usize>,
        devices: usize,
    ) -> Result<Division, String> {
        let schedule = ScheduleConfig {
            batch_size,
            grad_accum_steps: parts,
            max_micro_batch: most,
            ..ScheduleConfig::default()
        };
        schedule.division(devices, 1).map_err(|error| error.to_string())
    }

    #[test]
    fn steps_are_divided_equally() {
        let of = |per_rank, micro_batches| Ok(Division { per_rank, micro_batches });
        assert_eq!(division(2048, 1, None, 1), of(2048, 1));
        assert_eq!(division(2048, 16, None, 8), of(256, 16));
        // The fewest parts that are small enough: of 256 images, 86 would not be equal.
        assert_eq!(division(2048, 1, Some(100), 8), of(256, 4));
        assert_eq!(division(2048, 1, Some(4096), 8), of(256, 1));
        assert_eq!(division(7, 1, Some(3), 1), of(7, 7), "7 is a prime");
        // It decides where both are given, as `steps` does beside `epochs`.
        assert_eq!(division(64, 3, Some(32), 1), of(64, 2));
        assert_eq!(division(64, 2, None, 1).unwrap().micro_batch(), 32);
    }

    #[test]
    fn what_does_not_divide_is_said() {
        let fails = |found: Result<Division, String>, words: &[&str]| {
            let error = found.unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        fails(division(64, 3, None, 1), &["64", "cannot be divided into 3 equal micro-batches"]);
        fails(division(64, 0, None, 1), &["0 equal micro-batches"]);
        fails(division(64, 16, None, 8), &["8 devices, each in 16 micro-batches", "multiple of 128"]);
        fails(division(64, 1, Some(4), 3), &["3 devices", "multiple of 3"]);
        fails(division(64, 1, Some(0), 1), &["schedule.max_micro_batch is 0"]);
        // Images that are mixed come in pairs.
        let pairs = |batch_size| {
            let schedule =
                ScheduleConfig { batch_size, max_micro_batch: Some(7), ..ScheduleConfig::default() };
            schedule.division(1, 2).map_err(|error| error.to_string())
        };
        assert_eq!(pairs(14).unwrap().micro_batch(), 2);
        fails(pairs(7), &["at most 7 images", "multiple of 2"]);
    }
}
