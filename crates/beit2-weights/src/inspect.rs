//! What a state dict tells about its model: sizes, positions, heads, parameters.
//!
//! Only names, types and shapes are looked at, so inspecting a file of gigabytes reads its header (and one block of a
//! segmentation model written for Hugging Face).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use indexmap::IndexMap;

use crate::convert::{HF_SEGMENTATION, spare};
use crate::layout::{Account, Fate, Kind, Layout, LayoutError, account, wrong_shape};
use crate::resize::table_grid;
use crate::sidecar::Sizes;
use crate::tensor::DType;
use crate::write::TensorSource;

/// Where the relative position bias comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelativeBias {
    /// There is none.
    None,
    /// One table for all blocks (pretraining).
    Shared,
    /// A table in every block (fine-tuning).
    PerBlock,
}

/// What the trunk gives as the image's feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of the patch tokens, then `fc_norm`.
    Mean,
    /// `norm` on all tokens, then the CLS token (or, in pretraining, the masked patches).
    Cls,
}

/// The patch aggregation head of pretraining (docs/method.md §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchAggregation {
    /// How many blocks it has (`cls_pt_layers`).
    pub head_layers: usize,
    /// Whether it uses the trunk's `norm` and `lm_head`.
    pub shared_lm_head: bool,
    /// After which block, counted from 1, it takes the patch tokens. Weights do not tell: this is the published choice for
    /// this depth (9 of 12, 21 of 24), `None` for other depths, unless [`ModelSummary::with_metadata`] has read it.
    pub intermediate_layer: Option<usize>,
}

/// What a tokenizer has besides its encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenizerSummary {
    /// Codes in the codebook.
    pub codebook_size: usize,
    /// Width of a code.
    pub code_dim: usize,
    /// Blocks of the decoder.
    pub decoder_depth: usize,
    /// Width of the decoder.
    pub decoder_width: usize,
    /// Width of the teacher's features: 512 for CLIP ViT-B/16, 768 for DINO ViT-B/16.
    pub teacher_dim: usize,
}

/// What a model is. For a tokenizer the trunk is its encoder, for a segmentation model its backbone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSummary {
    /// Whose names, and which model.
    pub layout: Layout,
    /// Blocks of the trunk.
    pub depth: usize,
    /// Width D of a token.
    pub width: usize,
    /// Attention heads; `None` without relative position bias, as nothing else shows them.
    pub heads: Option<usize>,
    /// Width of the hidden layer of the MLP.
    pub mlp_width: usize,
    /// Image channels.
    pub channels: usize,
    /// Patch side in pixels.
    pub patch: usize,
    /// Patches per image side, from the bias table or the position embedding; `None` when there is neither.
    pub grid: Option<usize>,
    /// The relative position bias.
    pub bias: RelativeBias,
    /// Whether there is an absolute position embedding.
    pub abs_pos: bool,
    /// Whether the blocks have layer scale (`gamma_1`, `gamma_2`).
    pub layer_scale: bool,
    /// Whether attention has query and value biases.
    pub qkv_bias: bool,
    /// What is pooled; `None` when there is no final norm (segmentation).
    pub pooling: Option<Pooling>,
    /// Classes of the classification or segmentation head.
    pub classes: Option<usize>,
    /// Whether there is a mask token.
    pub mask_token: bool,
    /// Classes of `lm_head`: codes of the tokenizer.
    pub vocab_size: Option<usize>,
    /// The patch aggregation head.
    pub patch_aggregation: Option<PatchAggregation>,
    /// The tokenizer's other parts.
    pub tokenizer: Option<TokenizerSummary>,
    /// Parameters that are learned, as docs/method.md §10.1 counts them: no codebook, no batch statistics, no index buffers, no teacher.
    pub parameters: u64,
    /// Element types of the used tensors, with how many tensors have them.
    pub dtypes: Vec<(DType, usize)>,
}

impl ModelSummary {
    /// Image side in pixels.
    pub fn image_px(&self) -> Option<usize> {
        self.grid?.checked_mul(self.patch)
    }

    /// With what a file of this software says in its metadata and tensors do not show: heads, the image size, and after which
    /// block the patch aggregation head takes its tokens.
    #[must_use]
    pub fn with_metadata(mut self, metadata: &BTreeMap<String, String>) -> Self {
        let text = metadata.get("beit2.config").map_or("", String::as_str);
        let Ok(config) = serde_json::from_str::<serde_json::Value>(text) else { return self };
        let count = |value: &serde_json::Value| usize::try_from(value.as_u64()?).ok();
        if let (Some(head), Some(layer)) = (&mut self.patch_aggregation, count(&config["intermediate_layer"]))
        {
            head.intermediate_layer = Some(layer);
        }
        let of_trunk = |name: &str| count(&config["vit"][name]).or_else(|| count(&config[name]));
        self.heads = self.heads.or(of_trunk("heads"));
        self.with_image_px(of_trunk("image_size"))
    }

