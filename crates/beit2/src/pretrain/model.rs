//! The masked image model with its patch-aggregation head.

use beit2_kernels::{self as kernels, Backend, HeadSpec, Precision};
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};

use super::MimConfig;
use crate::error::Error;
use crate::init::{InitRule, STD, initialise_with};
use crate::vit::{Block, DropPath, LayerNorm, Linear, Pixels, TokenSubset, Trunk, run_blocks};

/// Which patches of a batch are masked: the same number M in every image, as indices, so that every
/// shape is known before the step.
#[derive(Debug, Clone)]
pub struct PatchMask<B: Backend> {
    /// 1 where a patch is replaced by the mask token, `[B, N, 1]`.
    pub mask: Tensor<B, 3>,
    /// CLS and the masked tokens of each image, M + 1 rows.
    with_cls: TokenSubset<B>,
    /// The masked tokens, M rows.
    masked: TokenSubset<B>,
    /// The masked patches among those of all images, `[B·M]`.
    patches: Tensor<B, 1, Int>,
}

impl<B: Backend> PatchMask<B> {
    /// From ascending patch indices, M for each image in turn, out of `patches` N.
    pub fn new(indices: &[u32], batch: usize, patches: usize, device: &B::Device) -> Self {
        let per_image = indices.len() / batch.max(1);
        let mut mask = vec![0f32; batch * patches];
        let mut with_cls = Vec::with_capacity(indices.len() + batch);
        let mut masked = Vec::with_capacity(indices.len());
        let mut among_all = Vec::with_capacity(indices.len());
        for (image, patch_indices) in indices.chunks(per_image.max(1)).enumerate() {
            with_cls.push(0);
            for &index in patch_indices {
                let at = image * patches + index as usize;
                mask[at] = 1.0;
                among_all.push(at as i32);
                with_cls.push(index + 1); // token 0 is CLS
                masked.push(index + 1);
            }
        }
        let data = vec![
            TensorData::new(mask, [batch, patches, 1]),
            TokenSubset::<B>::values(&with_cls, per_image + 1),
            TokenSubset::<B>::values(&masked, per_image),
            TensorData::new(among_all, [indices.len()]),
        ];
        let mut sent = kernels::upload_all::<B>(data, device);
        Self {
            mask: sent.float(),
            with_cls: TokenSubset::sent(sent.int(), per_image + 1),
            masked: TokenSubset::sent(sent.int(), per_image),
            patches: sent.int(),
        }
    }

    /// The same mask on the backend that records gradients.
    pub fn record<A>(self) -> PatchMask<A>
    where
        A: beit2_kernels::AutodiffBackend<InnerBackend = B>,
    {
        PatchMask {
            mask: Tensor::from_inner(self.mask),
            with_cls: self.with_cls.record(),
            masked: self.masked.record(),
            patches: Tensor::from_inner(self.patches),
        }
    }

    /// The masked patches as tokens behind CLS.
    pub fn masked_tokens(&self) -> &TokenSubset<B> {
        &self.masked
    }

    /// Masked patches per image, M.
    pub fn per_image(&self) -> usize {
        self.masked.per_sample()
    }
}

/// The tokenizer's ids at the masked patches, in the order of the logits: `ids [B, N]` → `[B·M]`.
pub fn masked_labels<B: Backend>(ids: Tensor<B, 2, Int>, mask: &PatchMask<B>) -> Tensor<B, 1, Int> {
    let [batch, patches] = ids.dims();
    ids.reshape([batch * patches]).select(0, mask.patches.clone())
}

/// Logits at the masked patches, in (image, patch) order.
#[derive(Debug, Clone)]
pub struct MimLogits<B: Backend> {
    /// Of the last block, `[B·M, vocab_size]`.
    pub last: Tensor<B, 2>,
    /// Of the patch-aggregation head.
    pub patch_aggregation: Option<Tensor<B, 2>>,
}

/// Losses and accuracies of a batch.
#[derive(Debug, Clone)]
pub struct MimLoss<B: Backend> {
    /// Sum of the branches' cross entropies, `[1]`.
    pub total: Tensor<B, 1>,
    /// Cross entropy of each branch, `[1]`.
    pub branches: Vec<Tensor<B, 1>>,
    /// Share of masked patches whose token is predicted, per branch, `[1]`.
    pub accuracy: Vec<Tensor<B, 1>>,
}

/// A Vision Transformer that predicts visual tokens.
#[derive(Module, Debug)]
pub struct MimModel<B: burn::tensor::backend::Backend> {
    /// Embedding and blocks.
    pub trunk: Trunk<B>,
    /// Stands for a masked patch, `[1, 1, D]`.
    pub mask_token: Param<Tensor<B, 3>>,
    /// Final norm.
    pub norm: LayerNorm<B>,
    /// Prediction head.
    pub lm_head: Linear<B>,
    /// The aggregation head's blocks; empty in the plain model.
    pub cls_pt_layers: Vec<Block<B>>,
    /// Its own norm when the head is not shared.
    pub cls_pt_norm: Option<LayerNorm<B>>,
    /// Its own prediction head when not shared.
    pub cls_pt_lm_head: Option<Linear<B>>,
    early: usize,
}

