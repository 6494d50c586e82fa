//! Training in several processes: which rank this one is, and how it meets the others.

use std::time::Duration;

use beit2_kernels::Rank;
use beit2_ranks::{JoinError, Launcher, Limits, Place, join};
use clap::Args;

use crate::device::{DeviceSpec, Kind};
use crate::errors::usage;
use crate::machine;
use crate::output;
use crate::signals::Signals;

/// This process among those that train together.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Several processes")]
pub struct RankArgs {
    /// This process's rank and the number of processes, such as 0/4; each trains on one device [default: what torchrun,
    /// srun, mpirun or Kubernetes says]
    #[arg(long, value_name = "I/N", allow_hyphen_values = true)]
    pub rank: Option<String>,

    /// Where the processes meet: the machine of rank 0, and a free port there [default: what the launcher says]
    #[arg(long, value_name = "HOST:PORT")]
    pub rendezvous: Option<String>,

    /// How long to wait for all processes to start
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub join_timeout: Duration,

    /// After how long without a sign of life another process counts as lost
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub peer_timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.trim().parse().ok().filter(|seconds| (0.1..=1e6).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "it must be a number of seconds from 0.1 to 1000000".to_owned())
}

/// This process's rank, and what it says of itself.
pub struct Joined {
    /// Alone, or connected to the others.
    pub rank: Rank,
    /// The device, which the launcher may choose.
    pub device: DeviceSpec,
    /// For the header: how many there are and who started them; `None` alone.
    pub told: Option<String>,
}

impl RankArgs {
    /// This process's place; `None` alone.
    ///
    /// # Errors
    /// Flags or variables that cannot be right.
    pub fn place(&self) -> anyhow::Result<Option<Place>> {
        let variable = |name: &str| std::env::var(name).ok();
        Place::find(self.rank.as_deref(), self.rendezvous.as_deref(), variable)
            .or_else(|error| usage(error.to_string()))
    }
}

/// Meets the other processes, if there are any. `same` is what all of them must have been given, beside version and device.
///
/// # Errors
/// Processes that do not come, that cannot be reached or that were started otherwise: one sentence.
pub fn meet(
    args: &RankArgs,
    device: &DeviceSpec,
    same: &[(&'static str, String)],
    signals: &Signals,
) -> anyhow::Result<Joined> {
    let Some(place) = args.place()? else {
        return Ok(Joined { rank: Rank::alone(), device: device.clone(), told: None });
    };
    let own = device_of(device, &place, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref());
    let mut statements = vec![
        ("the version", env!("CARGO_PKG_VERSION").to_owned()),
        ("the device", own.kind.name().to_owned()),
    ];
    statements.extend_from_slice(same);
    if own.kind == Kind::Cpu {
        // Others round otherwise, and the models would drift apart.
        statements.push(("the instruction set", machine::instruction_set().to_owned()));
    }
    let statements: Vec<_> = statements.into_iter().map(|(what, value)| (what.to_owned(), value)).collect();
    let limits = Limits { join: args.join_timeout, silence: args.peer_timeout };
    let group = join(&place, &statements, limits, &|text| output::warning(text), &|| signals.stop.is_set());
    let group = match group {
        Ok(group) => group,
        Err(JoinError::Stopped) => return Err(beit2::Error::Interrupted.into()),
        Err(error) => anyhow::bail!(error.to_string()),
    };
    let Place { rank, world, host, port, launcher, .. } = &place;
    let mut told = format!("{world} processes, started by {launcher}, met at {host}:{port}");
    if *launcher == Launcher::Flags {
        told = format!("{world} processes, met at {host}:{port}");
    }
    if !place.is_secret && *rank == 0 && host != "127.0.0.1" && host != "localhost" {
        told += " (BEIT2_RENDEZVOUS_TOKEN is not set: whoever reaches that port and knows the job can join)";
    }
    Ok(Joined { rank: Rank::of_process(group), device: own, told: Some(told) })
}

/// The GPU of a process: `--device cuda` means that of its number on its machine, unless the launcher shows it only one.
fn device_of(device: &DeviceSpec, place: &Place, visible: Option<&str>) -> DeviceSpec {
    let sees_one = visible.is_some_and(|visible| !visible.is_empty() && !visible.contains(','));
    match place.local_rank {
        Some(number) if device.is_best() && device.kind != Kind::Cpu && !sees_one => {
            DeviceSpec::numbered(device.kind, number)
        }
        _ => device.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_its_own_gpu() {
        let variables = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node1"),
            ("MASTER_PORT", "1234"),
        ];
        let find = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let place = Place::find(None, None, find).unwrap().unwrap();
        let of = |spec: &str, visible| device_of(&spec.parse().unwrap(), &place, visible).to_string();
        assert_eq!(of("cuda", None), "cuda:1");
        assert_eq!(of("cuda", Some("0,1,2,3")), "cuda:1");
        assert_eq!(of("cuda", Some("3")), "cuda");
        assert_eq!(of("cuda:2", None), "cuda:2");
        assert_eq!(of("cpu", None), "cpu");
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
        for text in ["0", "-1", "x", "inf", "1e9"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
