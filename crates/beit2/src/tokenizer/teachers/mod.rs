//! Frozen teachers: their patch features are what the tokenizer learns to rebuild.
//!
//! One Transformer ([`Teacher`], in `model.rs`) serves all families. A file's names are understood in `names.rs` and its
//! tensors brought to our form in `canonical.rs`; what the tensors do not show comes from the files beside it (`said.rs`) and
//! from the settings, and is put together in `options.rs`.

mod block;
mod canonical;
mod describe;
mod distill;
mod model;
mod names;
mod options;
mod recipe;
mod said;
mod targets;
mod whiten;

use serde::{Deserialize, Serialize};

pub use describe::describe;
pub use distill::distill;
pub use model::Teacher;
pub(crate) use names::is_published;
pub use recipe::DistillRecipe;
pub(super) use whiten::FeatureMoments;

/// Families of teachers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeacherKind {
    /// The visual tower of a CLIP: patch tokens after the final norm, and projected where the file has a projection.
    Clip,
    /// The visual tower of a SigLIP: patch tokens after the final norm; there is no CLS token.
    Siglip,
    /// DINO, or another plain Vision Transformer: patch tokens after the final norm.
    Dino,
    /// DINOv2: patch tokens after the final norm, with or without registers.
    Dinov2,
    /// DINOv3: as DINOv2, with rotary positions.
    Dinov3,
    /// A teacher distilled by this software: patch tokens after the final norm and a linear head.
    Distilled,
}

impl std::fmt::Display for TeacherKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Clip => "clip",
            Self::Siglip => "siglip",
            Self::Dino => "dino",
            Self::Dinov2 => "dinov2",
            Self::Dinov3 => "dinov3",
            Self::Distilled => "distilled",
        })
    }
}

/// Activations of teachers' MLPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x·Φ(x)`.
    Gelu,
    /// `x·σ(1.702x)`: OpenAI's CLIP.
    QuickGelu,
    /// GELU by tanh: SigLIP.
    GeluTanh,
    /// `x·σ(x)`: gated MLPs.
    Silu,
}

impl Activation {
    /// By the names that Hugging Face and timm have for it.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "quick_gelu" | "quickgelu" => Self::QuickGelu,
            "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_new" | "gelu_fast" | "gelu_accurate"
            | "gelu_tanh" => Self::GeluTanh,
            "silu" | "swish" => Self::Silu,
            _ => return None,
        })
    }
}

impl std::fmt::Display for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick_gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::Silu => "silu",
        })
    }
}

