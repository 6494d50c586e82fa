//! Classes by name: a source's labels become the class numbers of a model, or of another source.
//!
//! Two sets of the same kind of images need not number their classes alike: a folder without one class, or with another
//! language's alphabet, shifts all numbers after it. So labels are matched by the names of their classes.

mod error;
mod files;
mod relabel;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub use self::error::ClassError;
pub use self::files::{ClassTable, read_names};
use self::relabel::Relabelled;
use crate::source::Source;

/// Classes of ImageNet-1k.
pub const IMAGENET_CLASSES: usize = 1000;

/// The classes that labels are to be numbered by.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// What has them, for messages: `the model in FILE`, or a folder.
    pub owner: &'a str,
    /// How many there are.
    pub count: usize,
    /// Their names; empty when they are not known.
    pub names: &'a [String],
}

/// How classes are matched.
#[derive(Clone, Copy, Debug, Default)]
pub enum ClassesBy<'a> {
    /// By name where the target has names; else by what is certain ([`match_classes`]).
    #[default]
    Auto,
    /// By name only.
    Name,
    /// Class k of the data is class k of the target.
    Position,
    /// By name after a table has renamed the data's classes.
    Table(&'a ClassTable),
}

/// How classes were matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Matched {
    /// By name.
    Name,
    /// By name, after a table had renamed the data's classes.
    ClassMap,
    /// The data's class names are the target's class numbers.
    Number,
    /// Class k of the data is class k of the target.
    Position,
}

/// A source with the target's class numbers.
#[derive(Clone)]
pub struct ClassMatch {
    /// The images; its classes are the target's.
    pub source: Arc<dyn Source>,
    /// How it was done.
    pub by: Matched,
    /// The target's classes of which there is no image.
    pub missing: Vec<String>,
    /// What may be wrong, one sentence each.
    pub warnings: Vec<String>,
}

/// Numbers the labels of `source` by the classes of `target`; `data` names the source in messages.
///
/// Without names of the target, [`ClassesBy::Auto`] takes
/// - class names that are all numbers below the target's count as the target's class numbers;
/// - the 1000 WordNet ids of ImageNet-1k in sorted order, as every published classifier has them (also when the target
///   has names in words);
/// - as many classes as the target has by position, with a warning.
///
/// # Errors
/// A class that the target does not have or has twice; classes that cannot be matched without names or by position; a
/// table with names that neither side has.
pub fn match_classes(
    data: &str,
    source: Arc<dyn Source>,
    target: Target<'_>,
    by: ClassesBy<'_>,
) -> Result<ClassMatch, ClassError> {
    let found = source.classes();
    let mut warnings = Vec::new();
    let (by, numbers) = match by {
        ClassesBy::Position => (Matched::Position, positions(data, found, target)?),
        ClassesBy::Name if target.names.is_empty() => {
            let (owner, count) = (target.owner.into(), target.count);
            return Err(ClassError::NoNames { data: data.into(), found: found.len(), owner, count });
        }
        ClassesBy::Name => (Matched::Name, by_name(data, found, found, target)?),
        ClassesBy::Table(table) => {
            let numbered: Vec<String>;
            let target = match target.names {
                [] => {
                    numbered = (0..target.count).map(|number| number.to_string()).collect();
                    Target { names: &numbered, ..target }
                }
                _ => target,
            };
            let renamed = table.rename(data, found, target)?;
            (Matched::ClassMap, by_name(data, found, &renamed, target)?)
        }
        ClassesBy::Auto => automatic(data, found, target, &mut warnings)?,
    };
    let names = |at: usize| match (target.names.get(at), by) {
        (Some(name), _) => name.clone(),
        (None, Matched::Position) => found.get(at).cloned().unwrap_or_default(),
        (None, _) => at.to_string(),
    };
    if let (Matched::Position, Some(at)) = (by, found.iter().zip(target.names).position(|(a, b)| a != b))
        && (!found.iter().all(|name| is_synset(name)) || target.names.iter().any(|name| is_synset(name)))
    {
        warnings.push(format!(
            "class {at} is `{}` in {data} and `{}` in {}; they are taken for the same, by position",
            found[at], target.names[at], target.owner
        ));
    }
    let classes: Vec<String> = (0..target.count).map(names).collect();
    let mut has_image = vec![false; target.count];
    for label in (0..source.len()).filter_map(|index| source.labels(index)).flatten() {
        let number = numbers.get(label as usize);
        if let Some(has) = number.and_then(|&number| has_image.get_mut(number as usize)) {
            *has = true;
        }
    }
    let missing: Vec<String> =
        classes.iter().zip(has_image).filter(|(_, has)| !has).map(|(name, _)| name.clone()).collect();
    if !missing.is_empty() {
        warnings.push(format!(
            "{data} has no image of {} of the {} classes of {}: {}",
            missing.len(),
            target.count,
            target.owner,
            some_of(&missing)
        ));
    }
    let same = classes == found && numbers.iter().zip(0..).all(|(&number, at)| number == at);
    let source = if same { source } else { Arc::new(Relabelled::new(source, numbers, classes)) };
    Ok(ClassMatch { source, by, missing, warnings })
}

