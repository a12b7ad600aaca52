//! Where NVIDIA's libraries lie when the system's loader does not know: beside the Python of a virtual environment
//! (`pip install nvidia-cublas`), in a conda environment, in a toolkit on PATH.

use std::path::PathBuf;

/// Folders that may hold NVIDIA's libraries, beside those of the system's loader: for each folder `P/bin` on PATH
/// `P/lib`, `P/lib64` and what Python's packages put into `P/lib/python3*/site-packages/nvidia/*/lib`.
///
/// ```
/// for folder in cltlab::device::library_folders() {
///     println!("{}", folder.display());
/// }
/// ```
pub fn library_folders() -> Vec<PathBuf> {
    let inside = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = Vec::new();
    for bin in crate::environment::program_folders().into_iter().filter(|bin| bin.is_absolute()) {
        let Some(prefix) = bin.parent() else { continue };
        let python = inside(prefix.join("lib")).filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")));
        let packages = python.flat_map(|python| inside(python.join("site-packages/nvidia"))).map(|package| package.join("lib"));
        let found: Vec<PathBuf> = packages.chain([prefix.join("lib"), prefix.join("lib64")]).filter(|folder| folder.is_dir()).collect();
        folders.extend(found);
    }
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Opens cuBLAS and cuRAND where [`library_folders`] has them and the loader does not find them by itself; whoever asks
/// for them by name afterwards gets these.
#[cfg(feature = "cuda")]
pub(super) fn open() {
    use std::ffi::CString;
    // SAFETY: opening a library runs its constructors; these are the ones that the next call would open.
    let opens = |name: &str| CString::new(name).is_ok_and(|name| unsafe { !libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() });
    let folders = std::cell::OnceCell::new();
    // cuBLAS needs the second.
    for (library, needs) in [("libcublas.so", Some("libcublasLt.so")), ("libcurand.so", None)] {
        let versions = ["", ".13", ".12", ".10"];
        if versions.iter().any(|version| opens(&format!("{library}{version}"))) {
            continue;
        }
        let folders = folders.get_or_init(library_folders);
        let places = folders.iter().flat_map(|folder| versions.iter().map(move |version| (folder, version)));
        for (folder, version) in places.filter(|(folder, version)| folder.join(format!("{library}{version}")).exists()) {
            if let Some(needs) = needs {
                opens(&folder.join(format!("{needs}{version}")).to_string_lossy());
            }
            if opens(&folder.join(format!("{library}{version}")).to_string_lossy()) {
                break;
            }
        }
    }
}
