//! Frozen teachers: their patch features are what the tokenizer learns to rebuild.
//!
//! One Transformer serves all families; what differs is the names in their files (`names.rs`) and a few
//! options. A teacher is built from its weights alone: sizes are read off the tensors.

mod distill;
mod names;
mod recipe;
mod targets;

use std::collections::BTreeMap;

use beit2_kernels::{Backend, Precision};
use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::{Error, config_error};
use crate::params;
use crate::pixels;
pub use distill::distill;
pub use recipe::DistillRecipe;

use crate::vit::{
    Block, BlockOptions, DropPath, LayerNorm, Linear, PatchEmbed, PosResize, VitConfig, resize_pos_embed,
};
use crate::weights::WeightFile;

/// Families of teachers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeacherKind {
    /// The visual tower of OpenAI's CLIP: `ln_post` and projection over patch tokens.
    Clip,
    /// DINO ViT: patch tokens after the final norm.
    Dino,
    /// DINOv2-style ViT: patch tokens after a chosen block, or after the final norm.
    Dinov2,
    /// A teacher distilled by this software: patch tokens after the final norm and a linear head.
    Distilled,
}

/// How to build a teacher from a weight file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherConfig {
    /// Family.
    pub kind: TeacherKind,
    /// Weight file (safetensors or `.pth`), or `bundled:teacher` in the binary.
    pub weights: String,
    /// Attention heads; absent: what the file says, else width/64, which is true of all published teachers.
    pub heads: Option<usize>,
    /// Block, counted from 1, after which features are taken, without the final norm; 0: the patch embedding; absent:
    /// the last block and the final norm. Only for `dinov2`.
    pub layer: Option<usize>,
}

impl Default for TeacherConfig {
    fn default() -> Self {
        Self { kind: TeacherKind::Clip, weights: String::new(), heads: None, layer: None }
    }
}

/// A frozen Vision Transformer.
#[derive(Module, Debug)]
pub struct Teacher<B: burn::tensor::backend::Backend> {
    cls_token: Param<Tensor<B, 3>>,
    pos_embed: Param<Tensor<B, 3>>,
    patch_embed: PatchEmbed<B>,
    ln_pre: Option<LayerNorm<B>>,
    blocks: Vec<Block<B>>,
    norm: Option<LayerNorm<B>>,
    head: Option<Linear<B>>,
    clip_statistics: bool,
    pos_by_size: bool,
}

impl<B: Backend> Teacher<B> {
    /// Builds a teacher from its weight file; files of this software know their number of heads.
    ///
    /// # Errors
    /// As [`Teacher::from_tensors`].
    pub fn from_file(
        config: &TeacherConfig,
        file: WeightFile,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let own: Option<VitConfig> =
            file.metadata.get("beit2.config").and_then(|text| serde_json::from_str(text).ok());
        let heads = config.heads.or(own.map(|own| own.heads));
        Self::from_tensors(&TeacherConfig { heads, ..config.clone() }, file.tensors, dtype, device)
    }