impl<B: Backend> MimModel<B> {
    /// A freshly initialised model.
    ///
    /// # Errors
    /// Sizes that do not fit each other.
    pub fn new(config: &MimConfig, seed: u64, device: &B::Device) -> Result<Self, Error> {
        Self::with_std(config, STD, seed, device)
    }

    /// A freshly initialised model, with another standard deviation than the paper's.
    ///
    /// # Errors
    /// As [`MimModel::new`].
    pub fn with_std(config: &MimConfig, std: f64, seed: u64, device: &B::Device) -> Result<Self, Error> {
        let rule =
            InitRule::Pretrain { early: config.intermediate_layer, gamma: config.vit.layer_scale_init };
        Ok(initialise_with(Self::zeros(config, device)?, rule, std, seed))
    }

    /// A model to load weights into.
    ///
    /// # Errors
    /// Sizes that do not fit each other.
    pub fn zeros(config: &MimConfig, device: &B::Device) -> Result<Self, Error> {
        config.validate()?;
        let vit = &config.vit;
        let own_head = config.patch_aggregation && !config.shared_lm_head;
        let norm = || LayerNorm::new(vit.width, vit.norm_eps, device);
        let head = || Linear::new(vit.width, config.vocab_size, true, device);
        let head_blocks = if config.patch_aggregation { config.head_layers } else { 0 };
        Ok(Self {
            trunk: Trunk::new(vit, device),
            mask_token: Param::from_tensor(Tensor::zeros([1, 1, vit.width], device)),
            norm: norm(),
            lm_head: head(),
            cls_pt_layers: (0..head_blocks)
                .map(|_| Block::new(crate::vit::block_options(vit), device))
                .collect(),
            cls_pt_norm: own_head.then(norm),
            cls_pt_lm_head: own_head.then(head),
            early: config.intermediate_layer,
        })
    }

    /// Makes freezing round the weights of the trunk's blocks to 8-bit integers ([`Trunk::set_int8`]).
    pub fn set_int8(&mut self) {
        self.trunk.set_int8();
    }

    /// For features of a model whose weights do not change any more: the trunk is frozen ([`Trunk::freeze`]).
    #[must_use]
    pub fn freeze_trunk(self) -> Self {
        Self { trunk: self.trunk.freeze(), ..self }
    }

