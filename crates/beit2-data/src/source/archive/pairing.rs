//! Which members of a shard belong to one sample.
//!
//! WebDataset's rule is the base name up to its first dot, which takes `cam_2023.01.00.png` and `cam_2023.01.01.png` for
//! one sample. Here the longest common stem decides, and what could belong together in two ways is an error.

use std::collections::{HashMap, HashSet};

use crate::source::account::some_of;
use crate::source::arrangement::is_mask_name;

/// The labels of a shard's images.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pairing {
    /// The label that belongs to each image, by number.
    pub(super) labels: Vec<Option<usize>>,
    /// Labels without an image.
    pub(super) unused: Vec<usize>,
}

/// Pairs images with labels, both given by their paths. `others` are members that are neither, whose labels have no image.
///
/// # Errors
/// A sentence about members that could belong together in two ways.
pub(super) fn pair(images: &[&str], labels: &[&str], others: &[&str]) -> Result<Pairing, String> {
    let mut pairing = Pairing { labels: vec![None; images.len()], unused: Vec::new() };
    if labels.is_empty() {
        return Ok(pairing);
    }
    let mut by_stem: HashMap<&str, usize> = HashMap::new();
    for (at, label) in labels.iter().enumerate() {
        if let Some(other) = by_stem.insert(stem(label), at) {
            return Err(format!("{} and {label} are labels of the same sample; keep one", labels[other]));
        }
    }
    // An image belongs to the label that shares the longest stem with it: a.b.png to a.b.cls, else to a.cls.
    let mut owner: HashMap<usize, usize> = HashMap::new();
    for (at, image) in images.iter().enumerate() {
        let Some(&label) = stems(image).find_map(|stem| by_stem.get(stem)) else {
            continue;
        };
        if let Some(&other) = owner.get(&label) {
            return Err(format!(
                "{} and {image} could both be the image of the label {}; give each image its own label, or keep one image",
                images[other], labels[label]
            ));
        }
        owner.insert(label, at);
        pairing.labels[at] = Some(label);
    }
    // What is left: x.label.cls beside x.png.
    let by_image: HashMap<&str, usize> =
        images.iter().enumerate().map(|(at, image)| (stem(image), at)).collect();
    let by_key: HashMap<&str, usize> = (0..images.len())
        .filter(|&at| pairing.labels[at].is_none())
        .map(|at| (key(images[at]), at))
        .collect();
    let others: HashSet<&str> = others.iter().map(|other| stem(other)).collect();
    for (at, label) in labels.iter().enumerate().filter(|(at, _)| !owner.contains_key(at)) {
        if others.contains(stem(label)) {
            pairing.unused.push(at);
            continue;
        }
        let same_stem = stems(stem(label)).find_map(|stem| by_image.get(stem)).copied();
        match same_stem.or_else(|| by_key.get(key(label)).copied()) {
            Some(image) if same_stem.is_some() && pairing.labels[image].is_none() => {
                pairing.labels[image] = Some(at);
            }
            Some(image) => {
                return Err(format!(
                    "it is not clear whether the label {label} belongs to {}; give an image and its label the same name up to the ending",
                    images[image]
                ));
            }
            None => pairing.unused.push(at),
        }
    }
    Ok(pairing)
}

/// Images that share a stem, as `x.jpg` and `x.seg.png` do: a sentence about them, and whether one looks like a mask.
pub(super) fn shared_stems(images: &[&str]) -> Option<(String, bool)> {
    let mut count: HashMap<&str, usize> = HashMap::new();
    for image in images {
        *count.entry(stem(image)).or_default() += 1;
    }
    let twin = |image: &&str| {
        let own = stem(image);
        count[own] > 1 || stems(own).skip(1).any(|shorter| count.contains_key(shorter))
    };
    let shared: Vec<&str> = images.iter().copied().filter(twin).collect();
    if shared.is_empty() {
        return None;
    }
    let is_mask = |image: &&str| {
        let own = stem(image);
        let suffix = own.rsplit_once('.').map(|(_, suffix)| suffix);
        suffix.is_some_and(is_mask_name) && stems(own).skip(1).any(|shorter| count.contains_key(shorter))
    };
    let masks: Vec<&str> = shared.iter().copied().filter(is_mask).collect();
    if !masks.is_empty() {
        let names = some_of(&masks, masks.len());
        let (look, them) = if masks.len() == 1 {
            ("looks like a mask of the image", "it")
        } else {
            ("look like masks of the images", "them")
        };
        return Some((
            format!(
                "{names} {look} of the same name and would be used as images; move {them} to another archive"
            ),
            true,
        ));
    }
    let names = some_of(&shared, shared.len());
    Some((
        format!(
            "{names}: the name is that of another image and an ending; each is used as an image of its own"
        ),
        false,
    ))
}

