//! Which files a judged program may open: landlock.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};
use std::path::{Path, PathBuf};

/// Where shared libraries and the zones of `zoneinfo` are, on whatever distribution; what is not there is left out.
const SYSTEM: [&str; 8] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
];

/// The newest rights that this was written for. Those of version 1 must be there; newer ones that an older kernel does
/// not know (moving, truncating, device control) are refused by the filter of system calls as well.
const NEWEST: ABI = ABI::V6;

/// Restricts this process and what it becomes to reading what the interpreter needs, file by file or as whole folders,
/// and to using its own folder.
///
/// # Errors
/// If the kernel has no landlock, or refuses.
pub(super) fn restrict(executable: &Path, readable: &[PathBuf], folder: &Path) -> Result<(), String> {
    match restricted(executable, readable, folder) {
        // If the kernel has no landlock, the call that names the rights is the first to fail.
        Err(RulesetError::HandleAccesses(_)) | Ok(RulesetStatus::NotEnforced) => {
            Err("the kernel has no landlock, or has it switched off".to_owned())
        }
        Err(error) => Err(format!("landlock: {error}")),
        Ok(_) => Ok(()),
    }
}

fn restricted(executable: &Path, readable: &[PathBuf], folder: &Path) -> Result<RulesetStatus, RulesetError> {
    let read: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute | ReadFile | ReadDir});
    // No links, sockets or devices.
    let own: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
        ReadFile | ReadDir | WriteFile | MakeReg | RemoveFile | MakeDir | RemoveDir | Refer | Truncate
    });
    let devices = ["/dev/null", "/dev/urandom", "/dev/zero"];
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM.map(Path::new), read))?
        .add_rules(path_beneath_rules(readable, read))?
        .add_rules(path_beneath_rules([executable], read))?
        .add_rules(path_beneath_rules(devices, AccessFs::ReadFile))?
        .add_rules(path_beneath_rules([folder], own))?
        .restrict_self()?;
    Ok(status.ruleset)
}
