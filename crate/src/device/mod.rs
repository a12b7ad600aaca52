//! Devices: where tensors live, and how much memory there is.

#[cfg(feature = "cuda")]
pub(crate) mod gpu;
mod nvidia;

#[doc(hidden)]
pub use nvidia::library_folders;

use crate::error::{Error, ErrorKind, Result};
use candle_core::Device;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first CUDA device when this build has the feature `cuda` and the machine has one, else the CPU.
///
/// ```
/// let device = cltlab::auto_device()?;
/// # Ok::<(), cltlab::Error>(())
/// ```
///
/// # Errors
/// `Unsupported` when a CUDA device is there but cannot be opened: a library of NVIDIA's is missing or too old.
pub fn auto_device() -> Result<Device> {
    match cuda_devices() {
        Ok(count) if count > 0 => cuda(0),
        _ => Ok(Device::Cpu),
    }
}

/// How many CUDA devices there are.
///
/// ```
/// match cltlab::device::cuda_devices() {
///     Ok(count) => println!("{count} GPUs"),
///     Err(why) => println!("none: {why}"),
/// }
/// ```
///
/// # Errors
/// `Unsupported` in a build without the feature `cuda`, and where there is no driver.
#[doc(hidden)]
pub fn cuda_devices() -> Result<usize> {
    backend::devices()
}

/// CUDA device `ordinal`, counted from 0.
///
/// ```no_run
/// let device = cltlab::device::cuda(0)?;
/// # Ok::<(), cltlab::Error>(())
/// ```
///
/// # Errors
/// `Unsupported`, with what to do: a build without the feature `cuda`, no driver, no such device, or no cuBLAS.
pub fn cuda(ordinal: usize) -> Result<Device> {
    backend::open(ordinal)
}

/// Refuses a GPU that [`cuda`] did not open: with candle's own stream for each thread, a kernel would overtake the copy that it
/// needs.
pub(crate) fn require_own(device: &Device) -> Result<()> {
    if backend::is_own(device) {
        return Ok(());
    }
    Err(Error::expected(ErrorKind::Unsupported, "device", "a CUDA device that was opened elsewhere, as by Device::new_cuda", "one from cltlab::auto_device() or cltlab::device::cuda")
        .help("open it by cltlab::auto_device() or cltlab::device::cuda(0): their devices have one stream for all threads"))
}

static TF32: AtomicBool = AtomicBool::new(false);

/// Lets products of f32 on a GPU round their factors to TF32, 10 bits instead of 23 with sums in f32: several times as fast
/// on cards since Ampere. For models, trainings and graphs made from now on; off at first, unless `CLTLAB_TF32=1` is in the
/// environment when a device is opened.
///
/// ```
/// cltlab::device::set_tf32(false);
/// assert!(!cltlab::device::tf32());
/// ```
pub fn set_tf32(on: bool) {
    TF32.store(on, Ordering::Relaxed);
    backend::set_tf32(on);
}

/// Whether products of f32 may round their factors to TF32.
#[doc(hidden)]
pub fn tf32() -> bool {
    TF32.load(Ordering::Relaxed)
}

#[cfg(feature = "cuda")]
mod backend {
    use super::*;
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    use candle_core::cuda_backend::DeviceId;
    use std::panic;
    use std::sync::Mutex;

    /// The devices that were opened here.
    static OPENED: Mutex<Vec<DeviceId>> = Mutex::new(Vec::new());

    /// Runs what loads NVIDIA's libraries, which panics where one is missing; its last words become the error's.
    fn caught<T>(work: impl FnOnce() -> T) -> Result<T> {
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let hook = panic::take_hook();
        panic::set_hook(Box::new(|_| {}));
        let done = panic::catch_unwind(panic::AssertUnwindSafe(work));
        panic::set_hook(hook);
        done.map_err(|payload| {
            let words = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("the driver cannot be loaded");
            // The sentence ends where the list of names that were tried begins.
            Error::new(ErrorKind::Unsupported, format!("CUDA: {}", words.split(" - ").next().unwrap_or(words)))
                .help("cltlab doctor says which of NVIDIA's libraries is missing and how to get it; or use the CPU")
        })
    }

