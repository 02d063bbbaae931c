/* calls.c: the module fdstash._calls, the four calls of an image that are made once a request.
 * A built-in method costs what the boundary needs, and a frame of Python as much again. What is
 * out of the ordinary (a driver is needed, a header to be marked, an error to be raised) goes to
 * methods of the class that inherits these: see reading.py and image.py.
 *
 * The core exists once in a process, in _native: its functions come from there, by `bind`. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>

#include "arguments.h"
#include "fdstash.h"
#include "pinned.h"

/* Written by `bind` when the package is imported, the same in every interpreter. */
static __typeof__(fdstash_image_size) *core_size;
static __typeof__(fdstash_image_preadv) *core_preadv;
static __typeof__(fdstash_image_pwritev) *core_pwritev;

typedef struct {
    PyObject head;         /* what PyObject_HEAD declares */
    PyObject *keep;        /* what core and marked live in; NULL: not initialised, or cleared */
    fdstash_image *core;   /* NULL as keep */
    const uint8_t *marked; /* 0: the next write is the first; NULL where nothing is marked */
} Calls;

/* ------------------------------------------------- what Python does -- */

/* NULL, with the exception that the method raises. */
static PyObject *raised(PyObject *result)
{
    if (result) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_SystemError, "an error was not raised");
    }
    return NULL;
}

static PyObject *refuse(Calls *self, PyObject *n, PyObject *offset)
{
    return raised(n ? PyObject_CallMethod((PyObject *)self, "_refuse_range", "OO", n, offset)
                    : PyObject_CallMethod((PyObject *)self, "_refuse_range", "iO", 0, offset));
}

static PyObject *fail(Calls *self, int64_t rc)
{
    return raised(PyObject_CallMethod((PyObject *)self, "_fail", "L", (long long)rc));
}

/* ------------------------------------------------------------------ reads -- */

static PyObject *calls_pread(PyObject *object, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    static const Signature signature = {"pread", {"n", "offset"}, 2, 2};
    Calls *self = (Calls *)object;
    PyObject *values[2] = {NULL};
    int64_t n = 0, offset = 0;
    int fits, offset_fits;
    if (take_arguments(&signature, args, nargs, kwnames, values) < 0 ||
        (fits = take_size(values[0], &n)) < 0 || (offset_fits = take_size(values[1], &offset)) < 0)
        return NULL;
    if (!fits || !offset_fits || n > INT64_MAX - offset)
        return refuse(self, values[0], values[1]);
    fdstash_image *core = self->core;
    if (!core)
        return fail(self, -ESHUTDOWN);
    uint64_t size = core_size(core);
    uint64_t left = size > (uint64_t)offset ? size - (uint64_t)offset : 0;
    if ((uint64_t)n > left)
        n = (int64_t)left;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n);
    if (!bytes)
        return NULL;
    fdstash_iovec iov = {PyBytes_AsString(bytes), (size_t)n};
    PyThreadState *thread = PyEval_SaveThread();
    int64_t got = core_preadv(core, &iov, 1, (uint64_t)offset);
    PyEval_RestoreThread(thread);
    if (got == n)
        return bytes;
    /* Shorter: the image has been made so just now. */
    PyObject *part = got >= 0 ? PyBytes_FromStringAndSize(iov.base, (Py_ssize_t)got) : NULL;
    Py_DECREF(bytes);
    if (got >= 0)
        return part;
    if (got == -FDSTASH_NEEDS)
        return PyObject_CallMethod(object, "_pread_needs", "LL", (long long)n, (long long)offset);
    return fail(self, got);
}

static PyObject *calls_preadv(PyObject *object, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames)
{
    static const Signature signature = {"preadv", {"buffers", "offset"}, 2, 2};
    Calls *self = (Calls *)object;
    PyObject *values[2] = {NULL};
    int64_t offset = 0;
    int fits;
    if (take_arguments(&signature, args, nargs, kwnames, values) < 0 ||
        (fits = take_size(values[1], &offset)) < 0)
        return NULL;
    if (!fits)
        return refuse(self, NULL, values[1]);
    fdstash_image *core = self->core;
    if (!core)
        return fail(self, -ESHUTDOWN);
    Pinned pinned;
    pinned_begin(&pinned);
    if (pinned_add_all(&pinned, values[0], PyBUF_WRITABLE) < 0)
        return NULL;
    PyThreadState *thread = PyEval_SaveThread();
    int64_t got = core_preadv(core, pinned.iov, (int)pinned.count, (uint64_t)offset);
    PyEval_RestoreThread(thread);
    pinned_release(&pinned);
    if (got >= 0)
        return PyLong_FromLongLong(got);
    if (got == -FDSTASH_NEEDS)
        return PyObject_CallMethod(object, "_preadv_needs", "OL", values[0], (long long)offset);
    return fail(self, got);
}

