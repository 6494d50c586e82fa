//! An opened model as Python holds it.

use std::sync::{Mutex, OnceLock, PoisonError};

use beit2::Error;
use beit2_data::{DecodeOptions, EvalConfig, Image};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyByteArray, PyDict};

use crate::exceptions::without_gil;
use crate::images::{Item, Walk};
use crate::nets::{Facts, Net, Rows};

/// Bytes, their type and the shape of a result.
type Values<'py> = (Bound<'py, PyByteArray>, &'static str, Vec<usize>);

/// Calls on GPUs, one after the other: drivers record the work of a process in one order.
static GPU: Mutex<()> = Mutex::new(());

/// The process that the compute threads belong to.
static PROCESS: OnceLock<u32> = OnceLock::new();

/// Says so where the process is a copy (`fork`) of one that computed: its threads are not in the copy, and work would wait for
/// them for ever.
///
/// # Errors
/// One sentence; the first call also checks `BEIT2_SIMD`.
pub fn check_process() -> anyhow::Result<()> {
    let own = std::process::id();
    if PROCESS.get().is_none() {
        beit2_cli::limit_instruction_set(std::env::var_os("BEIT2_SIMD"))?;
    }
    if *PROCESS.get_or_init(|| own) != own {
        return Err(anyhow::anyhow!(
            "this process was forked after beit2 had started its threads, which a fork does not copy; start processes by \
             `spawn` (multiprocessing.set_start_method(\"spawn\"), or DataLoader(multiprocessing_context=\"spawn\"))"
        ));
    }
    Ok(())
}

/// A model on its device, with how it sees images.
#[pyclass(frozen, module = "beit2._beit2")]
pub struct Model {
    net: Box<dyn Net>,
    view: EvalConfig,
    decode: DecodeOptions,
    is_gpu: bool,
}

impl Model {
    /// From what was opened.
    pub fn new(net: Box<dyn Net>, view: EvalConfig, decode: DecodeOptions, is_gpu: bool) -> Self {
        Self { net, view, decode, is_gpu }
    }

    /// Computes; on a GPU alone.
    fn alone<T>(&self, work: impl FnOnce(&dyn Net) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let _guard = self.is_gpu.then(|| GPU.lock().unwrap_or_else(PoisonError::into_inner));
        work(self.net.as_ref())
    }

    fn walk(&self, batch: usize, workers: usize, progress: Option<Py<PyAny>>) -> Walk {
        Walk { decode: self.decode.clone(), batch, workers, progress }
    }
}

fn values(py: Python<'_>, count: usize, rows: Rows) -> Values<'_> {
    let shape = std::iter::once(count).chain(rows.row).collect();
    (PyByteArray::new(py, &rows.bytes), rows.dtype, shape)
}

/// Little-endian values of Python's bytes.
fn numbers<const N: usize, T>(bytes: &[u8], of: fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|chunk| of(std::array::from_fn(|at| chunk[at]))).collect()
}

fn check_length(bytes: usize, shape: &[usize], each: usize) -> anyhow::Result<()> {
    let wanted = shape.iter().try_fold(each, |all, &side| all.checked_mul(side));
    match wanted == Some(bytes) && bytes > 0 {
        true => Ok(()),
        false => {
            Err(Error::Config(format!("an array of shape {shape:?} does not have {bytes} bytes")).into())
        }
    }
}

