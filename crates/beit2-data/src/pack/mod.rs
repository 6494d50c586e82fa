//! A source written anew as shards: few large files, read from one end to the other, instead of many small ones.
//!
//! Images keep their labels and can be traced to their original names. They are copied to the byte, or shrunk to a side
//! and written again ([`PackConfig::side`]). The order is drawn once from a seed, so that a part of the shards is a random
//! sample. The same source and settings give the same bytes.
//!
//! Everything is written into `OUT.partial`, which becomes `OUT` when the last shard is on the disk. An interrupted pack
//! goes on behind its last complete shard.

mod error;
mod image;
mod key;
mod partial;
mod shard;
mod tar;
mod to_parquet;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

pub use self::error::PackError;
pub use self::image::{Encoding, MAX_QUALITY, MIN_QUALITY, Side};
use self::image::{Ready, Repack};
use self::key::Keys;
use self::partial::Partial;
use self::shard::{Entry, Shard};
use crate::decode::DecodeOptions;
use crate::order::{EpochOrder, Part};
use crate::pool::{Pool, guarded};
use crate::sample::{most_bad, percent};
use crate::source::Source;

/// How shards are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PackFormat {
    /// Tar files in WebDataset's layout: `key.jpg` and `key.cls` (or `key.json` for several classes).
    #[default]
    Tar,
    /// Parquet files in the layout of Hugging Face's image datasets: `image {bytes, path}`, `label`.
    Parquet,
}

impl PackFormat {
    /// Ending of its files.
    #[must_use]
    pub fn ending(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::Parquet => "parquet",
        }
    }
}

/// Settings of [`Packing`].
#[derive(Clone, Debug, PartialEq)]
pub struct PackConfig {
    /// Form of the shards. Default tar.
    pub format: PackFormat,
    /// Bytes after which a shard is closed; only one with a single image is larger. Default 256 MiB.
    pub shard_bytes: u64,
    /// Larger images are shrunk to this side; `None` copies every image to the byte. Default `None`.
    pub side: Option<Side>,
    /// How images are written that are not copied. Default JPEG of quality 95.
    pub encoding: Encoding,
    /// Whether the order is drawn at random. Default true.
    pub shuffle: bool,
    /// Seed of the order. Default 0.
    pub seed: u64,
    /// Threads that read, decode and encode. The shards do not depend on it. Default 2.
    pub workers: usize,
    /// How images are decoded: to see that they can be, and for those that are written again.
    pub decode: DecodeOptions,
    /// Unreadable images that are left out, as a share of all; more are an error. Unless it is 0, at least one is
    /// allowed. Default 0.01.
    pub max_bad_fraction: f64,
}

impl Default for PackConfig {
    fn default() -> Self {
        Self {
            format: PackFormat::Tar,
            shard_bytes: 256 << 20,
            side: None,
            encoding: Encoding::default(),
            shuffle: true,
            seed: 0,
            workers: 2,
            decode: DecodeOptions::default(),
            max_bad_fraction: 0.01,
        }
    }
}

impl PackConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first one that is out of range ([`PackError::Setting`]).
    pub fn validate(&self) -> Result<(), PackError> {
        let bad = |name, value: String, expected| Err(PackError::Setting { name, value, expected });
        if self.shard_bytes == 0 {
            return bad("the size of shards", "0".into(), "at least 1 byte");
        }
        if !(0.0..=1.0).contains(&self.max_bad_fraction) {
            let value = self.max_bad_fraction.to_string();
            return bad("max_bad_fraction", value, "from 0 to 1 (0.01 is 1 % of the images)");
        }
        if let Encoding::Jpeg { quality } = self.encoding
            && !(MIN_QUALITY..=MAX_QUALITY).contains(&quality)
        {
            return bad(
                "the JPEG quality",
                quality.to_string(),
                "90 to 100: below, training would see the artefacts",
            );
        }
        if let Some(side) = self.side {
            side.validate()?;
            if ![1, 3].contains(&self.decode.channels) {
                let value = format!("{} channels", self.decode.channels);
                return bad(
                    "the images to shrink",
                    value,
                    "RGB or grey; images of other bands are copied as they are",
                );
            }
        }
        Ok(())
    }

    /// What the shards depend on, beside the images.
    fn identity(&self) -> Value {
        let DecodeOptions { range, exif, background, channels, .. } = self.decode;
        json!({
            "format": self.format,
            "shard_bytes": self.shard_bytes,
            "side": self.side,
            "encoding": self.side.map(|_| self.encoding),
            "order": if self.shuffle { json!(self.seed) } else { json!("source") },
            "max_bad_fraction": self.max_bad_fraction,
            "decoding": { "range": range, "exif": exif, "background": background, "channels": channels },
        })
    }
}

