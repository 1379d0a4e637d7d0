//! Which system calls a judged program may make: a seccomp filter that refuses all but a list, with EPERM.
//!
//! The list is what an interpreter needs to start, to compute, and to use files and clocks. Everything else is
//! refused, whatever kernels add later: sockets but a pair that is connected to itself, processes, signals to
//! others, owners and modes of files, namespaces, mounts, tracing, other processes' memory, limits, keys, io_uring,
//! shared memory.

use libc::{
    CLONE_CHILD_CLEARTID, CLONE_DETACHED, CLONE_FILES, CLONE_FS, CLONE_PARENT_SETTID, CLONE_SETTLS,
    CLONE_SIGHAND, CLONE_SYSVSEM, CLONE_THREAD, CLONE_VM, O_ACCMODE, O_CREAT, O_RDONLY, O_RDWR, O_TRUNC,
    O_WRONLY,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};
use std::collections::BTreeMap;

/// Which part of the sandbox decides about writing files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// The file rules of [`super::files`].
    WhereFilesAllow,
    /// This filter, which refuses it.
    Nowhere,
}

/// A list of system calls, which `rustfmt` leaves as dense as it is.
macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Harmless whatever their arguments are.
const ALLOWED: &[i64] = calls![
    SYS_brk SYS_chdir SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close
    SYS_close_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_exit
    SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fchdir SYS_fdatasync SYS_flock
    SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_getcpu SYS_getcwd SYS_getdents64
    SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid
    SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrusage SYS_getsid
    SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_lseek SYS_madvise SYS_mmap SYS_mprotect SYS_mremap
    SYS_munmap SYS_nanosleep SYS_newfstatat SYS_pipe2 SYS_ppoll SYS_pread64 SYS_preadv SYS_pselect6
    SYS_pwrite64 SYS_pwritev SYS_read SYS_readlinkat SYS_readv SYS_recvfrom SYS_restart_syscall SYS_rseq
    SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigsuspend
    SYS_rt_sigtimedwait SYS_sched_getaffinity SYS_sched_getparam SYS_sched_getscheduler
    SYS_sched_yield SYS_set_robust_list SYS_set_tid_address SYS_setitimer SYS_shutdown SYS_sigaltstack SYS_statfs
    SYS_statx SYS_sysinfo SYS_times SYS_uname SYS_write SYS_writev
    // The interpreter is started under the filter. A program that a judged program becomes has the same restrictions.
    SYS_execve
];

/// Older forms of the same, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = calls![
    SYS_access SYS_alarm SYS_arch_prctl SYS_dup2 SYS_epoll_create SYS_epoll_wait SYS_getdents
    SYS_getpgrp SYS_getrlimit SYS_lstat SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_select SYS_stat
    SYS_time
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// Change names, which the file rules decide about.
#[cfg(target_arch = "x86_64")]
const NAMING: &[i64] = calls![SYS_unlinkat SYS_renameat SYS_renameat2 SYS_unlink SYS_rename SYS_rmdir];
#[cfg(not(target_arch = "x86_64"))]
const NAMING: &[i64] = calls![SYS_unlinkat SYS_renameat SYS_renameat2];

/// Calls that open a file, and which of their arguments holds the flags.
#[cfg(target_arch = "x86_64")]
const OPENING: &[(i64, u8)] = &[(libc::SYS_openat, 2), (libc::SYS_open, 1)];
#[cfg(not(target_arch = "x86_64"))]
const OPENING: &[(i64, u8)] = &[(libc::SYS_openat, 2)];

/// Calls that make a folder, which the file rules decide about too, and which of their arguments holds its mode.
#[cfg(target_arch = "x86_64")]
const FOLDERS: &[(i64, u8)] = &[(libc::SYS_mkdirat, 2), (libc::SYS_mkdir, 1)];
#[cfg(not(target_arch = "x86_64"))]
const FOLDERS: &[(i64, u8)] = &[(libc::SYS_mkdirat, 2)];

/// The owner's rights to a folder. A program may not take them from the judge, which looks into its folders.
const OWNER: i32 = 0o700;

/// The flags with which the C libraries start a thread: it shares everything, and a process would not.
const THREAD: i32 = CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID;

