//! A teacher's network.

use std::collections::BTreeMap;

use beit2_kernels::{self as kernels, Backend, PatchSpec, Precision, Scaling};
use beit2_weights::Sidecar;
use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};

use super::block::{BlockSizes, Rotation, TeacherBlock, run_blocks};
use super::canonical::{canonical, dims};
use super::names::{Names, Renamed};
use super::options::{Options, kind};
use super::said::Said;
use super::{TeacherConfig, TeacherKind};
use crate::cost::{FrozenVit, matmul};
use crate::error::{Error, config_error};
use crate::params;
use crate::pixels;
use crate::vit::{LayerNorm, Linear, PatchEmbed, Pixels, VitConfig, resize_grid};
use crate::weights::{SCRIPT, WeightFile};

/// A frozen Vision Transformer.
#[derive(Module, Debug)]
pub struct Teacher<B: burn::tensor::backend::Backend> {
    /// CLS and registers, `[1, P, D]`; SigLIP has none.
    prefix_tokens: Option<Param<Tensor<B, 3>>>,
    /// `[1, N, D]`; DINOv3 has none.
    pos_embed: Option<Param<Tensor<B, 3>>>,
    pub(super) patch_embed: PatchEmbed<B>,
    ln_pre: Option<LayerNorm<B>>,
    blocks: Vec<TeacherBlock<B>>,
    norm: Option<LayerNorm<B>>,
    pub(super) head: Option<Linear<B>>,
    /// Of a frozen teacher with CLS and no registers: its positions, after zeros for CLS.
    token_positions: Option<Tensor<B, 3>>,
    #[module(skip)]
    facts: Facts,
}

#[derive(Debug, Clone)]
struct Facts {
    kind: TeacherKind,
    options: Options,
    has_cls: bool,
    registers: usize,
    width: usize,
}

impl<B: Backend> Teacher<B> {
    /// Builds a teacher from its weight file, with what the files beside it say; files of this software know their number of
    /// heads.
    ///
    /// # Errors
    /// As [`Teacher::from_tensors`]; a file that contradicts the settings or the files beside it.
    pub fn from_file(
        config: &TeacherConfig,
        file: WeightFile,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let mut config = config.clone();
        match file.metadata.get("beit2.stage").map(String::as_str) {
            Some("distill") => {
                let own: Option<VitConfig> =
                    file.metadata.get("beit2.config").and_then(|text| serde_json::from_str(text).ok());
                config.heads = config.heads.or(own.map(|own| own.heads));
                config.kind = config.kind.or(Some(TeacherKind::Distilled));
            }
            Some(stage) => {
                return config_error(format!(
                    "the teacher's file holds a run of the stage `{stage}`; a teacher is a published model or a run of `beit2 \
                     teacher distill`"
                ));
            }
            None => {}
        }
        let script = file.metadata.contains_key(SCRIPT);
        Self::build(&config, file.tensors, &file.beside, script, dtype, device)
    }

