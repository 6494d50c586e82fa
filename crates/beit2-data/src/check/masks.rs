//! Masks that cannot teach anything, told from a bounded number of them.

use super::{Findings, NAMED, Set, listed, parallel, spread};
use crate::segment::{IGNORE, MaskLook, SegmentSource};
use crate::source::Source;

/// Masks that are read. A set with more is sampled evenly.
const SAMPLE: usize = 256;

/// What the masks of a set hold.
struct Census {
    /// Masks that were read.
    read: usize,
    /// Masks with at least one pixel of each class; the last entry counts those with unlabelled pixels.
    masks: [usize; 256],
    /// Values in the files; none of RGB masks.
    values: [bool; 256],
    /// Masks of which no pixel has a label, and the first.
    unlabelled: (usize, Option<usize>),
}

impl Census {
    fn add(&mut self, index: usize, look: &MaskLook) {
        self.read += 1;
        for class in (0..256).filter(|&class| look.counts[class] > 0) {
            self.masks[class] += 1;
        }
        if look.counts[..usize::from(IGNORE)].iter().all(|&count| count == 0) {
            self.unlabelled.0 += 1;
            self.unlabelled.1.get_or_insert(index);
        }
        for value in (0..256).filter(|&value| look.values[value]) {
            self.values[value] = true;
        }
    }

    /// Classes that occur.
    fn classes(&self) -> Vec<usize> {
        (0..usize::from(IGNORE)).filter(|&class| self.masks[class] > 0).collect()
    }

    /// Reads up to [`SAMPLE`] masks, and more while they show fewer than two classes. Masks that cannot be used are left
    /// to the data check and to training, which name them.
    fn of(source: &SegmentSource, workers: usize) -> Self {
        let mut census = Self { read: 0, masks: [0; 256], values: [false; 256], unlabelled: (0, None) };
        let mut read = |indices: &[usize]| {
            let looks = parallel::map(indices, workers, |&index| source.look(index).ok());
            for (&index, look) in indices.iter().zip(&looks) {
                if let Ok(Some(look)) = look {
                    census.add(index, look);
                }
            }
            census.classes().len()
        };
        let first = spread(source.len(), SAMPLE);
        if read(&first) < 2 && first.len() < source.len() {
            // A class that one image in a thousand shows is no reason to stop a run.
            let rest: Vec<usize> =
                (0..source.len()).filter(|index| first.binary_search(index).is_err()).collect();
            rest.chunks(SAMPLE).find(|indices| read(indices) >= 2);
        }
        census
    }

    /// `masks`, or `masks in a sample of 256 of 20,210`.
    fn extent(&self, source: &SegmentSource) -> String {
        match self.read == source.len() {
            true => format!("{} masks", self.read),
            false => format!("masks in a sample of {} of {}", self.read, source.len()),
        }
    }

    /// The values in the files, for a sentence; `None` of RGB masks.
    fn values(&self) -> Option<String> {
        let values: Vec<String> =
            (0..256).filter(|&value| self.values[value]).map(|value: usize| value.to_string()).collect();
        (!values.is_empty()).then(|| match values.as_slice() {
            [rest @ .., last] if !rest.is_empty() && values.len() <= NAMED => {
                format!("{} and {last}", rest.join(", "))
            }
            all => listed(all),
        })
    }
}

/// How many masks have each class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskClasses {
    /// Masks that were read.
    pub read: usize,
    /// Names of the classes with the number of masks that have a pixel of it.
    pub masks: Vec<(String, usize)>,
}

/// Looks at masks that a model is to be measured on: no labels, or a single class.
///
/// Reads masks as [`masks`] does.
pub fn masks_to_measure(set: Set<'_, SegmentSource>, workers: usize) -> Findings {
    let mut findings = Findings::default();
    census_of(set, false, workers, &mut findings);
    findings
}

