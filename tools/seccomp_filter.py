"""Write codeact_lib/sandbox/seccomp/<machine>.bpf: the system calls that a box refuses.

    pip install pyseccomp && python tools/seccomp_filter.py     (libseccomp has to be on the machine)

The programs are kept in the repository, so that a box needs neither. What is refused is what no solution of a benchmark
needs and what reached out of a box, or outlived one, when it was allowed. A refused call fails with EPERM, one that a C
library must be able to do without with ENOSYS; a call of another ABI (32 bits, x32) ends the process.
"""

import errno
import struct
import sys
from pathlib import Path

import pyseccomp as seccomp

FOLDER = Path(__file__).parents[1] / "codeact_lib" / "sandbox" / "seccomp"
MACHINES = {"x86_64": seccomp.Arch.X86_64, "aarch64": seccomp.Arch.AARCH64}
REFUSED = {
    # the kernel keeps it when the box has ended, for the next one to find
    "keyrings": "add_key request_key keyctl",
    "System V and POSIX queues, memory and semaphores": """
        shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
        mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr""",
    "marks on files of others": """
        chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat utime utimes futimesat utimensat
        setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
        flock fcntl64 name_to_handle_at open_by_handle_at quotactl quotactl_fd acct swapon swapoff""",
    # workers and neighbours of the same user
    "other processes": """
        ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp
        pidfd_open pidfd_getfd pidfd_send_signal get_robust_list migrate_pages move_pages""",
    "limits, priorities and processors": """
        setpriority ioprio_set sched_setaffinity sched_setattr sched_setparam sched_setscheduler
        set_mempolicy mbind set_mempolicy_home_node""",
    "a way out of the process group": "setsid",
    # memory that no sum over processes or files sees
    "files without a name": "memfd_create memfd_secret",
    "namespaces and mounts": """
        unshare setns mount umount umount2 pivot_root chroot
        open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr""",
    "the kernel": """
        bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register fanotify_init fanotify_mark
        lookup_dcookie init_module finit_module delete_module create_module kexec_load kexec_file_load reboot syslog
        nfsservctl _sysctl sysfs uselib vm86 vm86old modify_ldt iopl ioperm personality vhangup ustat
        settimeofday clock_settime clock_adjtime adjtimex stime sethostname setdomainname
        landlock_create_ruleset landlock_add_rule""",
    # socketpair stays: it leads nowhere but to who has it, and multiprocessing.Pipe is one
    "sockets": "socket connect bind listen accept accept4 socketcall",
}
# Calls from Linux 6.8 on, which libseccomp 2.5 has no names for, do not exist. Three instructions before its program:
# load the number of the call; if it is 457 or more, return ENOSYS.
NEWER = struct.pack("<HBBI", 0x20, 0, 0, 0) + struct.pack("<HBBI", 0x35, 0, 1, 457)
NEWER += struct.pack("<HBBI", 0x06, 0, 0, 0x00050000 | errno.ENOSYS)
CLONE_NEW = [0x00000080, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]


def make(machine: str) -> seccomp.SyscallFilter:
    """The filter for one machine."""
    made = seccomp.SyscallFilter(seccomp.ALLOW)
    if MACHINES[machine] != seccomp.system_arch():
        made.add_arch(MACHINES[machine])
        made.remove_arch(seccomp.system_arch())
    made.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    for names in REFUSED.values():
        for name in names.split():
            try:
                made.add_rule(seccomp.ERRNO(errno.EPERM), name)
            except (RuntimeError, OSError, ValueError) as error:
                print(f"{machine}: {name}: {error}", file=sys.stderr)
    # glibc takes clone where there is no clone3, whose flags lie in memory that a filter cannot read
    made.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    for flag in CLONE_NEW:
        made.add_rule(seccomp.ERRNO(errno.EPERM), "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    # limits of this process may be set, those of others not
    made.add_rule(seccomp.ERRNO(errno.EPERM), "prlimit64", seccomp.Arg(0, seccomp.NE, 0))
    return made


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for machine in MACHINES:
        with open(FOLDER / f"{machine}.bpf", "wb", buffering=0) as file:
            file.write(NEWER)
            make(machine).export_bpf(file)
        print(f"{machine}: {(FOLDER / f'{machine}.bpf').stat().st_size // 8} instructions")