#[pymethods]
impl Model {
    /// What the model is.
    fn facts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let facts: Facts = self.net.facts();
        let dict = PyDict::new(py);
        dict.set_item("kind", facts.kind)?;
        dict.set_item("image_size", facts.image_size)?;
        dict.set_item("channels", facts.channels)?;
        dict.set_item("patch_size", facts.patch_size)?;
        dict.set_item("width", facts.width)?;
        dict.set_item("layer", facts.layer)?;
        dict.set_item("codebook_size", facts.codebook_size)?;
        dict.set_item("teacher_dim", facts.teacher_dim)?;
        dict.set_item("classes", facts.classes)?;
        dict.set_item("class_names", facts.class_names)?;
        dict.set_item("multi_label", facts.multi_label)?;
        Ok(dict)
    }

    /// Images → rows of what `what` names, `[images, …]`.
    fn of_images<'py>(
        &self,
        py: Python<'py>,
        what: &str,
        images: Vec<Item>,
        batch: usize,
        workers: usize,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Values<'py>> {
        let (count, walk, view) = (images.len(), self.walk(batch, workers, progress), self.view);
        let all = without_gil(py, || {
            check_process()?;
            let mut all: Option<Rows> = None;
            walk.batches(
                images,
                move |image| view.apply(image),
                |views: Vec<Image>| {
                    let rows = self.alone(|net| net.of_views(what, &views))?;
                    match &mut all {
                        Some(all) => all.bytes.extend(rows.bytes),
                        first => *first = Some(rows),
                    }
                    Ok(())
                },
            )?;
            all.ok_or_else(|| Error::Config("there are no images".into()).into())
        })?;
        Ok(values(py, count, all))
    }

    /// float32 `[B, C, H, W]` in [0, 1] → rows of what `what` names, `[B, …]`.
    fn of_floats<'py>(
        &self,
        py: Python<'py>,
        what: &str,
        images: PyBackedBytes,
        shape: [usize; 4],
        batch: usize,
    ) -> PyResult<Values<'py>> {
        let all = without_gil(py, || {
            check_process()?;
            check_length(images.len(), &shape, 4)?;
            let [count, rest @ ..] = shape;
            let each = rest.iter().product::<usize>() * 4;
            let mut all: Option<Rows> = None;
            for part in images.chunks(batch.max(1).min(count).saturating_mul(each)) {
                let [c, h, w] = rest;
                let floats = numbers(part, f32::from_le_bytes);
                let rows = self.alone(|net| net.of_floats(what, floats, [part.len() / each, c, h, w]))?;
                match &mut all {
                    Some(all) => all.bytes.extend(rows.bytes),
                    first => *first = Some(rows),
                }
            }
            all.ok_or_else(|| Error::Config("there are no images".into()).into())
        })?;
        Ok(values(py, shape[0], all))
    }

    /// Images → the bytes that the model sees, uint8 `[images, size, size, C]`.
    fn views<'py>(
        &self,
        py: Python<'py>,
        images: Vec<Item>,
        workers: usize,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Values<'py>> {
        let (count, walk, view) = (images.len(), self.walk(64, workers, progress), self.view);
        let side = view.size as usize;
        let rows = without_gil(py, || {
            let mut bytes = Vec::new();
            walk.batches(
                images,
                move |image| view.apply(image),
                |views: Vec<Image>| {
                    views.iter().for_each(|view| bytes.extend_from_slice(&view.data));
                    Ok(())
                },
            )?;
            Ok(Rows { bytes, row: vec![side, side, self.decode.channels as usize], dtype: "uint8" })
        })?;
        Ok(values(py, count, rows))
    }

    /// Images → the class of each pixel, uint8 `[H, W]` of each.
    fn labels<'py>(
        &self,
        py: Python<'py>,
        images: Vec<Item>,
        workers: usize,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Values<'py>>> {
        let walk = self.walk(1, workers, progress);
        let maps = without_gil(py, || {
            check_process()?;
            let mut maps = Vec::new();
            walk.batches(
                images,
                |image| Ok(image.clone()),
                |images: Vec<Image>| {
                    for image in images {
                        maps.push(self.alone(|net| net.label(&image))?);
                    }
                    Ok(())
                },
            )?;
            Ok(maps)
        })?;
        let map = |map: beit2_data::LabelMap| {
            let shape = vec![map.height as usize, map.width as usize];
            (PyByteArray::new(py, &map.data), "uint8", shape)
        };
        Ok(maps.into_iter().map(map).collect())
    }

    /// Code ids, int64 `[B, g, g]` → features `[B, g², D]`; for tokenizers.
    fn decode<'py>(&self, py: Python<'py>, ids: PyBackedBytes, shape: [usize; 3]) -> PyResult<Values<'py>> {
        let rows = without_gil(py, || {
            check_process()?;
            check_length(ids.len(), &shape, 8)?;
            self.alone(|net| net.decode(numbers(&ids, i64::from_le_bytes), shape))
        })?;
        Ok(values(py, shape[0], rows))
    }
}
