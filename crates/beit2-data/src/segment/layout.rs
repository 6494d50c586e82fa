//! From what a user typed to pairs of image and mask.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decode::DecodeOptions;
use crate::error::SourceError;
use crate::segment::classes::{ClassList, read_list};
use crate::segment::error::SegmentDataError;
use crate::segment::label_map::IGNORE;
use crate::segment::list;
use crate::segment::rule::{IdMap, LabelRule, MAX_CLASSES};
use crate::segment::source::{Pair, Parts, SegmentSource, Unpaired};
use crate::source::folder::{file_name, images_below, list as list_folder};
use crate::source::name::path_text;
use crate::source::{Account, instead};

/// The folder of the images.
const IMAGES: &str = "images";
/// Names that the folder of the masks may have.
const MASKS: [&str; 3] = ["masks", "annotations", "labels"];
/// Sub-folders that say that the data have splits, which must not be mixed by mistake.
const SPLITS: [&str; 7] = ["training", "validation", "train", "val", "valid", "test", "testing"];
/// Class lists that are looked for beside the folders.
const LISTS: [&str; 3] = ["classes.txt", "classes.json", "objectInfo150.txt"];
/// Classes of ADE20K.
const ADE20K_CLASSES: usize = 150;
/// Most unpaired files that an error lists.
const LISTED: usize = 5;

/// Whether id 0 in the masks means "no label" and the classes count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReduceZeroLabel {
    /// Yes in ADE20K's layout, no in any other.
    #[default]
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// How [`open_segment`] reads what it finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SegmentDataOptions {
    /// Sub-folder of images and masks, such as `training`. Default: none, or what the path names.
    pub split: Option<String>,
    /// Default [`ReduceZeroLabel::Auto`].
    pub reduce_zero_label: ReduceZeroLabel,
    /// Id in the masks that means "no label". Default 255.
    pub ignore: u8,
    /// Mask values that stand for other ids, applied first. Default: none.
    pub map: IdMap,
    /// Number of classes. Default: as the class list has, or 150 in ADE20K's layout.
    pub classes: Option<usize>,
    /// The class list, when it does not lie beside the folders.
    pub class_list: Option<PathBuf>,
    /// DecodeOptions on decoding masks and, in the data check, images.
    pub decode: DecodeOptions,
    /// Whether images without masks and masks without images are left out and only listed
    /// ([`SegmentSource::unpaired`]) instead of being an error. For the data check. Default false.
    #[serde(skip)]
    pub keep_unpaired: bool,
}

impl Default for SegmentDataOptions {
    fn default() -> Self {
        Self {
            split: None,
            reduce_zero_label: ReduceZeroLabel::Auto,
            ignore: IGNORE,
            map: IdMap::default(),
            classes: None,
            class_list: None,
            decode: DecodeOptions::default(),
            keep_unpaired: false,
        }
    }
}

/// Opens a folder that holds `images/` and one of `masks/`, `annotations/`, `labels/`; or that
/// `images/` folder, or one inside it (`ADEChallengeData2016/images/training`); or a table (`.csv`, `.tsv`, `.jsonl`) with
/// the columns `image` and `mask`.
///
/// An image and its mask have the same path below those folders, up to the ending. When
/// `annotations/` lies beside `images/training` or `images/validation`, the layout is ADE20K's. The whole
/// story is in `docs/formats/segmentation-data.md`.
///
/// # Errors
/// Folders that are not arranged like this, a class list that cannot be read, images without masks, no images.
pub fn open_segment(
    spec: &str,
    options: &SegmentDataOptions,
) -> Result<Arc<SegmentSource>, SegmentDataError> {
    if list::is_list(Path::new(spec)) {
        return list::open_list(Path::new(spec), options);
    }
    let trees = Trees::find(Path::new(spec), options.split.as_deref())?;
    let reduce_zero_label = match options.reduce_zero_label {
        ReduceZeroLabel::Auto => trees.ade20k,
        ReduceZeroLabel::Yes => true,
        ReduceZeroLabel::No => false,
    };
    let list = class_list(&trees.root, trees.ade20k, options, reduce_zero_label)?;
    let rule = LabelRule { classes: list.names.len(), reduce_zero_label, ignore: options.ignore };
    let (pairs, unpaired, account) = pair(&trees)?;
    if pairs.is_empty() {
        let problem = format!(
            "no image has a mask of the same name below {}; an image a/1.jpg needs a mask a/1.png",
            trees.masks.display()
        );
        return Err(layout(&trees.images, problem));
    }
    if !unpaired.is_empty() && !options.keep_unpaired {
        let first = unpaired.sentences().take(LISTED).collect();
        let (images, masks) = (unpaired.images.len(), unpaired.masks.len());
        return Err(SegmentDataError::Unpaired { images, masks, first });
    }
    let Trees { images, masks, ade20k, .. } = trees;
    let (map, decode) = (options.map.clone(), options.decode.clone());
    Ok(Arc::new(SegmentSource::new(Parts {
        images,
        masks,
        ade20k,
        pairs,
        unpaired,
        account,
        list,
        map,
        rule,
        decode,
    })))
}