    pub fn devices() -> Result<usize> {
        match caught(CudaContext::device_count)? {
            Ok(count) => Ok(count.max(0) as usize),
            Err(error) => Err(Error::new(ErrorKind::Unsupported, format!("CUDA: the driver says {:?}", error.0)).help("see what nvidia-smi says; or use the CPU")),
        }
    }

    pub fn open(ordinal: usize) -> Result<Device> {
        let count = devices()?;
        if ordinal >= count {
            return Err(Error::expected(ErrorKind::Unsupported, "CUDA device", ordinal, format_args!("less than {count}, the devices that there are")).help("look at CUDA_VISIBLE_DEVICES; or use the CPU"));
        }
        nvidia::open();
        if crate::environment::tf32()? == Some(true) {
            super::set_tf32(true);
        }
        // One stream for all threads: the default of one for each would let a kernel overtake the copy that it needs.
        let device = caught(|| Device::new_cuda_with_stream(ordinal))?.map_err(|error| {
            Error::wrap(ErrorKind::Unsupported, format_args!("CUDA device {ordinal}"), error).help("cltlab doctor says what is missing; or use the CPU")
        })?;
        if let Device::Cuda(inner) = &device {
            // SAFETY: there is one stream, so nothing has to wait for another's events.
            unsafe { inner.disable_event_tracking() };
            pool::keep(inner.cuda_stream().context());
            OPENED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(inner.id());
        }
        Ok(device)
    }

    pub fn is_own(device: &Device) -> bool {
        let Device::Cuda(device) = device else { return true };
        OPENED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).contains(&device.id())
    }

    /// What the driver holds for allocations to come.
    mod pool {
        use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
        use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute as Attribute;
        use candle_core::cuda_backend::cudarc::driver::CudaContext;

        /// Lets freed memory stay with this process: given back at every wait, as the driver does by itself, it would be mapped
        /// anew for each of a model's tensors.
        pub fn keep(context: &CudaContext) {
            let mut most = u64::MAX;
            if context.has_async_alloc() {
                // SAFETY: the device is open, and the attribute is 64 bits. One that refuses is slower, no more.
                let _ = unsafe { device::get_default_mem_pool(context.cu_device()).and_then(|pool| mem_pool::set_attribute(pool, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut most).cast())) };
            }
        }

        /// Gives back what is kept and not in use.
        pub fn trim(context: &CudaContext) {
            if context.has_async_alloc() {
                // SAFETY: as above; what is in use stays.
                let _ = unsafe { device::get_default_mem_pool(context.cu_device()).and_then(|pool| mem_pool::trim_to(pool, 0)) };
            }
        }

        /// Bytes that are kept and not in use.
        pub fn idle(context: &CudaContext) -> u64 {
            let one = |attribute| {
                let mut bytes = 0u64;
                // SAFETY: as above.
                let asked = unsafe { device::get_default_mem_pool(context.cu_device()).and_then(|pool| mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast())) };
                asked.map_or(0, |()| bytes)
            };
            if !context.has_async_alloc() {
                return 0;
            }
            one(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT).saturating_sub(one(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT))
        }

        /// The most bytes that allocations held at once since [`forget_peak`]; `None` where the driver has no pools.
        pub fn peak(context: &CudaContext) -> Option<u64> {
            let mut bytes = 0u64;
            if !context.has_async_alloc() {
                return None;
            }
            // SAFETY: the device is open, and the attribute is 64 bits.
            let asked = unsafe { device::get_default_mem_pool(context.cu_device()).and_then(|pool| mem_pool::get_attribute(pool, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut bytes).cast())) };
            asked.ok().map(|()| bytes)
        }

        /// Begins to measure the peak anew, from what is held now.
        pub fn forget_peak(context: &CudaContext) {
            let mut zero = 0u64;
            if context.has_async_alloc() {
                // SAFETY: the attribute is 64 bits, and 0 resets it.
                let _ = unsafe { device::get_default_mem_pool(context.cu_device()).and_then(|pool| mem_pool::set_attribute(pool, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut zero).cast())) };
            }
        }
    }

    pub(crate) use pool::trim;

    /// Bytes that can be had on a GPU, those that this process keeps for reuse among them, and all that it has.
    pub fn memory(context: &CudaContext) -> std::result::Result<(u64, u64), candle_core::cuda_backend::cudarc::driver::DriverError> {
        let (free, total) = context.mem_get_info()?;
        Ok((free as u64 + pool::idle(context), total as u64))
    }

    pub fn set_tf32(on: bool) {
        candle_core::cuda_backend::set_gemm_reduced_precision_f32(on);
    }

    pub fn free(device: &Device) -> Option<u64> {
        let Device::Cuda(device) = device else { return None };
        memory(device.cuda_stream().context()).ok().map(|(free, _)| free)
    }

    pub fn peak(device: &Device) -> Option<u64> {
        let Device::Cuda(device) = device else { return None };
        // What is freed counts until the device has come to it.
        device.cuda_stream().synchronize().ok()?;
        pool::peak(device.cuda_stream().context())
    }

    pub fn forget_peak(device: &Device) {
        if let Device::Cuda(device) = device {
            let context = device.cuda_stream();
            let _ = context.synchronize();
            pool::trim(context.context());
            pool::forget_peak(context.context());
        }
    }
}

