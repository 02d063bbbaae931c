/* workers.c: a list of jobs, and as many threads as are busy. */
#include "workers.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

struct workers {
    pthread_mutex_t lock;
    pthread_cond_t given;
    struct job *first, *last;
    unsigned waiting; /* jobs in the list */
    unsigned idle;    /* threads that wait for one */
    unsigned count;   /* threads */
    unsigned most;
    int ended;
    pthread_t threads[];
};

struct workers *workers_new(unsigned most)
{
    struct workers *workers = calloc(1, sizeof(*workers) + most * sizeof(pthread_t));
    if (!workers)
        return NULL;
    pthread_mutex_init(&workers->lock, NULL);
    pthread_cond_init(&workers->given, NULL);
    workers->most = most;
    return workers;
}

static void *work(void *argument)
{
    struct workers *workers = argument;
    pthread_mutex_lock(&workers->lock);
    for (;;) {
        workers->idle++;
        while (!workers->first && !workers->ended)
            pthread_cond_wait(&workers->given, &workers->lock);
        workers->idle--;
        struct job *job = workers->first;
        if (!job)
            break;
        workers->first = job->next;
        workers->waiting--;
        pthread_mutex_unlock(&workers->lock);
        job->run(job);
        pthread_mutex_lock(&workers->lock);
    }
    pthread_mutex_unlock(&workers->lock);
    return NULL;
}

/* Under the lock. Signals are for the program's own threads. */
static void begin_thread(struct workers *workers)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&workers->threads[workers->count], NULL, work, workers) == 0)
        workers->count++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void workers_give(struct workers *workers, struct job *job)
{
    pthread_mutex_lock(&workers->lock);
    if (workers->waiting >= workers->idle && workers->count < workers->most)
        begin_thread(workers);
    int alone = workers->count == 0;
    if (!alone) {
        job->next = NULL;
        if (workers->first)
            workers->last->next = job;
        else
            workers->first = job;
        workers->last = job;
        workers->waiting++;
        pthread_cond_signal(&workers->given);
    }
    pthread_mutex_unlock(&workers->lock);
    if (alone)
        job->run(job);
}

void workers_free(struct workers *workers)
{
    if (!workers)
        return;
    pthread_mutex_lock(&workers->lock);
    workers->ended = 1;
    pthread_cond_broadcast(&workers->given);
    pthread_mutex_unlock(&workers->lock);
    for (unsigned i = 0; i < workers->count; i++)
        pthread_join(workers->threads[i], NULL);
    pthread_cond_destroy(&workers->given);
    pthread_mutex_destroy(&workers->lock);
    free(workers);
}
