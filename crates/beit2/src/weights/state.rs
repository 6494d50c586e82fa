//! A weight file of any layout as a state dict in official names, with the sizes that it tells.

use std::collections::BTreeMap;

use beit2_weights::convert::{StateDict, to_canonical};
use beit2_weights::inspect::{self, Facts, RelativeBias};
use beit2_weights::layout::{Family, Kind};
use beit2_weights::plan::{Plan, PlanOptions, Target, plan};
use beit2_weights::resize::TableResize;
use beit2_weights::{DType as FileType, Tensor as FileTensor};
use burn::tensor::TensorData;

use super::{HF_NORM_EPS, Tensors, WeightFile, dtype_of_file};
use crate::classify::ClassifierConfig;
use crate::error::{Error, config_error};
use crate::pretrain::MimConfig;
use crate::segment::SegmenterConfig;
use crate::tokenizer::TokenizerConfig;
use crate::vit::{Pooling, RelPosKind, VitConfig};

/// Width of an attention head in every published model; what a file without bias tables is taken to have.
const HEAD_WIDTH: usize = 64;

/// The state dict of a model.
#[derive(Debug, Clone)]
pub struct StateFile {
    /// What the names and shapes tell.
    pub facts: Facts,
    /// Tensors by official name, in the file's types.
    pub tensors: StateDict,
    /// Text by name; files of this software hold the model's configuration.
    pub metadata: BTreeMap<String, String>,
    /// As the user named the file, for messages.
    origin: String,
}

impl StateFile {
    /// Understands the names of a file: official, timm or Hugging Face.
    ///
    /// # Errors
    /// Names that belong to none of them, a key too many or too few, a shape that contradicts another.
    pub fn new(file: WeightFile, origin: &str) -> Result<Self, Error> {
        let named = |error| Error::Config(format!("{origin}: {error}"));
        let mut tensors = StateDict::with_capacity(file.tensors.len());
        for (name, data) in file.tensors {
            tensors.insert(
                name.clone(),
                to_file_tensor(data).ok_or_else(|| {
                    Error::Config(format!("{origin}: tensor `{name}` has a type that weights cannot have"))
                })?,
            );
        }
        let facts = inspect::inspect(&tensors).map_err(named)?;
        let (tensors, _) = to_canonical(tensors).map_err(named)?;
        Ok(Self { facts, tensors, metadata: file.metadata, origin: origin.to_owned() })
    }

    /// The sizes of its Transformer (of a tokenizer its encoder), for the image size it was trained with.
    ///
    /// # Errors
    /// Sizes that the file does not tell and that cannot be guessed.
    pub fn vit(&self) -> Result<VitConfig, Error> {
        let facts = &self.facts;
        let origin = &self.origin;
        if let Some(written) = self.written_sizes()? {
            return Ok(written);
        }
        let Some(image_size) = facts.image_px() else {
            return config_error(format!("{origin} has no positions that tell its image size"));
        };
        let heads = match facts.heads {
            Some(heads) => heads,
            None if facts.width.is_multiple_of(HEAD_WIDTH) => facts.width / HEAD_WIDTH,
            None => {
                return config_error(format!(
                    "{origin} does not tell its number of attention heads, and its width {} is no multiple of \
                     {HEAD_WIDTH}, the usual width of a head",
                    facts.width
                ));
            }
        };
        let eps = self.metadata.get(HF_NORM_EPS).and_then(|text| text.parse().ok());
        let config = VitConfig {
            image_size,
            patch_size: facts.patch,
            in_chans: facts.channels,
            width: facts.width,
            depth: facts.depth,
            heads,
            mlp_ratio: facts.mlp_width as f64 / facts.width as f64,
            qkv_bias: facts.qkv_bias,
            // The number is only the start of training; what counts here is whether there are factors.
            layer_scale_init: if facts.layer_scale { 0.1 } else { 0.0 },
            abs_pos_emb: facts.abs_pos,
            rel_pos_bias: match facts.bias {
                RelativeBias::None => RelPosKind::None,
                RelativeBias::Shared => RelPosKind::Shared,
                RelativeBias::PerBlock => RelPosKind::PerBlock,
            },
            drop_path: 0.0,
            norm_eps: match (facts.layout.family, eps) {
                (Family::HuggingFace, Some(eps)) => eps,
                _ => VitConfig::default().norm_eps,
            },
        };
        config.validate().map_err(|error| Error::Config(format!("{origin}: {error}")))?;
        Ok(config)
    }

