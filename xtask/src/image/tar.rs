//! Writes a tar archive (POSIX ustar) in which nothing depends on when, where or by whom it was made.
use std::io::{self, Write};

const BLOCK: usize = 512;
/// Longest name without the prefix field, bytes.
const NAME_MAX: usize = 100;

/// What an entry is; the numbers are the format's.
#[derive(Clone, Copy)]
enum Kind {
    File = b'0' as isize,
    Link = b'2' as isize,
    Folder = b'5' as isize,
}

/// One entry of the archive.
pub(super) struct Entry<'a> {
    name: String,
    mode: u32,
    kind: Kind,
    target: &'a str,
    bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    pub(super) fn file(name: &str, mode: u32, bytes: &'a [u8]) -> Self {
        Self { name: name.to_owned(), mode, kind: Kind::File, target: "", bytes }
    }

    pub(super) fn folder(name: &str, mode: u32) -> Self {
        Self { name: format!("{name}/"), mode, kind: Kind::Folder, target: "", bytes: &[] }
    }

    pub(super) fn link(name: &str, target: &'a str) -> Self {
        Self { name: name.to_owned(), mode: 0o777, kind: Kind::Link, target, bytes: &[] }
    }
}

/// Writes the entries and the end of the archive.
pub(super) fn write(entries: &[Entry<'_>], out: &mut impl Write) -> io::Result<()> {
    for entry in entries {
        out.write_all(&header(entry)?)?;
        out.write_all(entry.bytes)?;
        let rest = entry.bytes.len() % BLOCK;
        if rest > 0 {
            out.write_all(&[0; BLOCK][rest..])?;
        }
    }
    out.write_all(&[0; 2 * BLOCK])
}

fn header(entry: &Entry<'_>) -> io::Result<[u8; BLOCK]> {
    if entry.name.len() > NAME_MAX || entry.target.len() > NAME_MAX {
        return Err(io::Error::other(format!("the name {} is longer than {NAME_MAX} bytes", entry.name)));
    }
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, entry.name.as_bytes());
    put(100, format!("{:07o}", entry.mode).as_bytes());
    // Owner and group root, time zero.
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{:011o}", entry.bytes.len()).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[entry.kind as u8]);
    put(157, entry.target.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    Ok(block)
}
