//! Names of the members of a shard.

use std::collections::HashSet;
use std::path::Path;

use crate::fingerprint::fnv1a;
use crate::source::{IMAGE_EXTENSIONS, Source};

/// Longest key in bytes: with ending and number it must fit into the 100 bytes of a tar header.
const MAX_KEY: usize = 72;

/// Keys made from names: what names have in common is taken away, and every character that a reader could take for a
/// separator becomes `-`. So `photos/cat/IMG_1.2.jpg` is `cat-IMG_1-2`. A key that is there already gets a number.
pub(super) struct Keys {
    /// Bytes that all names begin with, up to a separator.
    common: usize,
    /// Hashes of the keys in lower case, because some systems do not tell `A` from `a`.
    seen: HashSet<u64>,
}

impl Keys {
    pub(super) fn of(source: &dyn Source) -> Self {
        let mut names = (0..source.len()).map(|index| source.name(index));
        let first = names.next().unwrap_or_default();
        let mut common = first.len();
        for name in names {
            let equal = name.bytes().zip(first.bytes()).take_while(|(a, b)| a == b).count();
            common = common.min(equal);
        }
        // Separators are ASCII, so what stands behind one begins with a whole character.
        let last = first.as_bytes()[..common].iter().rposition(|byte| b"/\\:".contains(byte));
        Self { common: last.map_or(0, |at| at + 1), seen: HashSet::new() }
    }

    /// What is left of a name without what all have in common.
    pub(super) fn short<'a>(&self, name: &'a str) -> &'a str {
        name.get(self.common..).unwrap_or(name)
    }

    /// The key of the next image, by its name.
    pub(super) fn next(&mut self, name: &str) -> String {
        let name = self.short(name);
        let is_image = |ending: &str| IMAGE_EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(ending));
        let ending = Path::new(name).extension().and_then(|ending| ending.to_str()).filter(|e| is_image(e));
        let stem = ending.map_or(name, |ending| &name[..name.len() - ending.len() - 1]);
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        let plain: String = stem.chars().map(plain).collect();
        // The end of a long path says more than its beginning. All characters are ASCII here.
        let plain = plain[plain.len().saturating_sub(MAX_KEY)..].trim_start_matches('-');
        let plain = if plain.is_empty() { "image" } else { plain };
        let mut key = plain.to_owned();
        for number in 2u64.. {
            if self.seen.insert(fnv1a(key.to_ascii_lowercase().as_bytes())) {
                break;
            }
            key = format!("{plain}-{number}");
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FilesSource;

    fn keys(names: &[&str]) -> Vec<String> {
        let source = FilesSource::new(names.iter().map(Into::into).collect());
        let mut keys = Keys::of(&source);
        names.iter().map(|name| keys.next(name)).collect()
    }

    #[test]
    fn keys_are_the_names_without_separators() {
        assert_eq!(keys(&["data/cat/1.jpg", "data/dog/1.v2.png"]), ["cat-1", "dog-1-v2"]);
        assert_eq!(keys(&["data/a-b.jpg", "data/a/b.JPEG", "data/A/b.jpg"]), ["a-b", "a-b-2", "A-b-3"]);
        assert_eq!(keys(&["x.tar:1.png", "x.tar:2"]), ["1", "2"]);
        assert_eq!(keys(&["only/one.gif"]), ["one"]);
        assert_eq!(keys(&["d/é.jpg", "d/...", "d/ö.jpg"]), ["image", "image-2", "image-3"]);
        let long = format!("d/{}/end.jpg", "x".repeat(200));
        let key = &keys(&[&long, "d/other.jpg"])[0];
        assert!(key.len() == MAX_KEY && key.ends_with("x-end"), "{key}");
    }
}
