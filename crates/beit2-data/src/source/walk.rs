//! A walk through a folder: what is an image, and what is not and why.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::account::{Account, SkipReason};
use super::archive::packed;
use super::folder::{by_bytes, io};
use super::kind::{Kind, is_system};
use super::name::{file_name, path_text, text_of};
use crate::error::SourceError;

/// One visible entry of a folder, links already followed.
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) is_dir: bool,
}

/// What lies in a folder.
pub(super) struct Walk {
    pub(super) root: PathBuf,
    /// Images in the folder itself.
    pub(super) images: Vec<PathBuf>,
    /// Tar shards in the folder itself.
    pub(super) shards: Vec<PathBuf>,
    /// Its sub-folders.
    pub(super) folders: Vec<ClassFolder>,
    /// What else is in the folder itself.
    beside: Account,
    /// Links to nothing in the folder itself.
    pub(super) dangling: Vec<PathBuf>,
}

/// A sub-folder with all that is below it.
pub(super) struct ClassFolder {
    pub(super) path: PathBuf,
    /// Images at any depth, in torchvision's order: folders by their whole path, then files by name.
    pub(super) images: Vec<PathBuf>,
    /// Tar shards at any depth.
    pub(super) shards: Vec<PathBuf>,
    /// Everything that is no image.
    pub(super) account: Account,
}

impl Walk {
    /// Looks at everything in a folder.
    pub(super) fn of(root: &Path) -> Result<Self, SourceError> {
        let mut walk = Self {
            root: root.to_path_buf(),
            images: Vec::new(),
            shards: Vec::new(),
            folders: Vec::new(),
            beside: Account::default(),
            dangling: Vec::new(),
        };
        let (entries, dangling) = look(root, &mut walk.beside)?;
        walk.dangling = dangling;
        for Entry { path, is_dir } in entries {
            if is_dir {
                walk.folders.push(ClassFolder::of(path)?);
                continue;
            }
            match Kind::of(&path) {
                Kind::Image => walk.images.push(path),
                Kind::Shard => walk.shards.push(path),
                Kind::Other(reason) => walk.beside.skip(reason, path_text(&path)),
            }
        }
        Ok(walk)
    }

    /// What a pattern names, as if a folder held nothing else.
    pub(super) fn made(
        root: PathBuf,
        images: Vec<PathBuf>,
        folders: Vec<ClassFolder>,
        beside: Account,
    ) -> Self {
        Self { root, images, shards: Vec::new(), folders, beside, dangling: Vec::new() }
    }

    /// Whether there is no image.
    pub(super) fn is_empty(&self) -> bool {
        self.images.is_empty() && self.folders.iter().all(|folder| folder.images.is_empty())
    }

    /// Sub-folders that hold images.
    pub(super) fn full(&self) -> impl Iterator<Item = &ClassFolder> {
        self.folders.iter().filter(|folder| !folder.images.is_empty())
    }

    /// What is left out where images are used: everything else, shards too.
    pub(super) fn account(&self) -> Account {
        let mut all = self.account_beside_shards();
        self.shards.iter().for_each(|shard| all.skip(SkipReason::Kind(".tar".into()), path_text(shard)));
        all
    }

    /// What is left out where the folder's own shards are used.
    pub(super) fn account_beside_shards(&self) -> Account {
        let mut all = self.beside.clone();
        self.folders.iter().for_each(|folder| all.merge(folder.account.clone()));
        all
    }
}

