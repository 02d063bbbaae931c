/* faultshim.h: the controls of the shim, for ctypes and for C tests.
 *
 * A thread arms itself: only its own calls are counted, failed, paused or
 * traced, and a load that runs beside it never notices. Rules by path are for
 * the whole process, because an open that may hang is made on a thread of its
 * own.
 *
 * A class is the name of a kind of call, or of a group of kinds: see
 * faultshim_class. "any" is all but malloc. Positions count from 0, over the
 * calls of the class that this thread makes after arming. */

#ifndef FAULTSHIM_H
#define FAULTSHIM_H

/* What may happen to a call beside an errno. */
enum faultshim_action {
    FAULTSHIM_SHORT = -1, /* pread, pwrite: half of it is done */
    FAULTSHIM_EOF = -2,   /* pread, pwrite: nothing is done, and 0 comes back */
    FAULTSHIM_PAUSE = -3  /* any: it waits for faultshim_resume, then goes on */
};

/* Forgets what was armed before, and from now on fails the call at `position`
 * once with errno `action` (position -1: only counts). A close that is to fail
 * still closes, as Linux does; any other call is not made. -EINVAL: no such
 * class, or an action that does not suit it. */
int faultshim_arm(const char *call_class, long position, int action);
/* A further fault of this thread, at most four in all, which meets `times`
 * calls in a row. -ENOSPC. */
int faultshim_also(const char *call_class, long position, int action, long times);
/* Ends it; how many calls met a fault. Counts and trace stay until the next arm. */
long faultshim_disarm(void);
/* Calls of this thread since it was armed; -EINVAL. */
long faultshim_count(const char *call_class);
/* All class names, kinds first; NULL beyond the last. */
const char *faultshim_class(int index);
/* The kinds of this thread's calls in order; NULL beyond the last that was kept. */
const char *faultshim_traced(long index);
long faultshim_trace_length(void);
/* Memory calls (class "memory") are seen only when code of the library whose
 * path contains `library` makes them; NULL: whoever makes them. -ENOENT. */
int faultshim_within(const char *library);

/* Threads that are in a pause now, and the end of all pauses. */
int faultshim_paused(void);
void faultshim_resume(void);

/* Every open in the process of a path that contains `text` (or of a link below
 * /proc/self/fd that stands for one) waits first, or fails. -ENOSPC beyond
 * eight rules, -ENAMETOOLONG. */
int faultshim_delay(const char *text, long milliseconds);
int faultshim_refuse(const char *text, int error);
/* Drops all rules; opens that wait go on. */
void faultshim_clear(void);
/* Opens that met a rule since the last clear, and those that wait in one now. */
long faultshim_path_hits(void);
long faultshim_path_waiting(void);

#endif
