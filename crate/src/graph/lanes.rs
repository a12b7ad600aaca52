//! Lanes: blocks of rows side by side, each on one core.
//!
//! A block is a chain of middling matrix products. Splitting each product over all cores costs more
//! than it gains (measured: 4 times slower on 2 cores than one core alone), so a lane is a thread
//! pool of one thread and every product in it runs there; cores are filled with blocks instead.

use crate::error::{Error, ErrorKind, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::sync::Once;
use std::sync::OnceLock;

pub(crate) struct Lanes(Vec<rayon::ThreadPool>);

impl Lanes {
    /// One lane a core of the calling pool.
    pub fn new() -> Result<Self> {
        keep_freed();
        Lanes::of(rayon::current_num_threads())
    }

    /// A single one.
    pub fn one() -> Result<Self> {
        Lanes::of(1)
    }

    fn of(count: usize) -> Result<Self> {
        let lane = |_| rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let lanes: std::result::Result<Vec<_>, _> = (0..count).map(lane).collect();
        lanes.map(Lanes).map_err(|error| Error::wrap(ErrorKind::Io, "attribution: threads", error))
    }

    /// Number of lanes.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// `work` on each item; results in the order of the items, or the first error.
    pub fn map<I: Sync, T: Send + Sync>(&self, items: &[I], work: impl Fn(&I) -> Result<T> + Sync) -> Result<Vec<T>> {
        let next = AtomicUsize::new(0);
        let done: Vec<OnceLock<Result<T>>> = items.iter().map(|_| OnceLock::new()).collect();
        let drive = || loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let (Some(item), Some(slot)) = (items.get(i), done.get(i)) else { return };
            let _ = slot.set(work(item));
        };
        std::thread::scope(|scope| {
            for lane in self.0.iter().take(items.len()) {
                scope.spawn(|| lane.install(drive));
            }
        });
        done.into_iter().filter_map(OnceLock::into_inner).collect()
    }
}

/// Blocks allocate and free buffers of megabytes by the thousand. glibc gives such memory back to the
/// system each time, which clears it again page by page (measured: a third of the CPU time); this has
/// it keep up to 256 MiB a thread for the next ones. Once a process, for all of it.
fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        static DONE: Once = Once::new();
        // SAFETY: sets two numbers of the allocator; it may refuse them.
        DONE.call_once(|| unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 20);
        });
    }
}
