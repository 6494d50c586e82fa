//! Images with masks: their classes, also where no class list names them.

use std::sync::Arc;

use beit2::train::Assets;
use beit2_data::check::{self, Set};
use beit2_data::segment::{IdMap, MAX_CLASSES, SegmentDataOptions, SegmentSource};

use crate::assets::AssetStore;
use crate::errors::usage;

/// Threads that read masks.
const WORKERS: usize = 2;

/// Images with masks, and how their masks are read.
pub struct Masks {
    pub pairs: Arc<SegmentSource>,
    pub map: IdMap,
    /// `classes.json`.
    pub list: String,
    /// What was decided about the classes, where no list says it.
    pub note: Option<String>,
}

impl Masks {
    /// The options that give these classes.
    pub fn options(&self) -> SegmentDataOptions {
        SegmentDataOptions { map: self.map.clone(), ..SegmentDataOptions::default() }
    }
}

/// Opens images with masks and looks at some. Without a class list, the classes are the ids in the masks; masks of 0 and 255
/// are background and object. Where there is a validation set (`has_val`) a class list is needed, as both must agree.
///
/// # Errors
/// Folders that are not arranged as they should be, masks that cannot be told apart.
pub fn open(assets: &AssetStore, spec: &str, has_val: bool) -> anyhow::Result<Masks> {
    let of = |classes: Option<usize>, map: IdMap| {
        assets.segment_source(spec, &SegmentDataOptions { classes, map, ..SegmentDataOptions::default() })
    };
    let (pairs, unlisted) = match of(None, IdMap::default()) {
        Ok(pairs) => (pairs, None),
        // With as many classes as masks can have, whatever is in them is one.
        Err(error) => match of(Some(MAX_CLASSES), IdMap::default()) {
            Ok(pairs) if !has_val => (pairs, Some(error)),
            _ => return Err(error.into()),
        },
    };
    let (findings, used) = look(spec, &pairs);
    if used == [0]
        && let Some(masks) = binary(spec, unlisted.is_none(), of)
    {
        return Ok(masks);
    }
    match (unlisted, used.last()) {
        (None, _) => {
            super::look::stop_on(findings)?;
            let list = pairs.class_list_json();
            Ok(Masks { pairs, map: IdMap::default(), list, note: None })
        }
        (Some(_), Some(&last)) if last > 0 => {
            let pairs = of(Some(last + 1), IdMap::default())?;
            let list = pairs.class_list_json();
            let note = format!("no class list names them: the masks have ids up to {last}");
            Ok(Masks { pairs, map: IdMap::default(), list, note: Some(note) })
        }
        (Some(error), _) => usage(error.to_string()),
    }
}

/// Masks in which 255 is the object, if that makes two classes of one.
fn binary(
    spec: &str,
    listed: bool,
    of: impl Fn(Option<usize>, IdMap) -> Result<Arc<SegmentSource>, beit2::Error>,
) -> Option<Masks> {
    let map: IdMap = "255=1".parse().ok()?;
    let pairs = of((!listed).then_some(2), map.clone()).ok()?;
    if pairs.class_names().len() != 2 || look(spec, &pairs).1 != [0, 1] {
        return None;
    }
    let (list, names) = match listed {
        true => (pairs.class_list_json(), pairs.class_names().join(" and ")),
        false => ("[\"background\", \"object\"]\n".to_owned(), "background and object".to_owned()),
    };
    let note = format!("the masks have 0 and 255, which are taken for {names} (masks.map)");
    Some(Masks { pairs, map, list, note: Some(note) })
}

/// What is wrong with some masks, and the classes that occur in them.
fn look(spec: &str, pairs: &Arc<SegmentSource>) -> (check::Findings, Vec<usize>) {
    let (findings, classes) = check::masks(Set { name: spec, source: pairs }, None, WORKERS);
    let used = classes.masks.iter().enumerate().filter(|(_, (_, count))| *count > 0);
    (findings, used.map(|(class, _)| class).collect())
}
