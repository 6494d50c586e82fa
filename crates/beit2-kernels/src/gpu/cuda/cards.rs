//! The cards of this machine, asked without CubeCL.

use std::hash::Hasher;

use cudarc::driver::sys::{
    CUdevice_attribute, CUresult, cuDeviceGetAttribute, cuDeviceGetCount, cuDriverGetVersion, cuInit,
    is_culib_present,
};

/// Adds to a hash what CubeCL's compiled kernels depend on: the cards' generation and the driver. `None` if there are cards of
/// two generations. Without a driver it adds nothing.
pub(in super::super) fn write_cards(hash: &mut impl Hasher) -> Option<()> {
    // SAFETY: opens a library of NVIDIA's, whose start-up code has no preconditions.
    if !unsafe { is_culib_present() } {
        return Some(());
    }
    let (mut count, mut driver) = (0, 0);
    // SAFETY: both write one integer.
    let asked = unsafe { [cuInit(0), cuDeviceGetCount(&mut count), cuDriverGetVersion(&mut driver)] };
    if asked != [CUresult::CUDA_SUCCESS; 3] {
        return Some(());
    }
    hash.write_i32(driver);
    let mut capabilities: Vec<[i32; 2]> = (0..count).map(capability).collect();
    capabilities.dedup();
    match capabilities.as_slice() {
        [] => Some(()),
        [[major, minor]] => {
            hash.write_i32(*major);
            hash.write_i32(*minor);
            Some(())
        }
        _ => None,
    }
}

/// The compute capability of a card.
fn capability(card: i32) -> [i32; 2] {
    [
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    ]
    .map(|which| {
        let mut value = 0;
        // SAFETY: writes one integer.
        unsafe { cuDeviceGetAttribute(&mut value, which, card) };
        value
    })
}
