//! Devices: where tensors live, and how much memory there is.

use crate::error::{Error, ErrorKind, Result};
use candle_core::Device;

/// The first CUDA device when this build has the feature `cuda` and the machine has one, else the CPU.
///
/// ```
/// let device = cltlab::auto_device()?;
/// # Ok::<(), cltlab::Error>(())
/// ```
///
/// # Errors
/// `Tensor` when a CUDA device is there but cannot be opened.
pub fn auto_device() -> Result<Device> {
    Ok(Device::cuda_if_available(0)?)
}

/// Memory that a new allocation may take, in bytes: `MemAvailable` on Linux, or what the container's
/// limit (cgroup) leaves when that is less; `None` where the system does not say.
pub fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let available = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    let groups = [("", "memory.max", "memory.current", "inactive_file"), ("/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")];
    let left = groups.into_iter().filter_map(|(folder, limit, used, cache)| {
        let text = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup{folder}/{name}")).ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        // Pages of files that were not used lately are given back when memory is short.
        let cached = text("memory.stat")?.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok()).unwrap_or(0);
        Some(number(limit)?.saturating_sub(number(used)?.saturating_sub(cached)))
    });
    left.chain([available]).min()
}

/// Refuses a task whose predicted need exceeds the memory that is free, before anything is allocated.
///
/// # Errors
/// `OutOfMemory` with both figures and `remedy`.
pub fn require_memory(task: &str, bytes: u64, remedy: &str) -> Result<()> {
    match free_memory() {
        Some(free) if bytes > free => Err(Error::expected(
            ErrorKind::OutOfMemory,
            task,
            format_args!("a need of {}", format_bytes(bytes)),
            format_args!("at most the {} that are free", format_bytes(free)),
        )
        .help(remedy)),
        _ => Ok(()),
    }
}

/// Bytes that an ordinary user may still write below `folder` (or the nearest parent that exists); `None`
/// where the system does not say.
pub fn free_disk(folder: impl AsRef<std::path::Path>) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let folder = std::path::absolute(folder).ok()?;
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let path = std::ffi::CString::new(there.as_os_str().as_bytes()).ok()?;
    // SAFETY: zeros are a valid statvfs, which the call fills in; the path ends with a zero.
    let found = unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut found) == 0).then_some(found)
    }?;
    Some(found.f_bavail * found.f_frsize)
}

/// Refuses a task whose predicted size on disk exceeds what is free below `folder`, before anything is written.
///
/// # Errors
/// `DiskFull` with both figures and `remedy`.
pub fn require_disk(task: &str, folder: impl AsRef<std::path::Path>, bytes: u64, remedy: &str) -> Result<()> {
    match free_disk(&folder) {
        Some(free) if bytes > free => Err(Error::expected(
            ErrorKind::DiskFull,
            format_args!("{task} in {}", folder.as_ref().display()),
            format_args!("a size of {}", format_bytes(bytes)),
            format_args!("at most the {} that are free there", format_bytes(free)),
        )
        .help(remedy)),
        _ => Ok(()),
    }
}

/// Bytes for people: `1.5 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}
