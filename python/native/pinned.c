/* pinned.c: see pinned.h. */
#include "pinned.h"

#include <limits.h>

void pinned_begin(Pinned *pinned)
{
    pinned->count = 0;
    pinned->views = pinned->few_views;
    pinned->iov = pinned->few_iov;
}

int pinned_add(Pinned *pinned, PyObject *buffer, int flags)
{
    Py_buffer *view = &pinned->views[pinned->count];
    if (PyObject_GetBuffer(buffer, view, flags) < 0)
        return -1;
    pinned->iov[pinned->count].base = view->buf;
    pinned->iov[pinned->count].length = (size_t)view->len;
    pinned->count++;
    return 0;
}

void pinned_release(Pinned *pinned)
{
    for (Py_ssize_t i = 0; i < pinned->count; i++)
        PyBuffer_Release(&pinned->views[i]);
    if (pinned->views != pinned->few_views) {
        PyMem_Free(pinned->views);
        PyMem_Free(pinned->iov);
    }
}

static int make_room(Pinned *pinned, Py_ssize_t count)
{
    if (count <= PINNED_FEW)
        return 0;
    if (count > INT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "too many buffers");
        return -1;
    }
    Py_buffer *views = PyMem_Calloc((size_t)count, sizeof(*views));
    fdstash_iovec *iov = PyMem_Calloc((size_t)count, sizeof(*iov));
    if (!views || !iov) {
        PyMem_Free(views);
        PyMem_Free(iov);
        PyErr_NoMemory();
        return -1;
    }
    pinned->views = views;
    pinned->iov = iov;
    return 0;
}

int pinned_add_all(Pinned *pinned, PyObject *buffers, int flags)
{
    Py_ssize_t count = PySequence_Size(buffers);
    if (count < 0 || make_room(pinned, count) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *buffer = PySequence_GetItem(buffers, i);
        int rc = buffer ? pinned_add(pinned, buffer, flags) : -1;
        Py_XDECREF(buffer); /* the view has a reference of its own */
        if (rc < 0) {
            pinned_release(pinned);
            return -1;
        }
    }
    return 0;
}
