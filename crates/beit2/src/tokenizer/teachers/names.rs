//! Names in teachers' files → names of our one teacher module, and what they tell of the family.
//!
//! Every layout has a table; a name that is in no table stays as it is, and loading then fails with it.

use std::collections::BTreeMap;

use super::TeacherKind;
use crate::error::{Error, config_error};

/// Who names tensors like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// OpenAI's CLIP and open_clip.
    OpenAi,
    /// Hugging Face's `CLIPVisionModel` and `SiglipVisionModel`.
    HfClip,
    /// Hugging Face's `ViTModel`, `Dinov2Model`, `Dinov2WithRegistersModel` and `DINOv3ViTModel`.
    HfVit,
    /// timm, and the original code of DINO, DINOv2 and DINOv3.
    Plain,
}

/// What the names show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A family.
    Family(TeacherKind),
    /// A Vision Transformer without a mark of its family: DINO's are such.
    Plain,
    /// One without a CLS token and without SigLIP's pooling head.
    WithoutCls,
    /// One without position embeddings and without registers.
    WithoutPositions,
    /// Biases for queries and values only, as this software's students have.
    Student,
}

struct Table {
    /// What comes before a block's number.
    blocks: &'static [&'static str],
    /// Names inside a block; one that ends with a dot stands for all that begin with it.
    inside: &'static [(&'static str, &'static str)],
    /// Names outside.
    outside: &'static [(&'static str, &'static str)],
    /// Beginnings of names that features do not need.
    unneeded: &'static [&'static str],
}