/* ----------------------------------------------------------------- writes -- */

/* Before the first write. -1 with an exception. */
static int mark(Calls *self, const Pinned *pinned, int64_t offset)
{
    if (!self->marked || __atomic_load_n(self->marked, __ATOMIC_ACQUIRE))
        return 0;
    int64_t length = 0;
    for (Py_ssize_t i = 0; i < pinned->count; i++)
        if (__builtin_add_overflow(length, pinned->views[i].len, &length))
            length = INT64_MAX;
    PyObject *done =
        PyObject_CallMethod((PyObject *)self, "_mark", "LL", (long long)length, (long long)offset);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* The written bytes, or a negative errno; -1 with an exception, which is then set. Unpins. */
static int64_t write_pinned(Calls *self, Pinned *pinned, int64_t offset, uint32_t flags)
{
    fdstash_image *core = self->core;
    int64_t done = mark(self, pinned, offset);
    if (done == 0) {
        PyThreadState *thread = PyEval_SaveThread();
        done = core_pwritev(core, pinned->iov, (int)pinned->count, (uint64_t)offset, flags);
        PyEval_RestoreThread(thread);
    }
    pinned_release(pinned);
    return done;
}

/* The two that write differ in what their first argument is: one buffer, or several. */
static PyObject *write_call(PyObject *object, const Signature *signature, PyObject *const *args,
                            Py_ssize_t nargs, PyObject *kwnames, int several)
{
    Calls *self = (Calls *)object;
    PyObject *values[3] = {NULL};
    int64_t offset = 0;
    int fits, fua;
    if (take_arguments(signature, args, nargs, kwnames, values) < 0 ||
        (fits = take_size(values[1], &offset)) < 0)
        return NULL;
    if (!fits)
        return refuse(self, NULL, values[1]);
    fua = values[2] ? PyObject_IsTrue(values[2]) : 0;
    if (fua < 0)
        return NULL;
    if (!self->core)
        return fail(self, -ESHUTDOWN);
    uint32_t flags = fua ? FDSTASH_FUA : 0;
    Pinned pinned;
    pinned_begin(&pinned);
    if (several ? pinned_add_all(&pinned, values[0], PyBUF_SIMPLE) < 0
                : pinned_add(&pinned, values[0], PyBUF_SIMPLE) < 0)
        return NULL;
    int64_t done = write_pinned(self, &pinned, offset, flags);
    if (done >= 0)
        return PyLong_FromLongLong(done);
    if (PyErr_Occurred())
        return NULL;
    if (done == -FDSTASH_NEEDS)
        return PyObject_CallMethod(object, "_pwritev_needs", several ? "OLI" : "(O)LI", values[0],
                                   (long long)offset, (unsigned int)flags);
    return fail(self, done);
}

static PyObject *calls_pwrite(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames)
{
    static const Signature signature = {"pwrite", {"data", "offset", "fua"}, 2, 3};
    return write_call(self, &signature, args, nargs, kwnames, 0);
}

static PyObject *calls_pwritev(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    static const Signature signature = {"pwritev", {"buffers", "offset", "fua"}, 2, 3};
    return write_call(self, &signature, args, nargs, kwnames, 1);
}

/* ------------------------------------------------------------- the types -- */

static void *pointer(unsigned long long address)
{
    return (void *)(uintptr_t)address;
}

/* Once: a call of another thread may be using what is kept. */
static int calls_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    Calls *self = (Calls *)object;
    PyObject *keep;
    unsigned long long core, marked;
    if (kwargs && PyDict_Size(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "no keyword arguments are taken");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "OKK", &keep, &core, &marked))
        return -1;
    if (self->keep) {
        PyErr_SetString(PyExc_RuntimeError, "an image is initialised once");
        return -1;
    }
    Py_INCREF(keep);
    self->keep = keep;
    self->core = pointer(core);
    self->marked = pointer(marked);
    return 0;
}

