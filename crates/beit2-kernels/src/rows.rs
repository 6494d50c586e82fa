//! Results that tasks write side by side.

use std::ops::Range;

/// A result `[n, width]` that tasks write different rows of.
pub(crate) struct Rows<'a, T> {
    data: *mut T,
    width: usize,
    rows: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

impl<T> Clone for Rows<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Rows<'_, T> {}

// SAFETY: memory is only reached through `some`, whose callers keep to rows of their own.
unsafe impl<T: Send> Send for Rows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Rows<'_, T> {}

impl<'a, T> Rows<'a, T> {
    pub(crate) fn new(data: &'a mut [T], width: usize) -> Self {
        // Without a width there is nothing to write, and every row is empty.
        let rows = data.len().checked_div(width).unwrap_or(usize::MAX);
        Self { data: data.as_mut_ptr(), width, rows, life: std::marker::PhantomData }
    }

    /// # Safety
    /// Nobody else uses these rows.
    pub(crate) unsafe fn some(self, rows: &Range<usize>) -> &'a mut [T] {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        // SAFETY: inside, as asserted; the caller's promise.
        unsafe {
            std::slice::from_raw_parts_mut(self.data.add(rows.start * self.width), rows.len() * self.width)
        }
    }
}
