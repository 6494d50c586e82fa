//! Shard patterns: `{000..003}` and `{a,b}` are written out as a shell would, `*` and `?` are
//! matched in the last component.

use std::path::{Path, PathBuf};

use super::folder;
use super::name::path_text;
use crate::error::SourceError;

/// Most shards one pattern may name; ImageNet-22k in 1 GB shards has about 1 200.
const MAX_SHARDS: usize = 1_000_000;

/// Whether the text has anything to expand.
pub(super) fn is_pattern(spec: &str) -> bool {
    spec.contains(['{', '*', '?'])
}

/// The files a pattern names: braces in the order written, wildcards sorted by name. Every brace
/// result must exist.
pub(super) fn expand(spec: &str) -> Result<Vec<PathBuf>, SourceError> {
    let fail = |problem: String| SourceError::Pattern { pattern: spec.into(), problem };
    let mut out = Vec::new();
    for text in expand_braces(spec).map_err(fail)? {
        let path = PathBuf::from(&text);
        if !text.contains(['*', '?']) {
            if !path.is_file() {
                return Err(fail(format!("it names {text}, which is not there; shards must be complete")));
            }
            out.push(path);
            continue;
        }
        let found = matches_of(&path).map_err(|error| fail(error.to_string()))?;
        if found.is_empty() {
            return Err(fail("it matches no file; wildcards are allowed in the last component only".into()));
        }
        out.extend(found);
    }
    let mut seen = std::collections::HashSet::new();
    match out.iter().find(|path| !seen.insert(path.as_path())) {
        Some(twice) => Err(fail(format!("it names {} twice; name each file once", path_text(twice)))),
        None => Ok(out),
    }
}

fn matches_of(path: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wanted = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name_of = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let files = folder::list(parent)?.into_iter().filter(|entry| !entry.is_dir);
    Ok(files
        .map(|entry| entry.path)
        .filter(|path| wildcard(wanted.as_bytes(), name_of(path).as_bytes()))
        .collect())
}

/// Whether `name` matches `pattern` with `*` (any run) and `?` (any byte). Linear memory, no
/// recursion.
fn wildcard(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
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
        assert!(
            !check("*.tar", "a.tar.gz") && !check("a?c", "ac") && !check("", "a") && !check("*a*b", "xaxbx")
        );
    }
}
