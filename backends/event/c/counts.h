// What all kernels share: the description of a layer, and how accumulators become counts.
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 64

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define VNNI 1
#else
#define VNNI 0
#endif

enum { PRODUCT, DEPTHWISE, SUM_POOL, MAX_POOL, TABLE, TABLE2 };
enum { AUTO, DENSE, EVENTS };

typedef struct {
    int32_t kind, wide_in, wide_out, readout;
    int32_t in_h, in_w, in_c, in_pitch, in_low;
    int32_t out_h, out_w, out_c, out_pitch, first;
    int32_t kh, kw, sh, sw, top, left, dh, dw;
    int32_t low, levels, rows, formula;
    int32_t mode, levels2, in_low2, wide_in2;
    float break_even, reserved;
    const void *source, *source2;
    void *target;
    const int8_t *weights, *quads;
    const int32_t *bias;
    const float *factor, *shift;
    const int64_t *thresholds, *values;
    const int16_t *table, *winograd;
    int64_t active, ran_events, work;
} Layer;

typedef struct {
    int32_t *start, *channel, *offset;
    uint8_t *payload, *taken;
    int16_t *wide_payload, *wide_taken;
    const uint8_t *zeros;
    int16_t *transformed;
    int32_t *sums;
    char *old;
} Scratch;

int pared_event_permuted(void) { return VNNI; }

int pared_event_layer_bytes(void) { return (int)sizeof(Layer); }

// --- from accumulators to counts -------------------------------------------------------------------

static int32_t climb(const Layer *l, int64_t total, int32_t channel) {
    const int64_t *t = l->thresholds + (l->rows == 1 ? 0 : (int64_t)channel * l->levels);
    int32_t low = 0, high = l->levels;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (total >= t[middle]) low = middle + 1;
        else high = middle;
    }
    return l->low + low;
}

static void put(const Layer *l, int64_t at, int32_t count) {
    if (l->wide_out) ((int16_t *)l->target)[at] = (int16_t)count;
    else ((uint8_t *)l->target)[at] = (uint8_t)count;
}

// Closes one block of a pixel: `total` [64] in natural order.
static void close_block(const Layer *l, const int32_t *total, int64_t pixel, int32_t first) {
    int32_t some = l->out_c - first < BLOCK ? l->out_c - first : BLOCK;
    int64_t at = pixel * l->out_pitch + first;
    if (l->readout) {
        memcpy((int32_t *)l->target + pixel * l->out_c + first, total, sizeof(int32_t) * (size_t)some);
        return;
    }
    if (!l->formula) {
        for (int32_t c = 0; c < some; c++) put(l, at + c, climb(l, total[c], first + c));
        return;
    }
    const float *factor = l->factor + first, *shift = l->shift + first;
#if VNNI
    if (!l->wide_out) {
        __m512 least = _mm512_set1_ps((float)l->low), most = _mm512_set1_ps((float)(l->low + l->levels));
        uint8_t *to = (uint8_t *)l->target + at;
        for (int32_t c = 0; c < some; c += 16) {
            __mmask16 inside = some - c >= 16 ? 0xffff : (__mmask16)((1u << (some - c)) - 1);
            __m512 x = _mm512_cvtepi32_ps(_mm512_loadu_si512(total + c));
            x = _mm512_add_ps(_mm512_mul_ps(x, _mm512_loadu_ps(factor + c)), _mm512_loadu_ps(shift + c));
            x = _mm512_min_ps(_mm512_max_ps(x, least), most);
            _mm512_mask_cvtepi32_storeu_epi8(to + c, inside, _mm512_cvtps_epi32(x));
        }
        return;
    }
#endif
    float low = (float)l->low, high = (float)(l->low + l->levels);
    int32_t counts[BLOCK];
    for (int32_t c = 0; c < BLOCK; c++) {
        float x = (float)total[c] * factor[c] + shift[c];
        x = x < low ? low : x;
        x = x > high ? high : x;
        counts[c] = (int32_t)rintf(x);
    }
    if (l->wide_out)
        for (int32_t c = 0; c < some; c++) ((int16_t *)l->target)[at + c] = (int16_t)counts[c];
    else
        for (int32_t c = 0; c < some; c++) ((uint8_t *)l->target)[at + c] = (uint8_t)counts[c];
}
