/* arguments.h: what a built-in method was called with. The caller holds the GIL. */
#ifndef FDSTASH_ARGUMENTS_H
#define FDSTASH_ARGUMENTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

typedef struct {
    const char *function;
    const char *names[3];
    Py_ssize_t positional; /* all of them required; the others by keyword alone */
    Py_ssize_t count;
} Signature;

/* Borrowed references into values, which has `count` places, all NULL: what is not given stays so.
 * 0, or -1 with an exception. */
int take_arguments(const Signature *signature, PyObject *const *args, Py_ssize_t nargs,
                   PyObject *kwnames, PyObject **values);
/* 1: an integer from 0 on that fits; 0: another integer; -1 with an exception. */
int take_size(PyObject *value, int64_t *size);

#endif
