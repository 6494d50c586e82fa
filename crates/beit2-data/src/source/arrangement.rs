//! Folders that are not what their place says: splits, masks and shards beside class folders.

use std::path::Path;

use super::account::{Account, some_of};
use super::kind::is_image_name;
use super::name::path_text;
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

/// Whether all folders with images have names of splits, and at least one of them says so for sure.
fn are_splits(walk: &Walk) -> bool {
    let names: Vec<String> = walk.full().map(|folder| plain(&folder.name())).collect();
    names.iter().all(|name| is_split(name)) && names.iter().any(|name| !REST.contains(&name.as_str()))
}

/// Refuses a folder that would be trained on for something that it is not.
pub(super) fn refuse(walk: &Walk) -> Result<(), SourceError> {
    let fail = |problem: String| Err(SourceError::Arrangement { place: path_text(&walk.root), problem });
    let full: Vec<&ClassFolder> = walk.full().collect();
    if are_splits(walk) && full.iter().any(|folder| !folder.inner().is_empty()) {
        return fail(format!(
            "its folders {} are splits of the data, not classes; {}",
            names(&full),
            how_to_name(&walk.root, &full)
        ));
    }
    let masks = |folder: &&&ClassFolder| MASKS.contains(&plain(&folder.name()).as_str());
    let images = |folder: &&&ClassFolder| IMAGES.contains(&plain(&folder.name()).as_str());
    let (some_masks, some_images) = (full.iter().find(masks), full.iter().find(images));
    if let (Some(mask), Some(image)) = (some_masks, some_images)
        && full.iter().all(|folder| masks(&folder) || images(&folder))
    {
        return fail(format!(
            "it holds images and their masks ({} and {}), which would both be used as images; give {} (`beit2 segment` takes the folder of both)",
            image.name(),
            mask.name(),
            path_text(&image.path)
        ));
    }
    let count: usize = walk.images.len() + full.iter().map(|folder| folder.images.len()).sum::<usize>();
    let only_masks = walk.images.is_empty() && full.iter().all(|folder| masks(&folder));
    if !walk.shards.is_empty() && (walk.shards.len() > count || only_masks) {
        let found = match only_masks {
            true => format!("images in {}", names(&full)),
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

/// Says what looks wrong but may be meant.
pub(super) fn remark(walk: &Walk, account: &mut Account) {
    let full: Vec<&ClassFolder> = walk.full().collect();
    if are_splits(walk) && !full.is_empty() {
        let how = how_to_name(&walk.root, &full);
        let splits = names(&full);
        let wrong = match full.len() {
            1 => format!("the folder {splits} is a split of the data, not a class"),
            _ => format!("the folders {splits} are splits of the data, not classes"),
        };
        account.label_errors.push(format!("{wrong}; give a folder that has one sub-folder per class"));
        if full.len() > 1 {
            account
                .warnings
                .push(format!("the folders {splits} look like splits of the data, and all are used; {how}"));
        }
    } else if let ([only], []) = (full.as_slice(), walk.images.as_slice())
        && let inner @ [_, _, ..] = only.inner().as_slice()
        && !only.holds_images()
    {
        account.label_errors.push(format!(
            "there is one class folder, {}, which holds folders of its own ({}); give {} if those are the classes",
            only.name(),
            some_of(inner, inner.len()),
            path_text(&only.path)
        ));
    }
    let inside: usize = walk.folders.iter().map(|folder| folder.shards.len()).sum();
    if !walk.shards.is_empty() {
        account.warnings.push(format!(
            "{} beside the images left out; to use the shards instead, give '{}'",
            are(walk.shards.len(), ".tar shard"),
            path_text(&walk.root.join("*.tar"))
        ));
    }
    if inside > 0 {
        account.warnings.push(format!(
            "{} inside the folders left out; unpack them there, or put all images into shards",
            are(inside, ".tar shard")
        ));
    }
    for link in walk.dangling.iter().filter(|link| !is_image_name(link)) {
        account.warnings.push(format!(
            "{} is a link to nothing; if it is the folder of a class, its images are missing",
            path_text(link)
        ));
    }
}

fn names(folders: &[&ClassFolder]) -> String {
    some_of(folders.iter().map(|folder| folder.name()), folders.len())
}

/// `--data data/train --val data/val`.
fn how_to_name(root: &Path, folders: &[&ClassFolder]) -> String {
    // A test set without classes cannot validate one that has classes.
    let classes = folders.iter().any(|folder| !folder.inner().is_empty());
    let fits = |folder: &ClassFolder, known: &str| {
        plain(&folder.name()) == known && (!classes || !folder.inner().is_empty())
    };
    let find =
        |known: &[&str]| known.iter().find_map(|known| folders.iter().find(|folder| fits(folder, known)));
    let path = |folder: &ClassFolder| path_text(&root.join(folder.path.file_name().unwrap_or_default()));
    match (find(&TRAIN), find(&VAL)) {
        (Some(train), Some(val)) => format!("name them apart: --data {} --val {}", path(train), path(val)),
        (Some(one), None) | (None, Some(one)) => format!("name the one that you want: --data {}", path(one)),
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
