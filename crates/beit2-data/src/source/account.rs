//! What a source uses and what it leaves out, so that nothing is left out in silence.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Most names that are kept for one reason; all are counted.
const NAMED: usize = 10;

/// Everything that was found where a source looked.
///
/// Display is one line: `7 used, 9 skipped: 4 .jfif, 3 .heic, 2 dangling links`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Samples.
    pub used: usize,
    /// What is not a sample, by reason.
    pub skipped: BTreeMap<SkipReason, Skipped>,
    /// What looks wrong but may be meant, one sentence each.
    pub warnings: Vec<String>,
}

/// What was left out for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// How many.
    pub count: usize,
    /// The first of them, in the order in which they were found.
    pub names: Vec<String>,
}

/// Why something is not a sample. It serialises as the words that a person reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SkipReason {
    /// A file that is no image that can be read, by what it is: `.heic`, `.txt`, `no ending`.
    Kind(String),
    /// A symbolic or hard link to nothing.
    DanglingLink,
    /// A folder of a class in which there is no image.
    EmptyClass,
    /// A file or folder that an operating system or a program keeps for itself: `__MACOSX`, `Thumbs.db`, hidden ones.
    System,
    /// A socket, pipe or device.
    Special,
}

impl SkipReason {
    /// The words for `count` of them.
    fn words(&self, count: usize) -> &str {
        match (self, count) {
            (Self::Kind(kind), _) => kind,
            (Self::DanglingLink, 1) => "dangling link",
            (Self::DanglingLink, _) => "dangling links",
            (Self::EmptyClass, 1) => "class without images",
            (Self::EmptyClass, _) => "classes without images",
            (Self::System, 1) => "hidden or system file",
            (Self::System, _) => "hidden or system files",
            (Self::Special, 1) => "special file",
            (Self::Special, _) => "special files",
        }
    }
}

impl Serialize for SkipReason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.words(2))
    }
}

impl Account {
    /// An account of a source that leaves nothing out.
    #[must_use]
    pub fn all_used(used: usize) -> Self {
        Self { used, ..Self::default() }
    }

    /// Counts one thing that is left out.
    pub fn skip(&mut self, reason: SkipReason, name: impl fmt::Display) {
        let skipped = self.skipped.entry(reason).or_default();
        skipped.count += 1;
        if skipped.names.len() < NAMED {
            skipped.names.push(name.to_string());
        }
    }

    /// Adds what another part of the same source found.
    pub fn merge(&mut self, other: Self) {
        self.used += other.used;
        for (reason, more) in other.skipped {
            let skipped = self.skipped.entry(reason).or_default();
            skipped.count += more.count;
            skipped.names.extend(more.names);
            skipped.names.truncate(NAMED);
        }
        self.warnings.extend(other.warnings);
    }

    /// How many things are left out.
    #[must_use]
    pub fn skipped_count(&self) -> usize {
        self.skipped.values().map(|skipped| skipped.count).sum()
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} used", self.used)?;
        for (at, (reason, Skipped { count, .. })) in self.skipped.iter().enumerate() {
            match at {
                0 => write!(f, ", {} skipped: ", self.skipped_count())?,
                _ => f.write_str(", ")?,
            }
            write!(f, "{count} {}", reason.words(*count))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_what_is_left_out() {
        let mut account = Account::all_used(7);
        assert_eq!(account.to_string(), "7 used");
        for number in 0..12 {
            account.skip(SkipReason::Kind(".heic".into()), format!("{number}.heic"));
        }
        account.skip(SkipReason::DanglingLink, "cat.jpg");
        assert_eq!(account.to_string(), "7 used, 13 skipped: 12 .heic, 1 dangling link");
        assert_eq!(account.skipped[&SkipReason::Kind(".heic".into())].names.len(), NAMED);

        let mut other = Account::all_used(2);
        other.skip(SkipReason::DanglingLink, "dog.jpg");
        account.merge(other);
        assert_eq!(account.to_string(), "9 used, 14 skipped: 12 .heic, 2 dangling links");
        let json = serde_json::to_value(&account).unwrap();
        assert_eq!(json["skipped"]["dangling links"]["names"][1], "dog.jpg");
    }
}
