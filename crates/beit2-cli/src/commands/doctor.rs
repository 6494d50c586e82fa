//! `beit2 doctor`: what to look at first when something is slow or missing, and what to put into a bug report.

use beit2_run::environment::{Environment, format_bytes};
use serde_json::json;

use crate::device::{DeviceSpec, Kind};
use crate::errors::Ending;
use crate::flags::JsonArgs;
use crate::libraries::{self, Need};
use crate::machine::{SOFTWARE, instruction_set};
use crate::{assets, backend, output, recipes};

/// Flags of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  beit2 doctor\n  beit2 doctor --json")]
pub struct Args {
    #[command(flatten)]
    output: JsonArgs,
}

/// Looks and prints.
pub fn run(args: &Args) -> anyhow::Result<Ending> {
    let machine = Environment::detect(SOFTWARE);
    let devices: Vec<(&str, Result<(), String>)> = Kind::ALL
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
            let state = json!({ "compiled_in": kind.is_compiled_in(), "works": found.is_ok() });
            ((*name).to_owned(), state)
        });
        output::json(&json!({
            "software": SOFTWARE,
            "cpu": machine.cpu,
            "instruction_set": instruction_set(),
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
        ("instruction set".to_owned(), instruction_set().to_owned()),
        ("threads".to_owned(), machine.threads.to_string()),
        ("memory".to_owned(), machine.memory_bytes.map_or("unknown".to_owned(), format_bytes)),
    ];
    for (name, found) in devices {
        let state = match found {
            Ok(()) => "works".to_owned(),
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

/// What was found, and what is wrong with it.
fn description(need: Need) -> String {
    let found = need.found.map(|found| match need.version {
        Some(version) => format!("{found}, version {version}"),
        None => found,
    });
    found.into_iter().chain(need.problem).collect::<Vec<_>>().join("; ")
}
