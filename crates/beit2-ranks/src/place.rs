//! Which of how many ranks this process is, and where they find each other: by the variables of whatever started it.

use std::fmt;

use crate::nodelist;

/// Who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// `--rank` and `--rendezvous`.
    Flags,
    /// `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`, with torchrun's id of the run.
    Torchrun,
    /// The same four variables without it: Kubeflow, Ray, scripts.
    Variables,
    /// Steps of Slurm (`srun`).
    Slurm,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// `mpiexec` of MPICH, Intel MPI and their kin.
    Mpich,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flags => "--rank",
            Self::Torchrun => "torchrun",
            Self::Variables => "RANK and WORLD_SIZE",
            Self::Slurm => "Slurm",
            Self::OpenMpi => "Open MPI",
            Self::Mpich => "MPI",
        })
    }
}

/// A process's place among those that were started together, of which there are two at least.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub rank: usize,
    /// Processes.
    pub world: usize,
    /// Number among the processes of this machine, where the launcher tells it.
    pub local_rank: Option<usize>,
    /// Where rank 0 listens.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who says all this.
    pub launcher: Launcher,
    /// What the ranks know of each other, and nobody else should.
    pub token: String,
    /// Whether the token is a secret that somebody gave, and not the launcher's name of the job.
    pub is_secret: bool,
}

// Not derived: the token stays out of messages.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, world, host, port, launcher, .. } = self;
        write!(f, "rank {rank} of {world} at {host}:{port} ({launcher})")
    }
}

/// Variables or flags that cannot be right: one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlaceError(String);

/// Larger groups are mistakes.
const MOST: usize = 4096;

/// The variable with a secret that all ranks are given.
const TOKEN: &str = "BEIT2_RENDEZVOUS_TOKEN";

