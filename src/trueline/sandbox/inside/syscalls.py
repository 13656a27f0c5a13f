"""The system calls a candidate may make, by number, for x86-64 and arm64. All others are refused."""

from __future__ import annotations

__all__ = ["ALLOWED", "ARCHITECTURES", "CONDITIONAL"]

# Reading what is open or readable, memory, time, threads, own signals. No socket, fork, exec, kill, pipe; no change of
# files, limits, credentials, namespaces or other processes.
ALLOWED = """
read write close fstat stat lstat newfstatat statx lseek mmap mprotect munmap brk mremap madvise
rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall pread64 readv writev access faccessat faccessat2
futex sched_yield sched_getaffinity nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times
getpid getppid gettid getuid geteuid getgid getegid getcwd readlink readlinkat getdents64 uname sysinfo getrlimit
getrusage poll ppoll select pselect6 dup getitimer setitimer alarm pause exit exit_group getrandom membarrier rseq
set_tid_address set_robust_list
""".split()

# Allowed for some arguments only; see `confine.seccomp_program`.
CONDITIONAL = ["clone", "clone3", "fcntl", "ioctl", "open", "openat", "prlimit64", "tgkill"]

_X86_64 = """
read=0 write=1 open=2 close=3 stat=4 fstat=5 lstat=6 poll=7 lseek=8 mmap=9 mprotect=10 munmap=11 brk=12 rt_sigaction=13
rt_sigprocmask=14 rt_sigreturn=15 ioctl=16 pread64=17 readv=19 writev=20 access=21 select=23 sched_yield=24 mremap=25
madvise=28 dup=32 pause=34 nanosleep=35 getitimer=36 alarm=37 setitimer=38 getpid=39 clone=56 exit=60 uname=63 fcntl=72
getcwd=79 readlink=89 gettimeofday=96 getrlimit=97 getrusage=98 sysinfo=99 times=100 getuid=102 getgid=104 geteuid=107
getegid=108 getppid=110 sigaltstack=131 gettid=186 time=201 futex=202 sched_getaffinity=204 getdents64=217
set_tid_address=218 restart_syscall=219 clock_gettime=228 clock_getres=229 clock_nanosleep=230 exit_group=231 tgkill=234
openat=257 newfstatat=262 readlinkat=267 faccessat=269 pselect6=270 ppoll=271 set_robust_list=273 prlimit64=302
getrandom=318 membarrier=324 statx=332 rseq=334 clone3=435 faccessat2=439
"""

_ARM64 = """
getcwd=17 dup=23 fcntl=25 ioctl=29 faccessat=48 openat=56 close=57 getdents64=61 lseek=62 read=63 write=64 readv=65
writev=66 pread64=67 pselect6=72 ppoll=73 readlinkat=78 newfstatat=79 fstat=80 exit=93 exit_group=94
set_tid_address=96 futex=98 set_robust_list=99 nanosleep=101 getitimer=102 setitimer=103 clock_gettime=113
clock_getres=114 clock_nanosleep=115 sched_getaffinity=123 sched_yield=124 restart_syscall=128 tgkill=131
sigaltstack=132 rt_sigaction=134 rt_sigprocmask=135 rt_sigreturn=139 times=153 uname=160 getrlimit=163 getrusage=165
gettimeofday=169 getpid=172 getppid=173 getuid=174 geteuid=175 getgid=176 getegid=177 gettid=178 sysinfo=179 brk=214
munmap=215 mremap=216 clone=220 mmap=222 mprotect=226 madvise=233 prlimit64=261 getrandom=278 membarrier=283 statx=291
rseq=293 clone3=435 faccessat2=439
"""


def _table(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (item.split("=") for item in text.split())}


# machine -> (its AUDIT_ARCH number, name -> system call number). A name that is not there is a call the machine lacks.
ARCHITECTURES = {
    "x86_64": (0xC000003E, _table(_X86_64)),
    "aarch64": (0xC00000B7, _table(_ARM64)),
}
