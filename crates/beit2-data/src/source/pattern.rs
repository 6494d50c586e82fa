//! Patterns of paths: `{000..003}` and `{a,b}` are written out as a shell would, `*`, `?` and `[a-z]` are matched in any
//! component.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::account::Account;
use super::kind::Kind;
use super::name::{file_name, path_text};
use super::walk::{ClassFolder, Entry, Walk};
use super::{account::some_of, folder};
use crate::error::SourceError;

/// Most paths that braces may name; ImageNet-22k in 1 GB shards has about 1 200.
const MAX_SHARDS: usize = 1_000_000;

/// What a wildcard is.
const WILD: [char; 3] = ['*', '?', '['];

/// Whether the text has anything to expand.
pub(super) fn is_pattern(spec: &str) -> bool {
    spec.contains('{') || spec.contains(WILD)
}

/// What a pattern names.
pub(super) enum Matches {
    /// Shards, tables or single images, in order.
    Files(Vec<PathBuf>),
    /// One folder.
    Folder(PathBuf),
    /// Images, or several folders of them, as a folder that holds nothing else.
    Images(Walk),
}

/// Finds what a pattern names.
///
/// Files without an image among them are shards or tables. Images have the classes of the folders that they lie in, if the
/// pattern leaves these folders open; folders that match are classes with everything below them, a single one is the source.
pub(super) fn matches(spec: &str) -> Result<Matches, SourceError> {
    let fail = |problem: String| Err(SourceError::Pattern { pattern: spec.into(), problem });
    let (mut images, mut folders, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for path in expand(spec)? {
        match path.is_dir() {
            true => folders.push(path),
            false if matches!(Kind::of(&path), Kind::Image) => images.push(path),
            false => files.push(path),
        }
    }
    if images.is_empty() && folders.is_empty() {
        let shard = |path: &&PathBuf| !is_shard(path);
        return match (files.iter().find(shard), files.iter().any(|path| is_shard(path))) {
            (Some(other), true) => fail(format!(
                "it names shards and also {}, which is none; make it narrower, as in '*.tar'",
                path_text(other)
            )),
            (Some(other), false) if files.len() > 1 => fail(format!(
                "it names {} files and none of them is an image, the first is {}; give a folder of images, or a pattern like 'photos/*.jpg'",
                files.len(),
                path_text(other)
            )),
            _ => Ok(Matches::Files(files)),
        };
    }
    if let ([only], [], []) = (images.as_slice(), folders.as_slice(), files.as_slice())
        && !leaves_folders_open(spec)
    {
        return Ok(Matches::Files(vec![only.clone()]));
    }
    if let ([], [only], []) = (images.as_slice(), folders.as_slice(), files.as_slice()) {
        return Ok(Matches::Folder(only.clone()));
    }
    match folders.is_empty() {
        true if leaves_folders_open(spec) => of_images(images, &files).map(Matches::Images),
        _ => of_one_folder(spec, images, folders, &files).map(Matches::Images),
    }
}

/// Whether images in several folders can match, or would in another collection.
fn leaves_folders_open(spec: &str) -> bool {
    let folders = spec.rsplit_once(['/', '\\']).map_or("", |(folders, _)| folders);
    is_pattern(folders)
}

fn is_shard(path: &Path) -> bool {
    super::has_extension(path, &["tar", "gz", "tgz", "zip", "parquet"])
        || matches!(Kind::of(path), Kind::Shard)
}

/// Images whose folders are their classes.
fn of_images(images: Vec<PathBuf>, others: &[PathBuf]) -> Result<Walk, SourceError> {
    let root = common_folder(&images);
    let mut classes: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for image in images {
        classes.entry(image.parent().map(file_name).unwrap_or_default()).or_default().push(image);
    }
    let folders = classes.into_values().map(|images| {
        let path = images.first().and_then(|image| image.parent()).unwrap_or(Path::new("")).to_path_buf();
        ClassFolder { path, images, shards: Vec::new(), account: Account::default() }
    });
    Ok(Walk::made(root, Vec::new(), folders.collect(), left_out(others)))
}

/// What matches in one folder, as if it was all that the folder holds.
fn of_one_folder(
    spec: &str,
    images: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    others: &[PathBuf],
) -> Result<Walk, SourceError> {
    let parent = |path: &PathBuf| path.parent().map(Path::to_path_buf).unwrap_or_default();
    let mut places: Vec<PathBuf> = images.iter().chain(&folders).map(parent).collect();
    places.sort();
    places.dedup();
    let [root] = places.as_slice() else {
        let names = some_of(places.iter().map(|place| path_text(place)), places.len());
        return Err(SourceError::Pattern {
            pattern: spec.into(),
            problem: format!(
                "it names folders in several places ({names}); name one folder, or several with ' + ' between them"
            ),
        });
    };
    let root = if root.as_os_str().is_empty() { PathBuf::from(".") } else { root.clone() };
    let folders = folders.into_iter().map(ClassFolder::of).collect::<Result<Vec<_>, _>>()?;
    let (shards, others): (Vec<PathBuf>, Vec<PathBuf>) =
        others.iter().cloned().partition(|path| matches!(Kind::of(path), Kind::Shard));
    let mut walk = Walk::made(root, images, folders, left_out(&others));
    walk.shards = shards;
    Ok(walk)
}

/// Files that match and are no images.
fn left_out(files: &[PathBuf]) -> Account {
    let mut account = Account::default();
    for file in files {
        let reason = match Kind::of(file) {
            Kind::Other(reason) => reason,
            _ => super::SkipReason::Kind(super::kind::ending(file)),
        };
        account.skip(reason, path_text(file));
    }
    account
}

/// The innermost folder that holds the folders of all files.
fn common_folder(files: &[PathBuf]) -> PathBuf {
    let folder = |file: &PathBuf| -> Vec<PathBuf> {
        let above = file.parent().and_then(Path::parent).unwrap_or(Path::new(""));
        above.components().map(|part| PathBuf::from(part.as_os_str())).collect()
    };
    let mut common = files.first().map(folder).unwrap_or_default();
    for file in files {
        let same = common.iter().zip(folder(file)).take_while(|(a, b)| *a == b).count();
        common.truncate(same);
    }
    let path: PathBuf = common.iter().collect();
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path }
}

