// --- dense 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), to the last bit -------------------
//
//     576 Y = B [ sum over c of (F w F^T) * (D d D^T) ] B^T,   d a 6 x 6 patch of counts, Y 4 x 4 sums
//
// in whole numbers: 36 products of 16 bits stand for 144 of 8 bits. D d D^T stays within 16 bits; sums are
// taken modulo 2^32. As 576 is 64 * 9, Y is (576 Y / 9) >> 6 with 1/9 modulo 2^32, exact while |Y| < 2^25,
// which layout.py proves from the weights and whose matrices F it applies.
//
// Twelve patches at a time: transforms V [36][patch][channel] int16, 36 matrix products into
// M [36][patch][64] int32 with up to 6 patches by 64 outputs in registers, the way back.
#if VNNI

enum { PATCHES = 12, TILE = 6, POINTS = 36, NINTH = 954437177 };

typedef struct {
    const int16_t *weights;  // of one block: [point][channels / 2][64][2]
    int16_t *v;
    int32_t *m;
    int64_t plane;  // of one point in v
    int32_t pitch, steps;
} Products;

static inline __m512i twice(__m512i x, int power) { return _mm512_slli_epi16(x, (unsigned)power); }

// D times six vectors of 16-bit integers.
static inline void six(const __m512i *d, __m512i *to, int step) {
    __m512i p = _mm512_sub_epi16(d[4], twice(d[2], 2)), q = _mm512_sub_epi16(d[3], twice(d[1], 2));
    __m512i r = _mm512_sub_epi16(d[4], d[2]), s = twice(_mm512_sub_epi16(d[3], d[1]), 1);
    __m512i e = _mm512_sub_epi16(d[5], d[3]);
    to[0] = _mm512_add_epi16(twice(_mm512_sub_epi16(d[0], d[2]), 2), r);
    to[step] = _mm512_add_epi16(p, q);
    to[2 * step] = _mm512_sub_epi16(p, q);
    to[3 * step] = _mm512_add_epi16(r, s);
    to[4 * step] = _mm512_sub_epi16(r, s);
    to[5 * step] = _mm512_sub_epi16(e, twice(s, 1));
}

// B times six vectors of 32-bit integers.
static inline void four(const __m512i *m, __m512i *to, int step) {
    __m512i a = _mm512_add_epi32(m[1], m[2]), b = _mm512_sub_epi32(m[1], m[2]);
    __m512i c = _mm512_add_epi32(m[3], m[4]), d = _mm512_sub_epi32(m[3], m[4]);
    to[0] = _mm512_add_epi32(_mm512_add_epi32(m[0], a), c);
    to[step] = _mm512_add_epi32(b, _mm512_slli_epi32(d, 1));
    to[2 * step] = _mm512_add_epi32(a, _mm512_slli_epi32(c, 2));
    to[3 * step] = _mm512_add_epi32(b, _mm512_slli_epi32(_mm512_add_epi32(d, m[5]), 3));
}

// Transforms the patch of the outputs from (y, x) on.
static void transform(const Layer *l, const Scratch *s, const Products *w, Corner corner, int32_t patch) {
    const uint8_t *from[36];
    for (int32_t i = 0; i < 36; i++) from[i] = under(l, s, corner, i / 6, i % 6);
    int16_t *to = w->v + (int64_t)patch * w->pitch;
    for (int32_t c = 0; c < l->in_c; c += 32) {
        __m512i half[36], all[36], d[6];
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++) {
#pragma GCC unroll 6
            for (int i = 0; i < 6; i++)
                d[i] = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(from[6 * i + j] + c)));
            six(d, half + j, 6);
        }
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++) six(half + 6 * i, all + 6 * i, 1);
#pragma GCC unroll 36
        for (int i = 0; i < 36; i++) _mm512_storeu_si512(to + i * w->plane + c, all[i]);
    }
}