/// What a pack consists of. It becomes JSON as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Packed {
    /// Images in all shards.
    pub images: u64,
    /// Those of them that are copies of the original bytes.
    pub copied: u64,
    /// Shards.
    pub shards: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Images that were left out, with the reason.
    pub unreadable: Vec<Unreadable>,
}

/// An image that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Unreadable {
    /// Its name in the source.
    pub path: String,
    /// Why.
    pub error: String,
}

/// A pack that was opened and not written yet.
pub struct Packing {
    source: Arc<dyn Source>,
    config: PackConfig,
    order: Vec<u64>,
    partial: Partial,
}

impl Packing {
    /// Looks at the settings, the source and the output folder, and continues or begins `OUT.partial`.
    ///
    /// `restart` begins again where `OUT.partial` holds shards of other images or settings.
    ///
    /// # Errors
    /// A setting out of range; a folder `out` that is not empty; `OUT.partial` of another pack, or in use; a source whose
    /// images have weights.
    pub fn open(
        source: Arc<dyn Source>,
        out: &Path,
        config: PackConfig,
        restart: bool,
    ) -> Result<Self, PackError> {
        config.validate()?;
        let once = |part: &Part| part.copies == 1 && part.extra == 0;
        if !source.parts().iter().all(once) {
            return Err(PackError::Weights);
        }
        let partial = Partial::open(out, &source, &config, restart)?;
        let mut order =
            EpochOrder::new(source.len() as u64, 1).map_err(|_| PackError::NoImages { images: 0 })?;
        if config.shuffle {
            // In units, because a row group of a parquet file can only be read as a whole.
            order = order.in_units(source.units()).shuffled(config.seed);
        }
        let order = order.permutation(0);
        Ok(Self { source, config, order, partial })
    }

    /// Images of the source that an interrupted pack has dealt with already.
    #[must_use]
    pub fn done(&self) -> usize {
        self.partial.taken()
    }

