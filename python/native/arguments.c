/* arguments.c: as Python itself would take them. */
#include "arguments.h"

static int take_keyword(const Signature *signature, PyObject *name, PyObject *value,
                        PyObject **values)
{
    for (Py_ssize_t i = 0; i < signature->count; i++) {
        if (PyUnicode_CompareWithASCIIString(name, signature->names[i]) != 0)
            continue;
        if (values[i]) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%U'",
                         signature->function, name);
            return -1;
        }
        values[i] = value;
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'",
                 signature->function, name);
    return -1;
}

int take_arguments(const Signature *signature, PyObject *const *args, Py_ssize_t nargs,
                   PyObject *kwnames, PyObject **values)
{
    if (nargs > signature->positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments but %zd were given",
                     signature->function, signature->positional, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < nargs; i++)
        values[i] = args[i];
    Py_ssize_t keywords = kwnames ? PyTuple_Size(kwnames) : 0;
    for (Py_ssize_t i = 0; i < keywords; i++)
        if (take_keyword(signature, PyTuple_GetItem(kwnames, i), args[nargs + i], values) < 0)
            return -1;
    for (Py_ssize_t i = 0; i < signature->positional; i++) {
        if (!values[i]) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s'",
                         signature->function, signature->names[i]);
            return -1;
        }
    }
    return 0;
}

int take_size(PyObject *value, int64_t *size)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (number == -1 && !overflow && PyErr_Occurred())
        return -1;
    *size = number;
    return !overflow && number >= 0;
}
