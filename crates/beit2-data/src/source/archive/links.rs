//! Links between the members of a shard. They are followed inside the archive only: nothing outside of it is ever looked at.

use std::collections::{BTreeMap, HashMap, HashSet};

use std::path::Path;

use super::scan::{Item, What};
use crate::source::account::{Account, SkipReason};
use crate::source::kind::is_image_name;

/// Most links from a name to its file, as in Linux.
const MAX_HOPS: usize = 40;

/// Most members that links to folders may add to a shard.
const MAX_ADDED: usize = 10_000_000;

/// The members by name.
struct Tree<'a> {
    items: &'a [Item],
    /// Every member but folders.
    by_path: HashMap<&'a str, usize>,
    /// Folders, those of members too.
    folders: HashSet<&'a str>,
    /// As `by_path`, in order, to find what is below a folder.
    sorted: BTreeMap<&'a str, usize>,
}

/// What a name leads to.
enum Real {
    Item(usize),
    Folder(String),
}

/// Replaces links by what they lead to: a file under the link's name, or all files of a folder under its name. Links to
/// nothing, out of the archive or in a circle are counted.
pub(super) fn follow(items: Vec<Item>, shard: &str, account: &mut Account) -> Vec<Item> {
    let is_link = |item: &Item| matches!(item.what, What::HardLink(_) | What::SymLink(_));
    if !items.iter().any(is_link) {
        return items;
    }
    let tree = Tree::of(&items);
    let mut out = Vec::with_capacity(items.len());
    for item in &items {
        if !is_link(item) {
            out.push(Item { path: item.path.clone(), bytes: item.bytes.clone(), what: item.what.clone() });
            continue;
        }
        match tree.real(&item.path) {
            Some(Real::Item(target)) => {
                let what = items[target].what.clone();
                out.push(Item { path: item.path.clone(), bytes: item.bytes.clone(), what });
            }
            Some(Real::Folder(folder)) if !is_inside(&item.path, &folder) => {
                tree.add_folder(&item.path, &folder, &mut vec![folder.clone()], shard, &mut out, account);
            }
            _ => {
                let name = format!("{shard}:{}", item.path);
                if !is_image_name(Path::new(&item.path)) {
                    account.warnings.push(format!(
                        "{name} leads to nothing inside the archive; if it is the folder of a class, its images are missing"
                    ));
                }
                account.skip(SkipReason::DanglingLink, name);
            }
        }
    }
    out
}

/// Whether a path lies in a folder, at any depth. Everything lies in the top folder.
fn is_inside(path: &str, folder: &str) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

impl<'a> Tree<'a> {
    fn of(items: &'a [Item]) -> Self {
        let mut tree =
            Self { items, by_path: HashMap::new(), folders: HashSet::from([""]), sorted: BTreeMap::new() };
        for (at, item) in items.iter().enumerate() {
            if item.what == What::Folder {
                tree.folders.insert(&item.path);
            } else {
                tree.by_path.insert(&item.path, at);
                tree.sorted.insert(&item.path, at);
            }
            let mut path = item.path.as_str();
            while let Some((folder, _)) = path.rsplit_once('/') {
                if !tree.folders.insert(folder) {
                    break;
                }
                path = folder;
            }
        }
        tree
    }

    /// Follows a path part by part, as a file system does.
    fn real(&self, path: &str) -> Option<Real> {
        let mut ahead: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut done: Vec<String> = Vec::new();
        let mut hops = 0;
        while let Some(part) = ahead.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop()?;
                    continue;
                }
                _ => done.push(part),
            }
            let here = self.by_path.get(done.join("/").as_str()).map(|&at| &self.items[at].what);
            let target = match here {
                Some(What::SymLink(target)) if target.starts_with('/') => return None,
                Some(What::SymLink(target)) => {
                    done.pop();
                    target
                }
                Some(What::HardLink(target)) if ahead.is_empty() => {
                    done.clear();
                    target
                }
                _ => continue,
            };
            hops += 1;
            if hops > MAX_HOPS || target.is_empty() {
                return None;
            }
            ahead.extend(target.split('/').rev().map(str::to_owned));
        }
        let path = done.join("/");
        match self.by_path.get(path.as_str()) {
            Some(&at) => Some(Real::Item(at)),
            None => self.folders.contains(path.as_str()).then_some(Real::Folder(path)),
        }
    }

    /// Adds everything below `folder` under the name `link`, in the order of the archive. `open` are the folders that are
    /// being added.
    fn add_folder(
        &self,
        link: &str,
        folder: &str,
        open: &mut Vec<String>,
        shard: &str,
        out: &mut Vec<Item>,
        account: &mut Account,
    ) {
        let start = format!("{folder}/");
        let below = self.sorted.range(start.as_str()..).take_while(|(path, _)| path.starts_with(&start));
        let mut found: Vec<usize> = below.map(|(_, &at)| at).collect();
        found.sort_unstable();
        for at in found {
            let item = &self.items[at];
            let path = format!("{link}/{}", &item.path[start.len()..]);
            let real = match item.what {
                What::HardLink(_) | What::SymLink(_) => self.real(&item.path),
                _ => Some(Real::Item(at)),
            };
            match real {
                Some(Real::Item(target)) if out.len() < self.items.len() + MAX_ADDED => {
                    // The bytes of a name that is no text are those of the link and of the rest; the text has them too.
                    out.push(Item { path, bytes: None, what: self.items[target].what.clone() });
                }
                Some(Real::Folder(inner))
                    if !open.iter().any(|open| *open == inner || is_inside(open, &inner))
                        && open.len() < MAX_HOPS =>
                {
                    open.push(inner.clone());
                    self.add_folder(&path, &inner, open, shard, out, account);
                    open.pop();
                }
                _ => account.skip(SkipReason::DanglingLink, format!("{shard}:{path}")),
            }
        }
    }
}
