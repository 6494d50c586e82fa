//! What surrounds a Vision Transformer in the files of training software: `backbone.`, `teacher.`, `module.` and their like
//! before its names, a second copy of the model, projection heads.

use std::collections::BTreeSet;
use std::fmt;

/// The parts that wrappers are made of.
const PARTS: [&str; 12] = [
    "module.",
    "model.",
    "state_dict.",
    "_orig_mod.",
    "backbone.",
    "encoder.",
    "teacher.",
    "student.",
    "_fsdp_wrapped_module.",
    "ema.",
    "vit.",
    "momentum_encoder.",
];

/// Those that other code takes off when all names have them ([`super::wrapper_prefix`]).
const COMMON: [&str; 4] = ["module.", "model.", "state_dict.", "_orig_mod."];

/// What tells a Vision Transformer's patch embedding, in official, timm's and mmpretrain's names.
const PATCHES: [&str; 2] = ["patch_embed.proj.weight", "patch_embed.projection.weight"];

/// Heads of self-distillation, which nothing here uses.
const PROJECTION_HEADS: [&str; 5] =
    ["head.mlp.", "head.last_layer", "dino_head.", "ibot_head.", "head.prototypes"];

/// A wrapper around the names of a Vision Transformer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapper {
    /// What is before its names.
    pub prefix: String,
    /// The prefixes of other models in the same file.
    pub others: Vec<String>,
    /// How many tensors were left behind: of other models, and projection heads.
    pub left: usize,
    /// What is before the names of everything, also of a classification head.
    outer: String,
}

impl fmt::Display for Wrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the names after `{}`", self.prefix)?;
        if !self.others.is_empty() {
            write!(f, " (also in the file: {})", self.others.join(", "))?;
        }
        if self.left > 0 {
            write!(f, "; {} tensors of other parts are not used", self.left)?;
        }
        Ok(())
    }
}

impl Wrapper {
    /// The plain name of a tensor; `None` for what is left behind.
    pub(crate) fn name(&self, name: &str) -> Option<String> {
        let plain = match name.strip_prefix(&self.prefix) {
            Some(plain) if !self.prefix.is_empty() => plain,
            _ if self.others.iter().any(|other| name.starts_with(other)) => return None,
            // Beside the backbone: a head.
            _ => name.strip_prefix(&self.outer)?,
        };
        match PROJECTION_HEADS.iter().any(|head| plain.starts_with(head)) {
            true => None,
            false => Some(without_chunk(plain)),
        }
    }
}

/// DINOv2's training code keeps its blocks in chunks: `blocks.1.7.norm1.weight` is block 7.
fn without_chunk(name: &str) -> String {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = name.splitn(4, '.').collect();
    match parts.as_slice() {
        ["blocks", chunk, block, rest] if number(chunk) && number(block) => format!("blocks.{block}.{rest}"),
        _ => name.to_owned(),
    }
}

/// The wrapper around these names; `None` when they are plain, wrapped in a way that other code knows, or of a model that has
/// such names itself (a tokenizer, a segmentation model).
pub(crate) fn find<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Wrapper> {
    let names: Vec<&str> = names.into_iter().collect();
    let has = |part: &str| names.iter().any(|name| name.contains(part));
    if has("quantize.") || has("decode_head.") || has("backbone.fpn") {
        return None;
    }
    let prefixes: BTreeSet<&str> = names
        .iter()
        .filter_map(|name| PATCHES.iter().find_map(|patches| name.strip_suffix(patches)))
        .filter(|prefix| is_wrapper(prefix))
        .collect();
    let chunked = names.iter().any(|name| {
        let plain = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        without_chunk(plain) != plain
    });
    let is_plain = |prefix: &str| {
        let mut rest = prefix;
        while let Some(part) = COMMON.iter().find(|part| rest.starts_with(**part)) {
            rest = &rest[part.len()..];
        }
        rest.is_empty()
    };
    let projections = names.iter().any(|name| PROJECTION_HEADS.iter().any(|head| name.starts_with(head)));
    if prefixes.iter().all(|prefix| is_plain(prefix)) && !chunked && !projections || prefixes.is_empty() {
        return None;
    }
    // The averaged model is the better one; of others there should be one only.
    let rank = |prefix: &str| match () {
        () if prefix.is_empty() => 0,
        () if prefix.contains("teacher.") || prefix.contains("ema.") => 1,
        () if prefix.contains("momentum_encoder.") => 3,
        () => 2,
    };
    let prefix = prefixes.iter().min_by_key(|prefix| (rank(prefix), prefix.len()))?.to_string();
    let others: Vec<String> = prefixes
        .iter()
        .filter(|other| **other != prefix)
        .map(|other| other.split_inclusive('.').next().unwrap_or(other).to_owned())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .filter(|other| !prefix.starts_with(other.as_str()) && !other.is_empty())
        .collect();
    let inner = ["backbone.", "encoder.", "vit."].iter().find_map(|part| prefix.strip_suffix(part));
    let outer = inner.unwrap_or(&prefix).to_owned();
    let mut wrapper = Wrapper { prefix, others, left: 0, outer };
    wrapper.left = names.iter().filter(|name| wrapper.name(name).is_none()).count();
    Some(wrapper)
}

