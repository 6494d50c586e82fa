//! Classes by the folders that members lie in.

use std::collections::{BTreeMap, HashMap};

use super::shard::Shard;
use super::{Member, full_name, label_error};
use crate::error::SourceError;
use crate::source::account::{Account, SkipReason};
use crate::source::arrangement::{self, Part};
use crate::source::kind::hides_images;

/// The class folders of all shards.
#[derive(Default)]
pub(super) struct Folders {
    /// Each folder once, and whether images lie in folders inside of it.
    parts: Vec<Part>,
    numbers: HashMap<String, u32>,
    /// Of every member in the order of shards, its folder.
    of: Vec<Option<u32>>,
    /// Folders beside those of images: what is in them.
    empty: BTreeMap<String, Vec<SkipReason>>,
    /// The first shard, for messages.
    shard: String,
}

impl Folders {
    /// Takes in the members of a shard.
    pub(super) fn add(
        &mut self,
        shard: &Shard,
        images: &[Member],
        folders: &[String],
        others: &[(String, SkipReason)],
    ) {
        if self.shard.is_empty() {
            self.shard.clone_from(&shard.name);
        }
        let around = around_all(images);
        let one_folder = images.iter().all(|image| folder(&image.path) == around);
        for image in images {
            let below = inside(&image.path, around).unwrap_or(&image.path);
            let (name, deeper) = match below.split_once('/') {
                // All images of the shard lie in this folder: it may be one of several shards with a class each.
                None if one_folder => (around.rsplit('/').next().unwrap_or(around), false),
                None => ("", false),
                Some((name, rest)) => (name, rest.contains('/')),
            };
            let number = if name.is_empty() { None } else { Some(self.number(name, deeper)) };
            self.of.push(number);
        }
        if one_folder {
            return;
        }
        let mut note = |path: &str, reason: Option<&SkipReason>| {
            if let Some(below) = inside(path, around) {
                let name = below.split('/').next().unwrap_or(below);
                let found = self.empty.entry(name.to_owned()).or_default();
                found.extend(reason.cloned());
            }
        };
        folders.iter().for_each(|path| note(path, None));
        let in_folders =
            |(path, _): &&(String, SkipReason)| inside(path, around).is_some_and(|rest| rest.contains('/'));
        others.iter().filter(in_folders).for_each(|(path, reason)| note(path, Some(reason)));
    }

    fn number(&mut self, name: &str, deeper: bool) -> u32 {
        let number = match self.numbers.get(name) {
            Some(&number) => number,
            None => {
                let number = self.parts.len() as u32;
                self.parts.push(Part { name: name.to_owned(), deeper: false });
                self.numbers.insert(name.to_owned(), number);
                number
            }
        };
        if let Some(part) = self.parts.get_mut(number as usize) {
            part.deeper |= deeper;
        }
        number
    }

    /// Refuses folders that are splits or images and their masks.
    pub(super) fn refuse(&self) -> Result<(), SourceError> {
        match arrangement::problem(&self.parts, unpacked) {
            Some(problem) => Err(SourceError::Arrangement { place: self.shard.clone(), problem }),
            None => Ok(()),
        }
    }

    /// Gives members the numbers of their folders; gives the names of the classes.
    pub(super) fn label(
        self,
        members: &mut [Member],
        names: Option<Vec<String>>,
        shards: &[Shard],
        account: &mut Account,
    ) -> Result<Vec<String>, SourceError> {
        if self.parts.len() < 2 {
            return Ok(Vec::new());
        }
        let classes = names.unwrap_or_else(|| {
            let mut names: Vec<String> = self.parts.iter().map(|part| part.name.clone()).collect();
            names.sort_unstable();
            names
        });
        let numbers: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
        for (member, folder) in members.iter_mut().zip(&self.of) {
            let Some(part) = folder.and_then(|folder| self.parts.get(folder as usize)) else {
                continue;
            };
            member.label = numbers.get(part.name.as_str()).copied();
            if member.label.is_none() {
                let problem = format!("its folder '{}' is not a line of classes.txt", part.name);
                return Err(label_error(&full_name(shards, member), &member.path, problem));
            }
        }
        for (name, found) in self.empty.iter().filter(|(name, _)| !self.numbers.contains_key(*name)) {
            account.skip(SkipReason::EmptyClass, name);
            if found.is_empty() || found.iter().any(hides_images) {
                account.label_errors.push(format!(
                    "{}: the class folder {name} holds no image that can be read; put the images of its class into it, or remove it",
                    self.shard
                ));
            }
        }
        let with_place = |problem: String| format!("{}: {problem}", self.shard);
        account.label_errors.extend(arrangement::split_error(&self.parts).map(with_place));
        account.warnings.extend(arrangement::split_warning(&self.parts, unpacked).map(with_place));
        Ok(classes)
    }
}

/// How a folder is named in a command.
fn unpacked(name: &str) -> String {
    format!("UNPACKED/{name}")
}

/// The folder of a member; empty at the top.
fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// A path below a folder, if it lies there.
fn inside<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    match folder {
        "" => Some(path),
        _ => path.strip_prefix(folder)?.strip_prefix('/'),
    }
}

/// The deepest folder that all images lie in.
fn around_all(images: &[Member]) -> &str {
    let mut around: Option<&str> = None;
    for image in images {
        let own = folder(&image.path);
        let mut common = around.unwrap_or(own);
        while !common.is_empty() && own != common && inside(own, common).is_none() {
            common = folder(common);
        }
        around = Some(common);
    }
    around.unwrap_or("")
}
