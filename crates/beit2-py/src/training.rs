//! The images of training one by one, for loaders of other libraries.

use beit2::train::Item;
use beit2_cli::{AssetStore, OpenedImages, Reading, TrainingImages};
use beit2_data::fnv1a;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict};

use crate::exceptions::without_gil;

/// Settings of a run or a recipe, as text for other processes: TOML, and the side of the tokenizer's view.
#[pyfunction]
pub fn training_images(
    py: Python<'_>,
    what: &str,
    overrides: Vec<(String, String)>,
) -> PyResult<(String, Option<u32>)> {
    without_gil(py, || {
        let found = TrainingImages::find(what, &overrides, &AssetStore::silent(Reading::default()))?;
        Ok((found.settings, found.token_px))
    })
}

/// Opened images of a training. Nothing here starts threads, so that a fork may use it.
#[pyclass(frozen, module = "beit2._beit2")]
pub struct Images {
    opened: OpenedImages,
}

#[pymethods]
impl Images {
    #[new]
    fn open(py: Python<'_>, settings: String, token_px: Option<u32>) -> PyResult<Self> {
        without_gil(py, || {
            let images = TrainingImages { settings, token_px };
            Ok(Self { opened: images.open(&AssetStore::silent(Reading::default()))? })
        })
    }

    /// What the images are.
    fn facts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let OpenedImages { source, grid, stage, batch_size, seed, .. } = &self.opened;
        let dict = PyDict::new(py);
        dict.set_item("stage", stage)?;
        dict.set_item("images", source.len())?;
        dict.set_item("classes", source.classes())?;
        dict.set_item("multi_label", source.is_multi_label())?;
        dict.set_item("grid", grid)?;
        dict.set_item("batch_size", batch_size)?;
        dict.set_item("seed", seed)?;
        Ok(dict)
    }

    /// A value of all names and classes: the same images in another process. Without sizes, which would be asked of a disk for
    /// every file.
    fn names(&self, py: Python<'_>) -> u64 {
        let source = &self.opened.source;
        py.detach(|| {
            (0..source.len()).fold(0, |hash, at| {
                let of_one = format!("{hash} {} {:?}", source.key(at), source.labels(at));
                fnv1a(of_one.as_bytes())
            })
        })
    }

    /// What a person would look for.
    fn name(&self, index: usize) -> String {
        self.opened.source.name(index)
    }

    /// Slots of an epoch in its order.
    fn order(&self, py: Python<'_>, epoch: u64) -> Vec<u64> {
        py.detach(|| self.opened.samples.order(epoch))
    }

    /// What training sees of a slot.
    fn sample<'py>(&self, py: Python<'py>, epoch: u64, slot: u64) -> PyResult<Bound<'py, PyDict>> {
        let made = without_gil(py, || {
            self.opened.samples.make(epoch, slot).map_err(|why| beit2::Error::from(why).into())
        })?;
        let Item { patch, token, masked, .. } = made.item;
        let dict = PyDict::new(py);
        let view = |image: &beit2_data::Image| {
            let shape = [image.height as usize, image.width as usize, image.channels as usize];
            (PyByteArray::new(py, &image.data), shape)
        };
        dict.set_item("image", view(&patch))?;
        dict.set_item("second", token.as_ref().map(view))?;
        dict.set_item("masked", self.opened.grid.map(|_| masked))?;
        dict.set_item("index", made.index)?;
        dict.set_item("label", made.label)?;
        dict.set_item("replaced", made.replaced.map(|bad| (bad.name, bad.error)))?;
        Ok(dict)
    }
}