#[cfg(feature = "cuda")]
pub(crate) use backend::{memory, trim};

#[cfg(not(feature = "cuda"))]
mod backend {
    use super::*;

    fn absent() -> Error {
        Error::new(ErrorKind::Unsupported, "CUDA: this build has none").help("build with the feature cuda: ./x build-cuda")
    }

    pub fn devices() -> Result<usize> {
        Err(absent())
    }

    pub fn open(_ordinal: usize) -> Result<Device> {
        Err(absent())
    }

    pub fn is_own(_device: &Device) -> bool {
        true
    }

    pub fn set_tf32(_on: bool) {}

    pub fn free(_device: &Device) -> Option<u64> {
        None
    }

    pub fn peak(_device: &Device) -> Option<u64> {
        None
    }

    pub fn forget_peak(_device: &Device) {}
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

/// Memory that is free on `device`, in bytes: a GPU's own, or [`free_memory`]; `None` where nobody says.
pub(crate) fn free_on(device: &Device) -> Option<u64> {
    if device.is_cpu() { free_memory() } else { backend::free(device) }
}

/// The most memory, in bytes, that allocations of this process held at once on a GPU since [`forget_peak_on`] or since it was opened;
/// the driver's own and cuBLAS' memory is not in it. `None` on the CPU and where the driver does not count.
///
/// ```
/// let device = cltlab::auto_device()?;
/// cltlab::device::forget_peak_on(&device);
/// assert!(device.is_cuda() || cltlab::device::peak_on(&device).is_none());
/// # Ok::<(), cltlab::Error>(())
/// ```
#[doc(hidden)]
pub fn peak_on(device: &Device) -> Option<u64> {
    backend::peak(device)
}

/// Gives memory that is kept for reuse on a GPU back to its driver and begins to measure the peak ([`peak_on`]) anew. On the CPU it does
/// nothing.
///
/// ```
/// cltlab::device::forget_peak_on(&cltlab::auto_device()?);
/// # Ok::<(), cltlab::Error>(())
/// ```
#[doc(hidden)]
pub fn forget_peak_on(device: &Device) {
    backend::forget_peak(device);
}

/// Refuses a task whose predicted need exceeds the memory that is free, before anything is allocated.
///
/// # Errors
/// `OutOfMemory` with both figures and `remedy`.
#[doc(hidden)]
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
#[doc(hidden)]
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
#[doc(hidden)]
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
pub(crate) fn format_bytes(bytes: u64) -> String {
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
