//! The one place where a device's name becomes a backend.

use beit2_kernels::AutodiffBackend;
use burn::backend::{Autodiff, Flex};

use crate::device::{DeviceSpec, Kind};
use crate::errors;

/// Work that is written once for every backend and that several devices can share.
pub trait GroupJob {
    /// What comes out.
    type Output;

    /// Does it on these devices, at least one.
    ///
    /// # Errors
    /// Those of the work.
    fn run<B: AutodiffBackend>(self, devices: &[B::Device]) -> anyhow::Result<Self::Output>;
}

/// Runs the job on all devices that `spec` names.
///
/// # Errors
/// A device that this build or this machine does not have; those of the job.
pub fn run<J: GroupJob>(spec: &DeviceSpec, job: J) -> anyhow::Result<J::Output> {
    match spec.kind {
        Kind::Cpu => {
            let count = spec.numbers(|| 1).len();
            job.run::<Autodiff<Flex>>(&vec![Default::default(); count])
        }
        #[cfg(feature = "cuda")]
        Kind::Cuda => {
            use burn::backend::cuda::CudaDevice;
            crate::libraries::open_unseen();
            gpu::run::<burn::backend::Cuda<f32, i32>, J>(spec, job, |number| {
                CudaDevice::new(number.unwrap_or(0))
            })
        }
        #[cfg(feature = "vulkan")]
        Kind::Vulkan => gpu::run::<burn::backend::Vulkan, J>(spec, job, gpu::wgpu_device),
        #[cfg(feature = "metal")]
        Kind::Metal => gpu::run::<burn::backend::Metal, J>(spec, job, gpu::wgpu_device),
        #[cfg(feature = "wgpu")]
        Kind::Wgpu => gpu::run::<burn::backend::Wgpu, J>(spec, job, gpu::wgpu_device),
        #[allow(unreachable_patterns)] // with every feature on
        missing => errors::usage(format!(
            "this beit2 was built without {0}; build it with `--features {0}`, or use --device cpu",
            missing.name()
        )),
    }
}

/// Whether the device is there and computes, with which kernels if it has a choice: the reason when it does not.
pub fn check(spec: &DeviceSpec) -> Result<Option<String>, String> {
    struct Nothing;
    impl GroupJob for Nothing {
        type Output = Option<String>;
        fn run<B: AutodiffBackend>(self, devices: &[B::Device]) -> anyhow::Result<Option<String>> {
            Ok(devices.first().and_then(B::kernels))
        }
    }
    run(spec, Nothing).map_err(|error| error.to_string())
}

#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal", feature = "wgpu"))]
mod gpu {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use anyhow::anyhow;
    use beit2_kernels::{Backend, GpuSettings};
    use burn::backend::Autodiff;
    use burn::tensor::Tensor;
    use burn::tensor::backend::Device;

    use super::GroupJob;
    use crate::assets::cache_dir;
    use crate::device::DeviceSpec;
    use crate::errors;

    /// Runs the job on GPUs; `device` makes one from its number, and from none the best one.
    pub fn run<B: Backend, J: GroupJob>(
        spec: &DeviceSpec,
        job: J,
        device: impl Fn(Option<usize>) -> B::Device,
    ) -> anyhow::Result<J::Output> {
        let kind = device(Some(0)).to_id().type_id;
        // Without a driver there is none to count, and the check of the first one says so.
        let numbers = spec.numbers(|| errors::tried(|| B::device_count(kind)).unwrap_or(1));
        let devices: Vec<B::Device> = numbers.into_iter().map(device).collect();
        for device in &devices {
            try_out::<B>(spec, device)?;
        }
        job.run::<Autodiff<B>>(&devices)
    }

    #[cfg(any(feature = "vulkan", feature = "metal", feature = "wgpu"))]
    pub fn wgpu_device(number: Option<usize>) -> burn::backend::wgpu::WgpuDevice {
        use burn::backend::wgpu::WgpuDevice;
        number.map_or(WgpuDevice::DefaultDevice, WgpuDevice::DiscreteGpu)
    }

    /// What the environment says about GPUs.
    fn settings(variable: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<GpuSettings> {
        let portable = match variable("BEIT2_PORTABLE") {
            None => false,
            Some(flag) if flag == "0" => false,
            Some(flag) if flag == "1" => true,
            Some(other) => {
                let other = other.to_string_lossy();
                return errors::usage(format!("BEIT2_PORTABLE is `{other}`; it can be 1 or 0"));
            }
        };
        let kernels = variable("BEIT2_KERNELS").map(PathBuf::from);
        if let Some(folder) = kernels.as_ref().filter(|folder| !folder.is_dir()) {
            return errors::usage(format!("BEIT2_KERNELS: {} is not a folder", folder.display()));
        }
        Ok(GpuSettings { folder: cache_dir().map(|folder| folder.join("gpu")), kernels, portable })
    }

    /// One small computation: drivers panic where there is no device, and they should do it here.
    fn try_out<B: Backend>(spec: &DeviceSpec, device: &B::Device) -> anyhow::Result<()> {
        beit2_kernels::set_up_gpus(settings(|name| std::env::var_os(name))?);
        let sum = errors::tried(|| {
            let sum = Tensor::<B, 1>::ones([8], device).sum().into_data();
            sum.convert::<f32>().into_vec::<f32>().unwrap_or_default()
        });
        match sum {
            Ok(sum) if sum == [8.0] => Ok(()),
            Ok(_) => Err(anyhow!(
                "device {spec} ({device:?}) computes wrong sums; update its driver or use --device cpu"
            )),
            Err(why) => {
                // A driver's own message may help; that of an unwrap in its bindings does not.
                let why = why.lines().next().filter(|why| !why.starts_with("called `"));
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                Err(anyhow!(
                    "no device {spec} here{why}; `beit2 doctor` says what is missing, or use --device cpu"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_always_there() {
        assert!(check(&DeviceSpec::best(Kind::Cpu)).is_ok());
    }

    #[test]
    fn a_missing_feature_is_named() {
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_compiled_in()) {
            let why = check(&DeviceSpec::best(kind)).unwrap_err();
            assert!(why.contains(&format!("--features {}", kind.name())), "{why}");
        }
    }
}
