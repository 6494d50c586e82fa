//! `--device`: the one place where a name becomes a backend.

use std::fmt;
use std::str::FromStr;

use beit2_kernels::AutodiffBackend;
use burn::backend::{Autodiff, Flex};

use crate::errors;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal", feature = "wgpu"))]
use anyhow::anyhow;

/// Work that runs on any backend.
pub trait Job {
    /// What comes out.
    type Output;

    /// Does it.
    fn run<B: AutodiffBackend>(self, device: &B::Device) -> anyhow::Result<Self::Output>;
}

/// Families of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This machine's processor.
    Cpu,
    /// NVIDIA through CUDA.
    Cuda,
    /// Any GPU through Vulkan.
    Vulkan,
    /// Apple's GPUs.
    Metal,
    /// Any GPU through WebGPU.
    Wgpu,
}

impl Kind {
    /// All of them, in the order of `doctor`.
    pub const ALL: [Self; 5] = [Self::Cpu, Self::Cuda, Self::Vulkan, Self::Metal, Self::Wgpu];

    /// The name in `--device`, which is the cargo feature's name too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Wgpu => "wgpu",
        }
    }

    /// Whether this program has it.
    pub fn is_compiled_in(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Wgpu => cfg!(feature = "wgpu"),
        }
    }
}

/// What `--device` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Family.
    pub kind: Kind,
    /// Which one; `None` is the best.
    pub index: Option<usize>,
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index)),
            None => (text, None),
        };
        let known = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = known.ok_or("use cpu, cuda, cuda:0, vulkan, metal or wgpu")?;
        let index = match index {
            None => None,
            Some(_) if kind == Kind::Cpu => return Err("cpu has no number; use --device cpu".into()),
            Some(digits) => Some(digits.parse().map_err(|_| format!("use a number, such as {name}:0"))?),
        };
        Ok(Self { kind, index })
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}:{index}", self.kind.name()),
            None => f.write_str(self.kind.name()),
        }
    }
}

impl DeviceSpec {
    /// Runs the job on this device.
    pub fn on<J: Job>(self, job: J) -> anyhow::Result<J::Output> {
        match self.kind {
            Kind::Cpu => job.run::<Autodiff<Flex>>(&Default::default()),
            #[cfg(feature = "cuda")]
            Kind::Cuda => {
                type B = burn::backend::Cuda<f32, i32>;
                let device = burn::backend::cuda::CudaDevice::new(self.index.unwrap_or(0));
                self.answers::<B>(&device)?;
                job.run::<Autodiff<B>>(&device)
            }
            #[cfg(feature = "vulkan")]
            Kind::Vulkan => self.on_wgpu::<burn::backend::Vulkan, J>(job),
            #[cfg(feature = "metal")]
            Kind::Metal => self.on_wgpu::<burn::backend::Metal, J>(job),
            #[cfg(feature = "wgpu")]
            Kind::Wgpu => self.on_wgpu::<burn::backend::Wgpu, J>(job),
            #[allow(unreachable_patterns)] // with every feature on
            missing => errors::usage(format!(
                "this beit2 was built without {0}; build it with `--features {0}`, or use --device cpu",
                missing.name()
            )),
        }
    }

    #[cfg(any(feature = "vulkan", feature = "metal", feature = "wgpu"))]
    fn on_wgpu<B, J: Job>(self, job: J) -> anyhow::Result<J::Output>
    where
        B: beit2_kernels::Backend<Device = burn::backend::wgpu::WgpuDevice>,
    {
        use burn::backend::wgpu::WgpuDevice;
        let device = self.index.map_or(WgpuDevice::DefaultDevice, WgpuDevice::DiscreteGpu);
        self.answers::<B>(&device)?;
        job.run::<Autodiff<B>>(&device)
    }

    /// One small computation: drivers panic where there is no device, and they should do it here.
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal", feature = "wgpu"))]
    fn answers<B: beit2_kernels::Backend>(self, device: &B::Device) -> anyhow::Result<()> {
        if let Some(folder) = crate::assets::cache_dir() {
            beit2_kernels::keep_tuning(&folder.join("gpu"));
        }
        let sum = errors::tried(|| {
            let sum = burn::tensor::Tensor::<B, 1>::ones([8], device).sum().into_data();
            sum.convert::<f32>().into_vec::<f32>().unwrap_or_default()
        });
        match sum {
            Ok(sum) if sum == [8.0] => Ok(()),
            Ok(_) => Err(anyhow!("device {self} computes wrong sums; update its driver or use --device cpu")),
            Err(why) => Err(anyhow!(
                "no device {self} here ({}); see `beit2 doctor`, or use --device cpu",
                why.lines().next().unwrap_or_default()
            )),
        }
    }

    /// Whether the device is there and computes: the reason when it does not.
    pub fn check(self) -> Result<(), String> {
        struct Nothing;
        impl Job for Nothing {
            type Output = ();
            fn run<B: AutodiffBackend>(self, _: &B::Device) -> anyhow::Result<()> {
                Ok(())
            }
        }
        self.on(Nothing).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let parse = |text: &str| text.parse::<DeviceSpec>();
        assert_eq!(parse("cpu"), Ok(DeviceSpec { kind: Kind::Cpu, index: None }));
        assert_eq!(parse("cuda:1").unwrap().to_string(), "cuda:1");
        assert!(parse("gpu").unwrap_err().contains("cuda:0"));
        assert!(parse("cuda:x").is_err() && parse("cpu:0").is_err());
        assert!(parse("cpu").unwrap().check().is_ok());
    }

    #[test]
    fn a_missing_feature_is_named() {
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_compiled_in()) {
            let why = DeviceSpec { kind, index: None }.check().unwrap_err();
            assert!(why.contains(&format!("--features {}", kind.name())), "{why}");
        }
    }
}
