//! What each command does, with its own flags; those that several commands share are in [`crate::flags`].

pub mod adapt;
pub mod bench;
pub mod compare;
pub mod completions;
pub mod data;
pub mod doctor;
pub mod embed;
pub mod eval;
pub mod finetune;
pub mod init;
pub mod man;
pub mod predict;
pub mod pretrain;
pub mod probe;
pub mod quickstart;
mod recipe_memory;
pub mod recipes;
pub mod report;
pub mod run;
pub mod segment;
pub mod teacher;
pub mod tokenizer;
pub mod weights;