const OPEN_AI: Table = Table {
    blocks: &["transformer.resblocks."],
    inside: &[
        ("ln_1.", "norm1."),
        ("ln_2.", "norm2."),
        ("attn.in_proj_weight", "attn.qkv.weight"),
        ("attn.in_proj_bias", "attn.qkv.bias"),
        ("attn.out_proj.", "attn.proj."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
        ("ls_1.gamma", "gamma_1"),
        ("ls_2.gamma", "gamma_2"),
    ],
    outside: &[
        ("class_embedding", "cls_token"),
        ("positional_embedding", "pos_embed"),
        ("conv1.weight", "patch_embed.proj.weight"),
        ("ln_pre.", "ln_pre."),
        ("ln_post.", "norm."),
        ("proj", "projection"),
    ],
    unneeded: &[],
};

const HF_CLIP: Table = Table {
    blocks: &["encoder.layers."],
    inside: &[
        ("layer_norm1.", "norm1."),
        ("layer_norm2.", "norm2."),
        ("self_attn.q_proj.", "attn.q."),
        ("self_attn.k_proj.", "attn.k."),
        ("self_attn.v_proj.", "attn.v."),
        ("self_attn.out_proj.", "attn.proj."),
        ("mlp.fc1.", "mlp.fc1."),
        ("mlp.fc2.", "mlp.fc2."),
    ],
    outside: &[
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding.weight", "pos_embed"),
        ("embeddings.patch_embedding.", "patch_embed.proj."),
        ("pre_layrnorm.", "ln_pre."), // Their spelling.
        ("post_layernorm.", "norm."),
        ("visual_projection.weight", "head.weight"),
    ],
    unneeded: &["head.", "embeddings.position_ids"],
};

const HF_VIT: Table = Table {
    blocks: &["encoder.layer.", "model.layer.", "layer.", "layers."],
    inside: &[
        ("layernorm_before.", "norm1."),
        ("layernorm_after.", "norm2."),
        ("norm1.", "norm1."),
        ("norm2.", "norm2."),
        ("attention.attention.query.", "attn.q."),
        ("attention.attention.key.", "attn.k."),
        ("attention.attention.value.", "attn.v."),
        ("attention.output.dense.", "attn.proj."),
        ("attention.q_proj.", "attn.q."),
        ("attention.k_proj.", "attn.k."),
        ("attention.v_proj.", "attn.v."),
        ("attention.o_proj.", "attn.proj."),
        ("intermediate.dense.", "mlp.fc1."),
        ("output.dense.", "mlp.fc2."),
        ("mlp.fc1.", "mlp.fc1."),
        ("mlp.fc2.", "mlp.fc2."),
        ("mlp.weights_in.", "mlp.gate_up."),
        ("mlp.weights_out.", "mlp.fc2."),
        ("mlp.gate_proj.", "mlp.gate."),
        ("mlp.up_proj.", "mlp.fc1."),
        ("mlp.down_proj.", "mlp.fc2."),
        ("layer_scale1.lambda1", "gamma_1"),
        ("layer_scale2.lambda1", "gamma_2"),
    ],
    outside: &[
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.register_tokens", "register_tokens"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        ("embeddings.patch_embeddings.", "patch_embed.proj."),
        ("layernorm.", "norm."),
        ("norm.", "norm."),
    ],
    unneeded: &["embeddings.mask_token", "pooler.", "classifier."],
};

const PLAIN: Table = Table {
    blocks: &["blocks."],
    inside: &[
        ("norm1.", "norm1."),
        ("norm2.", "norm2."),
        ("attn.qkv.weight", "attn.qkv.weight"),
        ("attn.qkv.bias", "attn.qkv.bias"),
        ("attn.qkv.bias_mask", "attn.qkv.bias_mask"),
        ("attn.q_bias", "attn.q.bias"),
        ("attn.v_bias", "attn.v.bias"),
        ("attn.q_proj.", "attn.q."),
        ("attn.k_proj.", "attn.k."),
        ("attn.v_proj.", "attn.v."),
        ("attn.proj.", "attn.proj."),
        ("mlp.fc1.", "mlp.fc1."),
        ("mlp.fc2.", "mlp.fc2."),
        ("mlp.w12.", "mlp.gate_up."),
        ("mlp.w1.", "mlp.gate."),
        ("mlp.w2.", "mlp.fc1."),
        ("mlp.w3.", "mlp.fc2."),
        ("mlp.fc1_g.", "mlp.gate."),
        ("mlp.fc1_x.", "mlp.fc1."),
        ("ls1.gamma", "gamma_1"),
        ("ls2.gamma", "gamma_2"),
        ("gamma_1", "gamma_1"),
        ("gamma_2", "gamma_2"),
    ],
    outside: &[
        ("cls_token", "cls_token"),
        ("reg_token", "register_tokens"),
        ("register_tokens", "register_tokens"),
        ("storage_tokens", "register_tokens"),
        ("pos_embed", "pos_embed"),
        ("patch_embed.proj.", "patch_embed.proj."),
        ("rope_embed.periods", "rope.periods"),
        ("norm_pre.", "ln_pre."),
        ("ln_pre.", "ln_pre."),
        ("norm.", "norm."),
        ("head.weight", "head.weight"),
        ("head.bias", "head.bias"),
    ],
    unneeded: &[
        "mask_token",
        "attn_pool.",
        "head.",
        "dino_head.",
        "ibot_head.",
        "local_cls_norm.",
        "projectors.",
    ],
};

/// The patch embedding in each layout. Where it stands tells what wraps the model.
const ANCHORS: [(&str, Names); 5] = [
    ("conv1.weight", Names::OpenAi),
    ("embeddings.patch_embedding.weight", Names::HfClip),
    ("embeddings.patch_embeddings.projection.weight", Names::HfVit),
    ("embeddings.patch_embeddings.weight", Names::HfVit),
    ("patch_embed.proj.weight", Names::Plain),
];

impl Names {
    fn table(self) -> &'static Table {
        match self {
            Self::OpenAi => &OPEN_AI,
            Self::HfClip => &HF_CLIP,
            Self::HfVit => &HF_VIT,
            Self::Plain => &PLAIN,
        }
    }
}

/// A file's names, understood.
#[derive(Debug)]
pub(super) struct Renamed {
    /// Whose names they are.
    pub names: Names,
    /// What they show.
    pub found: Found,
    /// Our name → the file's.
    pub source: BTreeMap<String, String>,
    /// OpenAI's own archive, which says its sizes in three tensors of no other file.
    pub openai_archive: bool,
    /// A `mask_token`: the original code's file, and not timm's.
    pub mask_token: bool,
}

impl Renamed {
    /// Finds the Vision Transformer among the names of a file.
    pub fn of<'a>(all: impl Iterator<Item = &'a str> + Clone) -> Result<Self, Error> {
        let (prefix, names) = locate(all.clone())?;
        let table = names.table();
        let mut source = BTreeMap::new();
        let (mut pooling, mut mask_token, mut openai) = (false, false, 0);
        for full in all {
            openai += usize::from(["input_resolution", "context_length", "vocab_size"].contains(&full));
            let name = match full.strip_prefix(prefix) {
                Some(name) => name,
                // Beside the tower, not inside.
                None if names == Names::HfClip && full.ends_with("visual_projection.weight") => {
                    "visual_projection.weight"
                }
                None => continue,
            };
            pooling |= name.starts_with("attn_pool.") || name.starts_with("head.probe");
            mask_token |= name == "mask_token";
            let ours = ours(table, name);
            if ours.is_none() && table.unneeded.iter().any(|start| name.starts_with(start)) {
                continue;
            }
            let ours = ours.unwrap_or_else(|| name.to_owned());
            if let Some(first) = source.insert(ours, full.to_owned()) {
                return config_error(format!(
                    "the teacher's file has `{first}` and `{full}` for one and the same part of a model; take them apart"
                ));
            }
        }
        let found = family(names, pooling, |name| source.contains_key(name));
        Ok(Self { names, found, source, openai_archive: openai == 3, mask_token })
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        (0..).find(|i| !self.has(&format!("blocks.{i}.norm1.weight"))).unwrap_or(0)
    }

    /// Whether the file has a tensor of this name of ours.
    pub fn has(&self, name: &str) -> bool {
        self.source.contains_key(name)
    }
}

