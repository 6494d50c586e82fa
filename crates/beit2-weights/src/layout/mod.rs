//! What a state dict is: whose names it uses, which model it holds, and what each of its keys means.
//!
//! Everything is judged by names alone. Start reading at [`account`]; the names themselves are in `tables`.
//! The official names are the *canonical* ones, in which the rest of this crate speaks.
//!
//! ```
//! use beit2_weights::layout::{Family, account};
//! let names = ["cls_token", "patch_embed.proj.weight", "blocks.0.attn.relative_position_bias_table", "head.weight"];
//! let account = account(names)?;
//! assert_eq!(account.layout.family, Family::Timm);
//! println!("{account}");
//! # Ok::<(), beit2_weights::layout::LayoutError>(())
//! ```

mod account;
mod error;
pub(crate) mod pattern;
pub(crate) mod tables;
pub(crate) mod wrapper;

use std::fmt;

pub use account::{Account, Entry, Fate};
pub use error::LayoutError;
pub(crate) use error::wrong_shape;

/// Whose names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// The official BEiT v2 code; the canonical names.
    Official,
    /// timm: the official names, without `relative_position_index`. A classifier or backbone in official names that has
    /// tables but no index is reported as this; nothing else tells the two apart.
    Timm,
    /// Hugging Face transformers.
    HuggingFace,
    /// mmpretrain (before: mmclassification), read only.
    MmPretrain,
}

/// Which model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// VQ-KD: encoder, decoder, codebook (docs/method.md §2.7).
    Tokenizer,
    /// A masked image model, with or without patch aggregation head (docs/method.md §8).
    Pretraining,
    /// A trunk with a classification head.
    Classifier,
    /// A trunk alone.
    Backbone,
    /// UPerNet on a trunk, as mmsegmentation saves it (docs/method.md §5, §8).
    Segmentation,
}

/// A family and a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Whose names.
    pub family: Family,
    /// Which model.
    pub kind: Kind,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Official => "official",
            Family::Timm => "timm",
            Family::HuggingFace => "Hugging Face",
            Family::MmPretrain => "mmpretrain",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Tokenizer => "tokenizer",
            Kind::Pretraining => "pretraining",
            Kind::Classifier => "classifier",
            Kind::Backbone => "backbone",
            Kind::Segmentation => "segmentation",
        })
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.kind)
    }
}

/// Prefixes that wrappers put before all names: DistributedDataParallel and DeepSpeed, Lightning and plain nesting,
/// `torch.compile`. `beit.` before all names is a Hugging Face model whose head was taken off.
const WRAPPERS: [&str; 5] = ["module.", "model.", "state_dict.", "_orig_mod.", "beit."];

/// The longest wrapper prefix that all names share; the empty text for plain names.
pub fn wrapper_prefix<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let mut prefix = String::new();
    // Why the bound: each round takes a wrapper off, and nobody wraps eight times.
    for _ in 0..8 {
        let next = WRAPPERS.iter().find(|wrapper| {
            !names.is_empty()
                && names.iter().all(|name| {
                    name[prefix.len()..].strip_prefix(**wrapper).is_some_and(|rest| !rest.is_empty())
                })
        });
        match next {
            Some(wrapper) => prefix.push_str(wrapper),
            None => break,
        }
    }
    prefix
}

/// Finds out what a state dict is. `names` are plain, as [`account`] leaves them after taking wrappers off.
///
/// # Errors
/// [`LayoutError::Unknown`].
pub fn detect<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Layout, LayoutError> {
    let names: Vec<&str> = names.into_iter().collect();
    let any = |test: &dyn Fn(&str) -> bool| names.iter().any(|name| test(name));
    let starts = |prefix: &str| any(&|name| name.starts_with(prefix));
    let (family, kind) = if starts("beit.") || starts("embeddings.") {
        let kind = match () {
            () if starts("decode_head.") => Kind::Segmentation,
            () if starts("lm_head.") => Kind::Pretraining,
            () if starts("classifier.") => Kind::Classifier,
            () => Kind::Backbone,
        };
        (Family::HuggingFace, kind)
    } else if starts("quantize.") {
        (Family::Official, Kind::Tokenizer)
    } else if starts("layers.0.ln1.") && starts("patch_embed.projection.") {
        let kind = match () {
            () if starts("head.cls_head.") || names.contains(&"mask_token") => Kind::Pretraining,
            () if starts("head.") => Kind::Classifier,
            () => Kind::Backbone,
        };
        (Family::MmPretrain, kind)
    } else if starts("backbone.") || starts("decode_head.") {
        (Family::Official, Kind::Segmentation)
    } else if starts("patch_embed.proj.") && starts("blocks.") {
        let kind = match () {
            () if starts("lm_head.") || names.contains(&"mask_token") => Kind::Pretraining,
            () if starts("head.") => Kind::Classifier,
            () => Kind::Backbone,
        };
        let tables = any(&|name| name.ends_with("relative_position_bias_table"));
        let indices = any(&|name| name.ends_with("relative_position_index"));
        let timm = kind != Kind::Pretraining && tables && !indices;
        (if timm { Family::Timm } else { Family::Official }, kind)
    } else {
        return Err(LayoutError::Unknown { count: names.len(), found: looks_like(&names) });
    };
    Ok(Layout { family, kind })
}

/// A short description of names that are no BEiT.
fn looks_like(names: &[&str]) -> String {
    let starts = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    if starts("visual.") {
        return "they look like a CLIP model".to_string();
    }
    if starts("visual_projection.") || starts("vision_model.") {
        return "they look like a CLIP or SigLIP model".to_string();
    }
    if starts("embeddings.register_tokens") || starts("layer.0.") {
        return "they look like a DINO model".to_string();
    }
    match names.first() {
        Some(name) => format!("the first is `{}`", name.chars().take(100).collect::<String>()),
        None => "there are none".to_string(),
    }
}

/// Explains every key of a state dict.
///
/// # Errors
/// As [`detect`]; [`LayoutError::UnknownKey`] for a name that the layout does not have, and [`LayoutError::Twice`] for two
/// names of one parameter.
pub fn account<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Account, LayoutError> {
    let names: Vec<&str> = names.into_iter().collect();
    let prefix = wrapper_prefix(names.iter().copied());
    let layout = detect(names.iter().map(|name| &name[prefix.len()..]))?;
    account_as(layout, names)
}

/// As [`account`], for a layout that is known.
///
/// # Errors
/// [`LayoutError::UnknownKey`], [`LayoutError::Twice`], or [`LayoutError::Unsupported`] for a layout that does not exist (a
/// timm tokenizer).
pub fn account_as<'a>(
    layout: Layout,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<Account, LayoutError> {
    let names: Vec<&str> = names.into_iter().collect();
    let prefix = wrapper_prefix(names.iter().copied());
    let plain: Vec<&str> = names.iter().map(|name| &name[prefix.len()..]).collect();
    account::explain(layout, prefix, &plain)
}
