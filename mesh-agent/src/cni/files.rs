//! The plugin's files on a node: its program, and its place in the first network configuration. Owns: putting them there
//! and taking them away, each in one step, so that a runtime that reads meanwhile sees the old or the new. Never: changes
//! a byte of what others have written, and never fights over a file that is not first.
//!
//! A runtime uses the first configuration of the folder by name (`containerd`, CRI-O: `.conf`, `.conflist`, `.json`). The
//! plugin's entry goes to the end of that list, behind the plugin that makes the network. A single configuration becomes
//! a list under the same name (`10-x.conf`, `10-x.conflist`), because only a list has a place for a second plugin; it is
//! kept in it word for word, and comes back as it was.
//!
//! Called by `cni::keeper` (puts) and by the verb that uninstalls (takes away).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{CONFIG_MAX_BYTES, PLUGIN};

mod text;

/// What a configuration's name ends with, for the runtimes.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
const LIST: &str = "conflist";
/// Files of the folder that are looked at; it usually holds one.
pub const CONFIGS_MAX: usize = 256;

/// What cannot be done with the plugin's files.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{field}: {path}: {source}; check that the node's folder is mounted and can be written")]
    Io { field: &'static str, path: PathBuf, source: io::Error },
    #[error("cni-conf-dir: {path} holds more than {CONFIGS_MAX} files; is it the node's CNI configuration?")]
    TooMany { path: PathBuf },
}

/// Where the plugin's entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It has been put, or changed.
    Now(PathBuf),
    /// It was there.
    Already(PathBuf),
    /// No configuration has a place for it yet: the node's network plugin has not been set up.
    Nowhere,
}

/// The plugin's entry in a list: where it asks.
pub fn entry(socket: &Path) -> String {
    serde_json::json!({"type": PLUGIN, "socket": socket}).to_string()
}

/// Puts the plugin's program into the folder of the node's plugins. Returns whether it was not there, or was another.
pub fn put_program(bin_dir: &Path, program: &Path) -> Result<bool, FilesError> {
    let target = bin_dir.join(PLUGIN);
    let failed = |source| FilesError::Io { field: "cni-bin-dir", path: target.clone(), source };
    if same_content(program, &target).map_err(failed)? {
        return Ok(false);
    }
    let next = bin_dir.join(format!(".{PLUGIN}.{}", std::process::id()));
    let done = copy(program, &next).and_then(|()| fs::rename(&next, &target));
    if done.is_err() {
        // Perhaps never made.
        let _gone = fs::remove_file(&next);
    }
    done.map(|()| true).map_err(failed)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    let file = File::open(to)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()
}

fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let second = match File::open(other) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let first = File::open(one)?;
    if first.metadata()?.len() != second.metadata()?.len() {
        return Ok(false);
    }
    let (mut first, mut second) = (io::BufReader::new(first), io::BufReader::new(second));
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let read = first.read(&mut left)?;
        if read == 0 {
            return Ok(true);
        }
        second.read_exact(&mut right[..read])?;
        if left[..read] != right[..read] {
            return Ok(false);
        }
    }
}

/// Makes `entry` the last plugin of the first configuration, and no plugin of any other.
pub fn put_entry(conf_dir: &Path, entry: &str) -> Result<Placed, FilesError> {
    let mut placed = Placed::Nowhere;
    for config in configs(conf_dir)? {
        if placed != Placed::Nowhere {
            // A list that the conversion of a file before it has just made is the one that holds the entry.
            if !matches!(&placed, Placed::Now(path) | Placed::Already(path) if *path == config.path) {
                take_entry(&config)?;
            }
            continue;
        }
        placed = config.put(entry)?;
    }
    Ok(placed)
}

/// Takes the plugin's entry out of every configuration, then its program away. What nobody else has changed is as it was
/// before. Returns whether there was anything.
pub fn remove(bin_dir: &Path, conf_dir: &Path) -> Result<bool, FilesError> {
    let mut any = false;
    for config in configs(conf_dir)? {
        any |= take_entry(&config)?;
    }
    let program = bin_dir.join(PLUGIN);
    match fs::remove_file(&program) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(any),
        Err(source) => Err(FilesError::Io { field: "cni-bin-dir", path: program, source }),
    }
}

/// A configuration of the folder.
#[derive(Debug)]
struct Config {
    path: PathBuf,
    text: String,
}

impl Config {
    fn is_list(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == LIST)
    }

    /// Puts the entry, if a runtime would use this configuration.
    fn put(&self, entry: &str) -> Result<Placed, FilesError> {
        if self.is_list() {
            return match text::with_entry(&self.text, entry) {
                None => Ok(Placed::Nowhere),
                Some(text) if text == self.text => Ok(Placed::Already(self.path.clone())),
                Some(text) => {
                    replace(&self.path, &text, &self.path)?;
                    Ok(Placed::Now(self.path.clone()))
                }
            };
        }
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(text) = text::as_list(&self.text, name, entry) else { return Ok(Placed::Nowhere) };
        let list = self.path.with_extension(LIST);
        // In this order: a runtime that reads in between finds the old one first.
        replace(&list, &text, &self.path)?;
        fs::remove_file(&self.path).map_err(at(&self.path))?;
        Ok(Placed::Now(list))
    }
}

/// Takes the entry out of one configuration. Returns whether it was there.
fn take_entry(config: &Config) -> Result<bool, FilesError> {
    if !config.is_list() {
        return Ok(false);
    }
    if let Some((name, text)) = text::from_list(&config.text) {
        let single = config.path.with_file_name(name);
        // Where the single configuration is there again, somebody has written it since: it is newer than what we kept.
        if !single.exists() {
            replace(&single, text, &config.path)?;
        }
        fs::remove_file(&config.path).map_err(at(&config.path))?;
        return Ok(true);
    }
    let Some(text) = text::without_entry(&config.text) else { return Ok(false) };
    replace(&config.path, &text, &config.path)?;
    Ok(true)
}

/// The folder's configurations in the order in which a runtime tries them.
fn configs(dir: &Path) -> Result<Vec<Config>, FilesError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        let is_config =
            path.extension().and_then(|text| text.to_str()).is_some_and(|it| EXTENSIONS.contains(&it));
        if is_config && path.is_file() {
            paths.push(path);
        }
        if paths.len() > CONFIGS_MAX {
            return Err(FilesError::TooMany { path: dir.to_owned() });
        }
    }
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        // What is too long, cut or no text is no configuration: the runtime goes past it as well.
        let mut text = String::new();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at(&path)(error)),
        };
        if file.take(CONFIG_MAX_BYTES).read_to_string(&mut text).is_ok() {
            found.push(Config { path, text });
        }
    }
    Ok(found)
}

/// Writes a file in one step, with the owner and mode of `like`.
fn replace(path: &Path, text: &str, like: &Path) -> Result<(), FilesError> {
    let mut next = path.as_os_str().to_owned();
    // Not an extension that a runtime looks at.
    next.push(format!(".{PLUGIN}-{}", std::process::id()));
    let next = PathBuf::from(next);
    let write = || -> io::Result<()> {
        let before = fs::metadata(like)?;
        let mut file = File::create(&next)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(before.permissions())?;
        std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()))?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    write().map_err(|error| {
        // Perhaps never made.
        let _gone = fs::remove_file(&next);
        at(path)(error)
    })
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    move |source| FilesError::Io { field: "cni-conf-dir", path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