static int calls_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((Calls *)object)->keep);
    return 0;
}

static int calls_clear(PyObject *object)
{
    Calls *self = (Calls *)object;
    self->core = NULL;
    self->marked = NULL;
    Py_CLEAR(self->keep);
    return 0;
}

static void calls_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    calls_clear(object);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

#define METHOD(name, doc)                                                                          \
    {#name, (PyCFunction)(void (*)(void))calls_##name, METH_FASTCALL | METH_KEYWORDS, doc}

static PyMethodDef reads_methods[] = {
    METHOD(pread,
           "pread($self, n, offset)\n--\n\n"
           "Up to `n` bytes at `offset`; short only at the end of the image."),
    METHOD(preadv,
           "preadv($self, buffers, offset)\n--\n\n"
           "Fill writable buffers in turn; returns the bytes read, short only at the end."),
    {NULL, NULL, 0, NULL},
};

static PyMethodDef writes_methods[] = {
    METHOD(pwrite,
           "pwrite($self, data, offset, *, fua=False)\n--\n\n"
           "Write all of `data`; returns its length. `fua`: durable when it returns.\n\n"
           "ENOSPC past the end (nothing is written), EBADF on an ``r`` image, EROFS\n"
           "where an extent must not be written, EDEADLK from a `prepare` callable."),
    METHOD(pwritev,
           "pwritev($self, buffers, offset, *, fua=False)\n--\n\n"
           "As `pwrite`, of several buffers in turn."),
    {NULL, NULL, 0, NULL},
};

/* Of any pointer: ISO C has no cast from functions to objects, nor one that drops const. */
#define SLOT(name, value) {Py_##name, (void *)(uintptr_t)(value)}

static PyType_Slot reads_slots[] = {
    SLOT(tp_doc, "The reads of an image. Any thread; the GIL is not held meanwhile."),
    SLOT(tp_init, calls_init),
    SLOT(tp_traverse, calls_traverse),
    SLOT(tp_clear, calls_clear),
    SLOT(tp_dealloc, calls_dealloc),
    {Py_tp_methods, reads_methods},
    {0, NULL},
};

static PyType_Slot writes_slots[] = {
    SLOT(tp_doc, "Its reads and writes."), SLOT(tp_traverse, calls_traverse),
    SLOT(tp_clear, calls_clear),           SLOT(tp_dealloc, calls_dealloc),
    {Py_tp_methods, writes_methods},       {0, NULL},
};

enum { TYPE_FLAGS = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC };

static PyType_Spec reads_spec = {"fdstash._calls.Reads", sizeof(Calls), 0, TYPE_FLAGS, reads_slots};
static PyType_Spec writes_spec = {"fdstash._calls.Writes", sizeof(Calls), 0, TYPE_FLAGS,
                                  writes_slots};

/* -------------------------------------------------------------- the module -- */

static PyObject *bind(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long size, preadv, pwritev;
    if (!PyArg_ParseTuple(args, "KKK", &size, &preadv, &pwritev))
        return NULL;
    core_size = (__typeof__(core_size))(uintptr_t)size;
    core_preadv = (__typeof__(core_preadv))(uintptr_t)preadv;
    core_pwritev = (__typeof__(core_pwritev))(uintptr_t)pwritev;
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"bind", bind, METH_VARARGS,
     "bind(size, preadv, pwritev, /)\n--\n\n"
     "Take the addresses of `fdstash_image_size`, `_preadv` and `_pwritev` of the one core."},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    PyObject *reads = PyType_FromModuleAndSpec(module, &reads_spec, NULL);
    PyObject *writes = reads ? PyType_FromModuleAndSpec(module, &writes_spec, reads) : NULL;
    int rc = -1;
    if (writes && PyModule_AddObjectRef(module, "Reads", reads) == 0 &&
        PyModule_AddObjectRef(module, "Writes", writes) == 0)
        rc = 0;
    Py_XDECREF(writes);
    Py_XDECREF(reads);
    return rc;
}

static PyModuleDef_Slot module_slots[] = {
    SLOT(mod_exec, module_exec),
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "fdstash._calls",
    .m_doc = "What an image is called for once a request.",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__calls(void);

PyMODINIT_FUNC PyInit__calls(void)
{
    return PyModuleDef_Init(&module);
}
