//! The nodes of a Vision Transformer, as `vit/` computes it.

use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};

use super::graph::{Builder, Value};
use super::initializer::Values;
use super::proto::Attribute;
use crate::error::{Error, config_error};
use crate::vit::{PosResize, Trunk, relative_table_len, resize_pos_embed};

/// Sizes of a trunk, and where its parameters are.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    /// Before every name: empty, or `encoder.`.
    pub prefix: &'static str,
    pub width: usize,
    pub heads: usize,
    pub depth: usize,
    pub channels: usize,
    pub patch: usize,
    /// Patches along a side.
    pub grid: usize,
    /// ε of all norms.
    pub eps: f64,
}

impl Sizes {
    /// Of a trunk for images of `image_px`.
    pub fn of(trunk: &Trunk<Flex>, image_px: usize, prefix: &'static str) -> Result<Self, Error> {
        let [width, channels, patch, _] = trunk.patch_embed.proj.weight.dims();
        let Some(block) = trunk.blocks.first() else {
            return Err(Error::Config("a model without blocks has no ONNX graph".into()));
        };
        let (heads, eps) = (block.attn.heads(), block.norm1.eps());
        let (depth, grid) = (trunk.blocks.len(), image_px / patch);
        Ok(Self { prefix, width, heads, depth, channels, patch, grid, eps })
    }

    /// Patches N.
    pub fn patches(&self) -> usize {
        self.grid * self.grid
    }

    /// Side of the images in pixels.
    pub fn image_px(&self) -> usize {
        self.grid * self.patch
    }

