//! The sources of the own kernels, in CUDA C. Each is compiled alone, with `device.cuh` before it.

/// What all sources share.
pub(super) const DEVICE: &str = "";

/// One `.cu` file.
#[derive(Debug)]
pub(crate) struct Source {
    /// The file's name without ending.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
    /// Its entry points.
    pub entries: &'static [&'static str],
}

/// All of them.
pub(crate) const SOURCES: &[Source] = &[];