    /// With what the files beside the weights say and tensors do not show.
    #[must_use]
    pub fn with_sizes(mut self, sizes: &Sizes) -> Self {
        self.heads = self.heads.or(sizes.heads);
        self.with_image_px(sizes.image_px)
    }

    fn with_image_px(mut self, side: Option<usize>) -> Self {
        let whole = |side: &usize| self.patch > 0 && side.is_multiple_of(self.patch);
        self.grid = self.grid.or(side.filter(whole).map(|side| side / self.patch));
        self
    }

    /// How the configuration that a file of this software carries contradicts its tensors, as a sentence.
    #[must_use]
    pub fn contradiction(&self, metadata: &BTreeMap<String, String>) -> Option<String> {
        let text = metadata.get("beit2.config").map_or("", String::as_str);
        let config: serde_json::Value = serde_json::from_str(text).ok()?;
        let classes = self.classes?;
        let said = config["classes"].as_u64().map(|count| count as usize);
        let names = config["class_names"].as_array().map(Vec::len).filter(|&count| count > 0);
        let other = said.or(names).filter(|&other| other != classes)?;
        Some(format!(
            "its head has {classes} classes, but its configuration has {other}; the head and the configuration are of different models"
        ))
    }
}

/// Summarises a state dict.
///
/// # Errors
/// What [`account`] says about its names; a missing tensor; a shape that contradicts another one.
pub fn inspect<T: TensorSource>(tensors: &IndexMap<String, T>) -> Result<ModelSummary, LayoutError> {
    let account = account(tensors.keys().map(String::as_str))?;
    let shapes = canonical_shapes(tensors, &account)?;
    summarize(&account, &shapes)
}

/// The block of zeros that a segmentation model written for Hugging Face has at its end is not part of the model.
fn leave_spare_block_out<T: TensorSource>(
    tensors: &IndexMap<String, T>,
    account: &Account,
    shapes: &mut Shapes,
) -> Result<(), LayoutError> {
    let spare = spare::last_block(shapes.keys().map(String::as_str));
    for (entry, tensor) in account.entries.iter().zip(tensors.values()) {
        if let Fate::Used { canonical, .. } | Fate::Joined { canonical, .. } = &entry.fate
            && canonical.starts_with(&spare)
            && !spare::is_zero(tensor)
        {
            return Err(spare::foreign());
        }
    }
    shapes.retain(|name, _| !name.starts_with(&spare));
    Ok(())
}

/// Types and shapes by canonical name.
pub(crate) type Shapes = IndexMap<String, (DType, Vec<usize>)>;

pub(crate) fn canonical_shapes<T: TensorSource>(
    tensors: &IndexMap<String, T>,
    account: &Account,
) -> Result<Shapes, LayoutError> {
    let mut shapes = Shapes::new();
    let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
    for (entry, (key, tensor)) in account.entries.iter().zip(tensors) {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        match &entry.fate {
            Fate::Used { canonical, .. } => {
                shapes.insert(canonical.clone(), (dtype, shape.to_vec()));
            }
            Fate::Joined { canonical, .. } => {
                let &[rows, columns] = shape else {
                    return Err(wrong_shape(key, shape, "two dimensions"));
                };
                *parts.entry(canonical).or_default() += 1;
                let whole = shapes.entry(canonical.clone()).or_insert((dtype, vec![0, columns]));
                if whole.1[1] != columns {
                    return Err(wrong_shape(key, shape, format!("{} columns like its siblings", whole.1[1])));
                }
                whole.1[0] = whole.1[0].saturating_add(rows);
            }
            Fate::Derived(_) | Fate::Ignored(_) => {}
        }
    }
    match parts.iter().find(|(_, count)| **count != 3) {
        Some((canonical, _)) => Err(LayoutError::Missing {
            key: "a query, key or value weight".to_string(),
            needed_by: format!("`{canonical}` is made of the three"),
        }),
        None => {
            if account.layout == HF_SEGMENTATION {
                leave_spare_block_out(tensors, account, &mut shapes)?;
            }
            Ok(shapes)
        }
    }
}

/// Looks up shapes under a prefix.
struct Trunk<'a> {
    shapes: &'a Shapes,
    prefix: &'static str,
}

