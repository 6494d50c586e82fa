//! The operators that our graphs use, as the specification defines them (opset 17), in f64 and without any haste.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{DType, TensorData};

use super::file::{Model, Node, Tensor as Stored};

/// A tensor of any type: f64 holds all the integers that occur.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

impl Array {
    pub fn new(shape: &[usize], values: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{shape:?}");
        Self { shape: shape.to_vec(), values }
    }

    fn ints(&self) -> Vec<i64> {
        self.values.iter().map(|&value| value as i64).collect()
    }

    /// Sizes before, along and after an axis.
    fn around(&self, axis: usize) -> [usize; 3] {
        let product = |sizes: &[usize]| sizes.iter().product();
        [product(&self.shape[..axis]), self.shape[axis], product(&self.shape[axis + 1..])]
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self { shape: self.shape.clone(), values: self.values.iter().map(|&value| f(value)).collect() }
    }

    /// Repeated along axes of size 1, and along new ones in front.
    fn expand(&self, shape: &[usize]) -> Self {
        let lead = shape.len() - self.shape.len();
        let mut strides = vec![0; shape.len()];
        let mut stride = 1;
        for axis in (0..self.shape.len()).rev() {
            let size = self.shape[axis];
            assert!(size == 1 || size == shape[lead + axis], "{:?} to {shape:?}", self.shape);
            strides[lead + axis] = if size == 1 { 0 } else { stride };
            stride *= size;
        }
        let values = positions(shape).map(|at| self.values[dot(&at, &strides)]).collect();
        Self { shape: shape.to_vec(), values }
    }
}

fn dot(at: &[usize], strides: &[usize]) -> usize {
    at.iter().zip(strides).map(|(at, stride)| at * stride).sum()
}

/// All positions of a shape, the last axis fastest.
fn positions(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> + '_ {
    (0..shape.iter().product()).map(move |mut flat: usize| {
        let mut at = vec![0; shape.len()];
        for axis in (0..shape.len()).rev() {
            at[axis] = flat % shape[axis];
            flat /= shape[axis];
        }
        at
    })
}

fn common(one: &[usize], other: &[usize]) -> Vec<usize> {
    let axes = one.len().max(other.len());
    let size =
        |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(axes).map_or(1, |at| shape[at]);
    let join = |axis| match (size(one, axis), size(other, axis)) {
        (1, size) | (size, 1) => size,
        (one, other) => {
            assert_eq!(one, other, "sizes of axis {axis}");
            one
        }
    };
    (0..axes).map(join).collect()
}

fn both(one: &Array, other: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
    let shape = common(&one.shape, &other.shape);
    let (one, other) = (one.expand(&shape), other.expand(&shape));
    Array { shape, values: one.values.iter().zip(&other.values).map(|(&a, &b)| f(a, b)).collect() }
}

/// A stored tensor; of those in another file `outside` holds the bytes.
pub fn stored(tensor: &Stored, outside: Option<&[u8]>) -> Array {
    let shape: Vec<usize> = tensor.dims.iter().map(|&size| size as usize).collect();
    let bytes = match tensor.data_location {
        None => tensor.raw_data.clone(),
        Some(1) => {
            let entry = |key: &str| {
                let found = tensor.external_data.iter().find(|entry| entry.key == key);
                found.unwrap().value.clone()
            };
            let [offset, length] = ["offset", "length"].map(|key| entry(key).parse::<usize>().unwrap());
            assert_eq!(entry("location"), "m.onnx.data");
            assert_eq!(offset % 4096, 0, "readers map pages");
            outside.unwrap()[offset..offset + length].to_vec()
        }
        Some(other) => panic!("a data location of {other}"),
    };
    let dtype = match tensor.data_type {
        1 => DType::F32,
        7 => DType::I64,
        10 => DType::F16,
        16 => DType::BF16,
        other => panic!("{}: a data type of {other}", tensor.name),
    };
    let values = TensorData::from_bytes_vec(bytes, shape.clone(), dtype).iter::<f64>().collect();
    Array::new(&shape, values)
}

