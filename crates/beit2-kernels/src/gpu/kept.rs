//! Files that are kept between processes: named by what made them, few, and never half written.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Builds of a program whose CubeCL kernels are kept.
const BUILDS: usize = 4;

/// The folder for CubeCL's kernels of this very program on this very machine; those of older builds go.
///
/// `None` if the program cannot be read, or if GPUs of two generations are here: CubeCL's names would not tell their kernels apart.
pub(super) fn of_this_program(folder: &Path) -> Option<PathBuf> {
    let mut hash = Fingerprint::default();
    let program = std::env::current_exe().ok()?;
    hash.read(&mut File::open(program).ok()?).ok()?;
    #[cfg(feature = "cuda")]
    super::cuda::write_cards(&mut hash)?;
    let builds = folder.join("builds");
    let own = builds.join(hash.name());
    fs::create_dir_all(&own).ok()?;
    touch(&own.join("used"));
    keep_latest(&builds, BUILDS, |path| modified(&path.join("used")));
    Some(own)
}

/// Marks a file as used now.
pub(super) fn touch(file: &Path) {
    let opened = File::options().append(true).create(true).open(file);
    // What cannot be marked is only deleted earlier.
    let _ = opened.and_then(|file| file.set_modified(SystemTime::now()));
}

/// When a file was written or marked last.
pub(super) fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|file| file.modified()).ok()
}

/// Deletes all but the latest `count` entries of a folder. A process that still uses a deleted one has it open.
pub(super) fn keep_latest(folder: &Path, count: usize, used: impl Fn(&Path) -> Option<SystemTime>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut entries: Vec<_> =
        entries.flatten().map(|entry| entry.path()).map(|path| (used(&path), path)).collect();
    entries.sort();
    let old = entries.len().saturating_sub(count);
    for (_, path) in &entries[..old] {
        // What cannot be deleted is tried again next time.
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// Writes a file that is the old one, or the new one as a whole.
///
/// # Errors
/// If the folder cannot be written.
#[cfg(feature = "cuda")]
pub(super) fn write(file: &Path, content: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let new = folder.join(format!(".{name}.{}", std::process::id()));
    let written = fs::write(&new, content).and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// 128 bits by which texts and programs are told apart. Not for secrets.
#[derive(Debug, Clone)]
pub(super) struct Fingerprint([u64; 2]);

impl Default for Fingerprint {
    fn default() -> Self {
        // Any two numbers: the first digits of π.
        Self([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344])
    }
}

impl Fingerprint {
    fn word(&mut self, word: u64) {
        // Odd multipliers with many bits, one for each half; the shift brings high bits down again.
        for (half, factor) in self.0.iter_mut().zip([0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f]) {
            *half = (*half ^ word).wrapping_mul(factor);
            *half ^= *half >> 29;
        }
    }

    /// All of a file.
    fn read(&mut self, file: &mut impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read(&mut buffer[filled..])? {
                    0 => break,
                    more => filled += more,
                }
            }
            if filled == 0 {
                return Ok(());
            }
            self.write(&buffer[..filled]);
        }
    }

    /// 32 digits.
    pub fn name(&self) -> String {
        format!("{:016x}{:016x}", self.0[0], self.0[1])
    }
}

impl Hasher for Fingerprint {
    /// Also counts the bytes, so that one text in two parts differs from another.
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
        self.word(bytes.len() as u64);
    }

    fn finish(&self) -> u64 {
        self.0[0] ^ self.0[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_texts_apart() {
        let name = |parts: &[&[u8]]| {
            let mut hash = Fingerprint::default();
            parts.iter().for_each(|part| hash.write(part));
            hash.name()
        };
        assert_eq!(name(&[b"kernel"]), name(&[b"kernel"]));
        let texts: [&[&[u8]]; 6] = [&[], &[b""], &[b"a"], &[b"a\0"], &[b"a", b"b"], &[b"ab"]];
        let names: std::collections::BTreeSet<_> = texts.into_iter().map(name).collect();
        assert_eq!(names.len(), 6);
        assert!(names.iter().all(|name| name.len() == 32));
    }

    #[test]
    fn the_latest_stay() {
        let folder = std::env::temp_dir().join(format!("beit2-kept-{}", std::process::id()));
        fs::create_dir_all(folder.join("3")).unwrap();
        for name in ["1", "2", "4"] {
            fs::write(folder.join(name), name).unwrap();
        }
        let number = |path: &Path| {
            let number: u64 = path.file_name()?.to_str()?.parse().ok()?;
            Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number))
        };
        keep_latest(&folder, 2, number);
        let left: Vec<bool> = ["1", "2", "3", "4"].iter().map(|name| folder.join(name).exists()).collect();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(left, [false, false, true, true]);
    }
}
