//! Links of all pages, and pages that the program's messages and recipes name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Files below a folder whose names end in `ending`, without what is built or recorded.
fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !["target", ".git", "node_modules"].contains(&name.as_str()) {
            files(&path, ending, found);
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

fn all(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root(), ending, &mut found);
    found.sort();
    found
}

/// Lines outside of indented and fenced blocks, which are no Markdown.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced && !line.starts_with("    ")
    })
}

/// The names of a page's headings in links, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let kept = line.trim_start_matches('#').trim().to_lowercase();
            let kept: String = kept
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect();
            let before = seen.entry(kept.clone()).or_default();
            *before += 1;
            if *before == 1 { kept } else { format!("{kept}-{}", *before - 1) }
        })
        .collect()
}

/// Targets of `[text](target)`, also where a line breaks inside the text.
fn targets(text: &str) -> Vec<String> {
    let text: String = prose(text).map(|line| format!("{line}\n")).collect();
    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.trim().to_owned())).collect()
}

/// A path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

/// What is wrong with a link from the page `from`.
fn problem(from: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let path = if file.is_empty() { from.to_owned() } else { plain(&from.parent().unwrap().join(file)) };
    if !path.exists() {
        return Some(format!("there is no {file}"));
    }
    let anchor = anchor?;
    if path.extension().is_some_and(|ending| ending == "md") {
        let known = anchors(&fs::read_to_string(&path).unwrap());
        if !known.contains(anchor) {
            return Some(format!("no heading #{anchor} among {known:?}"));
        }
    }
    None
}

#[test]
fn no_link_is_dead() {
    let mut dead = Vec::new();
    let mut seen = 0;
    for page in all(".md") {
        for target in targets(&fs::read_to_string(&page).unwrap()) {
            seen += 1;
            dead.extend(problem(&page, &target).map(|why| format!("{}: {target}: {why}", page.display())));
        }
    }
    assert!(seen > 200, "{seen} links");
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

#[test]
fn the_contents_name_every_page() {
    let docs = root().join("docs");
    let contents = docs.join("SUMMARY.md");
    let named: BTreeSet<PathBuf> = targets(&fs::read_to_string(&contents).unwrap())
        .iter()
        .map(|target| plain(&docs.join(target)))
        .collect();
    let pages = all(".md").into_iter().filter(|page| page.starts_with(&docs) && *page != contents);
    let missing: Vec<PathBuf> = pages.filter(|page| !named.contains(page)).collect();
    assert!(missing.is_empty(), "not in docs/SUMMARY.md: {missing:?}");
}

/// Names of pages in messages, recipes and comments.
#[test]
fn pages_that_the_program_names_exist() {
    let root = root();
    let mut dead = Vec::new();
    let mut seen = 0;
    for file in [".rs", ".toml", ".sh", ".py"].into_iter().flat_map(all) {
        let text = fs::read_to_string(&file).unwrap();
        for (at, _) in text.match_indices("docs/") {
            let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.' | '#');
            let before = text[..at].chars().next_back();
            let name: String = text[at..].chars().take_while(|&c| is_path(c)).collect();
            let name = name.trim_end_matches('.');
            if before.is_some_and(is_path) || !name.contains(".md") {
                continue;
            }
            seen += 1;
            let page = root.join("README.md");
            dead.extend(problem(&page, name).map(|why| format!("{}: {name}: {why}", file.display())));
        }
    }
    assert!(seen > 20, "{seen} pages");
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

#[test]
fn headings_become_anchors_as_on_github() {
    let page = "# A `b`: c-d, e\n## 2. Choose\n    # no heading\n```\n# nor this\n```\n## 2. Choose\n";
    let expected = ["a-b-c-d-e", "2-choose", "2-choose-1"].map(str::to_owned);
    assert_eq!(anchors(page), expected.into_iter().collect());
    assert_eq!(targets("[a](b.md#c) and [d\ne](f)"), ["b.md#c", "f"]);
}