    /// Runs the matmuls in `precision` from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        self.trunk.set_precision(precision);
        self.cls_pt_layers.iter_mut().for_each(|block| block.set_precision(precision));
        let heads = std::iter::once(&mut self.lm_head).chain(&mut self.cls_pt_lm_head);
        heads.for_each(|head| head.set_precision(precision));
    }

    /// Logits at the masked patches of standardised images `[B, C, H, W]`, or of their patches.
    ///
    /// After the last block only CLS and masked patches are read, after the last head block only masked
    /// ones: there, queries and MLP run for those rows alone.
    pub fn forward(&self, x: impl Into<Pixels<B>>, mask: &PatchMask<B>, drop: &DropPath<B>) -> MimLogits<B> {
        let (last, aggregated) = self.masked_rows(x.into(), mask, drop);
        MimLogits {
            last: self.lm_head.forward(self.norm.forward(last)),
            patch_aggregation: aggregated.map(|rows| {
                let (norm, head) = self.aggregation_head();
                head.forward(norm.forward(rows))
            }),
        }
    }

    /// [`MimModel::loss`] of [`MimModel::forward`]; in one operation from the final norm on where the backend has it.
    pub fn forward_loss(
        &self,
        x: impl Into<Pixels<B>>,
        mask: &PatchMask<B>,
        labels: Tensor<B, 1, Int>,
        drop: &DropPath<B>,
    ) -> MimLoss<B> {
        let device = labels.device();
        if !kernels::fuses_head_loss::<B>(&device, self.lm_head.weight.val().dims()) {
            return Self::loss(self.forward(x, mask, drop), labels);
        }
        let (last, aggregated) = self.masked_rows(x.into(), mask, drop);
        let own_head = self.cls_pt_norm.is_some();
        let (shared, own) = match (aggregated, own_head) {
            (Some(rows), false) => (vec![last, rows], None),
            (rows, _) => (vec![last], rows),
        };
        let score = |sets, (norm, head): (&LayerNorm<B>, &Linear<B>)| {
            let spec = HeadSpec { eps: norm.eps(), precision: head.precision() };
            let norm = [norm.weight.val(), norm.bias.val()];
            let bias =
                head.bias.as_ref().map_or_else(|| Tensor::zeros([head.outputs()], &device), Param::val);
            kernels::head_loss(sets, norm, (head.weight.val(), bias), labels.clone(), spec)
        };
        let mut found = score(shared, (&self.norm, &self.lm_head));
        if let Some(rows) = own {
            let own = score(vec![rows], self.aggregation_head());
            found.total = found.total + own.total;
            found.losses.extend(own.losses);
            found.accuracies.extend(own.accuracies);
        }
        MimLoss { total: found.total, branches: found.losses, accuracy: found.accuracies }
    }

    /// What the final norms read at the masked patches, `[B·M, D]` each: of the last block, and of the aggregation head.
    fn masked_rows(
        &self,
        x: Pixels<B>,
        mask: &PatchMask<B>,
        drop: &DropPath<B>,
    ) -> (Tensor<B, 2>, Option<Tensor<B, 2>>) {
        let bias = self.trunk.shared_bias();
        let depth = self.trunk.blocks.len();
        let token = self.mask_token.val();
        let x = self.trunk.embed(x, Some((mask.mask.clone().cast(token.dtype()), token)));
        let run = |x, range, subset| self.trunk.run(x, range, subset, bias.as_ref(), drop);
        if self.cls_pt_layers.is_empty() {
            return (flat(run(x, 0..depth, Some(&mask.masked))), None);
        }
        let (last, y) = if self.early < depth {
            let early = run(x, 0..self.early, None);
            let x = run(early.clone(), self.early..depth, Some(&mask.with_cls));
            let masked = x.dims()[1] - 1;
            (kernels::narrow_tokens(x.clone(), 1, masked), kernels::replace_cls(x, early))
        } else {
            // intermediate_layer = depth: the head reads the last block's patches, so all rows are needed.
            let x = run(x, 0..depth, None);
            (mask.masked.gather(kernels::cut_output(x.clone())), x)
        };
        let y = run_blocks(&self.cls_pt_layers, y, Some(&mask.masked), bias.as_ref(), drop, depth);
        (flat(last), Some(flat(y)))
    }

    /// Norm and prediction head of the aggregated tokens: their own, or the shared ones.
    fn aggregation_head(&self) -> (&LayerNorm<B>, &Linear<B>) {
        (
            self.cls_pt_norm.as_ref().unwrap_or(&self.norm),
            self.cls_pt_lm_head.as_ref().unwrap_or(&self.lm_head),
        )
    }

    /// Patch tokens of every branch after its final norm, `[B, N, D]` each, for all patches; without a
    /// mask, of the image as it is. The straightforward computation that [`MimModel::forward`] shortens.
    pub fn patch_tokens(&self, x: Tensor<B, 4>, mask: Option<&PatchMask<B>>) -> Vec<Tensor<B, 3>> {
        let bias = self.trunk.shared_bias();
        let dtype = x.dtype();
        let mask = mask.map(|m| (m.mask.clone().cast(dtype), self.mask_token.val()));
        let x = self.trunk.embed(x, mask);
        let patches = x.dims()[1] - 1;
        let (depth, drop) = (self.trunk.blocks.len(), DropPath::none());
        let run = |x, range| self.trunk.run(x, range, None, bias.as_ref(), &drop);
        // A model without the head may have fewer blocks than the head would take its input after.
        let layer = self.early.min(depth);
        let early = run(x, 0..layer);
        let x = run(early.clone(), layer..depth);
        let mut branches = vec![self.norm.forward(x.clone()).narrow(1, 1, patches)];
        if !self.cls_pt_layers.is_empty() {
            let y = Tensor::cat(vec![x.narrow(1, 0, 1), early.narrow(1, 1, patches)], 1);
            let y = run_blocks(&self.cls_pt_layers, y, None, bias.as_ref(), &drop, depth);
            let (norm, _) = self.aggregation_head();
            branches.push(norm.forward(y).narrow(1, 1, patches));
        }
        branches
    }

    /// Logits of every branch for all patches, `[B, N, vocab_size]` each, from [`MimModel::patch_tokens`].
    pub fn logits_all(&self, branches: &[Tensor<B, 3>]) -> Vec<Tensor<B, 3>> {
        let heads = [&self.lm_head, self.aggregation_head().1];
        branches.iter().zip(heads).map(|(tokens, head)| head.forward(tokens.clone())).collect()
    }

    /// Losses and accuracies of logits against `labels [B·M]`.
    pub fn loss(logits: MimLogits<B>, labels: Tensor<B, 1, Int>) -> MimLoss<B> {
        let mut branches = Vec::new();
        let mut accuracy = Vec::new();
        for logits in std::iter::once(logits.last).chain(logits.patch_aggregation) {
            let (loss, right) = kernels::cross_entropy_with_accuracy(logits, labels.clone());
            branches.push(loss);
            accuracy.push(right);
        }
        let total = match &branches[..] {
            [one] => one.clone(),
            many => many.iter().skip(1).fold(many[0].clone(), |sum, branch| sum + branch.clone()),
        };
        MimLoss { total, branches, accuracy }
    }
}

fn flat<B: Backend>(rows: Tensor<B, 3>) -> Tensor<B, 2> {
    let [batch, count, width] = rows.dims();
    rows.reshape([batch * count, width])
}
