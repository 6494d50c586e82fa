//! Every key of every layout and what it means: docs/method.md §2.7 (tokenizer), §8 (the others), golden suites E, G and I.
//!
//! The official names are the canonical ones. A table is a list of sections; a section is a prefix in the file, a prefix in
//! the canonical names, and rules for what follows. The first rule that matches a canonical name is also how that name is
//! written, so forms that are only read come last.

use crate::layout::pattern;
use crate::layout::{Family, Kind, Layout};

/// What happens to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A parameter: its canonical name, as a pattern.
    Use(&'static str),
    /// As `Use`, but a statistic or a codebook: not learned by gradients, so not counted as parameters (docs/method.md §10.1).
    State(&'static str),
    /// Rows of a canonical tensor that the layout stores in three: query 0, key 1, value 2.
    Rows(&'static str, usize),
    /// Not needed: it follows from other tensors.
    Derived(&'static str),
    /// Not needed: the reason.
    Ignored(&'static str),
}

pub(crate) type Rule = (&'static str, Action);

pub(crate) struct Section {
    pub(crate) file: &'static str,
    pub(crate) canonical: &'static str,
    pub(crate) rules: &'static [Rule],
}

pub(crate) struct Table {
    pub(crate) sections: &'static [Section],
    /// Canonical names that this layout cannot hold, with the reason; what matches is left out when it is written.
    pub(crate) absent: &'static [(&'static str, &'static str)],
}

use Action::{Derived, Ignored, Rows, State, Use};

const INDEX: Action = Derived("follows from the size of the relative position bias table");

const fn section(file: &'static str, canonical: &'static str, rules: &'static [Rule]) -> Section {
    Section { file, canonical, rules }
}

/// One Transformer block (docs/method.md §2.1).
const BLOCK: &[Rule] = &[
    ("gamma_1", Use("gamma_1")),
    ("gamma_2", Use("gamma_2")),
    ("norm1.{p}", Use("norm1.{p}")),
    ("attn.q_bias", Use("attn.q_bias")),
    ("attn.v_bias", Use("attn.v_bias")),
    ("attn.relative_position_bias_table", Use("attn.relative_position_bias_table")),
    ("attn.relative_position_index", INDEX),
    ("attn.qkv.weight", Use("attn.qkv.weight")),
    ("attn.proj.{p}", Use("attn.proj.{p}")),
    ("norm2.{p}", Use("norm2.{p}")),
    ("mlp.fc1.{p}", Use("mlp.fc1.{p}")),
    ("mlp.fc2.{p}", Use("mlp.fc2.{p}")),
];

/// What stands before and after the blocks of every trunk.
const TRUNK: &[Rule] = &[
    ("cls_token", Use("cls_token")),
    ("pos_embed", Use("pos_embed")),
    ("patch_embed.proj.{p}", Use("patch_embed.proj.{p}")),
    ("rel_pos_bias.relative_position_bias_table", Use("rel_pos_bias.relative_position_bias_table")),
    ("rel_pos_bias.relative_position_index", INDEX),
    ("norm.{p}", Use("norm.{p}")),
    ("fc_norm.{p}", Use("fc_norm.{p}")),
    ("head.{p}", Use("head.{p}")),
];

/// Only pretraining has these (docs/method.md §3.1, §3.2).
const PRETRAINING: &[Rule] = &[
    ("mask_token", Use("mask_token")),
    ("lm_head.{p}", Use("lm_head.{p}")),
    ("cls_pt_norm.{p}", Use("cls_pt_norm.{p}")),
    ("cls_pt_lm_head.{p}", Use("cls_pt_lm_head.{p}")),
];

const OFFICIAL_VIT: Table = Table {
    sections: &[
        section("", "", TRUNK),
        section("blocks.{n}.", "blocks.{n}.", BLOCK),
        section("", "", PRETRAINING),
        section("cls_pt_layers.{n}.", "cls_pt_layers.{n}.", BLOCK),
    ],
    absent: &[],
};

/// Everything of the tokenizer besides its two trunks (docs/method.md §2.7).
const TOKENIZER: &[Rule] = &[
    ("encode_task_layer.{n}.{p}", Use("encode_task_layer.{n}.{p}")),
    ("decode_task_layer.{n}.{p}", Use("decode_task_layer.{n}.{p}")),
    ("quantize.cluster_size", State("quantize.cluster_size")),
    ("quantize.embedding.weight", State("quantize.embedding.weight")),
    ("quantize.embedding.cluster_size", State("quantize.embedding.cluster_size")),
    ("quantize.embedding.embed_avg", State("quantize.embedding.embed_avg")),
    ("quantize.embedding.initted", State("quantize.embedding.initted")),
    ("teacher_model.{*}", Ignored("the teacher is needed for training only and has its own file")),
    ("scaling_layer.{s}", Ignored("the teacher's normalisation, which is a constant")),
];

const OFFICIAL_TOKENIZER: Table = Table {
    sections: &[
        section("encoder.", "encoder.", TRUNK),
        section("encoder.blocks.{n}.", "encoder.blocks.{n}.", BLOCK),
        section("decoder.", "decoder.", TRUNK),
        section("decoder.blocks.{n}.", "decoder.blocks.{n}.", BLOCK),
        section("", "", TOKENIZER),
    ],
    absent: &[],
};

/// Convolution, batch norm and its statistics, under any module of the heads.
const CONV_BN: &[Rule] = &[
    ("conv.{p}", Use("conv.{p}")),
    ("bn.{p}", Use("bn.{p}")),
    ("bn.running_mean", State("bn.running_mean")),
    ("bn.running_var", State("bn.running_var")),
    ("bn.num_batches_tracked", State("bn.num_batches_tracked")),
];

/// The pyramid of the backbone: a batch norm between two up-samplings (docs/method.md §5).
const PYRAMID: &[Rule] = &[
    ("fpn{n}.{n}.{p}", Use("fpn{n}.{n}.{p}")),
    ("fpn{n}.{n}.running_mean", State("fpn{n}.{n}.running_mean")),
    ("fpn{n}.{n}.running_var", State("fpn{n}.{n}.running_var")),
    ("fpn{n}.{n}.num_batches_tracked", State("fpn{n}.{n}.num_batches_tracked")),
];

const CONV_SEG: &[Rule] = &[("conv_seg.{p}", Use("conv_seg.{p}"))];

const OFFICIAL_SEGMENTATION: Table = Table {
    sections: &[
        section("backbone.", "backbone.", TRUNK),
        section("backbone.blocks.{n}.", "backbone.blocks.{n}.", BLOCK),
        section("backbone.", "backbone.", PYRAMID),
        section("decode_head.", "decode_head.", CONV_SEG),
        section("decode_head.psp_modules.{n}.1.", "decode_head.psp_modules.{n}.1.", CONV_BN),
        section("decode_head.bottleneck.", "decode_head.bottleneck.", CONV_BN),
        section("decode_head.lateral_convs.{n}.", "decode_head.lateral_convs.{n}.", CONV_BN),
        section("decode_head.fpn_convs.{n}.", "decode_head.fpn_convs.{n}.", CONV_BN),
        section("decode_head.fpn_bottleneck.", "decode_head.fpn_bottleneck.", CONV_BN),
        section("auxiliary_head.", "auxiliary_head.", CONV_SEG),
        section("auxiliary_head.convs.{n}.", "auxiliary_head.convs.{n}.", CONV_BN),
    ],
    absent: &[],
};

const NO_MIM_HEAD: &str = "timm has no masked image modeling head";

const TIMM: Table = Table {
    sections: &[section("", "", TRUNK), section("blocks.{n}.", "blocks.{n}.", BLOCK)],
    absent: &[
        ("mask_token", "timm has no mask token"),
        ("lm_head.{p}", NO_MIM_HEAD),
        ("cls_pt_norm.{p}", NO_MIM_HEAD),
        ("cls_pt_lm_head.{p}", NO_MIM_HEAD),
        ("cls_pt_layers.{n}.{*}", "timm has no patch aggregation head"),
    ],
};

/// Hugging Face's model without a head: the names in its files first, then those transformers 5 uses in memory, which
/// `torch.save(model.state_dict())` writes.
const HF_TRUNK: &[Rule] = &[
    ("embeddings.cls_token", Use("cls_token")),
    ("embeddings.mask_token", Use("mask_token")),
    ("embeddings.position_embeddings", Use("pos_embed")),
    ("embeddings.patch_embeddings.projection.{p}", Use("patch_embed.proj.{p}")),
    (
        "encoder.relative_position_bias.relative_position_bias_table",
        Use("rel_pos_bias.relative_position_bias_table"),
    ),
    ("encoder.relative_position_bias.relative_position_index", INDEX),
    ("pooler.layernorm.{p}", Use("fc_norm.{p}")),
    ("shared_position_bias.relative_position_bias_table", Use("rel_pos_bias.relative_position_bias_table")),
];

/// One block as Hugging Face's files have it: q, k and v apart, and no key bias.
const HF_BLOCK: &[Rule] = &[
    ("lambda_1", Use("gamma_1")),
    ("lambda_2", Use("gamma_2")),
    ("layernorm_before.{p}", Use("norm1.{p}")),
    ("attention.attention.query.weight", Rows("attn.qkv.weight", 0)),
    ("attention.attention.key.weight", Rows("attn.qkv.weight", 1)),
    ("attention.attention.value.weight", Rows("attn.qkv.weight", 2)),
    ("attention.attention.query.bias", Use("attn.q_bias")),
    ("attention.attention.value.bias", Use("attn.v_bias")),
    (
        "attention.attention.relative_position_bias.relative_position_bias_table",
        Use("attn.relative_position_bias_table"),
    ),
    ("attention.attention.relative_position_bias.relative_position_index", INDEX),
    ("attention.output.dense.{p}", Use("attn.proj.{p}")),
    ("layernorm_after.{p}", Use("norm2.{p}")),
    ("intermediate.dense.{p}", Use("mlp.fc1.{p}")),
    ("output.dense.{p}", Use("mlp.fc2.{p}")),
];

/// One block as transformers 5 has it in memory.
const HF_BLOCK_IN_MEMORY: &[Rule] = &[
    ("lambda_1", Use("gamma_1")),
    ("lambda_2", Use("gamma_2")),
    ("layernorm_before.{p}", Use("norm1.{p}")),
    ("attention.q_proj.weight", Rows("attn.qkv.weight", 0)),
    ("attention.k_proj.weight", Rows("attn.qkv.weight", 1)),
    ("attention.v_proj.weight", Rows("attn.qkv.weight", 2)),
    ("attention.q_proj.bias", Use("attn.q_bias")),
    ("attention.v_proj.bias", Use("attn.v_bias")),
    ("relative_position_bias.relative_position_bias_table", Use("attn.relative_position_bias_table")),
    ("attention.o_proj.{p}", Use("attn.proj.{p}")),
    ("layernorm_after.{p}", Use("norm2.{p}")),
    ("mlp.fc1.{p}", Use("mlp.fc1.{p}")),
    ("mlp.fc2.{p}", Use("mlp.fc2.{p}")),
];

const HF_NORM: &[Rule] = &[("layernorm.{p}", Use("norm.{p}"))];
const HF_LM_HEAD: &[Rule] = &[("layernorm.{p}", Use("norm.{p}")), ("lm_head.{p}", Use("lm_head.{p}"))];
const HF_CLASSIFIER_HEAD: &[Rule] = &[("classifier.{p}", Use("head.{p}"))];

const HF_ABSENT: &[(&str, &str)] = &[
    ("cls_pt_norm.{p}", "Hugging Face has no patch aggregation head"),
    ("cls_pt_lm_head.{p}", "Hugging Face has no patch aggregation head"),
    ("cls_pt_layers.{n}.{*}", "Hugging Face has no patch aggregation head"),
];

const HF_BACKBONE: Table = Table {
    sections: &[
        section("", "", HF_TRUNK),
        section("encoder.layer.{n}.", "blocks.{n}.", HF_BLOCK),
        section("", "", HF_NORM),
        section("layers.{n}.", "blocks.{n}.", HF_BLOCK_IN_MEMORY),
    ],
    absent: HF_ABSENT,
};

const HF_PRETRAINING: Table = Table {
    sections: &[
        section("beit.", "", HF_TRUNK),
        section("beit.encoder.layer.{n}.", "blocks.{n}.", HF_BLOCK),
        section("", "", HF_LM_HEAD),
        section("beit.layers.{n}.", "blocks.{n}.", HF_BLOCK_IN_MEMORY),
    ],
    absent: HF_ABSENT,
};

const HF_CLASSIFIER: Table = Table {
    sections: &[
        section("beit.", "", HF_TRUNK),
        section("beit.encoder.layer.{n}.", "blocks.{n}.", HF_BLOCK),
        section("beit.", "", HF_NORM),
        section("", "", HF_CLASSIFIER_HEAD),
        section("beit.layers.{n}.", "blocks.{n}.", HF_BLOCK_IN_MEMORY),
    ],
    absent: HF_ABSENT,
};

/// mmpretrain's trunk, after its prefix `backbone.`; `ln1` of the trunk is the final norm, `ln2` that of the pooled patches.
const MMPRETRAIN_TRUNK: &[Rule] = &[
    ("cls_token", Use("cls_token")),
    ("mask_token", Use("mask_token")),
    ("pos_embed", Use("pos_embed")),
    ("patch_embed.projection.{p}", Use("patch_embed.proj.{p}")),
    ("rel_pos_bias.relative_position_bias_table", Use("rel_pos_bias.relative_position_bias_table")),
    ("rel_pos_bias.relative_position_index", INDEX),
    ("ln1.{p}", Use("norm.{p}")),
    ("ln2.{p}", Use("fc_norm.{p}")),
    ("head.fc.{p}", Use("head.{p}")),
    ("head.cls_head.{p}", Use("lm_head.{p}")),
    ("neck.norm.{p}", Use("norm.{p}")),
    ("neck.rescale_patch_aggregation_init_weight", Ignored("only for the start of training")),
    ("target_generator.{*}", Ignored("the tokenizer is needed for training only and has its own file")),
    ("data_preprocessor.{*}", Ignored("how images are standardised, which are constants")),
];

const MMPRETRAIN_BLOCK: &[Rule] = &[
    ("gamma_1", Use("gamma_1")),
    ("gamma_2", Use("gamma_2")),
    ("ln1.{p}", Use("norm1.{p}")),
    ("attn.q_bias", Use("attn.q_bias")),
    ("attn.v_bias", Use("attn.v_bias")),
    ("attn.relative_position_bias_table", Use("attn.relative_position_bias_table")),
    ("attn.relative_position_index", INDEX),
    ("attn.qkv.weight", Use("attn.qkv.weight")),
    ("attn.proj.{p}", Use("attn.proj.{p}")),
    ("ln2.{p}", Use("norm2.{p}")),
    ("ffn.layers.0.0.{p}", Use("mlp.fc1.{p}")),
    ("ffn.layers.1.{p}", Use("mlp.fc2.{p}")),
];

const MMPRETRAIN: Table = Table {
    sections: &[
        section("", "", MMPRETRAIN_TRUNK),
        section("layers.{n}.", "blocks.{n}.", MMPRETRAIN_BLOCK),
        section("neck.patch_aggregation.{n}.", "cls_pt_layers.{n}.", MMPRETRAIN_BLOCK),
    ],
    absent: &[],
};

const HF_SEGMENTATION_HEAD: &[Rule] = &[("classifier.{p}", Use("conv_seg.{p}"))];

/// Trunk, pyramid and heads as Hugging Face's files have them: the heads by their official names, but for the last layer.
const HF_SEGMENTATION: Table = Table {
    sections: &[
        section("beit.", "backbone.", HF_TRUNK),
        section("beit.encoder.layer.{n}.", "backbone.blocks.{n}.", HF_BLOCK),
        section("", "backbone.", PYRAMID),
        section("decode_head.", "decode_head.", HF_SEGMENTATION_HEAD),
        section("decode_head.psp_modules.{n}.1.", "decode_head.psp_modules.{n}.1.", CONV_BN),
        section("decode_head.bottleneck.", "decode_head.bottleneck.", CONV_BN),
        section("decode_head.lateral_convs.{n}.", "decode_head.lateral_convs.{n}.", CONV_BN),
        section("decode_head.fpn_convs.{n}.", "decode_head.fpn_convs.{n}.", CONV_BN),
        section("decode_head.fpn_bottleneck.", "decode_head.fpn_bottleneck.", CONV_BN),
        section("auxiliary_head.", "auxiliary_head.", HF_SEGMENTATION_HEAD),
        section("auxiliary_head.convs.{n}.", "auxiliary_head.convs.{n}.", CONV_BN),
    ],
    absent: &[],
};

impl Layout {
    /// The table of this layout; `None` for a pair that does not exist.
    pub(crate) fn table(self) -> Option<&'static Table> {
        match (self.family, self.kind) {
            (Family::Official, Kind::Tokenizer) => Some(&OFFICIAL_TOKENIZER),
            (Family::Official, Kind::Segmentation) => Some(&OFFICIAL_SEGMENTATION),
            (Family::Official, _) => Some(&OFFICIAL_VIT),
            (Family::Timm, Kind::Classifier | Kind::Backbone) => Some(&TIMM),
            (Family::HuggingFace, Kind::Classifier) => Some(&HF_CLASSIFIER),
            (Family::HuggingFace, Kind::Pretraining) => Some(&HF_PRETRAINING),
            (Family::HuggingFace, Kind::Backbone) => Some(&HF_BACKBONE),
            (Family::MmPretrain, Kind::Classifier | Kind::Backbone | Kind::Pretraining) => Some(&MMPRETRAIN),
            (Family::HuggingFace, Kind::Segmentation) => Some(&HF_SEGMENTATION),
            _ => None,
        }
    }
}

impl Table {
    /// The rule for a key, its canonical name (or that of its whole) filled in.
    pub(crate) fn meaning(&self, key: &str) -> Option<(Action, String)> {
        for section in self.sections {
            for (rule, action) in section.rules {
                let file = format!("{}{rule}", section.file);
                let Some(captures) = pattern::captures(&file, key) else { continue };
                let canonical = match action {
                    Use(name) | State(name) | Rows(name, _) => format!("{}{name}", section.canonical),
                    Derived(_) | Ignored(_) => String::new(),
                };
                return Some((*action, pattern::fill(&canonical, &captures)));
            }
        }
        None
    }

    /// How a canonical name is written: one name, or three when the layout splits it.
    pub(crate) fn names_of(&self, canonical: &str) -> Vec<String> {
        let mut names = Vec::new();
        for section in self.sections {
            for (rule, action) in section.rules {
                let (Use(name) | State(name) | Rows(name, _)) = action else { continue };
                let pattern = format!("{}{name}", section.canonical);
                let Some(captures) = pattern::captures(&pattern, canonical) else { continue };
                names.push(pattern::fill(&format!("{}{rule}", section.file), &captures));
                if !matches!(action, Rows(_, part) if *part < 2) {
                    return names;
                }
            }
        }
        names
    }

    /// Why a canonical name has no place in this layout.
    pub(crate) fn why_absent(&self, canonical: &str) -> Option<&'static str> {
        let fits = |(pattern, _): &&(&str, &str)| pattern::captures(pattern, canonical).is_some();
        self.absent.iter().find(fits).map(|(_, reason)| *reason)
    }

    /// The known name that is nearest to `key`, with the key's own numbers.
    pub(crate) fn nearest(&self, key: &str) -> String {
        let numbers: Vec<&str> = key.split('.').filter(|part| part.parse::<u32>().is_ok()).collect();
        let rules = self
            .sections
            .iter()
            .flat_map(|section| section.rules.iter().map(move |(rule, _)| format!("{}{rule}", section.file)));
        let names = rules.flat_map(|rule| {
            ["weight", "bias"].map(|word| {
                let name = rule.replace("{p}", word).replace("{*}", "…").replace("{s}", "…");
                let name = pattern::fill(&name, &numbers);
                name.replace("{n}", "0")
            })
        });
        names.min_by_key(|name| pattern::distance(name, key)).unwrap_or_default()
    }
}
