//! Images that were named one by one.

use std::path::PathBuf;

use super::Source;
use super::folder::{fingerprint_file, read_image};
use super::name::{file_name, path_bytes, path_text};
use crate::error::SourceError;
use crate::fingerprint::Fingerprint;

/// A list of image files, without labels, in the order given.
#[derive(Debug)]
pub struct FilesSource {
    files: Vec<PathBuf>,
}

impl FilesSource {
    /// From paths; whether they are there is found out when they are read.
    #[must_use]
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files }
    }
}

impl Source for FilesSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        read_image(self.files.get(index).ok_or(SourceError::Index { index, len: self.len() })?)
    }

    fn name(&self, index: usize) -> String {
        self.files.get(index).map(|path| path_text(path)).unwrap_or_default()
    }

    fn name_bytes(&self, index: usize) -> Option<Vec<u8>> {
        path_bytes(self.files.get(index)?)
    }

    fn key(&self, index: usize) -> String {
        self.files.get(index).map(|file| file_name(file)).unwrap_or_default()
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn fingerprint(&self) -> String {
        let mut hash = Fingerprint::new();
        for file in &self.files {
            fingerprint_file(&mut hash, std::path::Path::new(""), file, None);
        }
        hash.finish()
    }
}