/// A path without the ending of its last part.
pub(super) fn stem(path: &str) -> &str {
    let file = path.rfind('/').map_or(0, |slash| slash + 1);
    match path[file..].rfind('.') {
        Some(dot) if dot > 0 => &path[..file + dot],
        _ => path,
    }
}

/// A path, then without its last ending, and so on: `d/a.b.png`, `d/a.b`, `d/a`.
fn stems(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| Some(stem(path)).filter(|shorter| shorter.len() < path.len()))
}

/// WebDataset's key: up to the first dot of the base name.
fn key(path: &str) -> &str {
    stems(path).last().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(images: &[&str], labels: &[&str], expected: &[Option<usize>]) {
        assert_eq!(pair(images, labels, &[]).unwrap().labels, expected);
    }

    #[test]
    fn the_longest_common_stem_pairs() {
        check(&["a.jpg", "b.jpg"], &["b.cls", "a.cls"], &[Some(1), Some(0)]);
        check(
            &["cam_2023.01.00.png", "cam_2023.01.01.png", "cam_2023.png"],
            &["cam_2023.01.00.cls", "cam_2023.01.01.cls", "cam_2023.cls"],
            &[Some(0), Some(1), Some(2)],
        );
        check(&["x.left.png"], &["x.cls"], &[Some(0)]);
        check(&["x.png"], &["x.label.cls"], &[Some(0)]);
        check(&["d.1/x.png", "d.2/x.png"], &["d.1/x.cls", "d.2/x.cls"], &[Some(0), Some(1)]);
        check(&["noending"], &["noending.cls"], &[Some(0)]);
        check(&["x.jpg"], &["x.jpg.cls"], &[Some(0)]);
        check(&["a.1.jpg", "a.2.jpg"], &["a.1.cls"], &[Some(0), None]);
        let unused = pair(&["a.jpg"], &["a.cls", "b.1.cls", "c.cls"], &["b.1.heic"]).unwrap();
        assert_eq!(unused, Pairing { labels: vec![Some(0)], unused: vec![1, 2] });
    }

    #[test]
    fn two_ways_are_an_error() {
        let error = |images: &[&str], labels: &[&str]| pair(images, labels, &[]).unwrap_err();
        assert!(
            error(&["x.0.jpg", "x.1.jpg"], &["x.cls"])
                .starts_with("x.0.jpg and x.1.jpg could both be the image of")
        );
        assert!(error(&["1.jpg", "1.seg.png"], &["1.cls"]).starts_with("1.jpg and 1.seg.png could both"));
        assert!(error(&["x.jpg", "x.png"], &["x.cls"]).contains("could both"));
        assert!(error(&["x.jpg"], &["x.cls", "x.CLS"]).contains("are labels of the same sample"));
        assert!(
            error(&["x.jpg"], &["x.cls", "x.b.cls"])
                .contains("not clear whether the label x.b.cls belongs to x.jpg")
        );
        assert!(
            error(&["x.00.jpg"], &["x.01.cls"])
                .contains("not clear whether the label x.01.cls belongs to x.00.jpg")
        );
    }

    #[test]
    fn shared_stems_are_named() {
        assert_eq!(shared_stems(&["a.jpg", "b.jpg", "cam.01.jpg", "cam.02.jpg"]), None);
        assert!(shared_stems(&["1.jpg", "1.seg.png"]).unwrap().1);
        let (sentence, mask) = shared_stems(&["a.jpg", "a.v2.jpg", "b.jpg"]).unwrap();
        assert!(!mask && sentence.starts_with("a.v2.jpg: the name is that of another"), "{sentence}");
    }
}
