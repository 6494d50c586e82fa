//! Token ids of training batches on disk, so that a second run on the same images need not run the tokenizer.
//!
//! A record belongs to the pixels of a whole batch, not to the settings that made them: whatever changes the
//! tokenizer's view changes its hash, so a wrong record cannot be found. Whole batches, because matmuls of
//! another size may round differently, and a tie between two codes would then fall the other way; so ids are those
//! that the tokenizer would give, to the bit. Format: `docs/formats/token-cache.md`.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use beit2_data::Batch;
use beit2_kernels::{Backend, Precision, upload_ints};
use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::params;
use crate::tokenizer::{TokenizerConfig, VqKd};
use crate::train::Item;

/// Version of the files; part of the tokenizer's identity too.
const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"BEIT2IDS";

/// Magic, version, bytes of an id, images, patches, checksum.
const HEADER: u64 = 28;

const HASH: usize = 32;

type Hash = [u8; HASH];

/// How a run has used its cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CacheUse {
    /// Batches whose ids were found.
    pub hits: u64,
    /// Batches looked up.
    pub lookups: u64,
    /// Why the cache is not used any more; said once.
    pub problem: Option<String>,
}

/// The ids of one tokenizer's batches.
pub(super) struct TokenCache {
    folder: PathBuf,
    seed: u64,
    bytes_per_id: usize,
    open: Option<Records>,
    used: CacheUse,
    /// After an error the run goes on without.
    off: bool,
}

