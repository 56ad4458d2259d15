/* A model compiled by pared for one instruction set. No allocation, no threads of its own, no global state:
 * `pared_run` may be called from several threads at once, each with an arena of its own. */
#ifndef PARED_MODEL_H
#define PARED_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum pared_error {
    PARED_OK = 0,
    PARED_NULL = 1,          /* a pointer is null */
    PARED_ARENA_ALIGN = 2,   /* the arena does not start on a 64-byte border */
    PARED_NO_MEMORY = 3,     /* a pool could not be made */
    PARED_INDEX = 4,         /* an input holds an index outside the table that it counts */
};

typedef struct {
    const char *name;
    const char *dtype;       /* NumPy's name: float32, uint8, ... */
    int32_t rank;
    const int64_t *shape;    /* row-major */
    size_t bytes;
} pared_port;

typedef struct {
    int32_t version;         /* of this interface: 1 */
    int32_t input_count, output_count;
    const pared_port *inputs, *outputs;
    const char *isa;         /* architecture and the CPU features that the code uses, separated by spaces */
    size_t arena_bytes, constant_bytes;
} pared_info;

typedef struct pared_pool pared_pool;

const pared_info *pared_model_info(void);

/* Bytes of working memory that one call of pared_run needs, 64-byte aligned (aligned_alloc(64, ...)). */
size_t pared_arena_bytes(void);

/* Name of a feature that this CPU lacks and the code uses, or NULL: ask before the first run. */
const char *pared_missing_feature(void);

/* Run once. inputs and outputs: one pointer per port, of any alignment, not overlapping; returns a pared_error. */
int pared_run(const void *const *inputs, void *const *outputs, void *arena);

/* Optional: worker threads for the large steps. `threads` counts the caller. NULL when it cannot be made.
 * Calls that share a pool take turns: one that finds it busy runs on its own thread alone. */
pared_pool *pared_pool_create(int threads);
void pared_pool_destroy(pared_pool *pool);
int pared_run_on(pared_pool *pool, const void *const *inputs, void *const *outputs, void *arena);

#ifdef __cplusplus
}
#endif
#endif
