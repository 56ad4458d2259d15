/* Times of a compiled model in a C host, in ms: mapping it, the first result, the median of 50 more; memory in
 * KiB. Usage: host_load MODEL.so. The library is loaded by name, as a host with plug-ins does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "model.h"

enum { RUNS = 50 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static long status(const char *key) {
    char line[256];
    long value = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, key, strlen(key))) value = atol(line + strlen(key) + 1);
    if (file) fclose(file);
    return value;
}

static int smaller(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 2) return 1;
    long before = status("VmRSS");
    double start = now();
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
    const pared_info *(*info)(void) = (const pared_info *(*)(void))dlsym(library, "pared_model_info");
    int (*run)(const void *const *, void *const *, void *) =
        (int (*)(const void *const *, void *const *, void *))dlsym(library, "pared_run");
    const char *(*missing)(void) = (const char *(*)(void))dlsym(library, "pared_missing_feature");
    if (!info || !run || !missing || missing()) return 1;
    double opened = now();
    const pared_info *m = info();
    void *arena = aligned_alloc(64, m->arena_bytes), *inputs[8], *outputs[8];
    for (int i = 0; i < m->input_count; i++) inputs[i] = calloc(1, m->inputs[i].bytes);
    for (int i = 0; i < m->output_count; i++) outputs[i] = malloc(m->outputs[i].bytes);
    if (run((const void *const *)inputs, outputs, arena)) return 1;
    double first = now(), times[RUNS];
    for (int i = 0; i < RUNS; i++) {
        double begin = now();
        run((const void *const *)inputs, outputs, arena);
        times[i] = now() - begin;
    }
    qsort(times, RUNS, sizeof *times, smaller);
    printf("%.3f %.3f %.3f %ld %ld %zu %zu\n", opened - start, first - opened, times[RUNS / 2], before,
           status("VmHWM"), m->arena_bytes, m->constant_bytes);
    return 0;
}