/// The paths that a pattern names: braces in the order written, wildcards sorted by name. Every brace result must exist.
fn expand(spec: &str) -> Result<Vec<PathBuf>, SourceError> {
    let fail = |problem: String| SourceError::Pattern { pattern: spec.into(), problem };
    let mut out = Vec::new();
    for text in expand_braces(spec).map_err(fail)? {
        let path = PathBuf::from(&text);
        if !text.contains(WILD) {
            if !path.exists() {
                return Err(fail(format!("it names {text}, which is not there; shards must be complete")));
            }
            out.push(path);
            continue;
        }
        if path.components().any(|part| part.as_os_str() == "**") {
            let folder: PathBuf = path
                .components()
                .take_while(|part| !part.as_os_str().to_string_lossy().contains(WILD))
                .collect();
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
            return Err(fail(format!(
                "** is not known; give the folder {} itself, which is read with all folders in it",
                path_text(folder)
            )));
        }
        let found = matches_of(&path).map_err(|error| fail(error.to_string()))?;
        if found.is_empty() {
            return Err(fail(nothing(&path)));
        }
        out.extend(found);
    }
    let mut seen = std::collections::HashSet::new();
    match out.iter().find(|path| !seen.insert(path.as_path())) {
        Some(twice) => Err(fail(format!("it names {} twice; name each file once", path_text(twice)))),
        None => Ok(out),
    }
}

/// Why nothing matches: what is in the folder instead.
fn nothing(path: &Path) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (place, wild) = (path_text(folder), folder.to_string_lossy().contains(WILD));
    if wild {
        return "it matches no file".into();
    }
    let Ok(entries) = folder::list(folder) else {
        return format!("it matches no file; there is no folder {place}");
    };
    match entries.first() {
        None => format!("it matches no file; the folder {place} is empty"),
        Some(_) => {
            let names = some_of(entries.iter().map(|entry| file_name(&entry.path)), entries.len());
            format!("it matches no file; the folder {place} holds {names}")
        }
    }
}

/// Everything that matches, sorted.
fn matches_of(path: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let mut found: Vec<PathBuf> = vec![PathBuf::new()];
    let parts: Vec<Component<'_>> = path.components().collect();
    for (at, part) in parts.iter().enumerate() {
        let (wanted, last) = (part.as_os_str().to_string_lossy(), at + 1 == parts.len());
        if !wanted.contains(WILD) {
            found.iter_mut().for_each(|path| path.push(part));
            found.retain(|path| !last || path.exists());
            continue;
        }
        let mut next = Vec::new();
        for folder in found {
            let place = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
            // A folder that an earlier wildcard found may lack the rest of the path.
            if at > 0 && !place.is_dir() && parts[..at].iter().any(|part| has_wild(part)) {
                continue;
            }
            let entries = folder::list(place)?.into_iter().filter(|entry| last || entry.is_dir);
            let names = entries.map(|Entry { path, .. }| path);
            next.extend(names.filter_map(|path| {
                let name = path.file_name()?;
                let fits = wildcard(wanted.as_bytes(), name.to_string_lossy().as_bytes());
                fits.then(|| folder.join(name))
            }));
        }
        found = next;
    }
    Ok(found)
}

fn has_wild(part: &Component<'_>) -> bool {
    part.as_os_str().to_string_lossy().contains(WILD)
}