/// Where images and masks lie.
struct Trees {
    /// The folder that holds both.
    root: PathBuf,
    images: PathBuf,
    masks: PathBuf,
    ade20k: bool,
}

impl Trees {
    fn find(spec: &Path, split: Option<&str>) -> Result<Self, SegmentDataError> {
        const WANTED: &str =
            "a folder with images/ and masks/ (or annotations/, labels/), or a table of pairs, was expected";
        match std::fs::metadata(spec) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(layout(spec, format!("not a folder; {WANTED}"))),
            Err(_) if spec.to_string_lossy().contains(['*', '?', '{']) => {
                return Err(layout(spec, format!("a pattern cannot name images and their masks; {WANTED}")));
            }
            Err(error) => return Err(layout(spec, format!("cannot open it ({error}); {WANTED}"))),
        }
        let holds_both = spec.join(IMAGES).is_dir().then(|| (spec.to_path_buf(), PathBuf::new()));
        let absolute = std::path::absolute(spec).ok();
        let (root, below) = holds_both
            .or_else(|| above(spec))
            .or_else(|| absolute.as_deref().and_then(above))
            .ok_or_else(|| layout(spec, format!("no {IMAGES}/ in it; {WANTED}")))?;
        let (all_images, all_masks) = (root.join(IMAGES), mask_folder(&root)?);
        let splits: Vec<String> = list_folder(&all_images)?
            .into_iter()
            .filter(|entry| entry.is_dir)
            .map(|entry| file_name(&entry.path))
            .collect();
        let named = |names: &[&str]| splits.iter().any(|split| names.contains(&split.as_str()));
        let there = if splits.is_empty() { "no folder".to_owned() } else { splits.join(", ") };
        let below = match split {
            Some(split) if below.as_os_str().is_empty() || below == Path::new(split) => PathBuf::from(split),
            Some(split) => {
                let problem = format!(
                    "the path names '{}' already, and split is '{split}'; leave one out",
                    below.display()
                );
                return Err(layout(spec, problem));
            }
            None if below.as_os_str().is_empty() && named(&SPLITS) => {
                let problem = format!("it has splits; choose one of {there} (split), or give the path to it");
                return Err(layout(spec, problem));
            }
            None => below,
        };
        // Joining nothing would add a slash that shows in messages.
        let inside = |tree: &Path| if below.as_os_str().is_empty() { tree.into() } else { tree.join(&below) };
        let (images, masks): (PathBuf, PathBuf) = (inside(&all_images), inside(&all_masks));
        if !images.is_dir() {
            let problem = format!("no '{}' in it; it has {there}", below.display());
            return Err(layout(&all_images, problem));
        }
        if !masks.is_dir() {
            let problem = format!("there is {}, but no such folder for the masks", images.display());
            return Err(layout(&masks, problem));
        }
        let ade20k = file_name(&all_masks) == "annotations" && named(&["training", "validation"]);
        Ok(Self { root, images, masks, ade20k })
    }
}

/// The nearest folder above `spec` (or itself) that is called `images` and has masks beside it: the
/// folder that holds both, and the way from `images` down to `spec`.
fn above(spec: &Path) -> Option<(PathBuf, PathBuf)> {
    let has_masks = |root: &Path| MASKS.iter().any(|name| root.join(name).is_dir());
    let called_images = |folder: &&Path| folder.file_name().is_some_and(|name| name == IMAGES);
    spec.ancestors().filter(called_images).find_map(|folder| {
        let root = folder.parent().filter(|root| has_masks(root))?;
        Some((root.to_path_buf(), spec.strip_prefix(folder).ok()?.to_path_buf()))
    })
}