    /// Builds a teacher from its file's tensors.
    ///
    /// # Errors
    /// Tensors that are missing or of an unexpected shape, a layer that does not exist.
    pub fn from_tensors(
        config: &TeacherConfig,
        tensors: BTreeMap<String, TensorData>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, Error> {
        if let Some(layer) = config.layer.filter(|_| config.kind != TeacherKind::Dinov2) {
            return config_error(format!(
                "teacher.layer {layer} is only for kind = \"dinov2\"; other teachers' features come after their last \
                 block: leave the key out"
            ));
        }
        let mut tensors = names::canonical(config.kind, tensors)?;
        let find = |name: &str| -> Result<&TensorData, Error> {
            tensors
                .get(name)
                .ok_or_else(|| Error::WeightNames { missing: vec![name.into()], unexpected: vec![] })
        };
        let [width, channels, patch, _] =
            names::dims("patch_embed.proj.weight", find("patch_embed.proj.weight")?)?;
        let [_, tokens, _] = names::dims("pos_embed", find("pos_embed")?)?;
        let [mlp_hidden, _] = names::dims("blocks.0.mlp.fc1.weight", find("blocks.0.mlp.fc1.weight")?)?;
        if [width, channels, patch, mlp_hidden].contains(&0) || tokens < 2 {
            return config_error("the teacher's weights have an empty dimension");
        }
        let total = (0..).find(|i| !tensors.contains_key(&format!("blocks.{i}.norm1.weight"))).unwrap_or(0);
        let depth = config.layer.unwrap_or(total);
        if depth > total {
            return config_error(format!(
                "teacher.layer {depth} does not exist: the weights hold blocks 1 to {total}"
            ));
        }
        let final_norm = config.layer.is_none();
        let heads = config.heads.unwrap_or((width / 64).max(1));
        if total == 0 || heads == 0 || !width.is_multiple_of(heads) {
            return config_error(format!(
                "a teacher of width {width} with {total} blocks cannot have {heads} heads"
            ));
        }
        let options = BlockOptions {
            width,
            heads,
            mlp_hidden,
            qkv_bias: tensors.contains_key("blocks.0.attn.q_bias"),
            full_bias: tensors.contains_key("blocks.0.attn.qkv.bias"),
            layer_scale: tensors.contains_key("blocks.0.gamma_1"),
            quick_gelu: config.kind == TeacherKind::Clip,
            norm_eps: if config.kind == TeacherKind::Clip { 1e-5 } else { 1e-6 },
            own_table: None,
        };
        let norm = |present: bool| present.then(|| LayerNorm::new(width, options.norm_eps, device));
        let head = match tensors.get("head.weight") {
            Some(weight) if final_norm => {
                let [outputs, _] = names::dims("head.weight", weight)?;
                let bias = tensors.contains_key("head.bias");
                Some(Linear::new(width, outputs, bias, device))
            }
            _ => None,
        };
        let teacher = Self {
            cls_token: Param::from_tensor(Tensor::zeros([1, 1, width], device)),
            pos_embed: Param::from_tensor(Tensor::zeros([1, tokens, width], device)),
            patch_embed: PatchEmbed::new(
                channels,
                patch,
                width,
                tensors.contains_key("patch_embed.proj.bias"),
                device,
            ),
            ln_pre: norm(tensors.contains_key("ln_pre.weight")),
            blocks: (0..depth).map(|_| Block::new(options, device)).collect(),
            norm: norm(final_norm),
            head,
            clip_statistics: config.kind == TeacherKind::Clip,
            pos_by_size: config.kind == TeacherKind::Dinov2,
        };
        let unused = |name: &str| {
            let later = name.strip_prefix("blocks.").and_then(|n| n.split('.').next()?.parse().ok());
            later.is_some_and(|block: usize| block >= depth)
                || (!final_norm && (name.starts_with("norm.") || name.starts_with("head.")))
        };
        tensors.retain(|name, _| !unused(name));
        Ok(params::load_strict(teacher, tensors, dtype, |_| false)?.no_grad())
    }

    /// Runs the matmuls in `precision` from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        self.patch_embed.set_precision(precision);
        self.blocks.iter_mut().for_each(|block| block.set_precision(precision));
        self.head.iter_mut().for_each(|head| head.set_precision(precision));
    }

    /// Packs the weights ([`Linear::freeze`]): faster on CPUs, the same results to the bit. To be called last, after
    /// [`Teacher::set_precision`].
    #[must_use]
    pub fn freeze(self) -> Self {
        let blocks = self.blocks.into_iter().map(Block::freeze).collect();
        let (patch_embed, head) = (self.patch_embed.freeze(), self.head.map(Linear::freeze));
        Self { patch_embed, blocks, head, ..self }
    }

