//! SHA-256 of a file, for `weights verify`.

use std::fmt::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::WeightsError;
use crate::source::FileSource;

/// The SHA-256 of a file as 64 lower-case hex digits, read in pieces of 1 MiB.
///
/// The first eight digits are what torch.hub appends to names such as `vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth`.
///
/// # Errors
/// A file that cannot be opened or read.
pub fn sha256(path: &Path) -> Result<String, WeightsError> {
    let source = FileSource::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < source.len() {
        let count = (source.len() - offset).min(buffer.len() as u64);
        let piece = &mut buffer[..count as usize];
        source.fill(offset, piece)?;
        hasher.update(piece);
        offset += count;
    }
    Ok(hex(&hasher.finalize()))
}

/// The SHA-256 of bytes in memory.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
