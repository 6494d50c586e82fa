//! Folders that are not what their place says: splits, masks and shards beside class folders.

use std::collections::HashMap;

use super::account::{Account, SkipReason, some_of};
use super::kind::is_image_name;
use super::name::{file_name, path_text};
use super::walk::{ClassFolder, Walk};
use crate::error::SourceError;

/// Names of training sets.
const TRAIN: [&str; 3] = ["train", "training", "trn"];
/// Names of validation sets, and of test sets, which stand in for a missing validation set.
const VAL: [&str; 13] = [
    "val",
    "valid",
    "validation",
    "validate",
    "dev",
    "development",
    "eval",
    "evaluation",
    "heldout",
    "holdout",
    "test",
    "testing",
    "tst",
];
/// Names of further parts of data that have splits.
const REST: [&str; 3] = ["unlabeled", "unlabelled", "extra"];

/// Compressed archives.
const ARCHIVES: [&str; 7] = [".zip", ".tgz", ".txz", ".tbz", ".tbz2", ".7z", ".rar"];

/// Names of folders of images, where masks lie beside them.
const IMAGES: [&str; 6] = ["image", "images", "img", "imgs", "jpegimages", "rgb"];
/// Names of folders of masks.
const MASKS: [&str; 18] = [
    "mask",
    "masks",
    "annotation",
    "annotations",
    "label",
    "labels",
    "seg",
    "segmentation",
    "segmentations",
    "segmentationclass",
    "segmentationobject",
    "segmentationclassaug",
    "gt",
    "groundtruth",
    "instances",
    "trimaps",
    "depth",
    "panoptic",
];

/// `Train_2017`, `test-images` and `val set` are `train`, `test` and `val`.
fn plain(name: &str) -> String {
    let lower = name.to_lowercase();
    let letters: String = lower.chars().filter(|c| c.is_alphabetic()).collect();
    let short = ["set", "images", "data", "split"].iter().find_map(|ending| letters.strip_suffix(ending));
    match short {
        Some(short) if is_split(short) => short.to_owned(),
        _ => letters,
    }
}

fn is_split(name: &str) -> bool {
    TRAIN.contains(&name) || VAL.contains(&name) || REST.contains(&name)
}

/// Whether a training set is called like a validation set and the validation set like a training set, by the last parts of their
/// paths.
pub(crate) fn are_swapped(train: &str, val: &str) -> bool {
    let last = |path: &str| {
        let name = path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default();
        plain(name.split('.').next().unwrap_or_default())
    };
    VAL.contains(&last(train).as_str()) && TRAIN.contains(&last(val).as_str())
}

/// Whether a folder or an ending has the name of masks.
pub(super) fn is_mask_name(name: &str) -> bool {
    MASKS.contains(&plain(name).as_str())
}

/// A folder with images, of which classes are made.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) name: String,
    /// Whether images lie in folders inside of it.
    pub(super) deeper: bool,
}

/// Whether all folders have names of splits, and at least one of them says so for sure.
fn are_splits(parts: &[Part]) -> bool {
    let names: Vec<String> = parts.iter().map(|part| plain(&part.name)).collect();
    names.iter().all(|name| is_split(name)) && names.iter().any(|name| !REST.contains(&name.as_str()))
}

/// Why the folders must not be taken for classes: splits that hold classes, images and their masks. `path` gives the path of
/// a folder by its name.
pub(super) fn problem(parts: &[Part], path: impl Fn(&str) -> String) -> Option<String> {
    if are_splits(parts) && parts.iter().any(|part| part.deeper) {
        let how = how_to_name(parts, path);
        return Some(match parts {
            [one] => format!("its folder {} is a split of the data, not a class; {how}", one.name),
            _ => format!("its folders {} are splits of the data, not classes; {how}", names(parts)),
        });
    }
    let masks = |part: &&Part| is_mask_name(&part.name);
    let images = |part: &&Part| IMAGES.contains(&plain(&part.name).as_str());
    let (mask, image) = (parts.iter().find(masks)?, parts.iter().find(images)?);
    parts.iter().all(|part| masks(&part) || images(&part)).then(|| {
        format!(
            "it holds images and their masks ({} and {}), which would both be used as images; give {} (`beit2 segment` takes the folder of both)",
            image.name,
            mask.name,
            path(&image.name)
        )
    })
}

