/* Threads that share the pieces of one step. */
#ifndef PARED_POOL_H
#define PARED_POOL_H

#include "model.h"

typedef struct {
    const void *const *inputs;
    void *const *outputs;
    unsigned char *arena;
} pared_memory;

typedef void (*pared_step)(const pared_memory *memory, int32_t begin, int32_t end);

/* Take the pool for a whole run; 0 when another run has it. */
int pool_take(pared_pool *pool);
void pool_leave(pared_pool *pool);

/* Do pieces 0..tasks of a step on all threads of a pool that this run has taken. */
void pool_share(pared_pool *pool, pared_step step, const pared_memory *memory, int32_t tasks);

#endif
