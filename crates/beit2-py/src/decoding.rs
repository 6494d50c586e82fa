//! Images as the program decodes them.

use beit2_data::DecodeOptions;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::exceptions::without_gil;
use crate::images::{Item, Walk};

/// One image → its bytes, uint8 `[H, W, channels]`.
#[pyfunction]
pub fn decode(
    py: Python<'_>,
    image: Item,
    channels: usize,
) -> PyResult<(Bound<'_, PyByteArray>, [usize; 3])> {
    let options = DecodeOptions::default().of_channels(channels);
    let walk = Walk { decode: options, batch: 1, workers: 0, progress: None };
    let image = without_gil(py, || {
        let mut decoded = None;
        walk.batches(
            vec![image],
            |image| Ok(image.clone()),
            |mut images| {
                decoded = images.pop();
                Ok(())
            },
        )?;
        decoded.ok_or_else(|| anyhow::anyhow!("there is no image"))
    })?;
    let shape = [image.height as usize, image.width as usize, image.channels as usize];
    Ok((PyByteArray::new(py, &image.data), shape))
}
