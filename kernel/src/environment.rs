//! The environment of the kernel's processes: every variable that this program reads or sets, all of them here.
//!
//! | variable | set by | effect |
//! |---|---|---|
//! | `CLTLAB_ROOT` | the kernelspec, or the user | the project's folder; else the one above the build folder that this program lies in |
//! | `CLTLAB_CUDA` | the kernelspec | not empty and not 0: cells use the library with CUDA |
//! | `CLTLAB_KERNEL` | the kernel | cells know that displays may arrive while they run |
//! | `CLTLAB_SEAL` | the kernel | the seal ([`crate::marks`]), for the other roles of this program |
//! | `CLTLAB_RUNNER` | the keeper | this process runs cells |
//! | `CLTLAB_CARGO_HOME` | the kernel | the user's `CARGO_HOME`, while the kernel has its own |
//! | `CLTLAB_RECORD_RUSTC` | the cargo in front of cargo | the file that takes the compiler's call |
//! | `EVCXR_IS_RUNTIME`, `EVCXR_TMPDIR`, `EVCXR_CONFIG_DIR`, `EVCXR_EXECUTION_SO_PATH` | evcxr, or for it | its own |
//! | `PATH`, `CARGO_HOME`, `RUSTFLAGS`, `RUSTC`, `RUSTC_WRAPPER`, `CARGO_*`, `LD_LIBRARY_PATH`, CUDA's toolkit | the user | tools and how they compile |

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// The user's project folder.
pub const ROOT: &str = "CLTLAB_ROOT";
/// Cells use the library with CUDA.
pub const CUDA: &str = "CLTLAB_CUDA";
/// Tells cells of the kernel.
pub const KERNEL: &str = "CLTLAB_KERNEL";
/// Carries the seal from the kernel to the other roles of this program.
pub const SEAL: &str = "CLTLAB_SEAL";
/// Set for the runner by the keeper.
pub const RUNNER: &str = "CLTLAB_RUNNER";
/// Set by evcxr for its runtime.
pub const RUNTIME: &str = "EVCXR_IS_RUNTIME";
/// Keeps the user's `CARGO_HOME` while the kernel has its own.
pub const CARGO_HOME_BEFORE: &str = "CLTLAB_CARGO_HOME";
/// The file that takes the compiler's call.
pub const RECORD: &str = "CLTLAB_RECORD_RUSTC";
/// evcxr's: the file that takes the path of what was built.
pub const BUILT: &str = "EVCXR_EXECUTION_SO_PATH";
/// evcxr's: the folder of its files, which is the kernel's.
pub const FOLDER: &str = "EVCXR_TMPDIR";
/// evcxr's: the folder of its configuration.
pub const CONFIG: &str = "EVCXR_CONFIG_DIR";

/// The value of a variable that is set.
pub fn get(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Its text, when it is UTF-8.
pub fn text(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A folder or file that it names.
pub fn path(name: &str) -> Option<PathBuf> {
    get(name).map(PathBuf::from)
}

/// Whether it is set.
pub fn is_set(name: &str) -> bool {
    get(name).is_some()
}

/// Whether cells use the library with CUDA.
pub fn cuda() -> bool {
    text(CUDA).is_some_and(|word| !word.is_empty() && word != "0")
}

/// The folders of programs.
pub fn program_folders() -> Vec<PathBuf> {
    get("PATH").map(|paths| std::env::split_paths(&paths).collect()).unwrap_or_default()
}

/// All variables whose name and value are UTF-8.
pub fn all() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// Sets a variable for this process and those that it starts.
///
/// # Safety
/// No other thread runs yet.
pub unsafe fn set(name: &str, value: impl AsRef<OsStr>) {
    unsafe { std::env::set_var(name, value) }
}

/// Takes a variable away.
///
/// # Safety
/// No other thread runs yet.
pub unsafe fn remove(name: &str) {
    unsafe { std::env::remove_var(name) }
}