    /// The sizes that a checkpoint of this software says.
    fn written_sizes(&self) -> Result<Option<VitConfig>, Error> {
        let text = |key: &str| self.metadata.get(key).map(String::as_str);
        let (Some(stage), Some(config)) = (text("beit2.stage"), text("beit2.config")) else {
            return Ok(None);
        };
        let sizes = match stage {
            "pretrain" => serde_json::from_str::<MimConfig>(config).map(|config| config.vit),
            "tokenizer" => serde_json::from_str::<TokenizerConfig>(config).map(|config| config.encoder()),
            "finetune" => serde_json::from_str::<ClassifierConfig>(config).map(|config| config.vit),
            "segment" => serde_json::from_str::<SegmenterConfig>(config).map(|config| config.vit),
            _ => return Ok(None),
        };
        match sizes {
            Ok(sizes) => Ok(Some(sizes)),
            Err(error) => {
                config_error(format!("the configuration inside {} cannot be read: {error}", self.origin))
            }
        }
    }

    /// What of the file goes into a model with these sizes (docs/method.md §4.2): tables and positions resized, a shared table
    /// copied into the blocks, a head of another size left out.
    ///
    /// # Errors
    /// Sizes that differ in something that cannot be converted.
    pub fn plan(
        self,
        vit: &VitConfig,
        pooling: Pooling,
        classes: usize,
        options: &PlanOptions<'_>,
    ) -> Result<Plan, Error> {
        let origin = self.origin;
        plan(self.tensors, &target(vit, Some(pooling), classes), options)
            .map_err(|error| Error::Config(format!("{origin}: {error}")))
    }

    /// As [`StateFile::plan`], for a trunk that ends with its last block (segmentation): no final norm, no head. Of a
    /// tokenizer the encoder is taken, of a segmentation model the backbone; names are those of a trunk by itself.
    ///
    /// # Errors
    /// Sizes that differ in something that cannot be converted.
    pub fn plan_trunk(mut self, vit: &VitConfig, tables: TableResize) -> Result<Plan, Error> {
        if self.facts.layout.kind == Kind::Segmentation {
            let own = |name: String| name.strip_prefix("backbone.").map(str::to_owned).unwrap_or(name);
            self.tensors = self.tensors.into_iter().map(|(name, tensor)| (own(name), tensor)).collect();
        }
        let tokenizer_encoder = self.facts.layout.kind == Kind::Tokenizer;
        let options = PlanOptions { tokenizer_encoder, tables, ..PlanOptions::default() };
        let origin = self.origin;
        plan(self.tensors, &target(vit, None, 0), &options)
            .map_err(|error| Error::Config(format!("{origin}: {error}")))
    }
}

/// A Vision Transformer as the weights crate sees it.
fn target(vit: &VitConfig, pooling: Option<Pooling>, classes: usize) -> Target {
    Target {
        grid: vit.grid(),
        patch: vit.patch_size,
        channels: vit.in_chans,
        width: vit.width,
        heads: vit.heads,
        mlp_width: vit.mlp_hidden(),
        depth: vit.depth,
        classes,
        bias: match vit.rel_pos_bias {
            RelPosKind::None => RelativeBias::None,
            RelPosKind::Shared => RelativeBias::Shared,
            RelPosKind::PerBlock => RelativeBias::PerBlock,
        },
        abs_pos: vit.abs_pos_emb,
        pooling: pooling.map(|pooling| match pooling {
            Pooling::Mean => inspect::Pooling::Mean,
            Pooling::Cls => inspect::Pooling::Cls,
        }),
        layer_scale: vit.layer_scale_init > 0.0,
        qkv_bias: vit.qkv_bias,
    }
}

/// Tensors of a file for a model.
pub(crate) fn to_tensors(state: StateDict) -> Tensors {
    let convert = |tensor: FileTensor| {
        let (dtype, shape) = (dtype_of_file(tensor.dtype()), tensor.shape().to_vec());
        TensorData::from_bytes_vec(tensor.into_bytes(), shape, dtype)
    };
    state.into_iter().map(|(name, tensor)| (name, convert(tensor))).collect()
}

fn to_file_tensor(data: TensorData) -> Option<FileTensor> {
    use burn::tensor::DType as D;
    let dtype = match data.dtype {
        D::F64 => FileType::F64,
        D::F32 => FileType::F32,
        D::F16 => FileType::F16,
        D::BF16 => FileType::BF16,
        D::I64 => FileType::I64,
        D::I32 => FileType::I32,
        D::I16 => FileType::I16,
        D::I8 => FileType::I8,
        D::U8 => FileType::U8,
        _ => return None,
    };
    let shape = data.shape.to_vec();
    let bytes = data.bytes.try_into_vec::<u8>().unwrap_or_else(|bytes| bytes.to_vec());
    FileTensor::new(dtype, shape, bytes)
}