/// Runs a graph; checks that every value is there before it is read, and has one source.
pub fn run(
    model: &Model,
    outside: Option<&[u8]>,
    inputs: &BTreeMap<String, Array>,
) -> BTreeMap<String, Array> {
    let graph = model.graph();
    let mut values = inputs.clone();
    for tensor in &graph.initializer {
        let before = values.insert(tensor.name.clone(), stored(tensor, outside));
        assert!(before.is_none(), "{} is there twice", tensor.name);
    }
    let mut names = BTreeSet::new();
    for node in &graph.node {
        assert!(names.insert(&node.name), "two nodes are called {}", node.name);
        let of = |name: &String| values.get(name).unwrap_or_else(|| panic!("{}: no {name} yet", node.name));
        let inputs: Vec<&Array> = node.input.iter().map(of).collect();
        let result = compute(node, &inputs);
        let [output] = &node.output[..] else { panic!("{} has several outputs", node.name) };
        assert!(values.insert(output.clone(), result).is_none(), "{output} is there twice");
    }
    graph.output.iter().map(|output| (output.name.clone(), values.remove(&output.name).unwrap())).collect()
}

fn compute(node: &Node, x: &[&Array]) -> Array {
    match node.op_type.as_str() {
        "Identity" => x[0].clone(),
        // Types with fewer bits are exact in f64.
        "Cast" => {
            assert_eq!(node.int("to"), 1);
            x[0].clone()
        }
        "Add" => both(x[0], x[1], |a, b| a + b),
        "Sub" => both(x[0], x[1], |a, b| a - b),
        "Mul" => both(x[0], x[1], |a, b| a * b),
        "Div" => both(x[0], x[1], |a, b| a / b),
        "Tanh" => x[0].map(f64::tanh),
        "Erf" => x[0].map(libm::erf),
        "Softmax" => {
            assert_eq!(node.int("axis"), -1);
            rows(x[0], |row| {
                let largest = row.iter().copied().fold(f64::MIN, f64::max);
                let exps: Vec<f64> = row.iter().map(|value| (value - largest).exp()).collect();
                let sum: f64 = exps.iter().sum();
                exps.into_iter().map(|value| value / sum).collect()
            })
        }
        "LayerNormalization" => {
            assert_eq!(node.int("axis"), -1);
            let eps = node.float("epsilon");
            let normed = rows(x[0], |row| {
                let count = row.len() as f64;
                let mean = row.iter().sum::<f64>() / count;
                let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
                row.iter().map(|value| (value - mean) / (variance + eps).sqrt()).collect()
            });
            both(&both(&normed, x[1], |a, b| a * b), x[2], |a, b| a + b)
        }
        "MatMul" => matmul(x[0], x[1]),
        "Conv" => conv(node, x),
        "Reshape" => {
            let sizes = x[1].ints().into_iter().enumerate();
            let shape = sizes.map(|(axis, size)| match size {
                0 => x[0].shape[axis],
                size => usize::try_from(size).unwrap(),
            });
            Array::new(&shape.collect::<Vec<_>>(), x[0].values.clone())
        }
        "Transpose" => transpose(x[0], &node.ints("perm")),
        "Unsqueeze" => {
            let mut shape = x[0].shape.clone();
            x[1].ints().into_iter().for_each(|axis| shape.insert(axis as usize, 1));
            Array::new(&shape, x[0].values.clone())
        }
        "Where" => {
            let shape = common(&common(&x[0].shape, &x[1].shape), &x[2].shape);
            let [mask, yes, no] = [0, 1, 2].map(|at| x[at].expand(&shape));
            let choose = |at: usize| if mask.values[at] != 0.0 { yes.values[at] } else { no.values[at] };
            Array::new(&shape, (0..mask.values.len()).map(choose).collect())
        }
        "Shape" => {
            let sizes: Vec<f64> = x[0].shape.iter().map(|&size| size as f64).collect();
            Array::new(&[sizes.len()], sizes)
        }
        "Expand" => {
            let shape: Vec<usize> = x[1].ints().iter().map(|&size| size as usize).collect();
            x[0].expand(&shape)
        }
        "Gather" => gather(x[0], x[1], node.int("axis") as usize),
        "Concat" => concat(x, node.int("axis") as usize),
        "Slice" => {
            let [from, to, axis] = [1, 2, 3].map(|at| x[at].ints()[0] as usize);
            let kept: Vec<f64> = (from..to.min(x[0].shape[axis])).map(|at| at as f64).collect();
            gather(x[0], &Array::new(&[kept.len()], kept), axis)
        }
        "ReduceMean" => {
            assert_eq!((node.ints("axes"), node.int("keepdims")), (vec![1], 0));
            let [outer, size, inner] = x[0].around(1);
            let mean = |at: usize| {
                let (o, i) = (at / inner, at % inner);
                (0..size).map(|s| x[0].values[(o * size + s) * inner + i]).sum::<f64>() / size as f64
            };
            let mut shape = x[0].shape.clone();
            shape.remove(1);
            Array::new(&shape, (0..outer * inner).map(mean).collect())
        }
        "ArgMax" => {
            assert_eq!((node.int("axis"), node.int("keepdims")), (-1, 0));
            let (width, shape) = x[0].shape.split_last().unwrap();
            let first =
                |row: &[f64]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as f64;
            Array::new(shape, x[0].values.chunks(*width).map(first).collect())
        }
        other => panic!("{}: the operator {other} is not expected here", node.name),
    }
}

