/* pinned.h: buffers of Python objects, which nobody moves or frees while they are pinned. Owner,
 * who holds the GIL; what `iov` says may be used without it. */
#ifndef FDSTASH_PINNED_H
#define FDSTASH_PINNED_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "fdstash.h"

enum { PINNED_FEW = 8 }; /* so many need no memory of their own */

typedef struct {
    Py_ssize_t count;
    Py_buffer *views;   /* few_views, or allocated */
    fdstash_iovec *iov; /* of `count` buffers, in turn */
    Py_buffer few_views[PINNED_FEW];
    fdstash_iovec few_iov[PINNED_FEW];
} Pinned;

void pinned_begin(Pinned *pinned);
/* One more buffer, of at most PINNED_FEW; flags as for PyObject_GetBuffer. -1 with an exception. */
int pinned_add(Pinned *pinned, PyObject *buffer, int flags);
/* All of a sequence, into what was just begun. -1 with an exception, and then none is pinned. */
int pinned_add_all(Pinned *pinned, PyObject *buffers, int flags);
/* Lets go of all. */
void pinned_release(Pinned *pinned);

#endif
