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
    /// Why labels are wrong or incomplete, one sentence each: errors where labels matter
    /// ([`Source::check_labels`](super::Source::check_labels)), of no importance elsewhere.
    pub label_errors: Vec<String>,
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
    /// A symbolic or hard link to nothing; inside a tar also one that leads out of the archive or in a circle.
    DanglingLink,
    /// A link to a folder that was read already.
    SecondLink,
    /// A folder beside class folders in which there is no image.
    EmptyClass,
    /// A label whose sample has no image.
    LabelWithoutImage,
    /// A file with holes, as some tar programs store it.
    Sparse,
    /// A file whose name does not end like a band's.
    NoBand,
    /// An image of which a band is missing.
    MissingBand,
    /// A file that the system does not let us open.
    Unreadable,
    /// A file or folder that an operating system or a program keeps for itself: `__MACOSX`, `Thumbs.db`, hidden ones.
    System,
    /// A socket, pipe or device.
    Special,
}

impl SkipReason {
    /// The words for `count` of them.
    #[must_use]
    pub fn words(&self, count: usize) -> &str {
        match (self, count) {
            (Self::Kind(kind), _) => kind,
            (Self::DanglingLink, 1) => "dangling link",
            (Self::DanglingLink, _) => "dangling links",
            (Self::SecondLink, 1) => "link to a folder already read",
            (Self::SecondLink, _) => "links to folders already read",
            (Self::LabelWithoutImage, 1) => "label without an image",
            (Self::LabelWithoutImage, _) => "labels without images",
            (Self::NoBand, 1) => "file of no band",
            (Self::NoBand, _) => "files of no band",
            (Self::MissingBand, 1) => "image without all bands",
            (Self::MissingBand, _) => "images without all bands",
            (Self::Sparse, 1) => "sparse member",
            (Self::Sparse, _) => "sparse members",
            (Self::Unreadable, 1) => "file that cannot be opened",
            (Self::Unreadable, _) => "files that cannot be opened",
            (Self::EmptyClass, 1) => "class without images",
            (Self::EmptyClass, _) => "classes without images",
            (Self::System, 1) => "hidden or system file",
            (Self::System, _) => "hidden or system files",
            (Self::Special, 1) => "special file",
            (Self::Special, _) => "special files",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words(2))
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
        self.label_errors.extend(other.label_errors);
    }

    /// How many things are left out for a reason.
    #[must_use]
    pub fn count(&self, reason: &SkipReason) -> usize {
        self.skipped.get(reason).map_or(0, |skipped| skipped.count)
    }

    /// How many things are left out.
    #[must_use]
    pub fn skipped_count(&self) -> usize {
        self.skipped.values().map(|skipped| skipped.count).sum()
    }
}

impl Account {
    /// What is left out, by reason: `4 .jfif, 3 .heic, 2 dangling links`.
    #[must_use]
    pub fn left_out(&self) -> String {
        let each = |(reason, skipped): (&SkipReason, &Skipped)| {
            format!("{} {}", skipped.count, reason.words(skipped.count))
        };
        self.skipped.iter().map(each).collect::<Vec<_>>().join(", ")
    }
}

/// `a.jpg, b.jpg and 5 more`: the first few of `count` names.
pub(crate) fn some_of<S: AsRef<str>>(names: impl IntoIterator<Item = S>, count: usize) -> String {
    const SHOWN: usize = 3;
    // Four names take no more room than "and 1 more".
    let shown = if count == SHOWN + 1 { count } else { SHOWN };
    let names: Vec<String> = names.into_iter().take(shown).map(|name| name.as_ref().to_owned()).collect();
    match (count - names.len().min(count), names.split_last()) {
        (0, Some((last, [_, ..]))) => format!("{} and {last}", names[..names.len() - 1].join(", ")),
        (0, _) => names.concat(),
        (more, _) => format!("{} and {more} more", names.join(", ")),
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} used", self.used)?;
        match self.skipped.is_empty() {
            true => Ok(()),
            false => write!(f, ", {} skipped: {}", self.skipped_count(), self.left_out()),
        }
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
        other.label_errors.push("no classes".into());
        account.merge(other);
        assert_eq!((account.count(&SkipReason::DanglingLink), account.label_errors.len()), (2, 1));
        assert_eq!(account.to_string(), "9 used, 14 skipped: 12 .heic, 2 dangling links");
        let json = serde_json::to_value(&account).unwrap();
        assert_eq!(json["skipped"]["dangling links"]["names"][1], "dog.jpg");
        assert_eq!(json["label_errors"][0], "no classes");
    }

    #[test]
    fn names_of_many() {
        let check = |count: usize, expected: &str| {
            let names = ["a", "b", "c", "d", "e"];
            assert_eq!(some_of(names.iter().take(count), count), expected);
        };
        check(1, "a");
        check(2, "a and b");
        check(4, "a, b, c and d");
        check(5, "a, b, c and 2 more");
    }
}
