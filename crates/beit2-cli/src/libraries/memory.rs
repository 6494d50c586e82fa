//! GPU memory of this process, as NVIDIA's own tool tells it.

use std::process::{Command, Stdio};

/// Memory of NVIDIA's GPUs that this process holds, with its context and kernels, in bytes; `None` where
/// `nvidia-smi` is missing or does not tell processes apart (in a container with process numbers of its own).
pub fn gpu_memory_held_bytes() -> Option<u64> {
    let queried = ["--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"];
    let said = Command::new("nvidia-smi").args(queried).stdin(Stdio::null()).output().ok()?;
    held(&String::from_utf8_lossy(&said.stdout), std::process::id())
}

/// Sums lines `process, MiB` of one process, which has one for each GPU.
fn held(table: &str, process: u32) -> Option<u64> {
    let own = table.lines().filter_map(|line| line.split_once(','));
    let mut own = own.filter(|(id, _)| id.trim().parse() == Ok(process)).peekable();
    own.peek()?;
    let mebibytes = own.map(|(_, used)| used.trim().parse::<u64>().ok()).sum::<Option<u64>>()?;
    mebibytes.checked_mul(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_process_are_summed() {
        let table = "12, 512\n7, 100\n12, 8\n";
        assert_eq!(held(table, 12), Some(520 << 20));
        assert_eq!(held(table, 8), None);
        assert_eq!(held("12, [N/A]\n", 12), None);
        assert_eq!(held("", 1), None);
    }
}
