/* memory.c: the calls that ask for memory, and for a thread. */

#define _GNU_SOURCE
#include "verdict.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

static __typeof__(mmap) *real_mmap;
static __typeof__(pthread_create) *real_pthread_create;

/* As a constructor, and on demand for those that call before it ran. */
__attribute__((constructor)) static void resolve(void)
{
    real_mmap = (__typeof__(mmap) *)dlsym(RTLD_NEXT, "mmap");
    real_pthread_create = (__typeof__(pthread_create) *)dlsym(RTLD_NEXT, "pthread_create");
}

#define REAL(name) (real_##name ? real_##name : (resolve(), real_##name))

/* glibc's allocator under names that need no dlsym, which itself allocates. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

#define DEFINE_MMAP(name)                                                                          \
    EXPORT void *name(void *address, size_t length, int protection, int flags, int fd,             \
                      off_t offset)                                                                \
    {                                                                                              \
        const int error = memory_verdict(KIND_MMAP, __builtin_return_address(0));                  \
        if (error) {                                                                               \
            errno = error;                                                                         \
            return MAP_FAILED;                                                                     \
        }                                                                                          \
        return REAL(mmap)(address, length, protection, flags, fd, offset);                         \
    }
DEFINE_MMAP(mmap)
DEFINE_MMAP(mmap64)

EXPORT int posix_memalign(void **out, size_t alignment, size_t size)
{
    const int error = memory_verdict(KIND_MEMALIGN, __builtin_return_address(0));
    if (error)
        return error;
    if (alignment % sizeof(void *) != 0 || alignment == 0 || (alignment & (alignment - 1)) != 0)
        return EINVAL;
    const int saved = errno;
    void *memory = __libc_memalign(alignment, size);
    errno = saved;
    if (memory == NULL)
        return ENOMEM;
    *out = memory;
    return 0;
}

#define DEFINE_ALLOCATOR(kind, name, parameters, call)                                             \
    EXPORT void *name parameters                                                                   \
    {                                                                                              \
        const int error = memory_verdict(kind, __builtin_return_address(0));                       \
        if (error) {                                                                               \
            errno = error;                                                                         \
            return NULL;                                                                           \
        }                                                                                          \
        return call;                                                                               \
    }
DEFINE_ALLOCATOR(KIND_MALLOC, malloc, (size_t size), __libc_malloc(size))
DEFINE_ALLOCATOR(KIND_MALLOC, calloc, (size_t count, size_t size), __libc_calloc(count, size))
DEFINE_ALLOCATOR(KIND_MALLOC, realloc, (void *memory, size_t size), __libc_realloc(memory, size))
DEFINE_ALLOCATOR(KIND_MEMALIGN, aligned_alloc, (size_t alignment, size_t size),
                 __libc_memalign(alignment, size))

EXPORT int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes,
                          void *(*start)(void *), void *restrict argument)
{
    const int error = verdict(KIND_THREAD);
    return error ? error : REAL(pthread_create)(thread, attributes, start, argument);
}
