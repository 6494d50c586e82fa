//! The norm-EMA quantizer: unit-norm codes, nearest by cosine, moved by an exponential average.

use beit2_kernels::{self as kernels, Backend};
use burn::module::{Module, Param};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};
use rand::RngExt;
use rand_distr::StandardNormal;

use super::TokenizerConfig;
use crate::init::generator;

/// The codebook and what the reference saves beside it.
#[derive(Module, Debug)]
pub struct Quantizer<B: burn::tensor::backend::Backend> {
    /// Moving average of how often each code is used, `[K]`.
    pub cluster_size: Param<Tensor<B, 1>>,
    /// The codes.
    pub embedding: Embedding<B>,
    decay: f64,
    commitment: f64,
}

/// The codes and their start.
#[derive(Module, Debug)]
pub struct Embedding<B: burn::tensor::backend::Backend> {
    /// Unit-norm codes `[K, C]`.
    pub weight: Param<Tensor<B, 2>>,
    /// Members of each cluster in the last k-means round `[K]`; otherwise 0.
    pub cluster_size: Param<Tensor<B, 1>>,
    /// The initial random codes `[K, C]`, 0 with k-means; kept for the file format only.
    pub embed_avg: Param<Tensor<B, 2>>,
    /// 1 once the codes are valid, `[1]`.
    pub initted: Param<Tensor<B, 1>>,
}

/// The result of quantizing a batch of vectors.
#[derive(Debug, Clone)]
pub struct Quantized<B: Backend> {
    /// Code ids `[n]`.
    pub ids: Tensor<B, 1, Int>,
    /// The normalised input `[n, C]`, detached; what an update learns from.
    pub z: Tensor<B, 2>,
    /// The codes with the straight-through gradient to the input, `[n, C]`.
    pub codes: Tensor<B, 2>,
    /// β·mean((codes − z)²), `[1]`.
    pub commitment_loss: Tensor<B, 1>,
}

fn frozen<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Param<Tensor<B, D>> {
    Param::from_tensor(tensor).set_require_grad(false)
}

impl<B: Backend> Quantizer<B> {
    /// A codebook of zeros that waits for k-means or a file.
    pub fn zeros(config: &TokenizerConfig, device: &B::Device) -> Self {
        let (k, c) = (config.codebook_size, config.code_dim);
        Self {
            cluster_size: frozen(Tensor::zeros([k], device)),
            embedding: Embedding {
                weight: frozen(Tensor::zeros([k, c], device)),
                cluster_size: frozen(Tensor::zeros([k], device)),
                embed_avg: frozen(Tensor::zeros([k, c], device)),
                initted: frozen(Tensor::zeros([1], device)),
            },
            decay: config.ema_decay,
            commitment: config.commitment_weight,
        }
    }

    /// A fresh codebook: random unit directions, or zeros waiting for k-means.
    pub fn new(config: &TokenizerConfig, seed: u64, device: &B::Device) -> Self {
        let mut this = Self::zeros(config, device);
        if !config.kmeans_init {
            let (k, c) = (config.codebook_size, config.code_dim);
            let mut rng = generator(seed, "quantize.embedding.weight");
            let rows: Vec<f32> = (0..k * c).map(|_| rng.sample(StandardNormal)).collect();
            let start = kernels::unit_rows(Tensor::from_data(TensorData::new(rows, [k, c]), device));
            this.embedding.weight = frozen(start.clone());
            this.embedding.embed_avg = frozen(start);
            this.embedding.initted = frozen(Tensor::ones([1], device));
        }
        this
    }

    /// The codes `[K, C]`.
    pub fn codebook(&self) -> Tensor<B, 2> {
        self.embedding.weight.val()
    }

    /// Ids of the codes nearest to `z [n, C]` → `[n]`, without touching any state: all that
    /// pretraining needs of a tokenizer.
    pub fn ids(&self, z: Tensor<B, 2>) -> Tensor<B, 1, Int> {
        kernels::nearest_code(kernels::unit_rows(z), self.codebook())
    }

