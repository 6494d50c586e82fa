//! `--device`: a name, and the devices that it stands for. How a name becomes a backend is in [`crate::backend`].

use std::fmt;
use std::str::FromStr;

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

/// Which devices of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    /// The best one.
    Best,
    /// All of this machine.
    All,
    /// These numbers; one named twice works for two.
    Numbers(Vec<usize>),
}

/// What `--device` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Family.
    pub kind: Kind,
    which: Which,
}

/// Groups of more devices than this are typing mistakes.
const MOST: usize = 64;

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut places = text.split(',');
        let first = places.next().unwrap_or_default();
        let (name, index) = match first.split_once(':') {
            Some((name, index)) => (name, Some(index)),
            None => (first, None),
        };
        let known = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = known.ok_or("use cpu, cuda, cuda:0, cuda:0,1, cuda:all, vulkan, metal or wgpu")?;
        let which = match (kind, index) {
            (Kind::Cpu, Some(_)) => {
                return Err("cpu has no number; use --device cpu, or cpu,cpu for a group of two".into());
            }
            // The processor has one number, so its name stands for it.
            (Kind::Cpu, None) => {
                let others: Vec<&str> = places.collect();
                if let Some(other) = others.iter().find(|other| **other != "cpu") {
                    return Err(format!("`{other}` cannot be in a group with cpu"));
                }
                match others.len() {
                    0 => Which::Best,
                    more => Which::Numbers(vec![0; more + 1]),
                }
            }
            (_, None) => match places.next() {
                None => Which::Best,
                Some(_) => return Err(format!("a group needs numbers, such as {name}:0,1")),
            },
            (_, Some("all")) => match places.next() {
                None => Which::All,
                Some(more) => return Err(format!("{name}:all already includes `{more}`")),
            },
            (_, Some(first)) => {
                let number = |digits: &str| match digits.trim_start_matches(&format!("{name}:")).parse() {
                    Ok(number) => Ok(number),
                    Err(_) => {
                        Err(format!("`{digits}` is not a number; use {name}:0, {name}:0,1 or {name}:all"))
                    }
                };
                Which::Numbers(std::iter::once(first).chain(places).map(number).collect::<Result<_, _>>()?)
            }
        };
        match &which {
            Which::Numbers(numbers) if numbers.len() > MOST => {
                Err(format!("{} devices are too many; at most {MOST} can train together", numbers.len()))
            }
            _ => Ok(Self { kind, which }),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.kind.name();
        match &self.which {
            Which::Best => f.write_str(name),
            Which::All => write!(f, "{name}:all"),
            Which::Numbers(numbers) if self.kind == Kind::Cpu => {
                f.write_str(&vec![name; numbers.len()].join(","))
            }
            Which::Numbers(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
                write!(f, "{name}:{}", numbers.join(","))
            }
        }
    }
}

impl DeviceSpec {
    /// The best device of a family.
    pub fn best(kind: Kind) -> Self {
        Self { kind, which: Which::Best }
    }

    /// One device of a family.
    pub fn numbered(kind: Kind, number: usize) -> Self {
        Self { kind, which: Which::Numbers(vec![number]) }
    }

    /// Whether no number was given.
    pub fn is_best(&self) -> bool {
        self.which == Which::Best
    }

    /// The first device of a group, for what needs no more.
    pub fn first(&self) -> Self {
        let which = match &self.which {
            Which::Best => Which::Best,
            Which::All => Which::Numbers(vec![0]),
            Which::Numbers(_) if self.kind == Kind::Cpu => Which::Best,
            Which::Numbers(numbers) => Which::Numbers(numbers[..1].to_vec()),
        };
        Self { kind: self.kind, which }
    }

    /// The numbers that this names, `None` for the best device; `count` says how many there are.
    pub fn numbers(&self, count: impl FnOnce() -> usize) -> Vec<Option<usize>> {
        match &self.which {
            Which::Best => vec![None],
            Which::All => (0..count().max(1)).map(Some).collect(),
            Which::Numbers(numbers) => numbers.iter().copied().map(Some).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DeviceSpec, String> {
        text.parse()
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(parse("cpu"), Ok(DeviceSpec::best(Kind::Cpu)));
        for text in
            ["cpu", "cpu,cpu", "cuda", "cuda:1", "cuda:0,1,3", "cuda:all", "vulkan:2", "metal", "wgpu"]
        {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parse("cuda:0,cuda:1").unwrap().to_string(), "cuda:0,1");
        let wrong =
            ["gpu", "cuda:x", "cpu:0", "cpu,cuda", "cuda,1", "cuda:all,1", "cuda:0,", "", "cuda:0,vulkan:1"];
        for text in wrong {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("gpu").unwrap_err().contains("cuda:0"));
        assert!(parse(&format!("cpu{}", ",cpu".repeat(MOST))).unwrap_err().contains("65 devices"));
        let first = |text: &str| parse(text).unwrap().first().to_string();
        assert_eq!(
            ["cpu,cpu", "cuda:3,1", "cuda:all", "cuda"].map(first),
            ["cpu", "cuda:3", "cuda:0", "cuda"]
        );
    }
}