impl ClassFolder {
    pub(super) fn of(path: PathBuf) -> Result<Self, SourceError> {
        let mut account = Account::default();
        let mut shards = Vec::new();
        let mut folders: Vec<(PathBuf, Vec<PathBuf>)> = Vec::new();
        let mut visited = HashSet::new();
        let mut open = vec![path.clone()];
        while let Some(folder) = open.pop() {
            let real = fs::canonicalize(&folder).map_err(|e| io(&folder, "open the folder", e))?;
            if !visited.insert(real) {
                account.skip(SkipReason::SecondLink, path_text(&folder));
                continue;
            }
            let (inner, files): (Vec<Entry>, Vec<Entry>) =
                look(&folder, &mut account)?.0.into_iter().partition(|entry| entry.is_dir);
            // Why reversed: the last one pushed is visited next, and which of two links to one folder
            // wins must not vary.
            open.extend(inner.into_iter().rev().map(|entry| entry.path));
            let mut images = Vec::new();
            for Entry { path, .. } in files {
                match Kind::of(&path) {
                    Kind::Image => images.push(path),
                    Kind::Shard => shards.push(path),
                    Kind::Other(reason) => account.skip(reason, path_text(&path)),
                }
            }
            folders.push((folder, images));
        }
        folders.sort_by(|a, b| by_bytes(Some(a.0.as_os_str()), Some(b.0.as_os_str())));
        let images = folders.into_iter().flat_map(|(_, images)| images).collect();
        shards.iter().for_each(|shard| account.skip(SkipReason::Kind(".tar".into()), path_text(shard)));
        Ok(Self { path, images, shards, account })
    }

    /// Its name.
    pub(super) fn name(&self) -> String {
        file_name(&self.path)
    }

    /// Whether an image lies in the folder itself.
    pub(super) fn holds_images(&self) -> bool {
        self.images.iter().any(|image| image.parent() == Some(&self.path))
    }

    /// Whether an image lies in a folder inside of it.
    pub(super) fn holds_more_than_images(&self) -> bool {
        self.images.iter().any(|image| image.parent() != Some(&self.path))
    }

    /// Sub-folders of it that lead to images.
    pub(super) fn inner(&self) -> Vec<String> {
        let first = |image: &PathBuf| {
            let mut below = image.strip_prefix(&self.path).ok()?.components();
            let first = below.next()?;
            below.next().map(|_| text_of(first.as_os_str().as_encoded_bytes()))
        };
        let mut names: Vec<String> = self.images.iter().filter_map(first).collect();
        names.dedup();
        names
    }
}

/// Files and folders of `dir` sorted by name; hidden ones, dangling links and special files
/// (sockets, pipes) are left out.
pub(crate) fn list(dir: &Path) -> Result<Vec<Entry>, SourceError> {
    Ok(look(dir, &mut Account::default())?.0)
}

/// All images at any depth below `dir`, and everything else.
pub(crate) fn images_below(dir: &Path) -> Result<(Vec<PathBuf>, Account), SourceError> {
    let folder = ClassFolder::of(dir.to_path_buf())?;
    Ok((folder.images, folder.account))
}

/// Files and folders of `dir` sorted by name, and links to nothing; what is left out is counted.
fn look(dir: &Path, account: &mut Account) -> Result<(Vec<Entry>, Vec<PathBuf>), SourceError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| io(dir, "list the folder", e))? {
        let entry = entry.map_err(|e| io(dir, "list the folder", e))?;
        let kind = entry.file_type().map_err(|e| io(&entry.path(), "look at it", e))?;
        found.push((entry.path(), kind));
    }
    found.sort_by(|a, b| by_bytes(a.0.file_name(), b.0.file_name()));
    let (mut entries, mut dangling) = (Vec::new(), Vec::new());
    for (path, mut kind) in found {
        if packed::is_index(&path) {
            continue; // it belongs to the shards beside it
        }
        if is_system(&file_name(&path)) {
            account.skip(SkipReason::System, path_text(&path));
            continue;
        }
        if kind.is_symlink() {
            let Ok(target) = fs::metadata(&path) else {
                account.skip(SkipReason::DanglingLink, path_text(&path));
                dangling.push(path);
                continue;
            };
            kind = target.file_type();
        }
        if kind.is_dir() || kind.is_file() {
            entries.push(Entry { path, is_dir: kind.is_dir() });
        } else {
            account.skip(SkipReason::Special, path_text(&path));
        }
    }
    Ok((entries, dangling))
}