    fn own(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Standardised images `[B, C, S, S]` → tokens `[B, N+1, D]`, CLS first; `mask [B, N]` is true where the mask token stands.
    ///
    /// # Errors
    /// A parameter that is missing or that the type of the weights does not hold; so of all methods.
    pub fn embed(&self, g: &mut Builder, images: &str, mask: Option<&str>) -> Result<Value, Error> {
        let (width, patches) = (self.width, self.patches());
        let at = |name: &str| self.own(&format!("patch_embed/{name}"));
        let side = self.patch as i64;
        let weight = g.weight(&self.own("patch_embed.proj.weight"))?;
        let bias = self.own("patch_embed.proj.bias");
        let bias = if g.has(&bias) { Some(g.exact(&bias)?) } else { None };
        let operands: Vec<&str> = [images, weight.as_str()].into_iter().chain(bias.as_deref()).collect();
        let strides =
            vec![Attribute::ints("kernel_shape", &[side, side]), Attribute::ints("strides", &[side, side])];
        let x = g.node("Conv", &at("proj/Conv"), &operands, strides);
        let shape = g.ints(&[0, width as i64, patches as i64]);
        let x = g.node("Reshape", &at("Reshape"), &[&x, &shape], Vec::new());
        let mut x = g.node("Transpose", &at("Transpose"), &[&x], vec![Attribute::ints("perm", &[0, 2, 1])]);
        if let Some(mask) = mask {
            let axis = g.ints(&[2]);
            let mask = g.node("Unsqueeze", &at("mask/Unsqueeze"), &[mask, &axis], Vec::new());
            let token = g.exact("mask_token")?;
            x = g.node("Where", &at("mask/Where"), &[&mask, &token, &x], Vec::new());
        }
        // One CLS token for each image.
        let cls = g.exact(&self.own("cls_token"))?;
        let shape = g.node("Shape", &at("cls/Shape"), &[&x], Vec::new());
        let first = g.ints(&[0]);
        let batch = g.node("Gather", &at("cls/Batch"), &[&shape, &first], vec![Attribute::int("axis", 0)]);
        let rest = g.ints(&[1, width as i64]);
        let shape = g.node("Concat", &at("cls/Concat"), &[&batch, &rest], vec![Attribute::int("axis", 0)]);
        let cls = g.node("Expand", &at("cls/Expand"), &[&cls, &shape], Vec::new());
        let x = g.node("Concat", &at("Concat"), &[&cls, &x], vec![Attribute::int("axis", 1)]);
        let positions = self.own("pos_embed");
        if !g.has(&positions) {
            return Ok(x);
        }
        let (shape, values) = g.take(&positions)?;
        let table = Tensor::<Flex, 3>::from_data(
            TensorData::new(values, shape),
            &burn::tensor::Device::<Flex>::default(),
        );
        let table = resize_pos_embed(table, self.grid, self.grid, PosResize::ByPaddedScale);
        let values = table.into_data().convert::<f32>().into_vec::<f32>().unwrap_or_default();
        let table = g.stored(&positions, &[1, patches + 1, width], Values::Plain(values), false)?;
        Ok(g.node("Add", &at("positions/Add"), &[&x, &table], Vec::new()))
    }

    /// The blocks `range` of the trunk.
    pub fn blocks(&self, g: &mut Builder, x: Value, range: std::ops::Range<usize>) -> Result<Value, Error> {
        range.into_iter().try_fold(x, |x, number| self.block(g, &self.own(&format!("blocks.{number}")), &x))
    }

    /// One block, `[B, T, D]` → `[B, T, D]`. Every matmul has the name of its layer.
    pub fn block(&self, g: &mut Builder, name: &str, x: &str) -> Result<Value, Error> {
        let at = |part: &str| format!("{name}/{part}");
        let y = self.norm(g, &format!("{name}.norm1"), x)?;
        let y = self.attention(g, &format!("{name}.attn"), &y)?;
        let y = scaled(g, &format!("{name}.gamma_1"), y)?;
        let x = g.node("Add", &at("attn/residual"), &[x, &y], Vec::new());
        let y = self.norm(g, &format!("{name}.norm2"), &x)?;
        let y = linear(g, &format!("{name}.mlp.fc1"), &y, false)?;
        let y = gelu(g, &at("mlp/gelu"), &y);
        let y = linear(g, &format!("{name}.mlp.fc2"), &y, false)?;
        let y = scaled(g, &format!("{name}.gamma_2"), y)?;
        Ok(g.node("Add", &at("mlp/residual"), &[&x, &y], Vec::new()))
    }

    fn attention(&self, g: &mut Builder, name: &str, x: &str) -> Result<Value, Error> {
        let at = |part: &str| format!("{name}/{part}");
        let (width, heads) = (self.width, self.heads);
        let weight = g.linear_weight(&format!("{name}.qkv.weight"), false)?;
        let mut qkv = g.node("MatMul", &at("qkv/MatMul"), &[x, &weight], Vec::new());
        let (q_bias, v_bias) = (format!("{name}.q_bias"), format!("{name}.v_bias"));
        if g.has(&q_bias) || g.has(&v_bias) {
            let (_, mut bias) = g.take(&q_bias)?;
            bias.resize(2 * width, 0.0); // keys have none
            bias.extend(g.take(&v_bias)?.1);
            let bias = g.floats(&format!("{name}.qkv.bias"), &[3 * width], bias);
            qkv = g.node("Add", &at("qkv/Add"), &[&qkv, &bias], Vec::new());
        }
        // [B, T, 3, H, D/H] → [3, B, H, T, D/H]
        let tokens = self.patches() + 1;
        let shape = g.ints(&[0, tokens as i64, 3, heads as i64, (width / heads) as i64]);
        let qkv = g.node("Reshape", &at("qkv/Reshape"), &[&qkv, &shape], Vec::new());
        let order = vec![Attribute::ints("perm", &[2, 0, 3, 1, 4])];
        let qkv = g.node("Transpose", &at("qkv/Transpose"), &[&qkv], order);
        let mut part = |number: i64, what: &str| {
            let number = g.index(number);
            g.node("Gather", &at(what), &[&qkv, &number], vec![Attribute::int("axis", 0)])
        };
        let (q, k, v) = (part(0, "q"), part(1, "k"), part(2, "v"));
        let scale = g.scalar(((width / heads) as f64).powf(-0.5) as f32);
        let q = g.node("Mul", &at("scale"), &[&q, &scale], Vec::new());
        let k = g.node("Transpose", &at("k/Transpose"), &[&k], vec![Attribute::ints("perm", &[0, 1, 3, 2])]);
        let mut logits = g.node("MatMul", &at("logits"), &[&q, &k], Vec::new());
        if let Some(bias) = self.position_bias(g, name)? {
            logits = g.node("Add", &at("position_bias"), &[&logits, &bias], Vec::new());
        }
        let weights = g.node("Softmax", &at("Softmax"), &[&logits], vec![Attribute::int("axis", -1)]);
        let y = g.node("MatMul", &at("values"), &[&weights, &v], Vec::new());
        let y = g.node("Transpose", &at("join"), &[&y], vec![Attribute::ints("perm", &[0, 2, 1, 3])]);
        let shape = g.ints(&[0, tokens as i64, width as i64]);
        let y = g.node("Reshape", &at("join/Reshape"), &[&y, &shape], Vec::new());
        linear(g, &format!("{name}.proj"), &y, false)
    }

    /// What is added to the logits of an attention, `[1, H, T, T]`: the block's own table, the shared one, or their sum, spread
    /// over the pairs of tokens.
    fn position_bias(&self, g: &mut Builder, attention: &str) -> Result<Option<Value>, Error> {
        const TABLE: &str = "relative_position_bias_table";
        let shared = self.own("rel_pos_bias.relative_position_bias");
        let own = format!("{attention}.{TABLE}");
        let (own, has_shared) =
            (g.has(&own).then_some(own), g.has(&format!("{shared}_table")) || g.has(&shared));
        if own.is_none() && !has_shared {
            return Ok(None);
        }
        let tokens = self.patches() + 1;
        let shape = [1, self.heads, tokens, tokens];
        if has_shared && g.known(&shared).is_none() {
            let biases = self.spread(g, &format!("{shared}_table"))?;
            g.stored(&shared, &shape, biases, false)?;
        }
        let shared = if has_shared { g.known(&shared) } else { None };
        let Some(own) = own else { return Ok(shared) };
        let biases = self.spread(g, &own)?;
        let own = g.stored(&format!("{attention}.relative_position_bias"), &shape, biases, false)?;
        Ok(Some(match shared {
            None => own,
            Some(shared) => {
                g.node("Add", &format!("{attention}/position_biases"), &[&own, &shared], Vec::new())
            }
        }))
    }

    /// A table `[rows, H]` as values `[H, T, T]`.
    fn spread(&self, g: &mut Builder, table: &str) -> Result<Values, Error> {
        let (shape, values) = g.take(table)?;
        let (grid, heads) = (self.grid, self.heads);
        let expected = [relative_table_len(grid, grid), heads];
        if shape != expected {
            return config_error(format!(
                "`{table}` has shape {shape:?}; a grid of {grid} needs {expected:?}"
            ));
        }
        Ok(Values::Spread { table: values, grid, heads })
    }

    /// A layer norm over the last axis, with its parameters' names under `name`.
    pub fn norm(&self, g: &mut Builder, name: &str, x: &str) -> Result<Value, Error> {
        self.norm_as(g, name, name, x)
    }

    /// [`Sizes::norm`] in a node of another name, for a norm that is used more than once.
    pub fn norm_as(&self, g: &mut Builder, name: &str, node: &str, x: &str) -> Result<Value, Error> {
        let (weight, bias) = (g.exact(&format!("{name}.weight"))?, g.exact(&format!("{name}.bias"))?);
        let attributes = vec![Attribute::int("axis", -1), Attribute::float("epsilon", self.eps as f32)];
        let node = format!("{node}/LayerNormalization");
        Ok(g.node("LayerNormalization", &node, &[x, &weight, &bias], attributes))
    }

    /// The patch tokens `[B, N, D]` of `[B, N+1, D]`.
    pub fn patch_tokens(&self, g: &mut Builder, name: &str, x: &str) -> Value {
        let (from, to, axis) = (g.ints(&[1]), g.ints(&[self.patches() as i64 + 1]), g.ints(&[1]));
        g.node("Slice", &format!("{name}/patches"), &[x, &from, &to, &axis], Vec::new())
    }

    /// The CLS token `[B, D]` of `[B, N+1, D]`.
    pub fn cls(&self, g: &mut Builder, name: &str, x: &str) -> Value {
        let first = g.index(0);
        g.node("Gather", &format!("{name}/cls"), &[x, &first], vec![Attribute::int("axis", 1)])
    }

    /// The mean `[B, D]` of patch tokens `[B, N, D]`.
    pub fn mean(&self, g: &mut Builder, name: &str, patches: &str) -> Value {
        let attributes = vec![Attribute::ints("axes", &[1]), Attribute::int("keepdims", 0)];
        g.node("ReduceMean", &format!("{name}/mean"), &[patches], attributes)
    }
}

/// `x·Wᵀ + b`, with or without b.
///
/// # Errors
/// As [`Builder::linear_weight`].
pub(super) fn linear(g: &mut Builder, name: &str, x: &str, exact: bool) -> Result<Value, Error> {
    linear_as(g, name, name, x, exact)
}

/// [`linear`] in nodes of another name, for a layer that is used more than once.
///
/// # Errors
/// As [`Builder::linear_weight`].
pub(super) fn linear_as(
    g: &mut Builder,
    name: &str,
    node: &str,
    x: &str,
    exact: bool,
) -> Result<Value, Error> {
    let weight = g.linear_weight(&format!("{name}.weight"), exact)?;
    let y = g.node("MatMul", &format!("{node}/MatMul"), &[x, &weight], Vec::new());
    let bias = format!("{name}.bias");
    if !g.has(&bias) {
        return Ok(y);
    }
    let bias = g.exact(&bias)?;
    Ok(g.node("Add", &format!("{node}/Add"), &[&y, &bias], Vec::new()))
}

/// γ⊙x, of models with layer scale.
fn scaled(g: &mut Builder, name: &str, x: Value) -> Result<Value, Error> {
    if !g.has(name) {
        return Ok(x);
    }
    let gamma = g.exact(name)?;
    Ok(g.node("Mul", &format!("{name}/Mul"), &[&x, &gamma], Vec::new()))
}

/// The exact GELU in the form that runtimes recognise: x/√2 → erf → +1 → ·x → ·½. (The operator `Gelu` needs opset 20.)
fn gelu(g: &mut Builder, name: &str, x: &str) -> Value {
    let at = |part: &str| format!("{name}/{part}");
    let (root, one, half) = (g.scalar(std::f32::consts::SQRT_2), g.scalar(1.0), g.scalar(0.5));
    let y = g.node("Div", &at("Div"), &[x, &root], Vec::new());
    let y = g.node("Erf", &at("Erf"), &[&y], Vec::new());
    let y = g.node("Add", &at("Add"), &[&y, &one], Vec::new());
    let y = g.node("Mul", &at("Mul"), &[x, &y], Vec::new());
    g.node("Mul", &at("Half"), &[&y, &half], Vec::new())
}
