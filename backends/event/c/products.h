// --- products by events ----------------------------------------------------------------------------

static int64_t count_active(const Layer *l) {
    int64_t size = (int64_t)l->in_h * l->in_w * l->in_pitch, found = 0;
    if (l->wide_in) {
        const int16_t *x = l->source;
        for (int64_t i = 0; i < size; i++) found += x[i] != 0;
    } else {
        const uint8_t *x = l->source;
        int64_t i = 0;
#if VNNI
        for (; i + 64 <= size; i += 64)
            found += __builtin_popcountll(_mm512_test_epi8_mask(_mm512_loadu_si512(x + i), _mm512_set1_epi8(-1)));
#endif
        for (; i < size; i++) found += x[i] != 0;
    }
    return found;
}

// Lists the active channels of every pixel, or of those with a flag, counted from the start of its row.
static void list_events(const Layer *l, Scratch *s, const uint8_t *flags) {
    int32_t pixels = l->in_h * l->in_w, n = 0;
    for (int32_t p = 0; p < pixels; p++) {
        s->start[p] = n;
        if (flags && !flags[p]) continue;
        int32_t c = 0, before = p % l->in_w * l->in_c;
        if (l->wide_in) {
            const int16_t *x = (const int16_t *)l->source + (int64_t)p * l->in_pitch;
            for (; c < l->in_c; c++)
                if (x[c]) s->channel[n] = before + c, s->wide_payload[n++] = x[c];
            continue;
        }
        const uint8_t *x = (const uint8_t *)l->source + (int64_t)p * l->in_pitch;
#if VNNI
        for (; c < l->in_c; c += 64) {
            __mmask64 inside = l->in_c - c >= 64 ? ~0ULL : (1ULL << (l->in_c - c)) - 1;
            __m512i v = _mm512_maskz_loadu_epi8(inside, x + c);
            uint64_t mask = _mm512_test_epi8_mask(v, v);
            for (; mask; mask &= mask - 1) {
                int32_t at = c + (int32_t)__builtin_ctzll(mask);
                s->channel[n] = before + at, s->payload[n++] = x[at];
            }
        }
#else
        for (; c < l->in_c; c++)
            if (x[c]) s->channel[n] = before + c, s->payload[n++] = x[c];
#endif
    }
    s->start[pixels] = n;
}

// Copies events with their weight rows; up to 15 more are written beyond them.
static int32_t take(const Layer *l, Scratch *s, int32_t n, int32_t e, int32_t end, int32_t base) {
#if VNNI
    if (!l->wide_in) {
        __m512i by = _mm512_set1_epi32(base);
        for (; e < end; e += 16, n += 16) {
            _mm512_storeu_si512(s->offset + n, _mm512_add_epi32(_mm512_loadu_si512(s->channel + e), by));
            _mm_storeu_si128((__m128i *)(s->taken + n), _mm_loadu_si128((const __m128i *)(s->payload + e)));
        }
        return n + end - e;
    }
#endif
    for (; e < end; e++, n++) {
        s->offset[n] = base + s->channel[e];
        if (l->wide_in) s->wide_taken[n] = s->wide_payload[e];
        else s->taken[n] = s->payload[e];
    }
    return n;
}

// Collects what lies under the window of an output pixel; returns how many.
static int32_t collect(const Layer *l, Scratch *s, int32_t oy, int32_t ox) {
    int32_t n = 0;
    for (int32_t ky = 0; ky < l->kh; ky++) {
        int32_t y = oy * l->sh - l->top + ky * l->dh;
        if (y < 0 || y >= l->in_h) continue;
        const int32_t *start = s->start + y * l->in_w;
        int32_t x = ox * l->sw - l->left, base = (ky * l->kw - x) * l->in_c;
        if (l->dw == 1) {
            int32_t from = x < 0 ? 0 : x, to = x + l->kw > l->in_w ? l->in_w : x + l->kw;
            if (from < to) n = take(l, s, n, start[from], start[to], base);
            continue;
        }
        for (int32_t kx = 0; kx < l->kw; kx++, x += l->dw, base -= (l->dw - 1) * l->in_c)
            if (x >= 0 && x < l->in_w) n = take(l, s, n, start[x], start[x + 1], base);
    }
    return n;
}

static void rows_scalar(const Layer *l, const Scratch *s, const int8_t *w, int32_t n, int32_t *total) {
    for (int32_t e = 0; e < n; e++) {
        const int8_t *row = w + (int64_t)s->offset[e] * BLOCK;
        int32_t q = l->wide_in ? s->wide_taken[e] : s->taken[e];
        for (int32_t c = 0; c < BLOCK; c++) total[c] += q * row[c];
    }
}

