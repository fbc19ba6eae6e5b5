/* Preloaded with LD_PRELOAD: counts the calls of native code that change files in a folder, and
   ends the process or fails at one of them. A fork starts it with faults_arm. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int calls;
static int number, error, lasting, hits;
static char folder[PATH_MAX];

/* Fail call n on the folder with error e, or end the process if e is 0; with `lasts`, fail all later
   calls, too. The call is written to the descriptor `told`. */
void faults_arm(int n, int e, int lasts, const char *path, int told) {
    hits = told;
    error = e;
    lasting = lasts;
    number = n;
    calls = 0;
    snprintf(folder, sizeof folder, "%s", path);
}

static int below(const char *path) {
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

/* Return whether this call, on a descriptor or a path relative to one, has to fail. */
static int fails(const char *call, int at, const char *path) {
    char link[48], target[PATH_MAX] = "";
    if (!*folder) return 0;
    if (path && *path == '/') snprintf(target, sizeof target, "%s", path);
    else {
        int saved_errno = errno;
        if (at == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t size = readlink(link, target, sizeof target - 1);
        errno = saved_errno;
        if (size < 0) return 0;
        target[size] = 0;
        if (path) snprintf(target + size, sizeof target - size, "/%s", path);
    }
    if (!below(target)) return 0;
    int now = ++calls;
    if (now != number && !(lasting && number && now > number)) return 0;
    if (now == number) dprintf(hits, "%s %s", call, target);
    if (!error) _exit(137);
    errno = error;
    return 1;
}

#define REAL(call) ((__typeof__(&call))dlsym(RTLD_NEXT, #call))
#define WRAP(type, call, at, path, params, ...) \
    type call params { return fails(#call, at, path) ? (type)-1 : REAL(call)(__VA_ARGS__); }
#define OPEN(call, at, params, ...) \
    int call params { \
        va_list rest; \
        va_start(rest, flags); \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest); \
        int writes = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC); \
        return writes && fails(#call, at, path) ? -1 : REAL(call)(__VA_ARGS__, flags, mode); \
    }

WRAP(ssize_t, write, fd, NULL, (int fd, const void *data, size_t size), fd, data, size)
WRAP(ssize_t, pwrite, fd, NULL, (int fd, const void *d, size_t s, off_t o), fd, d, s, o)
WRAP(ssize_t, pwrite64, fd, NULL, (int fd, const void *d, size_t s, off64_t o), fd, d, s, o)
WRAP(ssize_t, writev, fd, NULL, (int fd, const struct iovec *parts, int count), fd, parts, count)
WRAP(int, ftruncate, fd, NULL, (int fd, off_t size), fd, size)
WRAP(int, ftruncate64, fd, NULL, (int fd, off64_t size), fd, size)
WRAP(int, fsync, fd, NULL, (int fd), fd)
WRAP(int, fdatasync, fd, NULL, (int fd), fd)
WRAP(int, rename, AT_FDCWD, to, (const char *from, const char *to), from, to)
WRAP(int, renameat, b, to, (int a, const char *from, int b, const char *to), a, from, b, to)
WRAP(int, renameat2, b, to, (int a, const char *from, int b, const char *to, unsigned int flags),
     a, from, b, to, flags)
WRAP(int, link, AT_FDCWD, to, (const char *from, const char *to), from, to)
WRAP(int, linkat, b, to, (int a, const char *from, int b, const char *to, int flags), a, from, b,
     to, flags)
WRAP(int, unlink, AT_FDCWD, path, (const char *path), path)
WRAP(int, unlinkat, at, path, (int at, const char *path, int flags), at, path, flags)
WRAP(int, rmdir, AT_FDCWD, path, (const char *path), path)
WRAP(int, mkdir, AT_FDCWD, path, (const char *path, mode_t mode), path, mode)
WRAP(int, mkdirat, at, path, (int at, const char *path, mode_t mode), at, path, mode)
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), path)
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), path)
OPEN(openat, at, (int at, const char *path, int flags, ...), at, path)
OPEN(openat64, at, (int at, const char *path, int flags, ...), at, path)
