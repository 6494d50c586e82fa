//! CubeCL's CUDA streams, which it does not give away.
//!
//! Own kernels must run in the order of CubeCL's, on the stream that its memory belongs to. CubeCL 0.10 has no function
//! for it, but every one of its structures prints itself: the streams are read out of that text, once for each stream. The
//! version of CubeCL is pinned, a test holds the text, and whatever does not look as expected switches the native path
//! off. docs/decisions.md says what else was considered.

use cubecl::stream_id::StreamId;
use cudarc::driver::sys::{CUcontext, CUresult, CUstream, cuCtxGetCurrent, cuStreamGetCtx};

use super::engine::CudaServer;

/// What the list of streams follows in the text.
const BEFORE: &str = "MultiStream { streams: StreamPool { streams: [";
/// What a stream's address follows in an entry of the list.
const STREAM: &str = "Some(StreamWrapper { stream: Stream { sys: 0x";

/// The streams of one device that are known already.
#[derive(Debug, Default)]
pub(super) struct Streams(Vec<Option<usize>>);

impl Streams {
    /// The CUDA stream of CubeCL's stream `id`, on the device's thread. The stream must have been used before.
    ///
    /// # Errors
    /// If CubeCL's text is not as expected, or what it names is no stream of this device.
    pub fn get(&mut self, server: &CudaServer, id: StreamId) -> Result<CUstream, String> {
        if let Some(found) = self.known(id) {
            return Ok(found as CUstream);
        }
        self.0 = parse(&format!("{server:?}")).ok_or(
            "CubeCL does not show its CUDA streams as version 0.10 does; this build cannot use them",
        )?;
        let found = self.known(id).ok_or("CubeCL's CUDA stream has not been made yet")?;
        verify(found as CUstream)?;
        Ok(found as CUstream)
    }

    /// Whether CubeCL's streams are all one CUDA stream, whose work is in one order.
    pub fn is_one(&self) -> bool {
        self.0.len() == 2
    }

    /// CubeCL spreads its own stream numbers over a fixed number of CUDA streams; one more is for its clean-up.
    fn known(&self, id: StreamId) -> Option<usize> {
        let count = self.0.len().checked_sub(1).filter(|count| *count > 0)?;
        self.0[(id.value % count as u64) as usize]
    }
}

/// Asks the driver whether `stream` belongs to the context of this thread.
fn verify(stream: CUstream) -> Result<(), String> {
    let (mut of_stream, mut current): (CUcontext, CUcontext) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: both write one pointer. The address comes from a stream that CubeCL holds open.
    let asked = unsafe { [cuStreamGetCtx(stream, &mut of_stream), cuCtxGetCurrent(&mut current)] };
    let fits = !current.is_null() && of_stream == current;
    if asked == [CUresult::CUDA_SUCCESS; 2] && fits {
        Ok(())
    } else {
        Err("what CubeCL shows as its CUDA stream is not a stream of this device".into())
    }
}

/// The addresses in the order of the list, `None` for streams that were not made yet.
fn parse(text: &str) -> Option<Vec<Option<usize>>> {
    let (_, list) = text.split_once(BEFORE)?;
    entries(list)?.into_iter().map(address).collect()
}

/// `Some(None)` for an entry without a stream, `None` for one that is neither.
fn address(entry: &str) -> Option<Option<usize>> {
    if entry == "None" {
        return Some(None);
    }
    let digits = entry.strip_prefix(STREAM)?;
    let end = digits.find(|c: char| !c.is_ascii_hexdigit())?;
    let address = usize::from_str_radix(&digits[..end], 16).ok()?;
    // 0, 1 and 2 are CUDA's names for its default streams.
    (address > 2).then_some(Some(address))
}

/// What lies between the commas of a list, up to its closing bracket. Quoted text may hold anything.
fn entries(list: &str) -> Option<Vec<&str>> {
    let (mut depth, mut start, mut quoted, mut escaped) = (0_usize, 0, false, false);
    let mut found = Vec::new();
    for (at, c) in list.char_indices() {
        if quoted {
            quoted = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            '"' => quoted = true,
            '(' | '[' | '{' => depth += 1,
            ']' if depth == 0 => {
                let last = list[start..at].trim();
                found.extend((!last.is_empty()).then_some(last));
                return Some(found);
            }
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                found.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As CubeCL 0.10 prints it, shortened.
    const TEXT: &str = r#"CudaServer { ctx: CudaContext { context: 0x1, module_names: {} }, device_id: DeviceId { type_id: 0, index_id: 0 }, streams: MultiStream { streams: StreamPool { streams: [Some(StreamWrapper { stream: Stream { sys: 0x7f01a0, memory_management_gpu: MemoryManagement { name: "Main, [GPU] \"Memory\"", pools: [Slice { id: 1 }, Slice { id: 2 }] }, errors: [] }, cursor: 3, last_synced: {} }), None, Some(StreamWrapper { stream: Stream { sys: 0xbeef, errors: [] }, cursor: 0 })], factory: EventStreamBackendWrapper { }, max_streams: 2 } }, comm_stream: 0x55 }"#;

    #[test]
    fn streams_are_read_from_the_text() {
        assert_eq!(parse(TEXT), Some(vec![Some(0x7f01a0), None, Some(0xbeef)]));
        let known = Streams(parse(TEXT).unwrap());
        assert_eq!(known.known(StreamId { value: 4 }), Some(0x7f01a0));
        assert_eq!(
            known.known(StreamId { value: 5 }),
            None,
            "not made yet, and the last one is not for work"
        );
        assert_eq!(Streams::default().known(StreamId { value: 0 }), None);
    }

    #[test]
    fn another_text_is_refused() {
        for (from, to) in [
            ("StreamPool", "Pool"),
            ("Some(StreamWrapper { stream", "Some(Wrapper { stream"),
            ("sys: 0x7f01a0", "sys: 0x0"),
            ("sys: 0x7f01a0", "sys: 7f01a0"),
            ("], factory", ""),
        ] {
            assert!(TEXT.contains(from));
            assert_eq!(parse(&TEXT.replace(from, to)), None, "{from} -> {to}");
        }
    }
}