/// The bits of a socket's type that are not flags.
const SOCKET_KIND: i32 = 0xf;

/// The requests of `ioctl` that the interpreter makes of files: whether it is a terminal, close on exec, and not to
/// wait.
const IOCTLS: [u64; 4] = [libc::TCGETS, libc::FIOCLEX, libc::FIONCLEX, libc::FIONBIO];

/// The commands of `fcntl`: descriptors, their flags and locks. Not among them are those that make the kernel send a
/// signal to whatever process is named.
const FCNTLS: [i32; 9] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
];

/// Restricts this process and what it becomes.
///
/// # Errors
/// If the kernel has no seccomp filters, or none is written for this processor.
pub(super) fn restrict(writing: Writing) -> Result<(), String> {
    for filter in [without_clone3(), filter(writing)] {
        let filter = filter.map_err(|error| format!("seccomp: building the filter: {error}"))?;
        apply_filter(&filter).map_err(|error| format!("the kernel takes no seccomp filter ({error})"))?;
    }
    Ok(())
}

/// The arguments of `clone3` are in memory, where no filter sees them. The C library falls back to `clone` if it hears
/// that there is no such call. This filter comes first, and of two that speak about a call the stricter one counts.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, absent, std::env::consts::ARCH.try_into()?)?.try_into()
}

fn filter(writing: Writing) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    for (call, flags) in OPENING {
        let alternatives = match writing {
            Writing::Nowhere => {
                vec![vec![has(*flags, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY)?]]
            }
            // The file rules of older kernels do not refuse emptying a file that is opened for reading.
            Writing::WhereFilesAllow => vec![
                vec![has(*flags, O_TRUNC, 0)?],
                vec![has(*flags, O_ACCMODE, O_WRONLY)?],
                vec![has(*flags, O_ACCMODE, O_RDWR)?],
            ],
        };
        rules.insert(*call, alternatives.into_iter().map(SeccompRule::new).collect::<Result<_, _>>()?);
    }
    if writing == Writing::WhereFilesAllow {
        rules.extend(NAMING.iter().map(|call| (*call, Vec::new())));
        for (call, mode) in FOLDERS {
            rules.insert(*call, vec![SeccompRule::new(vec![has(*mode, OWNER, OWNER)?])?]);
        }
    }
    rules.insert(libc::SYS_umask, vec![SeccompRule::new(vec![has(0, OWNER, 0)?])?]);
    rules.insert(libc::SYS_clone3, Vec::new());
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![has(0, !CLONE_DETACHED, THREAD)?])?]);
    // Streams only: another kind of socket can be made to send to any name in the file system.
    let pair =
        vec![is(0, SeccompCmpArgLen::Dword, libc::AF_UNIX as u64)?, has(1, SOCKET_KIND, libc::SOCK_STREAM)?];
    rules.insert(libc::SYS_socketpair, vec![SeccompRule::new(pair)?]);
    let no_name = vec![is(4, SeccompCmpArgLen::Qword, 0)?];
    rules.insert(libc::SYS_sendto, vec![SeccompRule::new(no_name)?]);
    let second = |value| SeccompRule::new(vec![is(1, SeccompCmpArgLen::Dword, value)?]);
    rules.insert(libc::SYS_ioctl, IOCTLS.into_iter().map(second).collect::<Result<_, _>>()?);
    let commands = FCNTLS.into_iter().map(|command| second(command as u64));
    rules.insert(libc::SYS_fcntl, commands.collect::<Result<_, _>>()?);
    // Its own limits, and only to read them.
    let reading = vec![is(0, SeccompCmpArgLen::Dword, 0)?, is(2, SeccompCmpArgLen::Qword, 0)?];
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(reading)?]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refused, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?.try_into()
}

fn is(
    argument: u8,
    width: SeccompCmpArgLen,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, width, SeccompCmpOp::Eq, value)
}

/// Whether the bits of `mask` in an argument are those of `value`.
fn has(argument: u8, mask: i32, value: i32) -> Result<SeccompCondition, seccompiler::BackendError> {
    let masked = SeccompCmpOp::MaskedEq(u64::from(mask as u32));
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, masked, u64::from(value as u32))
}