    /// Width of the features.
    pub fn dim(&self) -> usize {
        match &self.head {
            Some(head) => head.outputs(),
            None => self.cls_token.dims()[2],
        }
    }

    /// Width of [`Teacher::tokens`].
    pub fn width(&self) -> usize {
        self.cls_token.dims()[2]
    }

    /// Side of a patch in pixels: an input of `grid · patch_size` pixels gives `grid²` features.
    pub fn patch_size(&self) -> usize {
        self.patch_embed.proj.weight.dims()[2]
    }

    /// Patch features of images in [−1, 1], `[B, 3, H, W]` → `[B, N, dim]`, without gradient.
    pub fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 3> {
        self.features(self.scale(x))
    }

    /// The teacher's own standardisation of images in [−1, 1].
    pub fn scale(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        match self.clip_statistics {
            true => pixels::teacher_scaling(x, pixels::CLIP_MEAN, pixels::CLIP_STD),
            false => pixels::teacher_scaling(x, pixels::IMAGENET_MEAN, pixels::IMAGENET_STD),
        }
    }

    /// Patch features of standardised images.
    pub fn features(&self, x: Tensor<B, 4>) -> Tensor<B, 3> {
        let tokens = self.tokens(x);
        let patches = tokens.dims()[1] - 1;
        let tokens = tokens.narrow(1, 1, patches);
        let features = match &self.head {
            Some(head) => head.forward(tokens),
            None => tokens,
        };
        features.detach()
    }

    /// All tokens before the head, CLS first.
    pub fn tokens(&self, x: Tensor<B, 4>) -> Tensor<B, 3> {
        let [batch, _, height, width] = x.dims();
        let patch = self.patch_size();
        let patches = self.patch_embed.forward(x);
        let cls = self.cls_token.val().repeat_dim(0, batch);
        // DINOv2's own code resizes by size; the reference resizes CLIP and DINO by a padded scale.
        let how = if self.pos_by_size { PosResize::BySize } else { PosResize::ByPaddedScale };
        let pos = resize_pos_embed(self.pos_embed.val(), height / patch, width / patch, how);
        let mut tokens = Tensor::cat(vec![cls, patches], 1) + pos;
        if let Some(norm) = &self.ln_pre {
            tokens = norm.forward(tokens);
        }
        let drop = DropPath::none().block(0);
        for block in &self.blocks {
            tokens = block.forward(tokens, None, &drop);
        }
        match &self.norm {
            Some(norm) => norm.forward(tokens),
            None => tokens,
        }
        .detach()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;

    fn build(kind: TeacherKind, tensors: &[(&str, &[usize])]) -> String {
        let zeros = |(name, shape): &(&str, &[usize])| {
            ((*name).to_owned(), TensorData::zeros::<f32, _>(shape.to_vec()))
        };
        let config = TeacherConfig { kind, ..TeacherConfig::default() };
        let tensors = tensors.iter().map(zeros).collect();
        Teacher::<Flex>::from_tensors(&config, tensors, DType::F32, &Default::default())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn wrong_ranks_are_errors_and_not_panics() {
        let text = build(TeacherKind::Clip, &[("visual.class_embedding", &[])]);
        assert!(text.contains("class_embedding") && text.contains("1 dimensions"), "{text}");
        let text = build(TeacherKind::Clip, &[("visual.positional_embedding", &[3])]);
        assert!(text.contains("positional_embedding"), "{text}");
        let text =
            build(TeacherKind::Dino, &[("patch_embed.proj.weight", &[4, 3, 2, 2]), ("pos_embed", &[7])]);
        assert!(text.contains("pos_embed") && text.contains("3 dimensions"), "{text}");
        let part = "encoder.layer.0.attention.attention.query.bias";
        let (key, value) = (part.replace("query", "key"), part.replace("query", "value"));
        let text = build(TeacherKind::Dinov2, &[(part, &[4]), (&key, &[5]), (&value, &[4])]);
        assert!(text.contains("different shapes"), "{text}");
    }
}