/// Whether a prefix is made of wrappers only.
fn is_wrapper(mut prefix: &str) -> bool {
    while let Some(part) = PARTS.iter().find(|part| prefix.starts_with(**part)) {
        prefix = &prefix[part.len()..];
    }
    prefix.is_empty()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn plain(names: &[&str]) -> Option<Vec<String>> {
        let wrapper = find(names.iter().copied())?;
        Some(names.iter().filter_map(|name| wrapper.name(name)).collect())
    }

    #[test]
    fn wrappers_come_off() {
        let dino = [
            "module.backbone.patch_embed.proj.weight",
            "module.backbone.norm.bias",
            "module.head.mlp.0.weight",
        ];
        assert_eq!(plain(&dino).unwrap(), ["patch_embed.proj.weight", "norm.bias"]);
        let both = [
            "student.backbone.patch_embed.proj.weight",
            "student.dino_head.mlp.0.weight",
            "teacher.backbone.blocks.1.7.norm1.weight",
            "teacher.backbone.patch_embed.proj.weight",
            "teacher.dino_head.mlp.0.weight",
        ];
        assert_eq!(plain(&both).unwrap(), ["blocks.7.norm1.weight", "patch_embed.proj.weight"]);
        let wrapper = find(both).unwrap();
        assert_eq!(
            (wrapper.prefix.as_str(), wrapper.others.as_slice()),
            ("teacher.backbone.", &["student.".to_owned()][..])
        );
        assert_eq!(wrapper.left, 3);
        let classifier =
            ["backbone.patch_embed.projection.weight", "head.fc.weight", "backbone.layers.0.ln1.weight"];
        assert_eq!(
            plain(&classifier).unwrap(),
            ["patch_embed.projection.weight", "head.fc.weight", "layers.0.ln1.weight"]
        );
        let beside =
            ["patch_embed.proj.weight", "teacher.patch_embed.proj.weight", "teacher.norm.bias", "norm.bias"];
        assert_eq!(plain(&beside).unwrap(), ["patch_embed.proj.weight", "norm.bias"]);
        let encoder = ["encoder.patch_embed.proj.weight", "encoder.blocks.0.norm1.weight"];
        assert_eq!(plain(&encoder).unwrap(), ["patch_embed.proj.weight", "blocks.0.norm1.weight"]);
    }

    #[test]
    fn names_that_models_have_themselves_stay() {
        for names in [
            &["patch_embed.proj.weight", "blocks.0.norm1.weight", "head.weight"][..],
            &["module.patch_embed.proj.weight"],
            &["encoder.patch_embed.proj.weight", "quantize.embedding.weight"],
            &["backbone.patch_embed.proj.weight", "decode_head.conv_seg.weight"],
            &["visual.conv1.weight"],
            &["embeddings.patch_embeddings.projection.weight"],
        ] {
            assert_eq!(plain(names), None, "{names:?}");
        }
    }
}
