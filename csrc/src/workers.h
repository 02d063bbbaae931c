/* workers.h: threads that run jobs which may wait. A leaf. Any thread. */
#ifndef FDSTASH_WORKERS_H
#define FDSTASH_WORKERS_H

struct job {
    void (*run)(struct job *job); /* may free or give away the job */
    struct job *next;
};

struct workers;

/* At most `most` threads, each begun when there is a job and none is idle. NULL
 * without memory. */
struct workers *workers_new(unsigned most);
/* Runs the job on a thread, in the order given; on the caller's where the system has
 * none to give. */
void workers_give(struct workers *workers, struct job *job);
/* Waits for all jobs and all threads. */
void workers_free(struct workers *workers);

#endif