fn rows(x: &Array, f: impl Fn(&[f64]) -> Vec<f64>) -> Array {
    let width = *x.shape.last().unwrap();
    Array { shape: x.shape.clone(), values: x.values.chunks(width).flat_map(f).collect() }
}

fn transpose(x: &Array, order: &[i64]) -> Array {
    let order: Vec<usize> = order.iter().map(|&axis| axis as usize).collect();
    let mut strides = vec![1; x.shape.len()];
    (0..x.shape.len() - 1).rev().for_each(|axis| strides[axis] = strides[axis + 1] * x.shape[axis + 1]);
    let shape: Vec<usize> = order.iter().map(|&axis| x.shape[axis]).collect();
    let strides: Vec<usize> = order.iter().map(|&axis| strides[axis]).collect();
    let values = positions(&shape).map(|at| x.values[dot(&at, &strides)]).collect();
    Array { shape, values }
}

fn matmul(a: &Array, b: &Array) -> Array {
    let ([.., m, k], [.., k2, n]) = (&a.shape[..], &b.shape[..]) else {
        panic!("{:?} {:?}", a.shape, b.shape)
    };
    let (m, k, n) = (*m, *k, *n);
    assert_eq!(k, *k2, "{:?} by {:?}", a.shape, b.shape);
    let batch = common(&a.shape[..a.shape.len() - 2], &b.shape[..b.shape.len() - 2]);
    let a = a.expand(&[&batch[..], &[m, k]].concat());
    let b = b.expand(&[&batch[..], &[k, n]].concat());
    let mut values = Vec::new();
    for (a, b) in a.values.chunks(m * k).zip(b.values.chunks(k * n)) {
        for row in a.chunks(k) {
            values.extend((0..n).map(|column| (0..k).map(|at| row[at] * b[at * n + column]).sum::<f64>()));
        }
    }
    Array::new(&[&batch[..], &[m, n]].concat(), values)
}

/// Patches that do not overlap.
fn conv(node: &Node, x: &[&Array]) -> Array {
    let ([batch, channels, height, width], [filters, inputs, rows, columns]) =
        (&x[0].shape[..], &x[1].shape[..])
    else {
        panic!("{}: {:?} {:?}", node.name, x[0].shape, x[1].shape)
    };
    let side = vec![*rows as i64, *columns as i64];
    assert_eq!((node.ints("kernel_shape"), node.ints("strides"), inputs), (side.clone(), side, channels));
    let (down, across) = (height / rows, width / columns);
    let mut values = Vec::new();
    for at in positions(&[*batch, *filters, down, across]) {
        let mut sum = x.get(2).map_or(0.0, |bias| bias.values[at[1]]);
        for part in positions(&[*channels, *rows, *columns]) {
            let (y, x_at) = (at[2] * rows + part[1], at[3] * columns + part[2]);
            sum += x[0].values[((at[0] * channels + part[0]) * height + y) * width + x_at]
                * x[1].values[((at[1] * channels + part[0]) * rows + part[1]) * columns + part[2]];
        }
        values.push(sum);
    }
    Array::new(&[*batch, *filters, down, across], values)
}

fn gather(x: &Array, index: &Array, axis: usize) -> Array {
    let [outer, size, inner] = x.around(axis);
    let mut values = Vec::new();
    for o in 0..outer {
        for at in index.ints() {
            let begin = (o * size + usize::try_from(at).unwrap()) * inner;
            values.extend_from_slice(&x.values[begin..begin + inner]);
        }
    }
    Array::new(&[&x.shape[..axis], &index.shape[..], &x.shape[axis + 1..]].concat(), values)
}

fn concat(x: &[&Array], axis: usize) -> Array {
    let mut shape = x[0].shape.clone();
    shape[axis] = x.iter().map(|part| part.shape[axis]).sum();
    let outer = x[0].around(axis)[0];
    let mut values = Vec::new();
    for o in 0..outer {
        for part in x {
            let [_, size, inner] = part.around(axis);
            values.extend_from_slice(&part.values[o * size * inner..(o + 1) * size * inner]);
        }
    }
    Array::new(&shape, values)
}