/// [`ClassesBy::Auto`].
fn automatic(
    data: &str,
    found: &[String],
    target: Target<'_>,
    warnings: &mut Vec<String>,
) -> Result<(Matched, Vec<u32>), ClassError> {
    let identity = || (0..found.len() as u32).collect::<Vec<u32>>();
    if !target.names.is_empty() {
        let all = by_name(data, found, found, target);
        return match all {
            Err(_) if is_imagenet(found) && in_words(target.names) => Ok((Matched::Position, identity())),
            all => Ok((Matched::Name, all?)),
        };
    }
    let (owner, count) = (target.owner, target.count);
    if let Some(numbers) = class_numbers(found, count) {
        if found.len() == count
            && let Some(at) = numbers.iter().zip(0..).position(|(&number, at)| number != at)
        {
            warnings.push(format!(
                "{owner} does not name its classes, so class `{}` of {data} is its class {}, although it comes at \
                 place {at} of the sorted names",
                found[at], numbers[at]
            ));
        }
        return Ok((Matched::Number, numbers));
    }
    if found.len() != count {
        return Err(ClassError::NoNames {
            data: data.into(),
            found: found.len(),
            owner: owner.into(),
            count,
        });
    }
    if !is_imagenet(found) {
        warnings.push(format!(
            "{owner} does not name its classes, so class k of {data}, with names sorted by their bytes (0 is `{}`), is \
             taken for its class k",
            found[0]
        ));
    }
    Ok((Matched::Position, identity()))
}

/// Class k of one is class k of the other.
pub(crate) fn positions(data: &str, found: &[String], target: Target<'_>) -> Result<Vec<u32>, ClassError> {
    if found.len() != target.count {
        let (owner, count) = (target.owner.into(), target.count);
        return Err(ClassError::Count { data: data.into(), found: found.len(), owner, count });
    }
    Ok((0..found.len() as u32).collect())
}

/// The target's number of each class; `names` are those of `found`, perhaps renamed.
pub(crate) fn by_name(
    data: &str,
    found: &[String],
    names: &[String],
    target: Target<'_>,
) -> Result<Vec<u32>, ClassError> {
    let (data, owner) = (data.to_owned(), target.owner.to_owned());
    let number = numbered(target.names);
    let mut unknown = Vec::new();
    let mut numbers = Vec::with_capacity(names.len());
    for (class, name) in found.iter().zip(names) {
        match number.get(name.as_str()) {
            Some(Some(at)) => numbers.push(*at),
            Some(None) => {
                return Err(ClassError::Twice { data, name: name.clone(), owner });
            }
            None => unknown.push(class.clone()),
        }
    }
    if !unknown.is_empty() {
        let (unknown, known) = (some_of(&unknown), some_of(target.names));
        return Err(ClassError::Unknown {
            data,
            unknown,
            owner,
            known,
            same_count: found.len() == target.count,
        });
    }
    Ok(numbers)
}

/// Class numbers by name; `None` for a name that several classes have.
fn numbered(names: &[String]) -> HashMap<&str, Option<u32>> {
    let mut number = HashMap::with_capacity(names.len());
    for (name, at) in names.iter().zip(0u32..) {
        number.entry(name.as_str()).and_modify(|twice| *twice = None).or_insert(Some(at));
    }
    number
}

/// The names as numbers below `count`, if all of them are and no number comes twice.
fn class_numbers(names: &[String], count: usize) -> Option<Vec<u32>> {
    let number = |name: &String| {
        let digits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
        name.parse::<u32>().ok().filter(|&number| digits && (number as usize) < count)
    };
    let numbers: Vec<u32> = names.iter().map(number).collect::<Option<_>>()?;
    let different = numbers.iter().collect::<HashSet<_>>().len() == numbers.len();
    different.then_some(numbers)
}

/// Whether these are the 1000 WordNet ids of ImageNet-1k (`n01440764` …) in sorted order, as far as their form tells.
#[must_use]
pub fn is_imagenet(names: &[String]) -> bool {
    names.len() == IMAGENET_CLASSES && names.is_sorted() && names.iter().all(|name| is_synset(name))
}

/// Whether these are ImageNet-1k's 1000 classes in words (`tench, Tinca tinca`), which have one order everywhere.
#[must_use]
pub fn in_words(names: &[String]) -> bool {
    let tench = |name: &String| name.to_ascii_lowercase().starts_with("tench");
    names.len() == IMAGENET_CLASSES && names.first().is_some_and(tench)
}

/// A WordNet id: `n` and eight digits.
#[must_use]
pub fn is_synset(name: &str) -> bool {
    name.len() == 9 && name.starts_with('n') && name.bytes().skip(1).all(|byte| byte.is_ascii_digit())
}