impl Trunk<'_> {
    fn has(&self, name: &str) -> bool {
        self.shapes.contains_key(&format!("{}{name}", self.prefix))
    }

    /// The dimensions of a tensor that must be there.
    fn dims<const N: usize>(&self, name: &str) -> Result<[usize; N], LayoutError> {
        let key = format!("{}{name}", self.prefix);
        let Some((_, shape)) = self.shapes.get(&key) else {
            return Err(LayoutError::Missing {
                key,
                needed_by: "every model of this kind has it".to_string(),
            });
        };
        <[usize; N]>::try_from(shape.as_slice())
            .map_err(|_| wrong_shape(&key, shape, format!("{N} dimensions")))
    }

    /// The dimensions of a tensor that may be there.
    fn optional<const N: usize>(&self, name: &str) -> Result<Option<[usize; N]>, LayoutError> {
        if self.has(name) { self.dims(name).map(Some) } else { Ok(None) }
    }

    /// The number of `list.0 … list.n`, all with the same tensors.
    fn count(&self, list: &str) -> Result<usize, LayoutError> {
        let start = format!("{}{list}.", self.prefix);
        let mut fields: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
        for name in self.shapes.keys() {
            let Some((number, field)) = name.strip_prefix(&start).and_then(|rest| rest.split_once('.'))
            else {
                continue;
            };
            // Names were matched against `{n}`, so numbers are short.
            if let Ok(number) = number.parse() {
                fields.entry(number).or_default().insert(field);
            }
        }
        let first = fields.values().next().cloned().unwrap_or_default();
        for (expected, (number, own)) in fields.iter().enumerate() {
            let missing = if *number != expected {
                Some((expected, first.first().copied().unwrap_or_default()))
            } else {
                first
                    .symmetric_difference(own)
                    .next()
                    .map(|field| (if own.contains(field) { 0 } else { *number }, *field))
            };
            if let Some((number, field)) = missing {
                let key = format!("{start}{number}.{field}");
                return Err(LayoutError::Missing { key, needed_by: "other layers have it".to_string() });
            }
        }
        Ok(fields.len())
    }
}

/// Summarises canonical names and shapes.
pub(crate) fn summarize(account: &Account, shapes: &Shapes) -> Result<ModelSummary, LayoutError> {
    let kind = account.layout.kind;
    let trunk = Trunk {
        shapes,
        prefix: match kind {
            Kind::Tokenizer => "encoder.",
            Kind::Segmentation => "backbone.",
            _ => "",
        },
    };
    let [width, channels, patch, patch_width] = trunk.dims("patch_embed.proj.weight")?;
    if patch != patch_width {
        let shape = [width, channels, patch, patch_width];
        return Err(wrong_shape("patch_embed.proj.weight", &shape, "square patches"));
    }
    let depth = trunk.count("blocks")?;
    let [mlp_width, _] = trunk.dims("blocks.0.mlp.fc1.weight")?;
    let shared = trunk.optional::<2>("rel_pos_bias.relative_position_bias_table")?;
    let own = trunk.optional::<2>("blocks.0.attn.relative_position_bias_table")?;
    let pos_embed = trunk.optional::<3>("pos_embed")?;
    let grid = match (own.or(shared), pos_embed) {
        (Some([rows, _]), _) => table_grid(rows),
        (None, Some([_, tokens, _])) => {
            let side = tokens.saturating_sub(1).isqrt();
            (side > 0 && side * side + 1 == tokens).then_some(side)
        }
        (None, None) => None,
    };
    Ok(ModelSummary {
        layout: account.layout,
        depth,
        width,
        heads: own.or(shared).map(|[_, heads]| heads),
        mlp_width,
        channels,
        patch,
        grid,
        bias: match (own, shared) {
            (Some(_), _) => RelativeBias::PerBlock,
            (None, Some(_)) => RelativeBias::Shared,
            (None, None) => RelativeBias::None,
        },
        abs_pos: pos_embed.is_some(),
        layer_scale: trunk.has("blocks.0.gamma_1"),
        qkv_bias: trunk.has("blocks.0.attn.q_bias"),
        pooling: match (trunk.has("fc_norm.weight"), trunk.has("norm.weight")) {
            (true, _) => Some(Pooling::Mean),
            (false, true) => Some(Pooling::Cls),
            (false, false) => None,
        },
        classes: match kind {
            Kind::Segmentation => {
                let whole = Trunk { shapes, prefix: "" };
                whole.optional::<4>("decode_head.conv_seg.weight")?.map(|[classes, ..]| classes)
            }
            _ => trunk.optional::<2>("head.weight")?.map(|[classes, _]| classes),
        },
        mask_token: trunk.has("mask_token"),
        vocab_size: trunk.optional::<2>("lm_head.weight")?.map(|[codes, _]| codes),
        patch_aggregation: patch_aggregation(&trunk, depth)?,
        tokenizer: if kind == Kind::Tokenizer { Some(tokenizer(shapes)?) } else { None },
        parameters: parameters(account, shapes),
        dtypes: dtypes(shapes),
    })
}