impl TokenCache {
    /// The cache in `folder` of a tokenizer with `codes` codes and this [`identity`].
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub(super) fn open(folder: &Path, identity: &str, codes: usize, seed: u64) -> Result<Self, Error> {
        let folder = folder.join(identity);
        std::fs::create_dir_all(&folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
        let bytes_per_id = if codes <= 1 << 16 { 2 } else { 4 };
        Ok(Self { folder, seed, bytes_per_id, open: None, used: CacheUse::default(), off: false })
    }

    /// The ids `[B, N]` of a batch: from the cache, else from `make`, and then kept. An error of the file system
    /// ends the use of the cache, not the run.
    pub(super) fn ids<I: Backend>(
        &mut self,
        batch: &Batch<Item>,
        patches: usize,
        device: &I::Device,
        make: impl FnOnce() -> Tensor<I, 2, Int>,
    ) -> Tensor<I, 2, Int> {
        self.used.lookups += 1;
        let shape = [batch.items.len(), patches];
        let hash = hash_of(batch);
        if let Some(ids) = self.with_records(batch.epoch, shape, |records| records.get(&hash)).flatten() {
            self.used.hits += 1;
            let ids: Vec<i32> = ids.into_iter().map(|id| id as i32).collect();
            return upload_ints(TensorData::new(ids, shape), device);
        }
        let made = make();
        let ids: Vec<u32> = made.to_data().iter::<u32>().collect();
        self.with_records(batch.epoch, shape, |records| records.put(&hash, &ids));
        made
    }

    /// What has been found so far; the problem only the first time.
    pub(super) fn used(&mut self) -> CacheUse {
        let used = self.used.clone();
        self.used.problem = None;
        used
    }

    /// Works on the file of an epoch; `None` without a usable one.
    fn with_records<T>(
        &mut self,
        epoch: u64,
        [images, patches]: [usize; 2],
        work: impl FnOnce(&mut Records) -> std::io::Result<T>,
    ) -> Option<T> {
        if self.off {
            return None;
        }
        // The name only spreads records over files of bounded size; what counts is the hash.
        let path = self.folder.join(format!("seed-{}-batch-{images}-epoch-{epoch:04}.ids", self.seed));
        let records = match self.open.take().filter(|records| records.path == path) {
            Some(records) => Ok(records),
            None => Records::open(&path, images, patches, self.bytes_per_id),
        };
        let done = records.and_then(|mut records| {
            let done = work(&mut records);
            self.open = Some(records);
            done
        });
        done.inspect_err(|error| {
            self.off = true;
            self.used.problem = Some(format!(
                "the cache of token ids cannot be used any more ({}: {error}); the run goes on without it",
                path.display()
            ));
        })
        .ok()
    }
}

/// 32 digits that change with everything that ids depend on besides the pixels: the tokenizer's weights and
/// sizes, and what decides how its sums are rounded (precision, device, instruction set, version of this program).
pub(super) fn identity<I: Backend>(
    config: &TokenizerConfig,
    tokenizer: &VqKd<I>,
    precision: Precision,
    device: &I::Device,
) -> String {
    let mut hasher = Sha256::new();
    let facts = [
        format!("{VERSION}"),
        env!("CARGO_PKG_VERSION").to_owned(),
        I::name(device),
        format!("{:?}", beit2_kernels::simd::level()),
        precision.to_string(),
        serde_json::to_string(config).unwrap_or_default(),
    ];
    for fact in facts {
        hasher.update((fact.len() as u64).to_le_bytes());
        hasher.update(fact);
    }
    params::visit(tokenizer, |info, fetch| {
        let data = fetch();
        hasher.update(format!("{} {:?} {:?}", info.name, data.dtype, data.shape));
        hasher.update(data.as_bytes());
    });
    hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The hash of the tokenizer's views of a batch, in order.
fn hash_of(batch: &Batch<Item>) -> Hash {
    let each = |item: &Item| -> Hash {
        let view = item.token.as_ref().unwrap_or(&item.patch);
        let size = [view.width, view.height].map(u32::to_le_bytes).concat();
        Sha256::new().chain_update(size).chain_update(&view.data).finalize().into()
    };
    let hashes: Vec<Hash> = batch.items.par_iter().map(each).collect();
    Sha256::digest(hashes.concat()).into()
}

/// One file: a header and records of one size, `hash | ids | crc32`. Only ever appended.
struct Records {
    path: PathBuf,
    file: File,
    header: [u8; HEADER as usize],
    bytes_per_id: usize,
    /// Bytes of a record.
    size: usize,
    /// Newest record of each hash, of the first `known` records.
    index: HashMap<Hash, u64>,
    known: u64,
}

impl Records {
    fn open(path: &Path, images: usize, patches: usize, bytes_per_id: usize) -> std::io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(MAGIC);
        let numbers = [VERSION, bytes_per_id as u32, images as u32, patches as u32];
        for (at, number) in numbers.into_iter().enumerate() {
            header[8 + 4 * at..][..4].copy_from_slice(&number.to_le_bytes());
        }
        let check = crc32fast::hash(&header[..24]);
        header[24..].copy_from_slice(&check.to_le_bytes());
        let size = HASH + images * patches * bytes_per_id + 4;
        let path = path.to_owned();
        let mut records = Self { path, file, header, bytes_per_id, size, index: HashMap::new(), known: 0 };
        records.locked(Self::refresh)?;
        Ok(records)
    }

    /// Does `work` while no other process works on the file.
    fn locked<T>(&mut self, work: impl FnOnce(&mut Self) -> std::io::Result<T>) -> std::io::Result<T> {
        // Without locks (some network file systems) two writers may spoil each other's records, which checksums
        // notice; nothing wrong is ever read.
        let locked = match self.file.lock() {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::Unsupported => false,
            Err(error) => return Err(error),
        };
        let done = work(self);
        if locked {
            self.file.unlock()?;
        }
        done
    }

    /// Takes in what other processes have written, removes half a record at the end, and begins a file again whose
    /// header is not the expected one. Only under the lock.
    fn refresh(&mut self) -> std::io::Result<()> {
        let length = self.file.metadata()?.len();
        if length < HEADER || self.read(0, HEADER as usize)? != self.header {
            self.file.set_len(0)?;
            self.file.write_all(&self.header)?;
            (self.known, self.index) = (0, HashMap::new());
            return Ok(());
        }
        let whole = (length - HEADER) / self.size as u64;
        if length != self.place(whole) {
            self.file.set_len(self.place(whole))?;
        }
        if whole < self.known {
            (self.known, self.index) = (0, HashMap::new());
        }
        for record in self.known..whole {
            if let Ok(hash) = Hash::try_from(self.read(self.place(record), HASH)?) {
                self.index.insert(hash, record);
            }
        }
        self.known = whole;
        Ok(())
    }

    /// Where a record begins.
    fn place(&self, record: u64) -> u64 {
        HEADER + record * self.size as u64
    }

    fn read(&mut self, at: u64, count: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.file.seek(SeekFrom::Start(at))?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The ids of a record that is whole and sound.
    fn get(&mut self, hash: &Hash) -> std::io::Result<Option<Vec<u32>>> {
        if !self.index.contains_key(hash) {
            self.locked(Self::refresh)?;
        }
        let Some(&record) = self.index.get(hash) else { return Ok(None) };
        let bytes = match self.read(self.place(record), self.size) {
            Ok(bytes) => bytes,
            // Something has truncated the file since.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Vec::new(),
            Err(error) => return Err(error),
        };
        let sound = bytes.split_last_chunk::<4>().filter(|(body, check)| {
            body.starts_with(hash) && crc32fast::hash(body) == u32::from_le_bytes(**check)
        });
        let Some((body, _)) = sound else {
            self.index.remove(hash);
            return Ok(None);
        };
        let id = |bytes: &[u8]| bytes.iter().rev().fold(0, |id, byte| id << 8 | u32::from(*byte));
        Ok(Some(body[HASH..].chunks_exact(self.bytes_per_id).map(id).collect()))
    }

    /// Appends a record, unless another process has done so.
    fn put(&mut self, hash: &Hash, ids: &[u32]) -> std::io::Result<()> {
        let mut record = hash.to_vec();
        ids.iter().for_each(|id| record.extend(&id.to_le_bytes()[..self.bytes_per_id]));
        record.extend(crc32fast::hash(&record).to_le_bytes());
        debug_assert_eq!(record.len(), self.size);
        self.locked(|records| {
            records.refresh()?;
            if records.index.contains_key(hash) {
                return Ok(());
            }
            let end = records.place(records.known);
            records.file.write_all(&record).inspect_err(|_| {
                // A full disk: what is there already stays readable.
                let _ = records.file.set_len(end);
            })?;
            records.index.insert(*hash, records.known);
            records.known += 1;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