/// Length of the bracket expression that `pattern` begins with, and whether it takes `byte`; `None` without a closing bracket.
fn bracket(pattern: &[u8], byte: u8) -> Option<(usize, bool)> {
    let not = matches!(pattern.get(1), Some(b'!' | b'^'));
    let start = if not { 2 } else { 1 };
    // A bracket that comes first stands for itself.
    let end = start + 1 + pattern.get(start + 1..)?.iter().position(|&c| c == b']')?;
    let (mut inside, mut found) = (&pattern[start..end], false);
    while let Some((&first, rest)) = inside.split_first() {
        match rest {
            [b'-', last, rest @ ..] => {
                found |= (first..=*last).contains(&byte);
                inside = rest;
            }
            _ => {
                found |= first == byte;
                inside = rest;
            }
        }
    }
    Some((end + 1, found != not))
}

/// Whether `name` matches `pattern` with `*` (any run), `?` (any byte) and `[a-z]` (one of these). Linear memory, no recursion.
fn wildcard(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(b'[') if bracket(&pattern[p..], name[n]).is_some_and(|(_, takes)| takes) => {
                p += bracket(&pattern[p..], name[n]).map_or(1, |(length, _)| length);
                n += 1;
            }
            Some(&c) if c == b'?' || c == name[n] && (c != b'[' || bracket(&pattern[p..], 0).is_none()) => {
                p += 1;
                n += 1;
            }
            _ => {
                // Let the last star swallow one more byte and try again from there.
                let Some((star_p, star_n)) = star else {
                    return false;
                };
                star = Some((star_p, star_n + 1));
                p = star_p + 1;
                n = star_n + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Writes out every brace group, left to right.
fn expand_braces(text: &str) -> Result<Vec<String>, String> {
    let mut done = vec![String::new()];
    let mut rest = text;
    while let Some(start) = rest.find('{') {
        let length = rest[start..].find('}').ok_or("a '{' has no '}'; write for example {000..003}")?;
        let choices = brace_choices(&rest[start + 1..start + length])?;
        if done.len().saturating_mul(choices.len()) > MAX_SHARDS {
            return Err(format!("it names more than {MAX_SHARDS} shards"));
        }
        let before = &rest[..start];
        done = done
            .iter()
            .flat_map(|head| choices.iter().map(move |choice| format!("{head}{before}{choice}")))
            .collect();
        rest = &rest[start + length + 1..];
    }
    done.iter_mut().for_each(|head| head.push_str(rest));
    Ok(done)
}

/// `000..003` (as wide as the longer of both numbers) or `a,b,c`.
fn brace_choices(inside: &str) -> Result<Vec<String>, String> {
    let Some((from, to)) = inside.split_once("..") else {
        return Ok(inside.split(',').map(str::to_owned).collect());
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.len() <= 18 && text.bytes().all(|b| b.is_ascii_digit());
        let parsed = if digits { text.parse::<u64>().ok() } else { None };
        parsed.ok_or_else(|| {
            format!("'{{{inside}}}' is not a range of whole numbers; write for example {{000..003}}")
        })
    };
    let (first, last) = (number(from)?, number(to)?);
    if first > last {
        return Err(format!("the range '{{{inside}}}' runs backwards"));
    }
    if last - first >= MAX_SHARDS as u64 {
        return Err(format!("it names more than {MAX_SHARDS} shards"));
    }
    let padded = from.len() > 1 && from.starts_with('0') || to.len() > 1 && to.starts_with('0');
    let width = if padded { from.len().max(to.len()) } else { 0 };
    Ok((first..=last).map(|n| format!("{n:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces() {
        let check =
            |text: &str, expected: &[&str]| assert_eq!(expand_braces(text).unwrap(), expected, "{text}");
        check("a.tar", &["a.tar"]);
        check("s-{008..011}.tar", &["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]);
        check("s-{9..11}", &["s-9", "s-10", "s-11"]);
        check("{a,b}{0..1}", &["a0", "a1", "b0", "b1"]);
        for bad in ["{0..3", "{3..1}", "{a..c}", "{0..99999999}", "{0..999}{0..999}{0..9}", "{-1..2}", "{..}"]
        {
            assert!(expand_braces(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wildcards() {
        let check = |p: &str, n: &str| wildcard(p.as_bytes(), n.as_bytes());
        assert!(check("*.tar", "a.tar") && check("a?c*", "abc") && check("*a*b", "xaxxb") && check("*", ""));
        assert!(check("[0-2]x[!a]", "1xb") && check("*[ab].png", "xa.png") && check("a[", "a["));
        assert!(!check("[0-2]x", "3x") && !check("[!a]", "a") && !check("[ab]", "[") && check("[]]", "]"));
        assert!(
            !check("*.tar", "a.tar.gz") && !check("a?c", "ac") && !check("", "a") && !check("*a*b", "xaxbx")
        );
    }
}
