//! Pairs of image and mask that a table lists, for splits of a folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::SourceError;
use crate::segment::classes::{ClassList, hex};
use crate::segment::error::SegmentDataError;
use crate::segment::layout::{SegmentDataOptions, class_list};
use crate::segment::rule::LabelRule;
use crate::segment::source::{Pair, Parts, SegmentSource, Unpaired};
use crate::source::{Account, table};

/// Whether a path names a table of pairs and not a folder.
pub(super) fn is_list(path: &Path) -> bool {
    path.is_file() && table::TableSource::is_table(path)
}

/// Opens a table with the columns `image` and `mask`. Paths start from its folder, where the class list lies too.
///
/// # Errors
/// A table that lacks a column or lists nothing, a class list that cannot be read.
pub(super) fn open_list(
    path: &Path,
    options: &SegmentDataOptions,
) -> Result<Arc<SegmentSource>, SegmentDataError> {
    let table = |problem| SourceError::Table { path: path.display().to_string(), problem };
    let pairs: Vec<Pair> = table::pairs(path, "image", table::MASK)
        .map_err(table)?
        .into_iter()
        .map(|(image, mask)| Pair { image, mask })
        .collect();
    if pairs.is_empty() {
        return Err(table("it lists no images".into()).into());
    }
    let root = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let root = root.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    if let Some(Pair { image, mask }) = pairs.first()
        && let Some(missing) = [image, mask].into_iter().find(|file| !root.join(file).exists())
    {
        let problem = format!("{} is not there; paths start from {}", missing.display(), root.display());
        return Err(table(problem).into());
    }
    let reduce_zero_label = options.reduce_zero_label == crate::segment::ReduceZeroLabel::Yes;
    let list = class_list(&root, false, options, reduce_zero_label)?;
    let rule = LabelRule { classes: list.names.len(), reduce_zero_label, ignore: options.ignore };
    let account = Account::all_used(pairs.len());
    let (map, decode) = (options.map.clone(), options.decode.clone());
    Ok(Arc::new(SegmentSource::new(Parts {
        images: root.clone(),
        masks: root,
        ade20k: false,
        pairs,
        unpaired: Unpaired::default(),
        account,
        list,
        map,
        rule,
        decode,
    })))
}

/// A class list as `classes.json`, with the colours that it has.
pub(super) fn class_list_json(list: &ClassList) -> String {
    let colored = |name: &str, color: [u8; 3]| serde_json::json!({ "name": name, "color": hex(color) });
    let mut entries: Vec<serde_json::Value> = match &list.colors {
        Some(colors) => list.names.iter().zip(colors).map(|(name, &color)| colored(name, color)).collect(),
        None => list.names.iter().map(|name| name.as_str().into()).collect(),
    };
    entries.extend(list.ignore_color.map(|color| colored("ignore", color)));
    let lines: Vec<String> = entries.iter().map(|entry| format!("  {entry}")).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}
