/* A fork-join pool. Workers spin for some tens of microseconds after a step, so that the next one of the same
 * run finds them awake, and then sleep. Pieces are handed out by a shared counter, so that a thread that the
 * system holds up takes fewer of them. */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { SPINS = 2000, CHUNKS_PER_THREAD = 4, MOST_THREADS = 256 };

struct pared_pool {
    int workers;
    pthread_t *threads;
    atomic_flag taken;
    /* The step at hand; written while all workers wait. */
    pared_step step;
    const pared_memory *memory;
    int32_t tasks, chunk;
    atomic_int next, busy;
    atomic_uint generation;
    atomic_int sleepers, stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void work(pared_pool *pool) {
    for (;;) {
        int32_t begin = atomic_fetch_add_explicit(&pool->next, pool->chunk, memory_order_relaxed);
        if (begin >= pool->tasks) return;
        int32_t end = pool->tasks - begin < pool->chunk ? pool->tasks : begin + pool->chunk;
        pool->step(pool->memory, begin, end);
    }
}

static void sleep_until_new(pared_pool *pool, unsigned seen) {
    pthread_mutex_lock(&pool->lock);
    /* Counted before the generation is read again: whoever starts a step sees the sleeper or is seen. */
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *worker(void *argument) {
    pared_pool *pool = argument;
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load(&pool->generation) == seen; i++) relax();
        if (atomic_load(&pool->generation) == seen) sleep_until_new(pool, seen);
        seen++;
        if (atomic_load(&pool->stop)) return NULL;
        work(pool);
        atomic_fetch_sub(&pool->busy, 1);
    }
}

static void announce(pared_pool *pool) {
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

void pool_share(pared_pool *pool, pared_step step, const pared_memory *memory, int32_t tasks) {
    int32_t chunk = tasks / ((pool->workers + 1) * CHUNKS_PER_THREAD);
    pool->step = step, pool->memory = memory, pool->tasks = tasks, pool->chunk = chunk > 0 ? chunk : 1;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->busy, pool->workers);
    announce(pool);
    work(pool);
    for (int i = 0; atomic_load(&pool->busy); i++) {
        if (i < SPINS) relax();
        else sched_yield();
    }
}

int pool_take(pared_pool *pool) { return !atomic_flag_test_and_set(&pool->taken); }

void pool_leave(pared_pool *pool) { atomic_flag_clear(&pool->taken); }

pared_pool *pared_pool_create(int threads) {
    if (threads < 1 || threads > MOST_THREADS) return NULL;
    pared_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->threads = calloc((size_t)threads, sizeof *pool->threads);
    atomic_flag_clear(&pool->taken);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    while (pool->threads && pool->workers < threads - 1) {
        if (pthread_create(&pool->threads[pool->workers], NULL, worker, pool)) break;
        pool->workers++;
    }
    if (pool->workers == threads - 1 && pool->threads) return pool;
    pared_pool_destroy(pool);
    return NULL;
}

void pared_pool_destroy(pared_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    announce(pool);
    for (int i = 0; i < pool->workers; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->threads);
    free(pool);
}
