// Event kernels: layers that skip inputs that are zero, or run densely where few are.
//
// Populations lie as [height][width][pitch], channels innermost, bytes where counts are 0..255, else int16.
// `pitch` is the number of channels rounded up to 4; what is beyond the channels stays 0.
//
// A product gathers, for every output pixel, the active inputs under its window, and adds their weight rows
// (64 outputs wide, "input-major") to accumulators that stay in registers. With VNNI four rows are interleaved
// and multiplied with their four payloads by one instruction per 16 outputs. The dense form of the same layer
// has its weights interleaved beforehand and does six pixels at a time, or goes through winograd.h.
#include "counts.h"
#include "products.h"

// --- everything else -------------------------------------------------------------------------------

static int32_t count_at(const Layer *l, int64_t at) {
    return l->wide_in ? ((const int16_t *)l->source)[at] : ((const uint8_t *)l->source)[at];
}

// Depthwise: weights [tap][channels rounded up to 64].
static void depthwise(const Layer *l, int32_t oy, int32_t ox) {
    int32_t wide = (l->out_c + BLOCK - 1) / BLOCK * BLOCK;
    for (int32_t first = 0; first < l->out_c; first += BLOCK) {
        int32_t total[BLOCK], some = l->out_c - first < BLOCK ? l->out_c - first : BLOCK;
        memcpy(total, l->bias + first, sizeof total);
        for (int32_t ky = 0; ky < l->kh; ky++) {
            int32_t y = oy * l->sh - l->top + ky * l->dh;
            if (y < 0 || y >= l->in_h) continue;
            for (int32_t kx = 0; kx < l->kw; kx++) {
                int32_t x = ox * l->sw - l->left + kx * l->dw;
                if (x < 0 || x >= l->in_w) continue;
                int64_t at = ((int64_t)y * l->in_w + x) * l->in_pitch + first;
                const int8_t *w = l->weights + (int64_t)(ky * l->kw + kx) * wide + first;
                if (l->wide_in) {
                    const int16_t *q = (const int16_t *)l->source + at;
                    for (int32_t c = 0; c < some; c++) total[c] += q[c] * w[c];
                } else {
                    const uint8_t *q = (const uint8_t *)l->source + at;
                    for (int32_t c = 0; c < some; c++) total[c] += q[c] * w[c];
                }
            }
        }
        close_block(l, total, (int64_t)oy * l->out_w + ox, first);
    }
}

// The inputs that a window sees at (ky, kx): where they begin, or -1 outside the image.
static int64_t seen_at(const Layer *l, int32_t oy, int32_t ox, int32_t ky, int32_t kx) {
    int32_t y = oy * l->sh - l->top + ky * l->dh, x = ox * l->sw - l->left + kx * l->dw;
    if (y < 0 || y >= l->in_h || x < 0 || x >= l->in_w) return -1;
    return ((int64_t)y * l->in_w + x) * l->in_pitch;
}

// The largest of bytes; counts of both populations have the same range.
static void max_bytes(const Layer *l, int32_t oy, int32_t ox) {
    uint8_t *restrict most = (uint8_t *)l->target + ((int64_t)oy * l->out_w + ox) * l->out_pitch;
    memset(most, l->low, (size_t)l->out_c);
    for (int32_t ky = 0; ky < l->kh; ky++)
        for (int32_t kx = 0; kx < l->kw; kx++) {
            int64_t at = seen_at(l, oy, ox, ky, kx);
            if (at < 0) continue;
            const uint8_t *restrict q = (const uint8_t *)l->source + at;
            for (int32_t c = 0; c < l->out_c; c++) most[c] = q[c] > most[c] ? q[c] : most[c];
        }
}

static void pool(const Layer *l, int32_t oy, int32_t ox) {
    if (l->kind == MAX_POOL && !l->wide_in && !l->wide_out) {
        max_bytes(l, oy, ox);
        return;
    }
    for (int32_t first = 0; first < l->out_c; first += BLOCK) {
        int32_t some = l->out_c - first < BLOCK ? l->out_c - first : BLOCK, most[BLOCK];
        int64_t sum[BLOCK] = {0}, to = ((int64_t)oy * l->out_w + ox) * l->out_pitch + first;
        for (int32_t c = 0; c < some; c++) most[c] = l->low;
        for (int32_t ky = 0; ky < l->kh; ky++)
            for (int32_t kx = 0; kx < l->kw; kx++) {
                int64_t at = seen_at(l, oy, ox, ky, kx);
                if (at < 0) continue;
                for (int32_t c = 0; c < some; c++) {
                    int32_t q = count_at(l, at + first + c);
                    if (l->kind == SUM_POOL) sum[c] += l->values[q - l->in_low];
                    else most[c] = q > most[c] ? q : most[c];
                }
            }
        for (int32_t c = 0; c < some; c++) put(l, to + c, l->kind == MAX_POOL ? most[c] : climb(l, sum[c], first + c));
    }
}

// Counts by table: of one source (to channels `first` on), or of two of the same shape.
static void by_table(const Layer *l, int64_t pixel) {
    for (int32_t c = 0; c < l->in_c; c++) {
        int64_t at = pixel * l->in_pitch + c;
        int32_t index = count_at(l, at) - l->in_low;
        if (l->kind == TABLE2) {
            int32_t q = l->wide_in2 ? ((const int16_t *)l->source2)[at] : ((const uint8_t *)l->source2)[at];
            index = index * l->levels2 + q - l->in_low2;
        }
        put(l, pixel * l->out_pitch + l->first + c, l->table[index]);
    }
}

// One pixel of a layer that is no product.
static void one_pixel(const Layer *l, int64_t pixel) {
    int32_t oy = (int32_t)(pixel / l->out_w), ox = (int32_t)(pixel % l->out_w);
    if (l->kind == DEPTHWISE) depthwise(l, oy, ox);
    else if (l->kind == TABLE || l->kind == TABLE2) by_table(l, pixel);
    else pool(l, oy, ox);
}

void pared_event_run(Layer *layers, int32_t count, Scratch *s) {
    for (int32_t i = 0; i < count; i++) {
        Layer *l = layers + i;
        if (l->kind == PRODUCT) product(l, s);
        else
            for (int64_t p = 0; p < (int64_t)l->out_h * l->out_w; p++) one_pixel(l, p);
    }
}

#include "delta.h"