// Weight rows of VNNI builds hold output 16 m + 4 j + e at 16 j + 4 m + e, so that interleaving restores it.
static void unpermute(const int32_t *from, int32_t *to, const int32_t *bias) {
    for (int32_t j = 0; j < 4; j++)
        for (int32_t m = 0; m < 4; m++)
            for (int32_t e = 0; e < 4; e++)
                to[16 * m + 4 * j + e] = from[VNNI ? 16 * j + 4 * m + e : 16 * m + 4 * j + e];
    for (int32_t c = 0; c < BLOCK; c++) to[c] += bias[c];
}

#if VNNI
static void rows_vnni(const Scratch *s, const int8_t *w, int32_t n, const int32_t *bias, int32_t *total) {
    __m512i a0 = _mm512_loadu_si512(bias), a1 = _mm512_loadu_si512(bias + 16);
    __m512i a2 = _mm512_loadu_si512(bias + 32), a3 = _mm512_loadu_si512(bias + 48);
    for (int32_t e = 0; e < n; e += 4) {
        __m512i r0 = _mm512_loadu_si512(w + (int64_t)s->offset[e] * BLOCK);
        __m512i r1 = _mm512_loadu_si512(w + (int64_t)s->offset[e + 1] * BLOCK);
        __m512i r2 = _mm512_loadu_si512(w + (int64_t)s->offset[e + 2] * BLOCK);
        __m512i r3 = _mm512_loadu_si512(w + (int64_t)s->offset[e + 3] * BLOCK);
        __m512i l01 = _mm512_unpacklo_epi8(r0, r1), h01 = _mm512_unpackhi_epi8(r0, r1);
        __m512i l23 = _mm512_unpacklo_epi8(r2, r3), h23 = _mm512_unpackhi_epi8(r2, r3);
        int32_t word;
        memcpy(&word, s->taken + e, 4);
        __m512i q = _mm512_set1_epi32(word);
        a0 = _mm512_dpbusd_epi32(a0, q, _mm512_unpacklo_epi16(l01, l23));
        a1 = _mm512_dpbusd_epi32(a1, q, _mm512_unpackhi_epi16(l01, l23));
        a2 = _mm512_dpbusd_epi32(a2, q, _mm512_unpacklo_epi16(h01, h23));
        a3 = _mm512_dpbusd_epi32(a3, q, _mm512_unpackhi_epi16(h01, h23));
    }
    _mm512_storeu_si512(total, a0), _mm512_storeu_si512(total + 16, a1);
    _mm512_storeu_si512(total + 32, a2), _mm512_storeu_si512(total + 48, a3);
}
#endif

static void product_events(Layer *l, Scratch *s) {
    int64_t inputs = (int64_t)l->kh * l->kw * l->in_c;
    list_events(l, s, NULL);
    for (int32_t oy = 0; oy < l->out_h; oy++)
        for (int32_t ox = 0; ox < l->out_w; ox++) {
            int32_t n = collect(l, s, oy, ox);
            l->work += (int64_t)n * l->out_c;
            for (int32_t i = n; i < n + 4; i++) s->offset[i] = 0, s->taken[i] = 0;
            for (int32_t first = 0; first < l->out_c; first += BLOCK) {
                const int8_t *w = l->weights + (first / BLOCK) * inputs * BLOCK;
                int32_t total[BLOCK];
#if VNNI
                if (!l->wide_in) {
                    rows_vnni(s, w, n, l->bias + first, total);
                    close_block(l, total, (int64_t)oy * l->out_w + ox, first);
                    continue;
                }
#endif
                int32_t mixed[BLOCK] = {0};
                rows_scalar(l, s, w, n, mixed);
                unpermute(mixed, total, l->bias + first);
                close_block(l, total, (int64_t)oy * l->out_w + ox, first);
            }
        }
}

// --- dense products: weights [block][tap][channels / 4][64][4] -------------------------------------

#if VNNI
typedef struct {
    int32_t y, x;
} Corner;

static const uint8_t *under(const Layer *l, const Scratch *s, Corner corner, int32_t ky, int32_t kx) {
    int32_t y = corner.y + ky * l->dh, x = corner.x + kx * l->dw;
    // Negative ones are large when unsigned.
    if ((uint32_t)y >= (uint32_t)l->in_h || (uint32_t)x >= (uint32_t)l->in_w) return s->zeros;
    return (const uint8_t *)l->source + ((int64_t)y * l->in_w + x) * l->in_pitch;
}

static __m512i spread(const uint8_t *x) {
    int32_t word;
    memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
}

