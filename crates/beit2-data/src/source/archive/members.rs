//! Labels that members of a shard hold: `key.cls` and `key.json`.

use super::shard::Shard;
use crate::source::labels::{RawLabel, Value};

/// Most classes that labels in `.cls` members may imply when no `classes.txt` names them.
const MAX_CLASSES: u32 = 1_000_000;

/// Keys of a sample's JSON member that can be its label.
const JSON_LABELS: [&str; 4] = ["label", "labels", "cls", "class"];

/// The numbers of all labels, if they are numbers.
pub(super) fn numbers(raw: &[RawLabel]) -> Option<Vec<Option<u32>>> {
    let number = |label: &RawLabel| match label {
        RawLabel::None => Some(None),
        RawLabel::One(Value::Number(number)) => {
            u32::try_from(*number).ok().filter(|number| *number < MAX_CLASSES).map(Some)
        }
        RawLabel::One(Value::Name(_)) | RawLabel::Many(_) => None,
    };
    raw.iter().map(number).collect()
}

/// The names of classes that are numbers: as given, or the numbers from 0 on. The error is about a member, by number.
pub(super) fn class_names(
    numbers: &[Option<u32>],
    names: Option<Vec<String>>,
) -> Result<Vec<String>, (usize, String)> {
    let largest = numbers.iter().flatten().max().copied().unwrap_or(0);
    let Some(names) = names else {
        return Ok((0..=largest).map(|number| number.to_string()).collect());
    };
    let outside = |number: &Option<u32>| number.is_some_and(|number| number as usize >= names.len());
    match numbers.iter().position(outside) {
        None => Ok(names),
        Some(member) => {
            let number = numbers[member].unwrap_or_default();
            Err((member, format!("class {number} is not in classes.txt, which has {} lines", names.len())))
        }
    }
}

/// The label in a JSON member; `None` when it has none.
pub(super) fn json_label(shard: &Shard, offset: u64, size: u64) -> Result<Option<RawLabel>, String> {
    let text = shard.text(offset, size)?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("it is not sound JSON ({error})"))?;
    let found: Vec<&str> = JSON_LABELS.into_iter().filter(|key| value.get(key).is_some()).collect();
    match found.as_slice() {
        [] => Ok(None),
        [key] => RawLabel::of_json(&value[key]).map(Some),
        [first, second, ..] => {
            Err(format!("'{first}' and '{second}' can both be the label; leave one of them"))
        }
    }
}

pub(super) fn parse_label(text: &str) -> Result<u32, String> {
    let label = text.trim().parse::<u32>().ok().filter(|&label| label < MAX_CLASSES);
    label.ok_or_else(|| {
        let start: String = text.trim().chars().take(20).collect();
        format!("'{start}' is not a class number; a decimal number below {MAX_CLASSES} was expected")
    })
}
