/* A disk that fails on command, for LD_PRELOAD: every operation below one folder is counted, and written down with its
 * bytes; the chosen one kills the process or fails. Reads and other folders are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FAIL_ONCE, FAIL_ON };
static char root[PATH_MAX];
static int armed, mode, at, number, seen, journal = -1;
static char *paths[4096];

/* Watch `folder`. Operation `k` (from 1) is the chosen one: kill before it, or fail it (and, FAIL_ON, all that write
 * after it) with `error`. `log` is the journal's file, or empty. */
void disk_arm(const char *folder, int how, int k, int error, const char *log) {
    snprintf(root, sizeof root, "%s", folder);
    mode = how, at = k, number = error, seen = 0;
    journal = *log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600) : -1;
    armed = 1;
}

int disk_disarm(void) {
    armed = 0;
    if (journal >= 0) syscall(SYS_close, journal);
    journal = -1;
    return seen;
}

static const char *resolved(int dirfd, const char *path, char *into) {
    if (path[0] == '/') return path;
    if (dirfd == AT_FDCWD) {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here)) return path;
        snprintf(into, PATH_MAX, "%s/%s", here, path);
    } else if (dirfd >= 0 && dirfd < 4096 && paths[dirfd]) {
        snprintf(into, PATH_MAX, "%s/%s", paths[dirfd], path);
    } else return path;
    return into;
}

static int watched(const char *path) { return armed && path && !strncmp(path, root, strlen(root)); }

/* Before an operation: 0 to go on, -1 (errno set) to fail it. */
static int before(int writes) {
    seen++;
    if (mode == KILL && seen == at) syscall(SYS_kill, getpid(), SIGKILL);
    if ((mode == FAIL_ONCE && seen == at) || (mode == FAIL_ON && seen >= at && writes)) {
        errno = number;
        return -1;
    }
    return 0;
}

static void journalled(const char *what, const char *a, const char *b, long offset, const void *data, size_t size) {
    if (journal < 0) return;
    int kept = errno;
    char head[3 * PATH_MAX];
    int n = snprintf(head, sizeof head, "%s\t%s\t%s\t%ld\t%zu\n", what, a, b, offset, size);
    syscall(SYS_write, journal, head, n);
    if (size) syscall(SYS_write, journal, data, size);
    errno = kept;
}