    /// Writes all shards that are not there yet. `progress` gets the number of images done. When `stop` gives true, it ends
    /// with `None`; the complete shards are kept for the next time.
    ///
    /// # Errors
    /// More unreadable images than allowed, no readable image, a disk that is full or cannot be written.
    pub fn run(
        mut self,
        mut progress: impl FnMut(usize),
        stop: impl Fn() -> bool,
    ) -> Result<Option<Packed>, PackError> {
        let order = std::mem::take(&mut self.order);
        let total = order.len();
        let limit = most_bad(self.config.max_bad_fraction, total as u64);
        let mut keys = Keys::of(self.source.as_ref());
        let begin = self.partial.taken();
        for &index in &order[..begin] {
            keys.next(&self.source.name(index as usize)); // so that later ones come out as without an interruption
        }
        self.refuse_bad(limit, total)?;
        let repack = Repack {
            side: self.config.side,
            encoding: self.config.encoding,
            decode: self.config.decode.clone(),
        };
        let source = self.source.clone();
        let work = move |index: u64| repack.one(source.as_ref(), index as usize);
        let mut ready = Ahead::start(work, self.config.workers, &order[begin..])?;
        let mut shard: Option<Shard> = None;
        for (taken, &index) in order.iter().enumerate().skip(begin) {
            if stop() {
                return Ok(None);
            }
            let name = self.source.name(index as usize);
            let key = keys.next(&name);
            let Ready { bytes, ending, copied } = match ready.next() {
                Ok(ready) => ready,
                Err(error) => {
                    self.partial.unreadable(Unreadable { path: name, error });
                    self.refuse_bad(limit, total)?;
                    progress(taken + 1);
                    continue;
                }
            };
            let labels = self.source.labels(index as usize);
            let entry = Entry {
                name: keys.short(&name),
                key: &key,
                ending,
                bytes: &bytes,
                label: self.source.label(index as usize),
                labels,
                copied,
            };
            if shard.as_ref().is_some_and(|shard| !shard.fits(&entry, self.config.shard_bytes))
                && let Some(full) = shard.take()
            {
                self.partial.close(full, taken)?;
            }
            let shard = match &mut shard {
                Some(shard) => shard,
                none => none.insert(self.partial.shard(self.source.as_ref(), self.config.format)?),
            };
            self.partial.add(shard, &entry)?;
            progress(taken + 1);
        }
        drop(ready);
        if let Some(last) = shard {
            self.partial.close(last, total)?;
        }
        self.partial.finish(total).map(Some)
    }

    /// Fails when more images are unreadable than allowed.
    fn refuse_bad(&self, limit: u64, images: usize) -> Result<(), PackError> {
        let bad = self.partial.all_unreadable();
        if bad.len() as u64 <= limit {
            return Ok(());
        }
        let first = bad.iter().take(3).map(|bad| match bad.error.contains(&bad.path) {
            true => bad.error.clone(),
            false => format!("{}: {}", bad.path, bad.error),
        });
        Err(PackError::TooManyBad {
            bad: bad.len() as u64,
            limit,
            images: images as u64,
            percent: percent(self.config.max_bad_fraction),
            first: first.collect(),
        })
    }
}

/// Images in the order wanted, made ready by several threads a little ahead.
struct Ahead<'a> {
    work: Arc<dyn Fn(u64) -> Result<Ready, String> + Send + Sync>,
    pool: Option<Pool<u64, Result<Ready, String>>>,
    to_submit: std::slice::Iter<'a, u64>,
    pending: VecDeque<(u64, u64)>,
    next_job: u64,
    window: usize,
}

impl<'a> Ahead<'a> {
    fn start(
        work: impl Fn(u64) -> Result<Ready, String> + Send + Sync + 'static,
        workers: usize,
        order: &'a [u64],
    ) -> Result<Self, PackError> {
        let work: Arc<dyn Fn(u64) -> Result<Ready, String> + Send + Sync> = Arc::new(work);
        let pool = match workers {
            0 | 1 => None,
            n => {
                let work = work.clone();
                let started = Pool::start(n.min(1024), move |index| work(index));
                Some(started.map_err(|error| PackError::Spawn(error.to_string()))?)
            }
        };
        // A few images for each thread; with them the memory is bounded.
        let window = if pool.is_some() { 4 * workers.min(1024) } else { 1 };
        Ok(Self { work, pool, to_submit: order.iter(), pending: VecDeque::new(), next_job: 0, window })
    }

    /// The next image, or why there is none.
    fn next(&mut self) -> Result<Ready, String> {
        while self.pending.len() < self.window
            && let Some(&index) = self.to_submit.next()
        {
            let job = self.next_job;
            self.next_job += 1;
            if let Some(pool) = &self.pool {
                pool.submit([(job, index)]);
            }
            self.pending.push_back((job, index));
        }
        let Some((job, index)) = self.pending.pop_front() else {
            return Err("it is not in the order of the pack".into());
        };
        let outcome = match &self.pool {
            Some(pool) => pool.wait(job),
            None => guarded(|| (self.work)(index)),
        };
        outcome.unwrap_or_else(|message| Err(format!("the image decoder crashed on it ({message})")))
    }
}