/// Looks at the masks of training images and, if there are some, validation images: a single class in all, no labels, classes
/// that never occur.
///
/// Up to 256 masks of a set are read, evenly spread, and more only while they show a single class.
pub fn masks(
    train: Set<'_, SegmentSource>,
    val: Option<Set<'_, SegmentSource>>,
    workers: usize,
) -> (Findings, MaskClasses) {
    let mut findings = Findings::default();
    let of_train = census_of(train, true, workers, &mut findings);
    let of_val = val.map(|val| (val, census_of(val, false, workers, &mut findings)));
    if let (Some((val, census)), true) = (of_val, findings.errors.is_empty()) {
        let missing: Vec<&String> = of_train
            .classes()
            .into_iter()
            .filter(|&class| census.masks[class] == 0)
            .filter_map(|class| train.source.class_names().get(class))
            .collect();
        if !missing.is_empty() && census.classes().len() > 1 {
            findings.warnings.push(format!(
                "{}: {} of the classes of {} never occur in its {}: {}",
                val.name,
                missing.len(),
                train.name,
                census.extent(val.source),
                listed(&missing)
            ));
        }
    }
    let names = train.source.class_names().iter().cloned();
    let masks = names.zip(of_train.masks).collect();
    (findings, MaskClasses { read: of_train.read, masks })
}

fn census_of(
    set: Set<'_, SegmentSource>,
    is_training: bool,
    workers: usize,
    findings: &mut Findings,
) -> Census {
    let census = Census::of(set.source, workers);
    let names = set.source.class_names();
    let (extent, classes) = (census.extent(set.source), census.classes());
    match classes.as_slice() {
        // Nothing could be read, which others name.
        _ if census.read == 0 => {}
        [] => findings.errors.push(format!(
            "{}: no pixel in {extent} has a label{}, so there is nothing to {}; {}",
            set.name,
            census
                .values()
                .map(|values| format!(": their values are {values}, and {}", ignored(set.source)))
                .unwrap_or_default(),
            if is_training { "learn" } else { "measure" },
            remedy(set.source)
        )),
        &[one] => {
            let name = names.get(one).map_or("", String::as_str);
            let values = census
                .values()
                .map(|values| format!(" (their values are {values}, and {})", ignored(set.source)));
            let sentence =
                format!("{}: `{name}` is the only class in {extent}{}", set.name, values.unwrap_or_default());
            match is_training || census.masks[usize::from(IGNORE)] > 0 {
                true => findings
                    .errors
                    .push(format!("{sentence}, so any model scores 100 %; {}", remedy(set.source))),
                false => findings
                    .warnings
                    .push(format!("{sentence}, so its mIoU says nothing about telling classes apart")),
            }
        }
        _ => {
            let absent: Vec<&String> = names
                .iter()
                .enumerate()
                .filter(|(class, _)| census.masks[*class] == 0)
                .map(|(_, name)| name)
                .collect();
            if is_training && !absent.is_empty() {
                let sure = if census.read == set.source.len() { " and cannot be learned" } else { "" };
                findings.warnings.push(format!(
                    "{}: {} of {} classes never occur in {extent}{sure}: {}",
                    set.name,
                    absent.len(),
                    names.len(),
                    listed(&absent)
                ));
            }
        }
    }
    if let (count @ 1.., Some(first)) = census.unlabelled
        && !classes.is_empty()
    {
        findings.warnings.push(format!(
            "{}: no pixel has a label in {count} {extent}, first {}",
            set.name,
            set.source.mask_name(first)
        ));
    }
    census
}

/// What counts as "no label".
fn ignored(source: &SegmentSource) -> String {
    let rule = source.rule();
    match (rule.reduce_zero_label, rule.ignore) {
        (true, 0 | IGNORE) => "0 and 255 mean \"no label\"".to_owned(),
        (true, ignore) => format!("0, {ignore} and 255 mean \"no label\""),
        (false, ignore) => format!("{ignore} means \"no label\""),
    }
}

/// What to do about masks of a single class.
fn remedy(source: &SegmentSource) -> String {
    let rule = source.rule();
    if rule.reduce_zero_label {
        return "if 0 is a class, set masks.reduce_zero_label = \"no\" (--reduce-zero-label no)".to_owned();
    }
    format!(
        "background is a class too: with the classes background and object, masks of 0 and {0} need masks.map = \"{0}=1\" \
         (--map {0}=1), or values 0 and 1 in the files",
        rule.ignore
    )
}