/// What a launcher says of a process.
struct Said {
    launcher: Launcher,
    rank: (&'static str, String),
    world: (&'static str, String),
    local_rank: Option<String>,
    /// Where rank 0 is, if the launcher says it.
    host: Option<String>,
    port: Option<String>,
    /// What all processes of this start, and no others, have in common.
    job: String,
}

impl Place {
    /// The place by flags, `I/N` and `HOST:PORT`, else by the launcher's variables; `None`: this process is alone.
    ///
    /// # Errors
    /// A sentence about what is missing or contradicts itself.
    pub fn find(
        rank: Option<&str>,
        rendezvous: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, PlaceError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let Some(said) = said(rank, &variable)? else {
            return match rendezvous {
                None => Ok(None),
                Some(_) => error(
                    "--rendezvous needs --rank I/N: nothing that started this process says which rank it is"
                        .into(),
                ),
            };
        };
        let world = number(&said.world)?;
        let place = number(&said.rank)?;
        if world < 2 {
            return match (place, world) {
                (0, 1) => Ok(None),
                _ => error(format!("{} {} is no rank of {world}", said.rank.0, said.rank.1)),
            };
        }
        if place >= world {
            return error(format!(
                "{} {place} is no rank of {world}; ranks go from 0 to {}",
                said.rank.0,
                world - 1
            ));
        }
        if world > MOST {
            return error(format!(
                "{} {world} is too many; at most {MOST} processes train together",
                said.world.0
            ));
        }
        let (host, port) = address(&said, rendezvous)?;
        let secret = variable(TOKEN);
        let is_local = is_loopback(&host);
        if said.launcher == Launcher::Flags && secret.is_none() && !is_local {
            return error(format!(
                "ranks on several machines need a token, so that nobody else can join: set {TOKEN} to the same secret on all \
                 of them"
            ));
        }
        Ok(Some(Self {
            rank: place,
            world,
            local_rank: said.local_rank.and_then(|number| number.parse().ok()),
            host,
            port,
            launcher: said.launcher,
            is_secret: secret.is_some(),
            token: secret.unwrap_or(said.job),
        }))
    }
}

/// Whether a name means this machine only.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn said(rank: Option<&str>, variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Said>, PlaceError> {
    if let Some(text) = rank {
        let Some((rank, world)) = text.split_once('/') else {
            return error(format!("--rank {text}: write it as I/N, such as 0/2 and 1/2 for two processes"));
        };
        return Ok(Some(Said {
            launcher: Launcher::Flags,
            rank: ("--rank", rank.to_owned()),
            world: ("--rank", world.to_owned()),
            local_rank: None,
            host: None,
            port: None,
            job: String::new(),
        }));
    }
    let (host, port) = (variable("MASTER_ADDR"), variable("MASTER_PORT"));
    if let (Some(rank), Some(world)) = (variable("RANK"), variable("WORLD_SIZE")) {
        let run = variable("TORCHELASTIC_RUN_ID");
        return Ok(Some(Said {
            launcher: if run.is_some() { Launcher::Torchrun } else { Launcher::Variables },
            rank: ("RANK", rank),
            world: ("WORLD_SIZE", world),
            local_rank: variable("LOCAL_RANK"),
            // Not its count of restarts, which an agent that came later counts otherwise.
            job: format!("{} {}", run.unwrap_or_default(), port.as_deref().unwrap_or_default()),
            host,
            port,
        }));
    }
    // A batch script has these variables too; only what `srun` starts has a step.
    if let (Some(rank), Some(world), Some(step)) = (
        variable("SLURM_PROCID"),
        variable("SLURM_STEP_NUM_TASKS"),
        variable("SLURM_STEP_ID").or_else(|| variable("SLURM_STEPID")),
    ) {
        let nodes = variable("SLURM_STEP_NODELIST").or_else(|| variable("SLURM_JOB_NODELIST"));
        return Ok(Some(Said {
            launcher: Launcher::Slurm,
            rank: ("SLURM_PROCID", rank),
            world: ("SLURM_STEP_NUM_TASKS", world),
            local_rank: variable("SLURM_LOCALID"),
            host: host.or_else(|| nodelist::first(&nodes?)),
            port,
            job: format!("{}.{step}", variable("SLURM_JOB_ID").unwrap_or_default()),
        }));
    }
    let this_machine = |local: &str, world: &str| {
        (variable(local).as_deref() == Some(world)).then(|| "127.0.0.1".to_owned())
    };
    // One machine's processes have one parent.
    let parent = || std::os::unix::process::parent_id().to_string();
    if let (Some(rank), Some(world)) = (variable("OMPI_COMM_WORLD_RANK"), variable("OMPI_COMM_WORLD_SIZE")) {
        return Ok(Some(Said {
            launcher: Launcher::OpenMpi,
            rank: ("OMPI_COMM_WORLD_RANK", rank),
            local_rank: variable("OMPI_COMM_WORLD_LOCAL_RANK"),
            host: host.or_else(|| this_machine("OMPI_COMM_WORLD_LOCAL_SIZE", &world)),
            world: ("OMPI_COMM_WORLD_SIZE", world),
            port,
            job: variable("PMIX_NAMESPACE")
                .or_else(|| variable("OMPI_MCA_ess_base_jobid"))
                .unwrap_or_else(parent),
        }));
    }
    if let (Some(rank), Some(world)) = (variable("PMI_RANK"), variable("PMI_SIZE")) {
        return Ok(Some(Said {
            launcher: Launcher::Mpich,
            rank: ("PMI_RANK", rank),
            local_rank: variable("MPI_LOCALRANKID"),
            host: host.or_else(|| this_machine("MPI_LOCALNRANKS", &world)),
            world: ("PMI_SIZE", world),
            port,
            job: parent(),
        }));
    }
    Ok(None)
}

/// Where the ranks meet: what the flag says, else what the launcher does.
fn address(said: &Said, rendezvous: Option<&str>) -> Result<(String, u16), PlaceError> {
    if let Some(text) = rendezvous {
        let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        return match parts {
            Some((host, port)) if !host.is_empty() && port > 0 => {
                Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
            }
            _ => error(format!(
                "--rendezvous {text}: write it as HOST:PORT, the machine of rank 0 and a free port there"
            )),
        };
    }
    let Some(host) = said.host.clone() else {
        return error(match said.launcher {
            Launcher::Flags => {
                "--rank needs --rendezvous HOST:PORT, the machine of rank 0 and a free port there".into()
            }
            launcher => format!(
                "{launcher} says which rank this is but not where rank 0 is; set MASTER_ADDR to its machine, or use \
                 --rendezvous HOST:PORT"
            ),
        });
    };
    match (&said.port, said.launcher) {
        // Torchrun's own process listens on its port.
        (Some(port), launcher) if launcher != Launcher::Torchrun => match port.parse() {
            Ok(port) if port > 0 => Ok((host, port)),
            _ => error(format!("MASTER_PORT {port} is no port")),
        },
        _ => Ok((host, port_of(&said.job))),
    }
}

/// A port that all processes of a job find without a word, below those that systems give to outgoing connections.
fn port_of(job: &str) -> u16 {
    20_000 + (crc32fast::hash(job.as_bytes()) % 10_000) as u16
}

fn number((name, text): &(&'static str, String)) -> Result<usize, PlaceError> {
    text.trim().parse().or_else(|_| error(format!("{name} {text} is not a whole number")))
}

fn error<T>(sentence: String) -> Result<T, PlaceError> {
    Err(PlaceError(sentence))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn find(flags: [Option<&str>; 2], variables: &[(&str, &str)]) -> Result<Option<Place>, PlaceError> {
        let of = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Place::find(flags[0], flags[1], of)
    }

    fn by(variables: &[(&str, &str)]) -> Place {
        find([None, None], variables).unwrap().unwrap()
    }

    const TORCHRUN: [(&str, &str); 6] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node1"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_RUN_ID", "none"),
    ];