    /// Quantizes `z [n, C]` with the codebook as it is.
    pub fn forward(&self, z: Tensor<B, 2>) -> Quantized<B> {
        // The commitment loss and the decoder read it.
        let z = kernels::cut(kernels::unit_rows(z));
        let fixed = z.clone().detach();
        let (ids, codes, commitment_loss) = kernels::quantize(z, self.codebook(), self.commitment);
        Quantized { ids, z: fixed, codes, commitment_loss }
    }

    /// Uses of each code among `ids` → `[K]`.
    pub fn bins(&self, ids: &Tensor<B, 1, Int>) -> Tensor<B, 1> {
        let size = self.cluster_size.val();
        kernels::code_counts(ids.clone(), size.dims()[0], size.dtype())
    }

    /// Counts `bins [K]` into the usage average: what the reference does in evaluation too.
    pub fn count_usage(mut self, bins: Tensor<B, 1>) -> Self {
        let decay = self.decay;
        self.cluster_size =
            self.cluster_size.map(|size| (size.mul_scalar(decay) + bins.mul_scalar(1.0 - decay)).detach());
        self
    }

    /// Moves used codes towards the mean of what they stand for; unused codes stay.
    pub fn update(self, quantized: &Quantized<B>) -> Self {
        let (bins, sums) = self.statistics(quantized.ids.clone(), quantized.z.clone());
        self.update_from(bins, sums)
    }

    /// Uses of each code `[K]` and the sums of the vectors that it stands for `[K, C]`, of the normalised vectors `z [n, C]`
    /// with the codes `ids [n]`.
    pub fn statistics(&self, ids: Tensor<B, 1, Int>, z: Tensor<B, 2>) -> (Tensor<B, 1>, Tensor<B, 2>) {
        kernels::code_statistics(ids, z, self.codebook().dims()[0])
    }

    /// [`Quantizer::update`] from the [statistics](Quantizer::statistics), which data parallel training adds up over
    /// devices first.
    pub fn update_from(self, bins: Tensor<B, 1>, sums: Tensor<B, 2>) -> Self {
        let mut this = self;
        let (codes, usage) =
            kernels::update_codes(this.codebook(), this.cluster_size.val(), bins, sums, this.decay);
        this.embedding.weight = this.embedding.weight.map(|_| codes);
        this.cluster_size = this.cluster_size.map(|_| usage);
        this
    }

    /// Whether the codes are valid (one host round trip).
    pub fn is_initialised(&self) -> bool {
        let flag = self.embedding.initted.val().into_data().convert::<f32>();
        flag.as_slice::<f32>().is_ok_and(|v| v.first().is_some_and(|&v| v != 0.0))
    }

    /// Replaces the codes by `codes [K, C]` that stand for `members [K]` vectors each (k-means).
    pub fn set_codes(mut self, codes: Tensor<B, 2>, members: Tensor<B, 1>) -> Self {
        let initted = self.embedding.initted.val().ones_like();
        self.embedding.weight = frozen(codes.detach());
        self.embedding.cluster_size = frozen(members.detach());
        self.embedding.initted = frozen(initted.detach());
        self
    }

    /// Puts `rows [r, C]` (unit norm) in place of the codes `ids`: dead-code revival.
    pub fn replace_codes(mut self, ids: &[u32], rows: Tensor<B, 2>) -> Self {
        let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let count = ids.len();
        self.embedding.weight = self.embedding.weight.map(|codes| {
            let device = codes.device();
            let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [count]), &device);
            let old = codes.clone().select(0, ids.clone());
            codes.select_assign(0, ids, rows - old, IndexingUpdateOp::Add).detach()
        });
        self
    }

    /// Zeroes the usage average (the trainer does at every epoch).
    pub fn reset_usage(mut self) -> Self {
        self.cluster_size = self.cluster_size.map(|size| size.zeros_like().detach());
        self
    }

    /// The element type of the state.
    pub fn dtype(&self) -> DType {
        self.embedding.weight.val().dtype()
    }
}
