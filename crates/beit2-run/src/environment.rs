//! The machine and the software a run was made with, for run.toml and the report.
//!
//! Best effort: what a system does not tell is left out. Nothing here influences a run.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Where a run ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Name and version of the program, as the caller gives it.
    pub software: String,
    /// Name of the processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Hardware threads this process may use (container limits count).
    pub threads: usize,
    /// Main memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Operating system with its version, and the architecture.
    pub os: String,
}

impl Environment {
    /// Looks at the machine. `software` is the program's name and version, such as `beit2 0.1.0`.
    pub fn detect(software: &str) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            software: software.to_owned(),
            cpu: cpu_name(&read("/proc/cpuinfo")),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kilobytes(&read("/proc/meminfo"), "MemTotal:"),
            os: format!("{} {}", os_name(&read("/etc/os-release")), std::env::consts::ARCH),
        }
    }

    /// Name and value for a table of a report.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let mut pairs = vec![("Software", self.software.clone())];
        pairs.extend(self.cpu.clone().map(|cpu| ("Processor", cpu)));
        pairs.push(("Threads", self.threads.to_string()));
        pairs.extend(self.memory_bytes.map(|bytes| ("Memory", format_bytes(bytes))));
        pairs.push(("System", self.os.clone()));
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// The most memory this process has held at once, in bytes; `None` where the system does not say.
pub fn peak_memory_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The memory this process holds now, in bytes; `None` where the system does not say.
pub fn memory_held_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Memory that this process could take without others losing theirs, in bytes, also where a container allows less than the
/// machine has; `None` where the system does not say.
pub fn available_memory_bytes() -> Option<u64> {
    let free = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let left = |limit: &str, used: &str| Some(number(limit)?.saturating_sub(number(used)?));
    let contained = left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current").or_else(|| {
        let folder = "/sys/fs/cgroup/memory/memory";
        left(&format!("{folder}.limit_in_bytes"), &format!("{folder}.usage_in_bytes"))
    });
    Some(contained.map_or(free, |left| left.min(free)))
}

/// Bytes in binary units: `512 B`, `1.5 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Now in UTC, to the minute: `2026-05-17 14:03 UTC`.
pub fn now_utc() -> String {
    format_utc(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs())
}

/// Seconds since 1970 as `YYYY-MM-DD hh:mm UTC`.
fn format_utc(seconds: u64) -> String {
    let (mut days, minutes) = (seconds / 86_400, seconds / 60 % 1440);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", days + 1, minutes / 60, minutes % 60)
}

/// From /proc/cpuinfo: `model name` on x86, `Model` or `Hardware` on small ARM boards.
fn cpu_name(cpuinfo: &str) -> Option<String> {
    ["model name", "Model", "Hardware"].iter().find_map(|&key| {
        let line =
            cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key))?;
        let name = line.split_once(':')?.1.trim();
        (!name.is_empty()).then(|| name.to_owned())
    })
}

/// From /etc/os-release; the plain name of the system elsewhere.
fn os_name(os_release: &str) -> String {
    let pretty = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.map_or_else(|| std::env::consts::OS.to_owned(), |name| name.trim_matches(['"', '\'']).to_owned())
}

/// The value of a `Name:  123 kB` line, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_tells() {
        assert_eq!(cpu_name("processor\t: 0\nmodel name\t: AMD EPYC\n").as_deref(), Some("AMD EPYC"));
        assert_eq!(cpu_name(""), None);
        assert_eq!(kilobytes("MemTotal:       16384 kB\n", "MemTotal:"), Some(16 << 20));
        assert_eq!(os_name("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(os_name(""), std::env::consts::OS);
    }

    #[test]
    fn detects_something_and_survives_toml() {
        let found = Environment::detect("beit2 0.1.0");
        assert!(found.threads >= 1 && found.pairs().len() >= 3);
        let text = toml::to_string(&found).unwrap();
        assert_eq!(toml::from_str::<Environment>(&text).unwrap(), found);
    }

    #[test]
    fn dates_and_sizes() {
        assert_eq!(format_utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(format_utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(format_utc(1_735_689_599), "2024-12-31 23:59 UTC");
        assert_eq!(format_bytes(512), "512 B");
        assert_eq!(format_bytes(3 << 29), "1.5 GiB");
    }
}