// One point: `tile` patches, a constant, by 64 outputs.
static inline __attribute__((always_inline)) void tile_products(
    const Products *w, int32_t point, int32_t first, const int tile) {
    const int16_t *row = w->weights + (int64_t)point * w->steps * 128;
    const int16_t *x = w->v + point * w->plane + (int64_t)first * w->pitch;
    __m512i a[TILE][4];
#pragma GCC unroll 6
    for (int t = 0; t < tile; t++)
#pragma GCC unroll 4
        for (int m = 0; m < 4; m++) a[t][m] = _mm512_setzero_si512();
    for (int32_t k = 0; k < w->steps; k++, row += 128) {
        __m512i v[4];
#pragma GCC unroll 4
        for (int m = 0; m < 4; m++) v[m] = _mm512_loadu_si512(row + 32 * m);
#pragma GCC unroll 6
        for (int t = 0; t < tile; t++) {
            __m512i q = spread((const uint8_t *)(x + (int64_t)t * w->pitch + 2 * k));
#pragma GCC unroll 4
            for (int m = 0; m < 4; m++) a[t][m] = _mm512_dpwssd_epi32(a[t][m], q, v[m]);
        }
    }
    int32_t *to = w->m + ((int64_t)point * (PATCHES + 1) + first) * BLOCK;
#pragma GCC unroll 6
    for (int t = 0; t < tile; t++)
#pragma GCC unroll 4
        for (int m = 0; m < 4; m++) _mm512_storeu_si512(to + t * BLOCK + 16 * m, a[t][m]);
}

static void multiply(const Products *w, int32_t point, int32_t first, int32_t tile) {
    switch (tile) {
    case 1: tile_products(w, point, first, 1); break;
    case 2: tile_products(w, point, first, 2); break;
    case 3: tile_products(w, point, first, 3); break;
    case 4: tile_products(w, point, first, 4); break;
    case 5: tile_products(w, point, first, 5); break;
    default: tile_products(w, point, first, 6);
    }
}

// From 576 times the sums of a patch to counts.
static void back(const Layer *l, const Products *w, Corner corner, int32_t patch, int32_t first) {
    int32_t total[16][BLOCK];
    const __m512i ninth = _mm512_set1_epi32(NINTH);
    for (int v = 0; v < 4; v++) {
        const int32_t *from = w->m + (int64_t)patch * BLOCK + 16 * v;
        __m512i half[24], all[16], m[6];
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++) {
#pragma GCC unroll 6
            for (int i = 0; i < 6; i++)
                m[i] = _mm512_loadu_si512(from + (int64_t)(6 * i + j) * (PATCHES + 1) * BLOCK);
            four(m, half + j, 6);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) four(half + 6 * i, all + 4 * i, 1);
        __m512i bias = _mm512_loadu_si512(l->bias + first + 16 * v);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __m512i sum = _mm512_srai_epi32(_mm512_mullo_epi32(all[i], ninth), 6);
            _mm512_storeu_si512(total[i] + 16 * v, _mm512_add_epi32(sum, bias));
        }
    }
    for (int32_t i = 0; i < 4 && corner.y + i < l->out_h; i++)
        for (int32_t j = 0; j < 4 && corner.x + j < l->out_w; j++)
            close_block(l, total[4 * i + j], (int64_t)(corner.y + i) * l->out_w + corner.x + j, first);
}

static void product_winograd(const Layer *l, const Scratch *s) {
    int32_t across = (l->out_w + 3) / 4, patches = (l->out_h + 3) / 4 * across;
    Products w = {.v = s->transformed, .m = s->sums, .pitch = (l->in_c + 31) / 32 * 32, .steps = (l->in_c + 1) / 2};
    // An odd number of cache lines, so that points do not share sets.
    w.plane = ((int64_t)PATCHES * w.pitch / 32 | 1) * 32;
    for (int32_t begin = 0; begin < patches; begin += PATCHES) {
        int32_t some = patches - begin < PATCHES ? patches - begin : PATCHES;
        Corner out[PATCHES];
        for (int32_t p = 0; p < some; p++) {
            out[p] = (Corner){(begin + p) / across * 4, (begin + p) % across * 4};
            transform(l, s, &w, (Corner){out[p].y - l->top, out[p].x - l->left}, p);
        }
        int32_t tiles = (some + TILE - 1) / TILE;
        for (int32_t first = 0; first < l->out_c; first += BLOCK) {
            w.weights = l->winograd + (int64_t)(first / BLOCK) * POINTS * w.steps * 128;
            for (int32_t point = 0; point < POINTS; point++)
                for (int32_t t = 0; t < tiles; t++) {
                    int32_t from = some * t / tiles;
                    multiply(&w, point, from, some * (t + 1) / tiles - from);
                }
            for (int32_t p = 0; p < some; p++) back(l, &w, out[p], p, first);
        }
    }
}
#endif
