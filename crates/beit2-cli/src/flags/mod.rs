//! Flags that several commands share, each defined once with its help. What only one command takes stands beside that
//! command in `commands/`.

mod decode;
mod export;
mod features;
mod results;
mod segment;
mod shard;
mod train;
mod unknown;
mod weights;

use beit2::InferPrecision;
use beit2_kernels::Precision;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::device::DeviceSpec;

pub use decode::{
    DecodeArgs, decoding_of_run, decoding_without_weights, describe as describe_decoding, exif_as_published,
    published as published_decoding,
};
pub use export::{ExportArgs, SourceArg, SourcesArg};
pub use features::{FeatureKindArg, FrozenArgs};
pub use results::ResultArgs;
pub use segment::{InferArgs, MaskArgs};
pub use shard::ShardArgs;
pub use train::{TrainArgs, key_value};
pub use unknown::explain;
pub use weights::{EntryArg, NamesArg, ReadArgs, UnsaidArgs, WeightFileArgs};

/// Where to compute.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// cpu, cuda, cuda:1, vulkan, metal or wgpu; `beit2 doctor` shows what this build has
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceSpec,
}

/// The flag in commands that train, which can use a group.
pub fn several_devices(arg: clap::Arg) -> clap::Arg {
    arg.help(
        "cpu, cuda, cuda:1, vulkan, metal or wgpu; `beit2 doctor` shows what this build has. Several devices: cuda:all or \
         cuda:0,1",
    )
}

/// How matmuls are computed, where no recipe says it.
#[derive(Debug, Clone, Copy, Args)]
pub struct PrecisionArgs {
    /// Precision of matmul operands: f32, or bf16 (faster where the hardware has it; results agree to about two digits)
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = precision())]
    pub precision: Precision,
}

/// How a model that is only run computes.
#[derive(Debug, Clone, Copy, Args)]
pub struct InferPrecisionArgs {
    /// Precision of matmul operands: f32; bf16 (faster where the hardware has it; results agree to about two digits); int8
    /// (blocks in 8-bit integers: CPUs, fastest with AVX-512 VNNI; results agree to one or two digits)
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = infer_precision())]
    pub precision: InferPrecision,
}

fn infer_precision() -> impl TypedValueParser<Value = InferPrecision> {
    one_of(&[InferPrecision::F32, InferPrecision::Bf16, InferPrecision::Int8], |precision| match precision {
        InferPrecision::F32 => "f32",
        InferPrecision::Bf16 => "bf16",
        InferPrecision::Int8 => "int8",
    })
}

fn precision() -> impl TypedValueParser<Value = Precision> {
    one_of(&[Precision::F32, Precision::Bf16], |precision| match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    })
}

/// A value that is chosen by its name.
pub fn one_of<T>(all: &'static [T], name: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().map(|&one| name(one)))
        .try_map(move |chosen| all.iter().copied().find(|&one| name(one) == chosen).ok_or("no such name"))
}

/// The same command whose options take `-1` for a value, so that what is wrong with it can be said.
pub fn taking_negative_numbers(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let takes_a_value = !arg.is_positional() && arg.get_action().takes_values();
            if takes_a_value && !arg.is_allow_hyphen_values_set() {
                arg.allow_negative_numbers(true)
            } else {
                arg
            }
        })
        .mut_subcommands(taking_negative_numbers)
}

/// The same sentence without the flags in parentheses that the command lacks.
///
/// Why: the library names a setting and the flag for it, as in `set teacher.kind (--teacher) to …`. Training commands have
/// the setting, the others the flag.
pub fn with_own_flags(sentence: &str, flags: &[String]) -> String {
    let mut kept = String::new();
    let mut rest = sentence;
    while let Some(at) = rest.find(" (--") {
        let (before, from) = rest.split_at(at);
        let Some(end) = from.find(')') else { break };
        let flag: String = from[2..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        kept += before;
        if flags.contains(&flag) {
            kept += &from[..=end];
        }
        rest = &from[end + 1..];
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::with_own_flags;

    #[test]
    fn a_flag_that_the_command_lacks_is_left_out() {
        let sentence = "set teacher.kind (--teacher) to `dino`, or --x (see (--entry NAME) there)";
        let of = |flags: &[&str]| {
            with_own_flags(sentence, &flags.iter().map(|&flag| flag.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(of(&["--teacher", "--entry"]), sentence);
        assert_eq!(of(&["--entry"]), sentence.replace(" (--teacher)", ""));
        assert_eq!(with_own_flags("plain (text)", &[]), "plain (text)");
    }
}

/// What is printed, for commands with progress.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// Show no progress; warnings and results are still printed
    #[arg(long, short)]
    pub quiet: bool,

    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What is printed, for commands that have nothing but a result.
#[derive(Debug, Clone, Copy, Args)]
pub struct JsonArgs {
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}
