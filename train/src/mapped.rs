//! Files mapped into memory.

use memmap2::Mmap;
use std::fs::File;
use std::io;

/// Maps a file that nobody changes in place: checkpoints and shards are only ever replaced by renaming another file over
/// them, which leaves the mapped one as it is.
///
/// # Errors
/// If the system refuses.
#[allow(unsafe_code)]
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only and its files are not written in place. A foreign program that shortens one would end
    // this process with SIGBUS, not corrupt it.
    unsafe { Mmap::map(file) }
}
