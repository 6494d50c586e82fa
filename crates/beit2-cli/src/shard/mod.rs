//! One command on many machines: each does a part of the images and writes it into one folder.
//!
//! A part is chosen by the hash of each image's key ([`beit2_data::division`]), so that machines need not talk to each other.
//! Which part a task does is said by `--shard I/N` or by what its scheduler tells it ([`environment`]). What lies in the folder
//! ([`folder`]):
//!
//! | file                           | what                                                                        |
//! |--------------------------------|-----------------------------------------------------------------------------|
//! | `parts.json`                   | number of parts and all that their values depend on; by the first task      |
//! | `part-00017-of-01024.parquet`  | the rows of a part, in the form of a file of all images                     |
//! | `part-00017-of-01024.json`     | what is in it; written last, so that a part counts only when it is complete |
//! | `manifest.json`                | all parts together, by `--check` when none is missing ([`check`])           |

mod check;
mod environment;
mod folder;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use beit2_data::Source;
use beit2_data::division::samples_of_part;
use beit2_data::source::SubsetSource;

pub use check::{Expected, check};
pub use environment::Task;
pub use folder::{Claim, Folder, PARTS, Record, skipped};

use crate::errors::usage;
use crate::flags::ShardArgs;
use crate::output;

/// Most parts: their numbers have five digits in the names of the files.
const MOST_PARTS: u32 = 100_000;

/// Part `index` of `count`, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which part.
    pub index: u32,
    /// Of how many.
    pub count: u32,
}

impl Shard {
    /// # Errors
    /// No such part.
    pub fn new(index: u64, count: u64) -> Result<Self, String> {
        if count == 0 {
            return Err("a number of parts is at least 1".into());
        }
        if count > u64::from(MOST_PARTS) {
            return Err(format!("{count} parts are too many; there can be {MOST_PARTS}"));
        }
        if index >= count {
            let last = count - 1;
            return Err(format!("there is no part {index} of {count}; parts are counted from 0 to {last}"));
        }
        // Both are below a hundred thousand.
        Ok(Self { index: index as u32, count: count as u32 })
    }

    /// The images of the part.
    pub fn of(self, all: Arc<dyn Source>) -> Arc<dyn Source> {
        let chosen = samples_of_part(all.as_ref(), self.index, self.count);
        Arc::new(SubsetSource::new(all, chosen))
    }

    /// `part-00017-of-01024`, the name of its files.
    pub fn stem(self) -> String {
        format!("part-{:05}-of-{:05}", self.index, self.count)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').map(|(index, count)| (index.parse(), count.parse()));
        match numbers {
            Some((Ok(index), Ok(count))) => Self::new(index, count),
            _ => Err("a part is wanted as I/N, such as 0/8 for the first of 8".into()),
        }
    }
}

/// The folder of parts that a command writes to, and its part; `None` when its output is one file. `names_a_file`: whether the
/// name's ending is that of a file.
///
/// # Errors
/// Flags that contradict each other, no part, a folder with parts of another number.
pub fn division(out: &Path, args: &ShardArgs, names_a_file: bool) -> anyhow::Result<Option<Folder>> {
    let name = out.display();
    if let Some(shard) = args.shard {
        if out.is_file() || (names_a_file && !out.is_dir()) {
            return usage(format!(
                "--shard writes the part into a folder, and --out {name} names a file; name a folder, and the form of its files \
                 with --format"
            ));
        }
        return Ok(Some(Folder::new(out, Task::plain(shard))));
    }
    let told = environment::read(|variable| std::env::var(variable).ok());
    // Anything with another ending is more likely a mistake than the name of a folder.
    let is_folder = out.is_dir() || (!names_a_file && out.extension().is_none());
    if !is_folder {
        if let Ok(Some(told)) = &told
            && told.is_divided()
        {
            output::warning(&format!(
                "{}, but --out {name} names one file: all images are done here; name a folder to divide them",
                told.by
            ));
        }
        return Ok(None);
    }
    let Some(told) = told.or_else(usage)? else {
        return Ok(None);
    };
    let task = match folder::task_of(out, &told)? {
        Some(task) => task,
        None => told.task().or_else(usage)?,
    };
    let (part, parts) = (task.shard.index, task.shard.count);
    output::note(&format!(
        "part {part} of {parts} of the images, because {} (--shard 0/1 does all)",
        told.by
    ));
    Ok(Some(Folder::new(out, task)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_from_zero() {
        let shard: Shard = "17/1024".parse().unwrap();
        assert_eq!((shard.index, shard.count, shard.stem().as_str()), (17, 1024, "part-00017-of-01024"));
        for (text, why) in [
            ("8/8", "counted from 0 to 7"),
            ("0/0", "at least 1"),
            ("0/100001", "too many"),
            ("18446744073709551615/2", "no part"),
            ("", "I/N"),
            ("3", "I/N"),
            ("a/b", "I/N"),
            ("1/2/3", "I/N"),
            ("-1/2", "I/N"),
            ("1.5/2", "I/N"),
            (" 1/2", "I/N"),
        ] {
            let found = text.parse::<Shard>().unwrap_err();
            assert!(found.contains(why), "{text}: {found}");
        }
    }
}