/// Up to five names, and how many more there are.
#[must_use]
pub fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FolderSource;

    /// A folder with one image a class.
    fn folder(names: &[&str]) -> (tempfile::TempDir, Arc<dyn Source>) {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("1.ppm"), b"P6 1 1 255\nabc").unwrap();
        }
        let source: Arc<dyn Source> = Arc::new(FolderSource::open(dir.path()).unwrap());
        (dir, source)
    }

    fn matched(
        data: &[&str],
        names: &[&str],
        count: usize,
        by: ClassesBy<'_>,
    ) -> Result<ClassMatch, ClassError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        match_classes("data", folder(data).1, Target { owner: "model", count, names: &names }, by)
    }

    fn numbers(found: &ClassMatch) -> Vec<u32> {
        (0..found.source.len()).filter_map(|index| found.source.label(index)).collect()
    }

    #[test]
    fn names_decide() {
        let found = matched(&["a", "c"], &["c", "b", "a"], 3, ClassesBy::Auto).unwrap();
        assert_eq!((numbers(&found), found.by), (vec![2, 0], Matched::Name));
        assert_eq!(found.source.classes(), ["c", "b", "a"]);
        assert_eq!(found.source.labels(0), Some(vec![2]));
        assert_eq!(found.warnings, ["data has no image of 1 of the 3 classes of model: `b`"]);
        let error = matched(&["a", "x"], &["a", "b"], 2, ClassesBy::Auto).err().unwrap().to_string();
        assert_eq!(error, "data has the class `x`, which model does not have; its classes are `a`, `b`");
        let error = matched(&["a", "b"], &["a", "b", "a"], 3, ClassesBy::Auto).err().unwrap().to_string();
        assert_eq!(error, "data has the class `a`, but several classes of model have this name");
        let found = matched(&["a", "x"], &["a", "b"], 2, ClassesBy::Position).unwrap();
        assert_eq!((numbers(&found), found.warnings.len()), (vec![0, 1], 1));
        assert!(matched(&["a"], &["a", "b"], 2, ClassesBy::Position).is_err());
    }

    #[test]
    fn the_fingerprint_tells_the_numbering() {
        let (_dir, source) = folder(&["a", "b"]);
        let by = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let target = Target { owner: "model", count: names.len(), names: &names };
            match_classes("data", source.clone(), target, ClassesBy::Auto).unwrap().source.fingerprint()
        };
        assert_eq!(by(&["a", "b"]), source.fingerprint(), "nothing is changed");
        assert_ne!(by(&["b", "a"]), source.fingerprint());
        assert_ne!(by(&["b", "a"]), by(&["b", "x", "a"]));
    }

    #[test]
    fn without_names_only_what_is_certain() {
        let found = matched(&["3", "07"], &[], 10, ClassesBy::Auto).unwrap();
        assert_eq!((numbers(&found), found.by), (vec![7, 3], Matched::Number));
        // `10` sorts before `2`, but its number is 10.
        let names: Vec<String> = (0..11).map(|number| number.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = matched(&names, &[], 11, ClassesBy::Auto).unwrap();
        assert_eq!(numbers(&found), [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(found.warnings[0].contains("class `10` of data is its class 10"), "{}", found.warnings[0]);
        let found = matched(&["a", "b"], &[], 2, ClassesBy::Auto).unwrap();
        assert_eq!((numbers(&found), found.by), (vec![0, 1], Matched::Position));
        assert!(found.warnings[0].contains("does not name its classes"), "{}", found.warnings[0]);
        let error = matched(&["a", "b"], &[], 3, ClassesBy::Auto).err().unwrap().to_string();
        assert_eq!(
            error,
            "data has 2 classes, but model has 3 and does not name them, so they cannot be matched"
        );
        assert!(matched(&["a", "b"], &[], 2, ClassesBy::Name).is_err());
    }

    #[test]
    fn wordnet_ids_are_imagenets_classes_in_order() {
        let ids: Vec<String> = (0..1000).map(|at| format!("n{:08}", 1_440_764 + at * 3)).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let found = matched(&ids, &[], 1000, ClassesBy::Auto).unwrap();
        assert_eq!((found.by, found.warnings.len()), (Matched::Position, 0));
        assert_eq!(found.source.classes()[1], "n01440767");
        let mut words: Vec<String> = (0..1000).map(|at| format!("word {at}")).collect();
        words[0] = "tench, Tinca tinca".into();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let found = matched(&ids, &words, 1000, ClassesBy::Auto).unwrap();
        assert_eq!(
            (found.by, found.warnings.len(), found.source.classes()[1].as_str()),
            (Matched::Position, 0, "word 1")
        );
        assert!(matched(&ids[..10], &words, 1000, ClassesBy::Auto).is_err());
        assert!(matched(&ids[..10], &[], 1000, ClassesBy::Auto).is_err());
    }
}