static int opened(int dirfd, const char *path, int flags, mode_t bits) {
    char held[PATH_MAX];
    const char *whole = resolved(dirfd, path, held);
    int ours = watched(whole), making = flags & (O_CREAT | O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY;
    struct stat old;
    int fresh = ours && making && ((flags & O_TRUNC) || syscall(SYS_newfstatat, AT_FDCWD, whole, &old, 0));
    if (ours && making && before(1)) return -1;
    int fd = (int)syscall(SYS_openat, dirfd, path, flags, bits);
    if (fd >= 0 && fd < 4096) {
        free(paths[fd]);
        paths[fd] = ours ? strdup(whole) : NULL;
    }
    if (fd >= 0 && fresh) journalled("create", whole, "", 0, NULL, 0);
    return fd;
}

#define OPEN_LIKE(name)                                             \
    int name(const char *path, int flags, ...) {                    \
        va_list rest; va_start(rest, flags);                        \
        mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                               \
        return opened(AT_FDCWD, path, flags, bits);                 \
    }
OPEN_LIKE(open)
OPEN_LIKE(open64)

#define OPENAT_LIKE(name)                                           \
    int name(int dirfd, const char *path, int flags, ...) {         \
        va_list rest; va_start(rest, flags);                        \
        mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                               \
        return opened(dirfd, path, flags, bits);                    \
    }
OPENAT_LIKE(openat)
OPENAT_LIKE(openat64)

static const char *of(int fd) { return fd >= 0 && fd < 4096 && paths[fd] && watched(paths[fd]) ? paths[fd] : NULL; }

int close(int fd) {
    if (fd >= 0 && fd < 4096) { free(paths[fd]); paths[fd] = NULL; }
    return (int)syscall(SYS_close, fd);
}

ssize_t write(int fd, const void *data, size_t size) {
    const char *path = of(fd);
    if (path && before(1)) return -1;
    ssize_t done = syscall(SYS_write, fd, data, size);
    if (path && done > 0) journalled("write", path, "", syscall(SYS_lseek, fd, 0, SEEK_CUR) - done, data, done);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    const char *path = of(fd);
    if (!path) return syscall(SYS_writev, fd, parts, count);
    for (int i = 0; i < count; i++)
        if (parts[i].iov_len) return write(fd, parts[i].iov_base, parts[i].iov_len);
    return 0;
}

#define PWRITE_LIKE(name)                                           \
    ssize_t name(int fd, const void *data, size_t size, off_t offset) { \
        const char *path = of(fd);                                  \
        if (path && before(1)) return -1;                           \
        ssize_t done = syscall(SYS_pwrite64, fd, data, size, offset); \
        if (path && done > 0) journalled("write", path, "", offset, data, done); \
        return done;                                                \
    }
PWRITE_LIKE(pwrite)
PWRITE_LIKE(pwrite64)

#define TRUNCATE_LIKE(name)                                         \
    int name(int fd, off_t size) {                                  \
        const char *path = of(fd);                                  \
        if (path && before(1)) return -1;                           \
        int done = (int)syscall(SYS_ftruncate, fd, size);           \
        if (path && !done) journalled("truncate", path, "", size, NULL, 0); \
        return done;                                                \
    }
TRUNCATE_LIKE(ftruncate)
TRUNCATE_LIKE(ftruncate64)

#define SYNC_LIKE(name, call)                                       \
    int name(int fd) {                                              \
        const char *path = of(fd);                                  \
        if (path && before(1)) return -1;                           \
        int done = (int)syscall(call, fd);                          \
        if (path && !done) journalled("sync", path, "", 0, NULL, 0); \
        return done;                                                \
    }
SYNC_LIKE(fsync, SYS_fsync)
SYNC_LIKE(fdatasync, SYS_fdatasync)

static int renamed(int from, const char *a, int to, const char *b) {
    char held_a[PATH_MAX], held_b[PATH_MAX];
    const char *old = resolved(from, a, held_a), *new = resolved(to, b, held_b);
    int ours = watched(old) || watched(new);
    if (ours && before(1)) return -1;
    int done = (int)syscall(SYS_renameat2, from, a, to, b, 0);
    if (ours && !done) journalled("rename", old, new, 0, NULL, 0);
    return done;
}
int rename(const char *a, const char *b) { return renamed(AT_FDCWD, a, AT_FDCWD, b); }
int renameat(int from, const char *a, int to, const char *b) { return renamed(from, a, to, b); }

static int removed(int dirfd, const char *path, int flags) {
    char held[PATH_MAX];
    const char *whole = resolved(dirfd, path, held);
    int ours = watched(whole);
    if (ours && before(0)) return -1;
    int done = (int)syscall(SYS_unlinkat, dirfd, path, flags);
    if (ours && !done) journalled(flags & AT_REMOVEDIR ? "rmdir" : "unlink", whole, "", 0, NULL, 0);
    return done;
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int dirfd, const char *path, int flags) { return removed(dirfd, path, flags); }

static int made(int dirfd, const char *path, mode_t bits) {
    char held[PATH_MAX];
    const char *whole = resolved(dirfd, path, held);
    int ours = watched(whole);
    if (ours && before(1)) return -1;
    int done = (int)syscall(SYS_mkdirat, dirfd, path, bits);
    if (ours && !done) journalled("mkdir", whole, "", 0, NULL, 0);
    return done;
}
int mkdir(const char *path, mode_t bits) { return made(AT_FDCWD, path, bits); }
int mkdirat(int dirfd, const char *path, mode_t bits) { return made(dirfd, path, bits); }

/* A copy of a link's bytes is not made here; linking is an entry like any other. */
int link(const char *a, const char *b) {
    int ours = watched(b);
    if (ours && before(1)) return -1;
    int done = (int)syscall(SYS_linkat, AT_FDCWD, a, AT_FDCWD, b, 0);
    if (ours && !done) journalled("link", a, b, 0, NULL, 0);
    return done;
}