/// How to build a teacher from a weight file. What is absent is read from the file, from the files beside it, or is that of the
/// published models; what none of them tells is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherConfig {
    /// Family; absent: as the file's names show.
    pub kind: Option<TeacherKind>,
    /// Weight file (safetensors or `.pth`), or `bundled:teacher` in the binary.
    pub weights: String,
    /// Attention heads; absent: what the file or its configuration says, or what the published models of that width have.
    pub heads: Option<usize>,
    /// Activation of the MLP; absent: what the file or its configuration says. A CLIP file of others than OpenAI may not.
    pub activation: Option<Activation>,
    /// Base of DINOv3's rotary periods; absent: what the file or its configuration says, else 100.
    pub rope_theta: Option<f64>,
    /// Mean of R, G and B in [0, 1], together with `std`; absent: what its configuration says, or the family's.
    pub mean: Option<[f64; 3]>,
    /// Standard deviation of R, G and B.
    pub std: Option<[f64; 3]>,
    /// Block, counted from 1, after which features are taken, without the final norm; 0: the patch embedding; absent:
    /// the last block and the final norm. Not for `distilled`.
    pub layer: Option<usize>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::backend::Flex;
    use burn::tensor::{DType, TensorData};

    use super::*;

    fn build(kind: Option<TeacherKind>, tensors: &[(&str, &[usize])]) -> String {
        let zeros = |(name, shape): &(&str, &[usize])| {
            ((*name).to_owned(), TensorData::zeros::<f32, _>(shape.to_vec()))
        };
        let config = TeacherConfig { kind, ..TeacherConfig::default() };
        let tensors: BTreeMap<_, _> = tensors.iter().map(zeros).collect();
        Teacher::<Flex>::from_tensors(&config, tensors, DType::F32, &Default::default())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn wrong_ranks_are_errors_and_not_panics() {
        let conv = ("visual.conv1.weight", &[4, 3, 2, 2][..]);
        let text = build(Some(TeacherKind::Clip), &[conv, ("visual.class_embedding", &[])]);
        assert!(text.contains("class_embedding") && text.contains("1 or 3 dimensions"), "{text}");
        let text =
            build(None, &[conv, ("visual.class_embedding", &[4]), ("visual.positional_embedding", &[3])]);
        assert!(text.contains("positional_embedding"), "{text}");
        let plain = [("patch_embed.proj.weight", &[4, 3, 2, 2][..]), ("cls_token", &[1, 1, 4])];
        let text = build(Some(TeacherKind::Dino), &[plain[0], plain[1], ("pos_embed", &[7])]);
        assert!(text.contains("pos_embed") && text.contains("3 dimensions"), "{text}");
        let text = build(Some(TeacherKind::Dino), &[plain[0], plain[1], ("pos_embed", &[1, 7, 4])]);
        assert!(text.contains("7 tokens") && text.contains("no square grid"), "{text}");
        let patch = ("embeddings.patch_embeddings.projection.weight", &[4, 3, 2, 2][..]);
        let norm = ("encoder.layer.0.norm1.weight", &[4][..]);
        let part = "encoder.layer.0.attention.attention.query.bias";
        let (key, value) = (part.replace("query", "key"), part.replace("query", "value"));
        let scale = ("encoder.layer.0.layer_scale1.lambda1", &[4][..]);
        let first =
            [("embeddings.cls_token", &[1, 1, 4][..]), ("embeddings.position_embeddings", &[1, 5, 4])];
        let all = [patch, norm, scale, first[0], first[1], (part, &[4]), (&key, &[5]), (&value, &[4])];
        let text = build(Some(TeacherKind::Dinov2), &all);
        assert!(text.contains("different shapes"), "{text}");
    }

    #[test]
    fn a_file_of_something_else_is_explained() {
        let text = build(None, &[("model.embed_tokens.weight", &[4, 4])]);
        assert!(text.contains("no Vision Transformer of CLIP"), "{text}");
        let resnet =
            [("visual.conv1.weight", &[4, 3, 3, 3][..]), ("visual.layer1.0.conv1.weight", &[4, 4, 1, 1])];
        assert!(build(None, &resnet).contains("a CLIP with a ResNet"));
        let two =
            [("a.patch_embed.proj.weight", &[4, 3, 2, 2][..]), ("b.patch_embed.proj.weight", &[4, 3, 2, 2])];
        assert!(build(None, &two).contains("several models (`a.…` and `b.…`)"));
    }

    #[test]
    fn kinds_and_files_that_contradict_each_other_name_both() {
        let file = [
            ("patch_embed.proj.weight", &[4, 3, 2, 2][..]),
            ("cls_token", &[1, 1, 4]),
            ("pos_embed", &[1, 5, 4]),
            ("blocks.0.norm1.weight", &[4]),
        ];
        let text = build(Some(TeacherKind::Clip), &file);
        assert!(
            text.contains("teacher.kind is `clip`") && text.contains("a plain Vision Transformer"),
            "{text}"
        );
        assert!(build(None, &file).contains("set teacher.kind (--teacher) to `dino`"));
        let mut dinov2 = file.to_vec();
        dinov2.push(("blocks.0.ls1.gamma", &[4]));
        let text = build(Some(TeacherKind::Dino), &dinov2);
        assert!(text.contains("`dino`") && text.contains("a DINOv2 teacher (kind `dinov2`)"), "{text}");
        let text = build(None, &dinov2);
        assert!(
            text.contains("attention heads") && text.contains("width 4") && text.contains("teacher.heads"),
            "{text}"
        );
    }
}