    #[test]
    fn launchers_say_the_place() {
        let torchrun = by(&TORCHRUN);
        assert_eq!((torchrun.rank, torchrun.world, torchrun.local_rank), (3, 4, Some(1)));
        assert_eq!((torchrun.host.as_str(), torchrun.launcher), ("node1", Launcher::Torchrun));
        // The agent's own port is another.
        assert!((20_000..30_000).contains(&torchrun.port));
        let kubeflow = by(&TORCHRUN[..5]);
        assert_eq!((kubeflow.port, kubeflow.launcher), (29500, Launcher::Variables));
        let slurm = by(&[
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_STEP_ID", "2"),
            ("SLURM_JOB_ID", "77"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_STEP_NODELIST", "gpu[03-04]"),
        ]);
        assert_eq!(
            (slurm.host.as_str(), slurm.launcher, slurm.token.as_str()),
            ("gpu03", Launcher::Slurm, "77.2")
        );
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("PMIX_NAMESPACE", "job"),
        ];
        assert_eq!((by(&mpi).host.as_str(), by(&mpi).launcher), ("127.0.0.1", Launcher::OpenMpi));
        let mpich = by(&[("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALNRANKS", "2")]);
        assert_eq!((mpich.rank, mpich.launcher), (1, Launcher::Mpich));
    }

    #[test]
    fn processes_alone() {
        assert_eq!(find([None, None], &[]), Ok(None));
        assert_eq!(find([None, None], &[("RANK", "0"), ("WORLD_SIZE", "1")]), Ok(None));
        assert_eq!(find([None, None], &[("RANK", "7")]), Ok(None));
        // A batch script of Slurm, of which only `srun` starts ranks.
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_ID", "7")];
        assert_eq!(find([None, None], &batch), Ok(None));
        assert_eq!(find([Some("0/1"), None], &TORCHRUN), Ok(None));
    }

    #[test]
    fn flags_come_first() {
        let found = find([Some("1/2"), Some("127.0.0.1:4000")], &TORCHRUN).unwrap().unwrap();
        assert_eq!((found.rank, found.world, found.port, found.launcher), (1, 2, 4000, Launcher::Flags));
        let found = find([None, Some("[::1]:4000")], &TORCHRUN).unwrap().unwrap();
        assert_eq!((found.rank, found.host.as_str(), found.port), (3, "::1", 4000));
        let secret = [("BEIT2_RENDEZVOUS_TOKEN", "s3cret")];
        let found = find([Some("1/2"), Some("node1:4000")], &secret).unwrap().unwrap();
        assert!(found.is_secret && !format!("{found:?}").contains("s3cret"));
    }

    #[test]
    fn contradictions_are_sentences() {
        type Case<'a> = ([Option<&'a str>; 2], &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case<'_>; 10] = [
            ([Some("2/2"), Some("a:1")], &[], "--rank 2 is no rank of 2; ranks go from 0 to 1"),
            ([Some("1"), Some("a:1")], &[], "write it as I/N"),
            ([Some("x/2"), Some("a:1")], &[], "--rank x is not a whole number"),
            ([Some("0/0"), Some("a:1")], &[], "--rank 0 is no rank of 0"),
            ([Some("0/2"), None], &[], "--rank needs --rendezvous HOST:PORT"),
            ([Some("0/2"), Some("a")], &[], "write it as HOST:PORT"),
            ([Some("0/2"), Some("a:70000")], &[], "write it as HOST:PORT"),
            ([Some("0/2"), Some("node1:4000")], &[], "set BEIT2_RENDEZVOUS_TOKEN"),
            ([None, Some("a:1")], &[], "--rendezvous needs --rank"),
            ([None, None], &[("RANK", "0"), ("WORLD_SIZE", "2")], "set MASTER_ADDR"),
        ];
        for (flags, variables, part) in cases {
            let why = find(flags, variables).unwrap_err().to_string();
            assert!(why.contains(part), "{flags:?}: {why}");
        }
    }
}
