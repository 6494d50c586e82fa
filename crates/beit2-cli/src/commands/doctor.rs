//! `beit2 doctor`: what to look at first when something is slow or missing, and what to put into a bug report.

use std::path::{Path, PathBuf};

use beit2_run::environment::{Environment, format_bytes};
use serde_json::json;

use crate::device::{DeviceSpec, Kind};
use crate::errors::Ending;
use crate::flags::JsonArgs;
use crate::libraries::{self, Need};
use crate::machine::{self, SOFTWARE, instruction_set};
use crate::{assets, backend, output, recipes};

/// Flags of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  beit2 doctor\n  beit2 doctor --json")]
pub struct Args {
    /// Compile the native CUDA kernels into this folder and look at nothing: no GPU is needed; BEIT2_KERNELS=DIR uses them
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// The GPUs that `--kernels` compiles for: A100, RTX 30, RTX 40 and H100
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        requires = "kernels",
        default_value = "sm_80,sm_86,sm_89,sm_90a"
    )]
    arch: Vec<String>,
    #[command(flatten)]
    output: JsonArgs,
}

/// Looks and prints.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    if let Some(folder) = &args.kernels {
        return compile(folder, &args.arch, args.output);
    }
    let machine = Environment::detect(SOFTWARE);
    let devices: Vec<(&str, Result<Option<String>, String>)> = Kind::ALL
        .into_iter()
        .map(|kind| {
            let spec = DeviceSpec::best(kind);
            let found = if kind.is_compiled_in() { backend::check(&spec) } else { Err(String::new()) };
            (kind.name(), found)
        })
        .collect();
    let survey = libraries::survey();
    let bundled = assets::inventory();

    if args.output.json {
        let devices = Kind::ALL.into_iter().zip(&devices).map(|(kind, (name, found))| {
            let kernels = found.as_ref().ok().and_then(Option::as_ref);
            let state =
                json!({ "compiled_in": kind.is_compiled_in(), "works": found.is_ok(), "kernels": kernels });
            ((*name).to_owned(), state)
        });
        output::json(&json!({
            "software": SOFTWARE,
            "cpu": machine.cpu,
            "instruction_set": instruction_set(),
            "unused_instructions": machine::unused_instructions(),
            "threads": machine.threads,
            "memory_bytes": machine.memory_bytes,
            "system": machine.os,
            "devices": devices.collect::<serde_json::Map<_, _>>(),
            "gpu_needs": survey.needs,
            "nvidia_driver": survey.nvidia_driver,
            "gpus": survey.gpus,
            "bundled": bundled.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect::<serde_json::Map<_, _>>(),
            "recipes": recipes::all().count(),
        }))?;
        return Ok(Ending::Done);
    }

    let mut rows = vec![
        ("software".to_owned(), SOFTWARE.to_owned()),
        ("system".to_owned(), machine.os),
        ("processor".to_owned(), machine.cpu.unwrap_or_else(|| "unknown".to_owned())),
        ("instruction set".to_owned(), machine::instructions()),
        ("threads".to_owned(), machine.threads.to_string()),
        ("memory".to_owned(), machine.memory_bytes.map_or("unknown".to_owned(), format_bytes)),
    ];
    for (name, found) in devices {
        let state = match found {
            Ok(None) => "works".to_owned(),
            Ok(Some(kernels)) => format!("works, {kernels}"),
            Err(why) if why.is_empty() => format!("not in this build (build with --features {name})"),
            Err(why) => why,
        };
        rows.push((format!("device {name}"), state));
    }
    rows.extend(survey.nvidia_driver.map(|release| ("NVIDIA driver".to_owned(), release)));
    for gpu in survey.gpus {
        rows.push((
            format!("GPU {}", gpu.device),
            format!("{}, {}", gpu.name, format_bytes(gpu.memory_bytes)),
        ));
    }
    rows.extend(survey.needs.into_iter().map(|need| (need.name.to_owned(), description(need))));
    rows.extend(bundled.into_iter().map(|(name, what)| (name.to_owned(), what)));
    rows.push(("recipes".to_owned(), format!("{} (`beit2 recipes`)", recipes::all().count())));
    output::result(&output::pairs(&rows))?;
    Ok(Ending::Done)
}

/// Compiles the native CUDA kernels for machines without a compiler, or with little time.
#[cfg(feature = "cuda")]
fn compile(folder: &Path, archs: &[String], flags: JsonArgs) -> anyhow::Result<Ending> {
    let made = beit2_kernels::compile_cuda_kernels(folder, archs).map_err(anyhow::Error::msg)?;
    if flags.json {
        output::json(&json!({ "folder": folder, "files": made }))?;
    } else {
        output::result(&format!("{} files in {}: BEIT2_KERNELS uses them", made.len(), folder.display()))?;
    }
    Ok(Ending::Done)
}

#[cfg(not(feature = "cuda"))]
fn compile(_: &Path, _: &[String], _: JsonArgs) -> anyhow::Result<Ending> {
    crate::errors::usage(
        "this beit2 was built without cuda, so it has no CUDA kernels; build it with `--features cuda`",
    )
}

/// What was found, and what is wrong with it.
fn description(need: Need) -> String {
    let found = need.found.map(|found| match need.version {
        Some(version) => format!("{found}, version {version}"),
        None => found,
    });
    found.into_iter().chain(need.problem).collect::<Vec<_>>().join("; ")
}
