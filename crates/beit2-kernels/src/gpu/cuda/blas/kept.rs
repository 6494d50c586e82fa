//! Which algorithm was the fastest for each problem, kept on disk.
//!
//! One text file for each version of the library and name of a device, one line for each problem: the problem, the
//! algorithm as eight hexadecimal numbers, and its time. Lines are appended; of two for one problem the first counts, so
//! that a run that was continued multiplies as it did before. A line that can't be read is as good as absent.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::library::Algorithm;

pub(super) struct Kept {
    /// `None`: nothing is kept.
    file: Option<PathBuf>,
    known: HashMap<String, Algorithm>,
}

impl Kept {
    pub(super) fn open(folder: Option<&Path>, version: usize, device: &str) -> Self {
        let device: String =
            device.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let file = folder.map(|folder| folder.join(format!("cublaslt-{version}-{device}.tsv")));
        let text = file.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let mut known = HashMap::new();
        for (problem, algorithm) in text.lines().filter_map(parse) {
            known.entry(problem.to_owned()).or_insert(algorithm);
        }
        Self { file, known }
    }

    pub(super) fn get(&self, problem: &str) -> Option<&Algorithm> {
        self.known.get(problem)
    }

    /// A folder that can't be written costs the next start a search, nothing else.
    pub(super) fn put(&mut self, problem: String, algorithm: Algorithm, microseconds: f32) {
        if let Some(file) = &self.file {
            let words = algorithm.0.map(|word| format!("{word:x}")).join(" ");
            let line = format!("{problem}\t{words}\t{microseconds:.1}\n");
            let folder = file.parent().unwrap_or(Path::new("."));
            // In one piece: another process may append at the same time.
            let _ = fs::create_dir_all(folder)
                .and_then(|()| OpenOptions::new().create(true).append(true).open(file))
                .and_then(|mut file| file.write_all(line.as_bytes()));
        }
        self.known.insert(problem, algorithm);
    }
}

fn parse(line: &str) -> Option<(&str, Algorithm)> {
    let mut fields = line.split('\t');
    let (problem, words, time) = (fields.next()?, fields.next()?, fields.next()?);
    time.parse::<f32>().ok()?;
    let words: Option<Vec<u64>> = words.split(' ').map(|word| u64::from_str_radix(word, 16).ok()).collect();
    Some((problem, Algorithm(words?.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_there_again_and_the_first_line_counts() {
        let folder = tempfile::tempdir().unwrap();
        let algorithms = [Algorithm([1, 2, 3, 4, 5, 6, 7, u64::MAX]), Algorithm([9; 8])];
        let open = || Kept::open(Some(folder.path()), 130_100, "NVIDIA H100 80GB HBM3");
        open().put("a".into(), algorithms[0], 12.34);
        open().put("a".into(), algorithms[1], 1.0);
        open().put("b".into(), algorithms[1], 1.0);
        let kept = open();
        assert_eq!(kept.get("a"), Some(&algorithms[0]));
        assert_eq!(kept.get("b"), Some(&algorithms[1]));
        assert_eq!(kept.get("c"), None);
        assert!(folder.path().join("cublaslt-130100-NVIDIA-H100-80GB-HBM3.tsv").exists());
        // Another version or device doesn't see them.
        assert_eq!(Kept::open(Some(folder.path()), 120_000, "NVIDIA H100 80GB HBM3").get("a"), None);
        assert_eq!(Kept::open(Some(folder.path()), 130_100, "NVIDIA A100").get("a"), None);
    }

    #[test]
    fn a_damaged_line_is_absent() {
        for line in ["", "a", "a\t1 2 3 4 5 6 7 8", "a\t1 2 3 4 5 6 7\t1.0", "a\t1 2 3 4 5 6 7 x\t1.0"] {
            assert!(parse(line).is_none(), "{line}");
        }
        assert_eq!(parse("a\t1 2 3 4 5 6 7 8\t1.5"), Some(("a", Algorithm([1, 2, 3, 4, 5, 6, 7, 8]))));
    }
}
