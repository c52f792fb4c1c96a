//! What is in the directory: names, stamps, texts. Owns the reading of files and its limits; decides nothing.
//! Called by `load`.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// Largest manifest file, bytes.
pub const FILE_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Most manifest files in a directory.
pub const FILES_MAX: usize = 10_000;

/// Tells one content of a file from another without reading it. A symbolic link's stamp is its target's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) bytes: u64,
    inode: u64,
    device: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            bytes: metadata.size(),
            inode: metadata.ino(),
            device: metadata.dev(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Why a directory or a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{path}: {source}; give an existing folder that the agent may read")]
    Directory { path: String, source: std::io::Error },
    #[error("{path}: more than {FILES_MAX} manifest files; put several objects into one file")]
    TooManyFiles { path: String },
    #[error("{source}; make the file readable, or remove it")]
    File { source: std::io::Error },
    #[error("larger than {FILE_MAX_BYTES} bytes; split the file")]
    TooLarge,
    #[error("not UTF-8 at byte {at}; save the file as UTF-8")]
    Encoding { at: usize },
    #[error("changed while it was read")]
    Moving,
}

/// The manifests of a directory by file name; `Err` for one that is listed but cannot be looked at.
pub(super) type Listing = BTreeMap<Arc<str>, Result<Stamp, ReadError>>;

/// `*.yaml` and `*.yml`, not hidden (ConfigMap volumes keep their generations under `..`), not in subfolders.
pub(super) fn list(directory: &Path) -> Result<Listing, ReadError> {
    let wrap = |source| ReadError::Directory { path: directory.display().to_string(), source };
    let mut listing = Listing::new();
    for entry in std::fs::read_dir(directory).map_err(wrap)? {
        let name = entry.map_err(wrap)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with('.') || !(name.ends_with(".yaml") || name.ends_with(".yml")) {
            continue;
        }
        if listing.len() == FILES_MAX {
            return Err(ReadError::TooManyFiles { path: directory.display().to_string() });
        }
        // Follows links: what a link shows is what counts, and a link to nowhere is an error, not a deletion.
        match std::fs::metadata(directory.join(name)) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(metadata) => drop(listing.insert(name.into(), Ok(Stamp::of(&metadata)))),
            Err(source) => drop(listing.insert(name.into(), Err(ReadError::File { source }))),
        }
    }
    Ok(listing)
}

/// A file's text, if it still has this stamp after the last byte.
pub(super) fn text(directory: &Path, name: &str, stamp: Stamp) -> Result<String, ReadError> {
    let file = |source| ReadError::File { source };
    let mut handle = std::fs::File::open(directory.join(name)).map_err(file)?;
    let mut bytes = Vec::new();
    handle.by_ref().take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(file)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(ReadError::TooLarge);
    }
    if Stamp::of(&handle.metadata().map_err(file)?) != stamp || bytes.len() as u64 != stamp.bytes {
        return Err(ReadError::Moving);
    }
    String::from_utf8(bytes).map_err(|error| ReadError::Encoding { at: error.utf8_error().valid_up_to() })
}
