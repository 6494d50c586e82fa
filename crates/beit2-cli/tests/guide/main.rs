//! What a newcomer reads, taken literally: commands of the guide, links, completions, manual pages.

#![allow(clippy::unwrap_used)]

mod links;
mod place;
#[path = "../support/scenes.rs"]
mod scenes;
#[path = "../support/mod.rs"]
mod support;
mod terminal;
mod walk;