    /// Builds a teacher from its file's tensors alone.
    ///
    /// # Errors
    /// Tensors that are missing or of an unexpected shape, a layer that does not exist, something that the tensors do not tell
    /// and `config` does not say.
    pub fn from_tensors(
        config: &TeacherConfig,
        tensors: BTreeMap<String, TensorData>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, Error> {
        Self::build(config, tensors, &Sidecar::default(), false, dtype, device)
    }

    fn build(
        config: &TeacherConfig,
        tensors: BTreeMap<String, TensorData>,
        beside: &Sidecar,
        script: bool,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let mut renamed = Renamed::of(tensors.keys().map(String::as_str))?;
        // Nobody else publishes a CLIP as a TorchScript archive.
        renamed.openai_archive |= script && renamed.names == Names::OpenAi;
        let said = Said::of(beside, renamed.names)?;
        let kind = kind(config, &renamed, &said)?;
        if let Some(layer) = config.layer.filter(|_| kind == TeacherKind::Distilled) {
            return config_error(format!(
                "teacher.layer {layer} is not for a distilled teacher, whose features come after its head: leave the key out"
            ));
        }
        let mut tensors = canonical(kind, &renamed, tensors)?;
        let options = Options::new(config, kind, &renamed, &said, &tensors)?;
        tensors.remove("rope.periods");

        let source = |name: &str| renamed.source.get(name).cloned().unwrap_or_else(|| name.to_owned());
        let find = |name: &str| -> Result<&TensorData, Error> {
            let missing = || Error::WeightNames { missing: vec![source(name)], unexpected: vec![] };
            tensors.get(name).ok_or_else(missing)
        };
        let shape4 = dims(&source("patch_embed.proj.weight"), find("patch_embed.proj.weight")?)?;
        let [width, channels, patch, across] = shape4;
        let [mlp_hidden, _] = dims(&source("blocks.0.mlp.fc1.weight"), find("blocks.0.mlp.fc1.weight")?)?;
        if shape4.contains(&0) || mlp_hidden == 0 || patch != across {
            return config_error(
                "the teacher's weights have an empty dimension or patches that are no squares",
            );
        }
        let has = |name: &str| tensors.contains_key(name);
        let count = |name: &str| tensors.get(name).map_or(0, |tensor| tensor.shape[1]);
        let (total, prefix, positions) = (renamed.blocks(), count("prefix_tokens"), count("pos_embed"));
        let depth = config.layer.unwrap_or(total);
        if depth > total {
            return config_error(format!(
                "teacher.layer {depth} does not exist: the weights hold blocks 1 to {total}"
            ));
        }
        let final_norm = config.layer.is_none();
        let sizes = BlockSizes {
            width,
            heads: options.heads,
            mlp_hidden,
            qkv_bias: has("blocks.0.attn.qkv.bias"),
            proj_bias: has("blocks.0.attn.proj.bias"),
            mlp_bias: has("blocks.0.mlp.fc1.bias"),
            layer_scale: has("blocks.0.gamma_1"),
            gated: has("blocks.0.mlp.gate.weight"),
            activation: options.activation,
            norm_eps: options.norm_eps,
        };
        let norm = |present: bool| present.then(|| LayerNorm::new(width, options.norm_eps, device));
        let head = match tensors.get("head.weight").filter(|_| final_norm) {
            Some(weight) => {
                let [outputs, _] = dims(&source("head.weight"), weight)?;
                Some(Linear::new(width, outputs, has("head.bias"), device))
            }
            None => None,
        };
        let zeros =
            |count: usize| (count > 0).then(|| Param::from_tensor(Tensor::zeros([1, count, width], device)));
        let has_cls = renamed.has("cls_token");
        let teacher = Self {
            prefix_tokens: zeros(prefix),
            pos_embed: zeros(positions),
            patch_embed: PatchEmbed::new(channels, patch, width, has("patch_embed.proj.bias"), device),
            ln_pre: norm(has("ln_pre.weight")),
            blocks: (0..depth).map(|_| TeacherBlock::new(sizes, device)).collect(),
            norm: norm(final_norm),
            head,
            token_positions: None,
            facts: Facts { kind, options, has_cls, registers: prefix - usize::from(has_cls), width },
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

    /// Makes freezing round the blocks' weights to 8-bit integers ([`Linear::set_int8`]).
    pub fn set_int8(&mut self) {
        self.blocks.iter_mut().for_each(|block| block.set_int8());
    }

    /// Packs the weights ([`Linear::freeze`]): faster on CPUs, the same results to the bit. To be called last, after
    /// [`Teacher::set_precision`].
    #[must_use]
    pub fn freeze(self) -> Self {
        let rotates = !self.facts.options.periods.is_empty();
        let blocks = self.blocks.into_iter().map(|block| block.freeze(rotates)).collect();
        let (patch_embed, head) = (self.patch_embed.freeze(), self.head.map(Linear::freeze));
        let token_positions = match (&self.prefix_tokens, &self.pos_embed) {
            (Some(prefix), Some(positions)) if prefix.dims()[1] == 1 => {
                Some(Tensor::cat(vec![prefix.val().zeros_like(), positions.val()], 1))
            }
            _ => None,
        };
        Self { patch_embed, blocks, head, token_positions, ..self }
    }

    /// Its family.
    pub fn kind(&self) -> TeacherKind {
        self.facts.kind
    }

    /// Width of the features.
    pub fn dim(&self) -> usize {
        self.head.as_ref().map_or(self.facts.width, Linear::outputs)
    }

    /// Width of [`Teacher::tokens`].
    pub fn width(&self) -> usize {
        self.facts.width
    }

    /// Whether [`Teacher::tokens`] begin with CLS; SigLIP has none.
    pub fn has_cls(&self) -> bool {
        self.facts.has_cls
    }

    /// Side of a patch in pixels: an input of `grid · patch_size` pixels gives `grid²` features.
    pub fn patch_size(&self) -> usize {
        self.patch_embed.proj.weight.dims()[2]
    }

    /// Side in pixels of the images that its position embeddings were made for; `None` of DINOv3, which has rotary positions.
    pub fn native_px(&self) -> Option<usize> {
        self.pos_embed.as_ref().map(|pos| pos.dims()[1].isqrt() * self.patch_size())
    }

    /// What it costs to run it on images that give `grid × grid` features.
    pub fn cost(&self, grid: usize) -> FrozenVit {
        let (width, patch) = (self.facts.width, self.patch_size());
        let (patches, channels) = (grid * grid, self.patch_embed.proj.weight.dims()[1]);
        let tokens = patches + usize::from(self.facts.has_cls) + self.facts.registers;
        let parameters = params::list(self).iter().map(|info| info.shape.iter().product::<usize>()).sum();
        let mlp = self.blocks.first().map_or([0, 0], TeacherBlock::mlp_sizes);
        let [mlp_hidden, layers] = mlp;
        let linear = |inner, columns| matmul(tokens, inner, columns);
        let attention = linear(width, 4 * width) + 2.0 * linear(width, tokens);
        let block = attention + layers as f64 * linear(width, mlp_hidden);
        let head = self.head.as_ref().map_or(0, Linear::outputs);
        let flops = matmul(patches, channels * patch * patch, width)
            + self.blocks.len() as f64 * block
            + matmul(patches, width, head);
        FrozenVit { parameters, flops, width, tokens, side: grid * patch }
    }

    /// Patch features of images in [−1, 1], `[B, 3, H, W]` → `[B, N, dim]`, without gradient.
    pub fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 3> {
        self.features(self.scale(x))
    }

    /// The teacher's own standardisation of images in [−1, 1].
    pub fn scale(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        pixels::teacher_scaling(x, self.facts.options.mean, self.facts.options.std)
    }

    /// How it reads images in [0, 1].
    pub fn patch_spec(&self) -> PatchSpec<'_> {
        let Options { mean, std, .. } = &self.facts.options;
        self.patch_embed.spec(Scaling::Teacher { mean, std })
    }

    /// Patch features of standardised images.
    pub fn features(&self, x: impl Into<Pixels<B>>) -> Tensor<B, 3> {
        let tokens = self.all_tokens(x);
        let prefix = usize::from(self.facts.has_cls) + self.facts.registers;
        let patches = tokens.dims()[1] - prefix;
        let tokens = kernels::narrow_tokens(tokens, prefix, patches);
        let features = match &self.head {
            Some(head) => head.forward(tokens),
            None => tokens,
        };
        features.detach()
    }

    /// Tokens of standardised images before the head: CLS, if there is one, then the patches; registers are left out.
    pub fn tokens(&self, x: impl Into<Pixels<B>>) -> Tensor<B, 3> {
        let tokens = self.all_tokens(x);
        let (registers, from) = (self.facts.registers, usize::from(self.facts.has_cls));
        if registers == 0 {
            return tokens;
        }
        let rest = tokens.dims()[1] - registers - from;
        let patches = tokens.clone().narrow(1, from + registers, rest);
        match self.facts.has_cls {
            true => Tensor::cat(vec![tokens.narrow(1, 0, 1), patches], 1),
            false => patches,
        }
    }

    /// All tokens before the head: CLS, registers, patches.
    pub fn all_tokens(&self, x: impl Into<Pixels<B>>) -> Tensor<B, 3> {
        let options = &self.facts.options;
        let (mut tokens, [rows, cols]) = self.patch_embed.forward(x.into());
        let batch = tokens.dims()[0];
        let prefix = self.prefix_tokens.as_ref().map_or(0, |first| first.dims()[1]);
        let made_for = |positions: &&Tensor<B, 3>| rows == cols && positions.dims()[1] == rows * cols + 1;
        match (&self.prefix_tokens, self.token_positions.as_ref().filter(made_for)) {
            (Some(cls), Some(positions)) => {
                tokens = kernels::embed_tokens(tokens, cls.val(), None, Some(positions.clone()));
            }
            (first, _) => {
                if let Some(pos) = &self.pos_embed {
                    tokens = tokens + resize_grid(pos.val(), rows, cols, options.resize);
                }
                if let Some(first) = first {
                    tokens = Tensor::cat(vec![first.val().repeat_dim(0, batch), tokens], 1);
                }
            }
        }
        if let Some(norm) = &self.ln_pre {
            tokens = norm.forward(tokens);
        }
        let rotary = !options.periods.is_empty();
        let rotation = rotary.then(|| Rotation::new(&options.periods, [rows, cols], prefix, &tokens));
        let tokens = run_blocks(&self.blocks, tokens, rotation.as_ref());
        match &self.norm {
            Some(norm) => norm.forward(tokens),
            None => tokens,
        }
        .detach()
    }
}
