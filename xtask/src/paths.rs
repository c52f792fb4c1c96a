//! Where things are: the workspace, its target folder, and the folder for tools that outlive a clone.
use std::env;
use std::path::{Path, PathBuf};

/// The workspace's root, from where cargo says this package is.
pub(crate) fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// Where `build-ebpf` puts its object. Always below the workspace: the agent's build script looks there.
pub(crate) fn bpf() -> PathBuf {
    root().join("target/bpf")
}

/// Tools built by `setup`. Outside the clone, so that the next clone on this machine finds them.
pub(crate) fn tools() -> PathBuf {
    if let Some(dir) = env::var_os("NODEMESH_TOOLS") {
        return PathBuf::from(dir);
    }
    cache().join("tools")
}

/// What outlives a clone.
pub(crate) fn cache() -> PathBuf {
    let cache =
        env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| home().map(|home| home.join(".cache")));
    cache.unwrap_or_else(|| PathBuf::from("/var/cache")).join("nodemesh")
}

pub(crate) fn home() -> Option<PathBuf> {
    env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

/// The folders programs are looked for in: our own tools first, then `PATH`, then where administrators' and cargo's
/// programs are when `PATH` leaves them out.
pub(crate) fn program_dirs() -> Vec<PathBuf> {
    let mut dirs = vec![tools().join("bin")];
    dirs.extend(env::var_os("PATH").iter().flat_map(|path| env::split_paths(path).collect::<Vec<_>>()));
    dirs.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.extend(home().map(|home| home.join(".cargo/bin")));
    dirs
}

pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    program_dirs().into_iter().map(|dir| dir.join(name)).find(|path| path.is_file())
}
