//! What kind of disk a folder lies on.

use std::fmt;
use std::path::Path;

/// Disks whose files lie elsewhere: each look at one may cost a journey, and one that goes away ends what has it mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remote {
    /// Of a program in user space (FUSE), as Google Drive is in a notebook.
    UserSpace,
    /// Of another machine: NFS, SMB or 9P.
    Network,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Remote::UserSpace => "a drive in user space (fuse)",
            Remote::Network => "a network drive",
        })
    }
}

/// Whether a folder, or the nearest one above it that is there, lies on a remote disk.
pub(crate) fn remote(folder: &Path) -> Option<Remote> {
    let absolute = std::path::absolute(folder).ok()?;
    let there = absolute.ancestors().find(|path| path.exists())?;
    remote_kind(rustix::fs::statfs(there).ok()?.f_type as u64 & 0xffff_ffff)
}

/// By the magic numbers of statfs(2).
fn remote_kind(magic: u64) -> Option<Remote> {
    match magic {
        0x6573_5546 => Some(Remote::UserSpace),
        0x6969 | 0x517b | 0xff53_4d42 | 0xfe53_4d42 | 0x0102_1997 => Some(Remote::Network),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives_are_told_from_disks() {
        assert_eq!(remote_kind(0x6573_5546), Some(Remote::UserSpace));
        assert_eq!(remote_kind(0xfe53_4d42), Some(Remote::Network));
        assert_eq!(remote_kind(0xef53), None, "ext4");
        // The number is read where it should be.
        let magic = rustix::fs::statfs("/proc").unwrap().f_type as u64;
        assert_eq!(magic, 0x9fa0);
        assert_eq!(remote(Path::new("/proc/not/there")), None);
    }
}
