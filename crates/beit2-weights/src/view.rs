//! A tensor that is still in its file.

use std::sync::Arc;

use crate::error::WeightsError;
use crate::source::FileSource;
use crate::tensor::{DType, Tensor, byte_len};

/// Type, shape and place of a tensor in a file; [`TensorView::load`] reads it.
#[derive(Debug, Clone)]
pub struct TensorView {
    pub(crate) source: Arc<FileSource>,
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// Where its first element lies in the file.
    pub(crate) offset: u64,
    /// Elements from one index to the next, per dimension; `None` when the bytes are contiguous and row-major.
    pub(crate) strides: Option<Vec<usize>>,
}

impl TensorView {
    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many bytes [`TensorView::load`] takes.
    pub fn byte_len(&self) -> usize {
        // Whoever made this view has checked that it does not overflow.
        byte_len(self.dtype, &self.shape).unwrap_or(usize::MAX)
    }

    /// Reads the tensor; a strided one becomes contiguous.
    ///
    /// # Errors
    /// The file cannot be read any more.
    pub fn load(&self) -> Result<Tensor, WeightsError> {
        let bytes = match &self.strides {
            None => self.read(self.byte_len())?,
            Some(strides) => self.gather(strides)?,
        };
        Tensor::new(self.dtype, self.shape.clone(), bytes)
            .ok_or_else(|| self.error("has a shape that overflows".to_string()))
    }

    /// As [`TensorView::load`], and looks at the values: weights that are NaN or infinite make every result meaningless.
    /// Attention masks may hold −∞, as OpenAI's CLIP does.
    ///
    /// # Errors
    /// The file cannot be read any more; a value that is NaN or infinite.
    pub fn load_finite(&self) -> Result<Tensor, WeightsError> {
        let tensor = self.load()?;
        let is_mask = matches!(
            self.name.rsplit('.').next(),
            Some("attn_mask" | "attention_mask" | "causal_mask" | "mask")
        );
        if is_mask || tensor.is_finite() {
            return Ok(tensor);
        }
        let (bad, all) = (tensor.count_non_finite(), self.shape.iter().product::<usize>());
        Err(self.error(format!(
            "has {bad} of {all} values that are NaN or infinite, so nothing can be computed with these weights; use a \
             checkpoint from before the training broke"
        )))
    }

    fn read(&self, count: usize) -> Result<Vec<u8>, WeightsError> {
        self.source.read(self.offset, count as u64, &format!("tensor `{}`", self.name))
    }

    /// Reads the span from the first to the last element and picks the elements out of it, row by row.
    fn gather(&self, strides: &[usize]) -> Result<Vec<u8>, WeightsError> {
        let size = self.dtype.size();
        let mut out = Vec::with_capacity(self.byte_len());
        let Some(last) = last_element(&self.shape, strides) else {
            return if self.byte_len() == 0 {
                Ok(out)
            } else {
                Err(self.error("has strides that overflow".to_string()))
            };
        };
        let span = self.read(last.saturating_add(1).saturating_mul(size))?;
        let (Some((&row, outer)), Some((&row_stride, outer_strides))) =
            (self.shape.split_last(), strides.split_last())
        else {
            return Ok(span);
        };
        let mut index = vec![0; outer.len()];
        loop {
            let start: usize = index.iter().zip(outer_strides).map(|(i, stride)| i * stride).sum();
            for element in 0..row {
                let at = (start + element * row_stride) * size;
                out.extend_from_slice(&span[at..at + size]);
            }
            // The next row, last dimension fastest.
            let Some(dim) = (0..outer.len()).rev().find(|&dim| index[dim] + 1 < outer[dim]) else {
                return Ok(out);
            };
            index[dim] += 1;
            index[dim + 1..].fill(0);
        }
    }

    fn error(&self, problem: String) -> WeightsError {
        WeightsError::Tensor { path: self.source.path().to_path_buf(), tensor: self.name.clone(), problem }
    }
}

/// The position of the last element of a strided tensor, counted from its first; `None` when there is none, or on overflow.
pub(crate) fn last_element(shape: &[usize], strides: &[usize]) -> Option<usize> {
    shape
        .iter()
        .zip(strides)
        .try_fold(0usize, |last, (&dim, &stride)| dim.checked_sub(1)?.checked_mul(stride)?.checked_add(last))
}

/// Whether these strides are those of a contiguous row-major tensor (the stride of a dimension of 1 says nothing).
pub(crate) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.iter().zip(strides).rev().all(|(&dim, &stride)| {
        let fits = dim == 1 || stride == expected;
        expected = expected.saturating_mul(dim);
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguity_ignores_dimensions_of_one() {
        assert!(is_contiguous(&[2, 3], &[3, 1]));
        assert!(is_contiguous(&[2, 1, 3], &[3, 99, 1]));
        assert!(is_contiguous(&[], &[]));
        assert!(!is_contiguous(&[3, 2], &[1, 3]));
        assert!(!is_contiguous(&[3, 2], &[0, 1]));
    }

    #[test]
    fn last_element_is_bounded() {
        assert_eq!(last_element(&[2, 3], &[3, 1]), Some(5));
        assert_eq!(last_element(&[], &[]), Some(0));
        assert_eq!(last_element(&[0, 3], &[3, 1]), None);
        assert_eq!(last_element(&[usize::MAX, 3], &[2, 1]), None);
    }
}