fn patch_aggregation(trunk: &Trunk<'_>, depth: usize) -> Result<Option<PatchAggregation>, LayoutError> {
    let head_layers = trunk.count("cls_pt_layers")?;
    Ok((head_layers > 0).then(|| PatchAggregation {
        head_layers,
        shared_lm_head: !trunk.has("cls_pt_lm_head.weight"),
        intermediate_layer: match depth {
            12 => Some(9),
            24 => Some(21),
            _ => None,
        },
    }))
}

fn tokenizer(shapes: &Shapes) -> Result<TokenizerSummary, LayoutError> {
    let whole = Trunk { shapes, prefix: "" };
    let [codebook_size, code_dim] = whole.dims("quantize.embedding.weight")?;
    let [teacher_dim, _] = whole.dims("decode_task_layer.2.weight")?;
    let [_, _, decoder_width] = whole.dims("decoder.cls_token")?;
    let decoder_depth = whole.count("decoder.blocks")?;
    Ok(TokenizerSummary { codebook_size, code_dim, decoder_depth, decoder_width, teacher_dim })
}

fn parameters(account: &Account, shapes: &Shapes) -> u64 {
    let states: BTreeSet<&str> = account
        .entries
        .iter()
        .filter_map(|entry| match &entry.fate {
            Fate::Used { canonical, parameter: false } => Some(canonical.as_str()),
            _ => None,
        })
        .collect();
    let counted = shapes.iter().filter(|(name, _)| !states.contains(name.as_str()));
    counted.fold(0, |sum: u64, (_, (_, shape))| {
        sum.saturating_add(shape.iter().fold(1, |all: u64, &dim| all.saturating_mul(dim as u64)))
    })
}

fn dtypes(shapes: &Shapes) -> Vec<(DType, usize)> {
    let mut counts: IndexMap<DType, usize> = IndexMap::new();
    for (dtype, _) in shapes.values() {
        *counts.entry(*dtype).or_default() += 1;
    }
    counts.into_iter().collect()
}

impl fmt::Display for ModelSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = |value: Option<usize>| value.map_or("unknown".to_string(), |value| value.to_string());
        let mut line = |name: &str, text: String| writeln!(f, "{name:<12} {text}");
        line("layout", self.layout.to_string())?;
        line("trunk", format!("{} blocks of width {}, MLP {}", self.depth, self.width, self.mlp_width))?;
        line("heads", unknown(self.heads))?;
        let grid = unknown(self.grid);
        line("image", format!("{} px, patch {}, grid {grid}×{grid}", unknown(self.image_px()), self.patch))?;
        let bias = match self.bias {
            RelativeBias::None => "no relative bias",
            RelativeBias::Shared => "one relative bias table for all blocks",
            RelativeBias::PerBlock => "a relative bias table per block",
        };
        let absolute = if self.abs_pos { "absolute embedding" } else { "no absolute embedding" };
        line("position", format!("{bias}, {absolute}"))?;
        let yes_no = |yes| if yes { "yes" } else { "no" };
        line("layer scale", yes_no(self.layer_scale).to_string())?;
        line("qkv bias", yes_no(self.qkv_bias).to_string())?;
        match self.pooling {
            Some(Pooling::Mean) => line("pooling", "mean of the patches (fc_norm)".to_string())?,
            Some(Pooling::Cls) => line("pooling", "CLS token (norm)".to_string())?,
            None => {}
        }
        if let Some(classes) = self.classes {
            line("classes", classes.to_string())?;
        }
        if let Some(codes) = self.vocab_size {
            line("vocabulary", codes.to_string())?;
        }
        if let Some(PatchAggregation { head_layers, shared_lm_head, intermediate_layer }) =
            self.patch_aggregation
        {
            let head = if shared_lm_head { "shared" } else { "own" };
            let block = unknown(intermediate_layer);
            line("aggregation", format!("{head_layers} layers after block {block}, {head} norm and head"))?;
        }
        if let Some(tokenizer) = self.tokenizer {
            let TokenizerSummary { codebook_size, code_dim, decoder_depth, decoder_width, teacher_dim } =
                tokenizer;
            line("codebook", format!("{codebook_size} codes of width {code_dim}"))?;
            line(
                "decoder",
                format!(
                    "{decoder_depth} blocks of width {decoder_width} to teacher features of {teacher_dim}"
                ),
            )?;
        }
        line("parameters", self.parameters.to_string())?;
        let types: Vec<String> = self.dtypes.iter().map(|(dtype, n)| format!("{dtype} ({n})")).collect();
        line("dtypes", types.join(", "))
    }
}