/// The one Vision Transformer: what comes before its names, and whose they are.
fn locate<'a>(all: impl Iterator<Item = &'a str> + Clone) -> Result<(&'a str, Names), Error> {
    let mut found: Vec<(&str, Names)> = Vec::new();
    for name in all.clone() {
        for (anchor, names) in ANCHORS {
            let Some(prefix) = name.strip_suffix(anchor).filter(|p| p.is_empty() || p.ends_with('.')) else {
                continue;
            };
            // A convolution of any name is called so; CLIP's tower has a class embedding beside it.
            let class = || all.clone().any(|other| other.strip_prefix(prefix) == Some("class_embedding"));
            if names != Names::OpenAi || class() {
                found.push((prefix, names));
            }
        }
    }
    match found[..] {
        [one] => Ok(one),
        [] if all.clone().any(|name| name.contains("visual.layer1.")) => config_error(
            "the teacher's file holds a CLIP with a ResNet; only Vision Transformers are teachers, such as OpenAI's \
             ViT-B-16.pt",
        ),
        [] => config_error(
            "the teacher's file holds no Vision Transformer of CLIP, SigLIP, DINO, DINOv2 or DINOv3: it has neither `visual.` \
             tensors with a `class_embedding` nor a patch embedding by one of the names of timm, of Hugging Face or of the \
             original code",
        ),
        [(first, _), (second, _), ..] => config_error(format!(
            "the teacher's file holds several models (`{first}…` and `{second}…`); save the one that is meant to a file of its own"
        )),
    }
}

/// Our name of a tensor.
fn ours(table: &Table, name: &str) -> Option<String> {
    let rename = |list: &[(&str, &str)], name: &str| {
        list.iter().find_map(|(from, to)| match from.ends_with('.') {
            true => name.strip_prefix(from).map(|rest| format!("{to}{rest}")),
            false => (name == *from).then(|| (*to).to_owned()),
        })
    };
    for blocks in table.blocks {
        let Some((number, rest)) = name.strip_prefix(blocks).and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        // The original DINOv2 code trains in chunks: `blocks.1.7.…` is block 7.
        let (number, rest) = match rest.split_once('.') {
            Some((inner, rest)) if inner.bytes().all(|byte| byte.is_ascii_digit()) => (inner, rest),
            _ => (number, rest),
        };
        number.parse::<usize>().ok()?;
        return rename(table.inside, rest).map(|rest| format!("blocks.{number}.{rest}"));
    }
    rename(table.outside, name)
}

/// The family that the names show.
fn family(names: Names, pooling: bool, has: impl Fn(&str) -> bool) -> Found {
    use TeacherKind::{Clip, Dinov2, Dinov3, Siglip};
    if names == Names::OpenAi || has("ln_pre.weight") {
        return Found::Family(Clip);
    }
    match (has("pos_embed"), has("cls_token")) {
        (true, false) if pooling || names == Names::HfClip => Found::Family(Siglip),
        (true, false) => Found::WithoutCls,
        (false, _) if has("register_tokens") || has("rope.periods") => Found::Family(Dinov3),
        (false, _) => Found::WithoutPositions,
        (true, true)
            if ["weight", "bias"].iter().all(|k| !has(&format!("blocks.0.attn.k.{k}")))
                && has("blocks.0.attn.q.bias") =>
        {
            Found::Student
        }
        (true, true) if has("blocks.0.gamma_1") => Found::Family(Dinov2),
        (true, true) => Found::Plain,
    }
}

/// Whether these are the names of a teacher whose family they show.
pub(crate) fn is_published<'a>(all: impl Iterator<Item = &'a str> + Clone) -> bool {
    matches!(Renamed::of(all), Ok(Renamed { found: Found::Family(_), .. }))
}