/// Why folders of splits without classes have no labels.
pub(super) fn split_error(parts: &[Part]) -> Option<String> {
    (are_splits(parts) && !parts.is_empty()).then(|| {
        let wrong = match parts {
            [one] => format!("the folder {} is a split of the data, not a class", one.name),
            _ => format!("the folders {} are splits of the data, not classes", names(parts)),
        };
        format!("{wrong}; give a folder that has one sub-folder per class")
    })
}

/// The warning about splits that are all used.
pub(super) fn split_warning(parts: &[Part], path: impl Fn(&str) -> String) -> Option<String> {
    (are_splits(parts) && parts.len() > 1).then(|| {
        let how = how_to_name(parts, path);
        format!("the folders {} look like splits of the data, and all are used; {how}", names(parts))
    })
}

/// Refuses a folder that would be trained on for something that it is not.
pub(super) fn refuse(walk: &Walk) -> Result<(), SourceError> {
    let fail = |problem: String| Err(SourceError::Arrangement { place: path_text(&walk.root), problem });
    let parts = parts_of(walk);
    if let Some(problem) = problem(&parts, |name| path_text(&walk.root.join(name))) {
        return fail(problem);
    }
    let count: usize = walk.images.len() + walk.full().map(|folder| folder.images.len()).sum::<usize>();
    let only_masks = walk.images.is_empty() && parts.iter().all(|part| is_mask_name(&part.name));
    if !walk.shards.is_empty() && (walk.shards.len() > count || only_masks) {
        let found = match only_masks {
            true => format!("images in {}", names(&parts)),
            false => counted(count, "image"),
        };
        return fail(format!(
            "it holds {} and {found}, which are not used together; for the shards give '{}', or move one of them elsewhere",
            counted(walk.shards.len(), ".tar shard"),
            path_text(&walk.root.join("*.tar"))
        ));
    }
    Ok(())
}

fn parts_of(walk: &Walk) -> Vec<Part> {
    walk.full().map(|folder| Part { name: folder.name(), deeper: folder.holds_more_than_images() }).collect()
}

/// Says what looks wrong but may be meant.
pub(super) fn remark(walk: &Walk, account: &mut Account) {
    let place = path_text(&walk.root);
    let full: Vec<&ClassFolder> = walk.full().collect();
    let parts = parts_of(walk);
    account.label_errors.extend(split_error(&parts).map(|problem| format!("{place}: {problem}")));
    let warning = split_warning(&parts, |name| path_text(&walk.root.join(name)));
    let mut warnings: Vec<String> = warning.into_iter().collect();
    if let ([only], []) = (full.as_slice(), walk.images.as_slice())
        && !only.holds_images()
        && !are_splits(&parts)
        && let inner @ [_, _, ..] = only.inner().as_slice()
    {
        account.label_errors.push(format!(
            "{place}: there is one class folder, {}, which holds folders of its own ({}); give {} if those are the classes",
            only.name(),
            some_of(inner, inner.len()),
            path_text(&only.path)
        ));
    }
    if !walk.shards.is_empty() {
        warnings.push(format!(
            "{} beside the images left out; to use the shards instead, give '{}'",
            are(walk.shards.len(), ".tar shard"),
            path_text(&walk.root.join("*.tar"))
        ));
    }
    let inside: usize = walk.folders.iter().map(|folder| folder.shards.len()).sum();
    if inside > 0 {
        warnings.push(format!(
            "{} inside the folders left out; unpack them there, or put all images into shards",
            are(inside, ".tar shard")
        ));
    }
    warnings.extend(case_warning(&parts));
    warnings.extend(dangling_warning(walk));
    warnings.extend(archive_warning(account));
    account.warnings.extend(warnings.into_iter().map(|warning| format!("{place}: {warning}")));
}

