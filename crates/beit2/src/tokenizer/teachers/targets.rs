//! Targets of a distillation that are computed once and used in several epochs.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use beit2_kernels::{Backend, upload};
use burn::tensor::{DType, Tensor, TensorData};

use crate::error::Error;

/// One record per batch of the first epochs, in half precision, in the order in which they are made.
///
/// A cache and no part of a run's state: a record that is missing or cut off is computed again.
pub(super) struct Targets {
    path: PathBuf,
    file: File,
    shape: [usize; 3],
}

impl Targets {
    /// Opens or makes the file for batches of `shape` = `[B, N, D]`.
    pub(super) fn open(path: &Path, shape: [usize; 3]) -> Result<Self, Error> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, shape })
    }

    /// As [`open`](Self::open), for a rank in a process of its own: its machine may not have the run directory, and what lies at
    /// its place there may be of another run. The file is gone when the process is.
    pub(super) fn of_process(shape: [usize; 3]) -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("beit2-targets-{}.f16", std::process::id()));
        // What an earlier process of that number left, then the name of the open file.
        let _ = std::fs::remove_file(&path);
        let opened = Self::open(&path, shape)?;
        let _ = std::fs::remove_file(&path);
        Ok(opened)
    }

    /// The targets of batch number `record`, if they are there.
    pub(super) fn read<I: Backend>(
        &mut self,
        record: u64,
        device: &I::Device,
    ) -> Result<Option<Tensor<I, 3>>, Error> {
        let bytes = self.read_bytes(record).map_err(|source| self.error(source))?;
        Ok(bytes.map(|bytes| self.tensor(bytes, device)))
    }

    /// Keeps the targets of batch number `record`, and returns what [`read`](Self::read) will: they are rounded to half
    /// precision both times, so that a continued run repeats the uninterrupted one.
    pub(super) fn write<I: Backend>(
        &mut self,
        record: u64,
        targets: Tensor<I, 3>,
    ) -> Result<Tensor<I, 3>, Error> {
        let device = targets.device();
        let bytes = targets.into_data().convert_dtype(DType::F16).bytes.to_vec();
        self.write_bytes(record, &bytes).map_err(|source| self.error(source))?;
        Ok(self.tensor(bytes, &device))
    }

    fn tensor<I: Backend>(&self, bytes: Vec<u8>, device: &I::Device) -> Tensor<I, 3> {
        let half = TensorData::from_bytes_vec(bytes, self.shape, DType::F16);
        upload(half.convert_dtype(DType::F32), device)
    }

    fn read_bytes(&mut self, record: u64) -> std::io::Result<Option<Vec<u8>>> {
        let size = self.record_bytes();
        if self.file.metadata()?.len() < (record + 1) * size {
            return Ok(None);
        }
        let mut bytes = vec![0; size as usize];
        self.file.seek(SeekFrom::Start(record * size))?;
        self.file.read_exact(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn write_bytes(&mut self, record: u64, bytes: &[u8]) -> std::io::Result<()> {
        let start = record * self.record_bytes();
        // Only ever appended: a record beyond the end would make those before it look computed.
        if self.file.metadata()?.len() < start {
            return Ok(());
        }
        self.file.seek(SeekFrom::Start(start))?;
        self.file.write_all(bytes)
    }

    fn record_bytes(&self) -> u64 {
        2 * self.shape.iter().product::<usize>() as u64
    }

    fn error(&self, source: std::io::Error) -> Error {
        Error::Io { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;

    #[test]
    fn targets_are_computed_once_and_again_when_they_were_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("targets.f16");
        let device = Default::default();
        let mut computed = 0;
        let mut get = |record| {
            let mut targets = Targets::open(&path, [1, 2, 2]).unwrap();
            let found = targets.read::<Flex>(record, &device).unwrap().unwrap_or_else(|| {
                computed += 1;
                let new = Tensor::from_data([[[0.1f32, -2.0], [3.0, 4.5]]], &device);
                targets.write(record, new).unwrap()
            });
            (found.into_data().into_vec::<f32>().unwrap(), computed)
        };
        let (first, _) = get(0);
        assert_eq!(first, [burn::tensor::f16::from_f32(0.1).to_f32(), -2.0, 3.0, 4.5]);
        assert_eq!(get(0), (first.clone(), 1));
        // A gap is never made: record 0 must not look computed because record 2 is.
        assert_eq!([get(2), get(1)], [(first.clone(), 2), (first.clone(), 3)]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(11).unwrap();
        assert_eq!(get(1), (first.clone(), 4));
        assert_eq!([get(0), get(1)], [(first.clone(), 4), (first, 4)]);
    }
}
