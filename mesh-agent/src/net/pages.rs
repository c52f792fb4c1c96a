//! The program's own pages in memory. Owns: giving back what only the start has needed. Called by `agent`.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps the program's code. Nearly all of what is in memory by now has read settings and objects, made the first world and
/// loaded programs, and is not needed again soon; what is comes back from the page cache, sixteen pages at a time.
/// Returns the bytes of code looked at.
pub fn give_back() -> io::Result<usize> {
    let program = fs::metadata("/proc/self/exe")?.ino();
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut bytes = 0;
    for (start, length) in maps.lines().filter_map(|line| code(line, program)) {
        let start = NonNull::new(start as *mut c_void).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: a mapping of the program's file that may be executed and not written: nothing is in it but what is in the
        // file, which is read again where it is used.
        unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }?;
        bytes += length;
    }
    Ok(bytes)
}

/// Address and length of a mapping, if it is code of the file with this inode (proc(5): `/proc/pid/maps`).
fn code(line: &str, program: u64) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp";
    let inode: u64 = fields.nth(2)?.parse().ok()?;
    let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).ok());
    (is_code && inode == program).then_some((start?, end?.checked_sub(start?)?))
}

#[cfg(test)]
mod tests;