/// What looks wrong beside shards.
pub(super) fn remark_beside_shards(walk: &Walk, account: &mut Account) {
    let place = path_text(&walk.root);
    let warnings = dangling_warning(walk).into_iter().chain(archive_warning(account));
    let warnings: Vec<String> = warnings.map(|warning| format!("{place}: {warning}")).collect();
    account.warnings.extend(warnings);
}

/// Two names that are the same to a person, and on some systems to the computer.
fn case_warning(parts: &[Part]) -> Option<String> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    parts.iter().find_map(|part| {
        let other = seen.insert(part.name.to_lowercase(), &part.name)?;
        Some(format!("the class folders {other} and {} differ only in upper and lower case", part.name))
    })
}

/// Links to nothing that may have been folders of classes.
fn dangling_warning(walk: &Walk) -> Option<String> {
    let links: Vec<String> =
        walk.dangling.iter().filter(|link| !is_image_name(link)).map(|link| file_name(link)).collect();
    let names = some_of(&links, links.len());
    match links.len() {
        0 => None,
        1 => Some(format!(
            "{names} is a link to nothing; if it is the folder of a class, its images are missing"
        )),
        _ => Some(format!(
            "{names} are links to nothing; if they are folders of classes, their images are missing"
        )),
    }
}

/// Archives that may hold images and are not read.
fn archive_warning(account: &Account) -> Option<String> {
    let is_archive = |reason: &SkipReason| match reason {
        SkipReason::Kind(kind) => kind.starts_with(".tar.") || ARCHIVES.contains(&kind.as_str()),
        _ => false,
    };
    let archives = account.skipped.iter().filter(|(reason, _)| is_archive(reason));
    let counts: Vec<(usize, &SkipReason)> = archives.map(|(reason, found)| (found.count, reason)).collect();
    let all: usize = counts.iter().map(|(count, _)| count).sum();
    let (are, it) = if all == 1 { ("is", "it") } else { ("are", "them") };
    let kinds: Vec<String> = counts.iter().map(|(count, reason)| format!("{count} {reason}")).collect();
    let kinds = kinds.join(", ");
    (all > 0).then(|| {
        format!("{kinds} {are} left out; to use {it}, name {it} instead of the folder, or unpack {it}")
    })
}

fn names(parts: &[Part]) -> String {
    some_of(parts.iter().map(|part| &part.name), parts.len())
}

/// `--data data/train --val data/val`.
fn how_to_name(parts: &[Part], path: impl Fn(&str) -> String) -> String {
    // A test set without classes cannot validate one that has classes.
    let classes = parts.iter().any(|part| part.deeper);
    let fits = |part: &&Part, known: &str| plain(&part.name) == known && (!classes || part.deeper);
    let find = |known: &[&str]| known.iter().find_map(|known| parts.iter().find(|part| fits(part, known)));
    match (find(&TRAIN), find(&VAL)) {
        (Some(train), Some(val)) => {
            format!("name them apart: --data {} --val {}", path(&train.name), path(&val.name))
        }
        (Some(one), None) | (None, Some(one)) => {
            format!("name the one that you want: --data {}", path(&one.name))
        }
        (None, None) => "name the one that you want".into(),
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn are(count: usize, what: &str) -> String {
    format!("{} {}", counted(count, what), if count == 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_in_each_others_place() {
        assert!(are_swapped("data/val", "data/train") && are_swapped("x/test.tar", "x/Train_2017/"));
        for (train, val) in [("train", "val"), ("val", "val"), ("cats", "train"), ("val", "dogs")] {
            assert!(!are_swapped(train, val), "{train} {val}");
        }
    }

    #[test]
    fn names_of_splits_in_many_spellings() {
        for name in
            ["train", "Training", "VAL", "val2017", "test_images", "Dev", "valid-set", "trainset", "eval"]
        {
            assert!(is_split(&plain(name)), "{name}");
        }
        for name in ["cat", "training shoes", "rain", "valley", "tests of time", "set", "data"] {
            assert!(!is_split(&plain(name)), "{name}");
        }
    }
}