fn mask_folder(root: &Path) -> Result<PathBuf, SegmentDataError> {
    let mut found = MASKS.iter().map(|name| root.join(name)).filter(|folder| folder.is_dir());
    match (found.next(), found.next()) {
        (Some(folder), None) => Ok(folder),
        (None, _) => Err(layout(
            root,
            "there is images/, but none of masks/, annotations/ and labels/ beside it".into(),
        )),
        (Some(one), Some(other)) => {
            let (one, other) = (file_name(&one), file_name(&other));
            Err(layout(root, format!("both {one}/ and {other}/ could be the masks; keep one of them")))
        }
    }
}

/// Pairs by the path below the folders, without the ending.
fn pair(trees: &Trees) -> Result<(Vec<Pair>, Unpaired, Account), SegmentDataError> {
    let below = |tree: &Path| -> Result<(Vec<PathBuf>, Account), SegmentDataError> {
        let (files, account) = images_below(tree)?;
        let below = |file: PathBuf| file.strip_prefix(tree).map(Path::to_path_buf).unwrap_or(file);
        Ok((files.into_iter().map(below).collect(), account))
    };
    let mut masks: HashMap<PathBuf, PathBuf> = HashMap::new();
    let (mask_files, beside_masks) = below(&trees.masks)?;
    for mask in mask_files {
        if let Some(other) = masks.insert(mask.with_extension(""), mask.clone()) {
            let problem = format!("{} and {} are masks of the same image", other.display(), mask.display());
            return Err(layout(&trees.masks, problem));
        }
    }
    let (images, mut account) = below(&trees.images)?;
    if images.is_empty() {
        let (place, instead) = (path_text(&trees.images), instead(&account));
        return Err(SourceError::NoImages { place, instead }.into());
    }
    account.merge(beside_masks);
    let mut pairs: Vec<Pair> = Vec::new();
    let mut unpaired = Unpaired::default();
    let mut seen: HashMap<PathBuf, PathBuf> = HashMap::new();
    for image in images {
        let stem = image.with_extension("");
        if let Some(other) = seen.insert(stem.clone(), image.clone()) {
            let problem = format!("{} and {} would have the same mask", other.display(), image.display());
            return Err(layout(&trees.images, problem));
        }
        match masks.remove(&stem) {
            Some(mask) => pairs.push(Pair { image, mask }),
            None => {
                let wanted = trees.masks.join(image.with_extension("png"));
                let file = trees.images.join(image);
                unpaired.images.push((file.display().to_string(), wanted.display().to_string()));
            }
        }
    }
    let name = |mask: PathBuf| {
        let wanted = trees.images.join(mask.with_extension(""));
        (trees.masks.join(mask).display().to_string(), format!("{}.jpg or similar", wanted.display()))
    };
    unpaired.masks = masks.into_values().map(name).collect();
    unpaired.masks.sort();
    Ok((pairs, unpaired, account))
}

/// The classes from the list, or numbered ones.
pub(super) fn class_list(
    root: &Path,
    ade20k: bool,
    options: &SegmentDataOptions,
    reduce_zero_label: bool,
) -> Result<ClassList, SegmentDataError> {
    let most = MAX_CLASSES - usize::from(reduce_zero_label);
    let check = |place: &Path, classes| match classes {
        n if (1..=most).contains(&n) => Ok(n),
        n => Err(layout(place, format!("{n} classes; 8-bit masks tell 1 to {most} apart"))),
    };
    let mut beside = LISTS.iter().map(|name| root.join(name)).filter(|path| path.is_file());
    let path = match (&options.class_list, beside.next(), beside.next()) {
        (Some(path), ..) => Some(path.clone()),
        (None, Some(one), Some(other)) => {
            let problem =
                format!("both {} and {} list classes; name one of them", file_name(&one), file_name(&other));
            return Err(layout(root, problem));
        }
        (None, one, _) => one,
    };
    if let Some(path) = path {
        let list = read_list(&path)?;
        let listed = check(&path, list.names.len())?;
        return match options.classes {
            Some(expected) if expected != listed => {
                Err(SegmentDataError::ClassCount { path: path.display().to_string(), listed, expected })
            }
            _ => Ok(list),
        };
    }
    let known = options.classes.or(ade20k.then_some(ADE20K_CLASSES)).ok_or_else(|| {
        let problem =
            "the classes are not known: add classes.txt with one class a line, or say how many there are (in training --set model.classes=N)";
        layout(root, problem.into())
    })?;
    // A class is called by its id in the files.
    let first = usize::from(reduce_zero_label);
    let names = (first..first + check(root, known)?).map(|id| format!("class {id}")).collect();
    Ok(ClassList { names, ..ClassList::default() })
}

fn layout(path: &Path, problem: String) -> SegmentDataError {
    SegmentDataError::Layout { path: path.display().to_string(), problem }
}
