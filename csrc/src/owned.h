/* owned.h: the descriptors that belong to images, and how they are opened.
 *
 * A forked child shares locks and descriptions with its parent. So the child
 * closes every owned descriptor at once, and whatever remembers one compares
 * owned_epoch() with the epoch in which it was made. Any thread. */
#ifndef FDSTASH_OWNED_H
#define FDSTASH_OWNED_H

#include "fdstash.h"

/* Which process this is, counted by forks: changes in the child only. */
uint64_t owned_epoch(void);
/* How often this process was about to fork: descriptions made before are
 * shared with a child. */
uint64_t owned_fork_count(void);

/* Keeps fork() away between a system call that makes a descriptor and its
 * registration. Never held across a call that may wait for a server. */
void owned_hold_fork(void);
void owned_allow_fork(void);

/* Registers fd, moved up when numbered below 3. On failure (-EMFILE, -ENOMEM)
 * fd is closed. */
int owned_register(int fd);
/* Opens what /proc/self/fd/FD leads to; -ENOENT only where /proc is missing.
 * hold_fork: fork is kept away meanwhile, for files that wait for no server. */
int owned_open_again(int fd, int flags, int hold_fork);
/* As fdstash_close_owned. hold_fork: a fork between forgetting the number and
 * closing it would leave the child a descriptor that nobody knows, so fork is kept
 * away; but not from a close that may wait for a server. */
int owned_close(int fd, int hold_fork);

#endif
