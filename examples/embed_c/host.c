/* Runs a compiled model in plain C: reads the input from a file, prints the first output (float32). */
#include <stdio.h>
#include <stdlib.h>
#include "model.h"

static int fail(const char *what) { return fprintf(stderr, "%s\n", what), 1; }

int main(int argc, char **argv) {
    if (argc != 2) return fail("usage: host INPUT.bin");
    if (pared_missing_feature()) return fail(pared_missing_feature());
    const pared_port *in = pared_model_info()->inputs, *out = pared_model_info()->outputs;
    void *arena = aligned_alloc(64, pared_arena_bytes());
    void *x = malloc(in->bytes), *outputs[PARED_OUTPUTS];
    for (int i = 0; i < PARED_OUTPUTS; i++) outputs[i] = malloc(out[i].bytes);
    FILE *file = fopen(argv[1], "rb");
    if (!file || fread(x, 1, in->bytes, file) != in->bytes) return fail("cannot read the input");
    fclose(file);

    const void *inputs[] = {x};
    if (pared_run(inputs, outputs, arena)) return fail("pared_run failed");
    const float *scores = outputs[0];
    for (size_t i = 0; i < out[0].bytes / sizeof *scores; i++) printf("%.9g\n", scores[i]);
    return 0;
}