// Six pixels by 16 outputs a vector, of which `vectors` (a constant) are there: up to 24 accumulators.
static inline __attribute__((always_inline)) void dense_pixels(
    const Layer *l, const Scratch *s, int32_t pixel, int32_t first, const int vectors) {
    int32_t fours = l->in_pitch / 4, pixels = l->out_h * l->out_w;
    const int8_t *w = l->quads + (int64_t)(first / BLOCK) * l->kh * l->kw * fours * 4 * BLOCK;
    Corner corner[6];
    __m512i a[6][4];
#pragma GCC unroll 6
    for (int p = 0; p < 6; p++) {
        int32_t at = pixel + p < pixels ? pixel + p : pixels - 1;
        corner[p] = (Corner){at / l->out_w * l->sh - l->top, at % l->out_w * l->sw - l->left};
#pragma GCC unroll 4
        for (int m = 0; m < vectors; m++) a[p][m] = _mm512_loadu_si512(l->bias + first + 16 * m);
    }
    for (int32_t ky = 0; ky < l->kh; ky++)
        for (int32_t kx = 0; kx < l->kw; kx++) {
            const uint8_t *x0 = under(l, s, corner[0], ky, kx), *x1 = under(l, s, corner[1], ky, kx);
            const uint8_t *x2 = under(l, s, corner[2], ky, kx), *x3 = under(l, s, corner[3], ky, kx);
            const uint8_t *x4 = under(l, s, corner[4], ky, kx), *x5 = under(l, s, corner[5], ky, kx);
            for (int32_t i = 0; i < fours; i++, w += 4 * BLOCK) {
                const uint8_t *x[6] = {x0, x1, x2, x3, x4, x5};
                __m512i v[4];
#pragma GCC unroll 4
                for (int m = 0; m < vectors; m++) v[m] = _mm512_loadu_si512(w + BLOCK * m);
#pragma GCC unroll 6
                for (int p = 0; p < 6; p++) {
                    __m512i q = spread(x[p] + 4 * i);
#pragma GCC unroll 4
                    for (int m = 0; m < vectors; m++) a[p][m] = _mm512_dpbusd_epi32(a[p][m], q, v[m]);
                }
            }
        }
#pragma GCC unroll 6
    for (int p = 0; p < 6; p++) {
        int32_t total[BLOCK] = {0};
#pragma GCC unroll 4
        for (int m = 0; m < vectors; m++) _mm512_storeu_si512(total + 16 * m, a[p][m]);
        if (pixel + p < pixels) close_block(l, total, pixel + p, first);
    }
}

static inline __attribute__((always_inline)) void dense_vector(const Layer *l, int32_t first, const int vectors) {
    int32_t fours = l->in_pitch / 4, i = 0;
    const uint8_t *x = l->source;
    const int8_t *w = l->quads + (int64_t)(first / BLOCK) * fours * 4 * BLOCK;
    __m512i a[4], b[4];
    for (int m = 0; m < vectors; m++) {
        a[m] = _mm512_loadu_si512(l->bias + first + 16 * m);
        b[m] = _mm512_setzero_si512();
    }
    for (; i + 2 <= fours; i += 2, w += 8 * BLOCK) {
        __m512i q = spread(x + 4 * i), r = spread(x + 4 * i + 4);
#pragma GCC unroll 4
        for (int m = 0; m < vectors; m++) {
            a[m] = _mm512_dpbusd_epi32(a[m], q, _mm512_loadu_si512(w + BLOCK * m));
            b[m] = _mm512_dpbusd_epi32(b[m], r, _mm512_loadu_si512(w + BLOCK * (m + 4)));
        }
    }
    if (i < fours)
        for (int m = 0; m < vectors; m++)
            a[m] = _mm512_dpbusd_epi32(a[m], spread(x + 4 * i), _mm512_loadu_si512(w + BLOCK * m));
    int32_t total[BLOCK] = {0};
    for (int m = 0; m < vectors; m++) _mm512_storeu_si512(total + 16 * m, _mm512_add_epi32(a[m], b[m]));
    close_block(l, total, 0, first);
}

static inline __attribute__((always_inline)) void dense_block(
    const Layer *l, const Scratch *s, int32_t first, const int vectors) {
    if (l->out_h * l->out_w == 1 && l->kh * l->kw == 1) {
        dense_vector(l, first, vectors);
        return;
    }
    for (int32_t p = 0; p < l->out_h * l->out_w; p += 6) dense_pixels(l, s, p, first, vectors);
}

static void product_dense(const Layer *l, const Scratch *s) {
    for (int32_t first = 0; first < l->out_c; first += BLOCK) {
        int32_t some = l->out_c - first;
        if (some > 48) dense_block(l, s, first, 4);
        else if (some > 32) dense_block(l, s, first, 3);
        else if (some > 16) dense_block(l, s, first, 2);
        else dense_block(l, s, first, 1);
    }
}
#endif

#include "winograd.h"

static void product(Layer *l, Scratch *s) {
    int64_t size = (int64_t)l->in_h * l->in_w * l->in_c;
    l->active = count_active(l);
    l->ran_events = 1, l->work = 0;
#if VNNI
    int dense = l->mode == DENSE || (l->mode == AUTO && (float)l->active > l->break_even * (float)size);
    if (l->quads && dense) {
        l->ran_events = 0, l->work = (int64_t)l->out_h * l->out_w * l->out_c * l->kh * l->kw * l->in_c;
        if (l->winograd) product_winograd(l, s);
        else product_dense(l, s);
        return;
    }
#endif
    (void)size;
    product_events(l, s);
}
