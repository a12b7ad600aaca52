//! The environment variables that the program reads, all of them here; the library has its own list.
//!
//! | variable | default | effect |
//! |---|---|---|
//! | `CLTLAB_ROOT` | where the program was built | the project's folder, which `kernel install` writes into the kernelspec |
//! | `JUPYTER_DATA_DIR` | `~/.local/share/jupyter` | where `kernel install --user` writes |
//! | `HOME` | none | the user's folder |
//! | `LD_LIBRARY_PATH` | none | folders in which `doctor` looks for NVIDIA's libraries too |

use std::path::PathBuf;

fn folder(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// `CLTLAB_ROOT`.
pub fn root() -> Option<PathBuf> {
    folder("CLTLAB_ROOT")
}

/// `JUPYTER_DATA_DIR`.
pub fn jupyter_data() -> Option<PathBuf> {
    folder("JUPYTER_DATA_DIR")
}

/// `HOME`.
pub fn home() -> Option<PathBuf> {
    folder("HOME")
}

/// The folders of `LD_LIBRARY_PATH`.
pub fn library_folders() -> Vec<PathBuf> {
    let listed = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    std::env::split_paths(&listed).filter(|folder| !folder.as_os_str().is_empty()).collect()
}
