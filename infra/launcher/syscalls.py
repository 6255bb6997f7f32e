"""The sandbox's system calls: an allow-list. What it does not name fails with EPERM (seccomp(2), pyseccomp).

No socket can be made of any family (C01, C05): the trainer has the descriptors it was given, and `socketpair`, which Python
needs for its own threads and which leads nowhere. No namespace, mount, module, key, trace, BPF, io_uring or userfaultfd call is
named. clone3 answers "not built" so that the C library falls back to clone, whose flags can be filtered.
"""

import errno
import os
import tempfile

import pyseccomp as seccomp

_FILES = """access chdir close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate
 fchdir fchmod fchmodat fcntl fdatasync fgetxattr flistxattr flock fstat fstatfs fsync ftruncate futimesat getcwd getdents
 getdents64 getxattr lgetxattr link linkat listxattr llistxattr lseek lstat mkdir mkdirat newfstatat open openat openat2 pipe
 pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2
 rmdir sendfile splice stat statfs statx symlink symlinkat sync_file_range tee truncate umask unlink unlinkat utime
 utimensat utimes write writev chmod"""
_MEMORY = """brk get_mempolicy madvise mbind membarrier mincore mlock mlock2 mmap mprotect mremap msync munlock munmap
 set_mempolicy pkey_alloc pkey_free pkey_mprotect"""
_PROCESSES = """arch_prctl execve exit exit_group fork futex futex_waitv get_robust_list get_thread_area getcpu getegid
 geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid
 getuid kill prctl prlimit64 rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
 sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setscheduler sched_yield set_robust_list set_thread_area
 set_tid_address setpgid setpriority setrlimit setsid sysinfo tgkill times tkill uname vfork wait4 waitid restart_syscall"""
_SIGNALS = """pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
 rt_tgsigqueueinfo sigaltstack signalfd signalfd4 alarm"""
_TIME = """clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time timer_create
 timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime"""
_WAITING = """epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 poll ppoll pselect6
 select ioctl getrandom"""
_INHERITED = "getpeername getsockname getsockopt recvfrom recvmsg sendmsg sendto setsockopt shutdown socketpair"

ALLOWED = frozenset(" ".join((_FILES, _MEMORY, _PROCESSES, _SIGNALS, _TIME, _WAITING, _INHERITED)).split())
# Asked for by ordinary programs that manage without: "not built" instead of "not permitted" makes them take the other way.
_ABSENT = ("clone3", "memfd_create", "memfd_secret", "io_uring_setup", "pidfd_open", "pidfd_getfd", "cachestat")
_NEW_NAMESPACES = 0x7E020080  # CLONE_NEWTIME | NS | CGROUP | UTS | IPC | USER | PID | NET
# ioctl by request: is it a terminal, its size, bytes waiting, blocking, close on exec. Not TIOCSTI (CVE-2017-5226).
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def filter_file() -> int:
    """A descriptor of the compiled filter, at its start, for `bwrap --seccomp`. The caller closes it."""
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    for name in sorted(ALLOWED - {"ioctl"}):
        _allow(rules, name)
    rules.add_rule(seccomp.ALLOW, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _NEW_NAMESPACES, 0))
    for request in _IOCTLS:
        rules.add_rule(seccomp.ALLOW, "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, request))
    for name in _ABSENT:
        _allow(rules, name, seccomp.ERRNO(errno.ENOSYS))
    with tempfile.TemporaryFile() as compiled:
        rules.export_bpf(compiled)
        os.lseek(compiled.fileno(), 0, os.SEEK_SET)
        return os.dup(compiled.fileno())


def _allow(rules: "seccomp.SyscallFilter", name: str, action: object = seccomp.ALLOW) -> None:
    try:
        rules.add_rule(action, name)
    except (OSError, ValueError, RuntimeError):  # another architecture has fewer calls; one that is not there needs no rule
        return
