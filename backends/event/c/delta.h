// --- streams of frames: layers that add what changed to accumulators they keep -----------------------
//
// A population's change lies beside it: of byte counts what was added and what was taken, of wide ones the
// signed difference; a byte per pixel tells whether anything there changed. A product keeps its accumulators
// and adds the changes' weight rows, or, where that is more work, computes them anew from the counts, by
// events or densely. All other kinds keep nothing and compute anew the pixels that see a change.

typedef struct {
    uint8_t *plus, *minus;
    int16_t *wide;
    uint8_t *pixels;
    int64_t count;
} Change;

typedef struct {
    Layer layer;
    Change *source, *source2, *target;
    int32_t *sums;     // of products: [pixels][outputs], what readouts show
    uint8_t *touched;  // per output pixel
    int64_t fresh, kept, many;  // nothing was computed yet; accumulators are those of the counts; too much changed
    int64_t changes, work, ran, all_changes, all_work;
} DeltaLayer;

enum { RAN_CHANGES, RAN_EVENTS, RAN_DENSE, RAN_NOTHING };

// What a change costs beside an active count: it is listed apart by sign, its sum is read and kept. Measured:
// with 1.3 noisy frames took 1.6 times as long as whole ones, with 3 still ones gained less.
static const float CHANGE_COST = 2.0f;

static void clear_change(Change *c, int32_t pixels, int32_t pitch) {
    if (!c->count) return;
    c->count = 0;
    memset(c->pixels, 0, (size_t)pixels);
    if (c->wide) {
        memset(c->wide, 0, (size_t)pixels * (size_t)pitch * 2);
        return;
    }
    memset(c->plus, 0, (size_t)pixels * (size_t)pitch);
    memset(c->minus, 0, (size_t)pixels * (size_t)pitch);
}

// Notes what is new of one pixel, `some` channels from `at` on; `old` is what was there.
static void note(Change *c, const void *now, const void *old, int64_t pixel, int64_t at, int32_t some) {
    int64_t found = 0;
    if (c->wide) {
        const int16_t *x = (const int16_t *)now, *y = old;
        for (int32_t i = 0; i < some; i++) {
            c->wide[at + i] = (int16_t)(x[i] - y[i]);
            found += x[i] != y[i];
        }
    } else {
        const uint8_t *x = now, *y = old;
        int32_t i = 0;
#if VNNI
        for (; i < some; i += 64) {
            __mmask64 inside = some - i >= 64 ? ~0ULL : (1ULL << (some - i)) - 1;
            __m512i a = _mm512_maskz_loadu_epi8(inside, x + i), b = _mm512_maskz_loadu_epi8(inside, y + i);
            _mm512_mask_storeu_epi8(c->plus + at + i, inside, _mm512_subs_epu8(a, b));
            _mm512_mask_storeu_epi8(c->minus + at + i, inside, _mm512_subs_epu8(b, a));
            found += __builtin_popcountll(_mm512_cmpneq_epi8_mask(a, b));
        }
#endif
        for (; i < some; i++) {
            c->plus[at + i] = (uint8_t)(x[i] > y[i] ? x[i] - y[i] : 0);
            c->minus[at + i] = (uint8_t)(x[i] < y[i] ? y[i] - x[i] : 0);
            found += x[i] != y[i];
        }
    }
    c->count += found;
    c->pixels[pixel] |= found != 0;
}

// Takes a new frame of an input: notes what differs from the old one and replaces it; returns how much.
int64_t pared_event_input(Change *c, void *counts, const void *frame, int32_t pixels, int32_t pitch) {
    size_t size = (size_t)pitch * (c->wide ? 2 : 1);
    clear_change(c, pixels, pitch);
    for (int64_t p = 0; p < pixels; p++) {
        char *old = (char *)counts + (size_t)p * size;
        const char *now = (const char *)frame + (size_t)p * size;
        if (!memcmp(old, now, size)) continue;
        note(c, now, old, p, p * pitch, pitch);
        memcpy(old, now, size);
    }
    return c->count;
}

static void mark_under(const DeltaLayer *d, int32_t y, int32_t x) {
    const Layer *l = &d->layer;
    for (int32_t ky = 0; ky < l->kh; ky++) {
        int32_t down = y + l->top - ky * l->dh;
        if (down < 0 || down % l->sh || down / l->sh >= l->out_h) continue;
        for (int32_t kx = 0; kx < l->kw; kx++) {
            int32_t right = x + l->left - kx * l->dw;
            if (right < 0 || right % l->sw || right / l->sw >= l->out_w) continue;
            d->touched[down / l->sh * l->out_w + right / l->sw] = 1;
        }
    }
}

// Marks the output pixels whose window sees a change.
static void mark(const DeltaLayer *d) {
    const Layer *l = &d->layer;
    int64_t inputs = (int64_t)l->in_h * l->in_w;
    if (inputs == 1) {
        d->touched[0] = 1;
        return;
    }
    memset(d->touched, 0, (size_t)l->out_h * (size_t)l->out_w);
    for (int64_t p = 0; p < inputs; p++) {
        if (!d->source->pixels[p] && !(l->kind == TABLE2 && d->source2->pixels[p])) continue;
        if (l->kind == TABLE || l->kind == TABLE2) d->touched[p] = 1;
        else mark_under(d, (int32_t)(p / l->in_w), (int32_t)(p % l->in_w));
    }
}

// Adds the listed changes to the accumulators, or takes them off.
static int64_t add_rows(const DeltaLayer *d, Scratch *s, const Layer *listed, int taken) {
    const Layer *l = &d->layer;
    int64_t inputs = (int64_t)l->kh * l->kw * l->in_c, work = 0;
    // A vector is read as one pixel, whatever image it was.
    list_events(listed, s, l->in_h * l->in_w == 1 ? NULL : d->source->pixels);
    if (!s->start[l->in_h * l->in_w]) return 0;
    for (int32_t p = 0; p < l->out_h * l->out_w; p++) {
        if (!d->touched[p]) continue;
        int32_t n = collect(listed, s, p / l->out_w, p % l->out_w);
        if (!n) continue;
        work += (int64_t)n * l->out_c;
        for (int32_t i = n; i < n + 4; i++) s->offset[i] = 0, s->taken[i] = 0;
        for (int32_t first = 0; first < l->out_c; first += BLOCK) {
            const int8_t *w = l->weights + (first / BLOCK) * inputs * BLOCK;
            int32_t *sums = d->sums + (int64_t)p * l->out_c + first, total[BLOCK];
            int32_t some = l->out_c - first < BLOCK ? l->out_c - first : BLOCK;
            static const int32_t none[BLOCK];
#if VNNI
            if (!l->wide_in) rows_vnni(s, w, n, none, total);
            else
#endif
            {
                int32_t mixed[BLOCK] = {0};
                rows_scalar(l, s, w, n, mixed);
                unpermute(mixed, total, none);
            }
            if (taken) for (int32_t c = 0; c < some; c++) sums[c] -= total[c];
            else for (int32_t c = 0; c < some; c++) sums[c] += total[c];
        }
    }
    return work;
}

static void add_changes(DeltaLayer *d, Scratch *s) {
    Layer listed = d->layer;
    if (listed.wide_in) {
        listed.source = d->source->wide;
        d->work = add_rows(d, s, &listed, 0);
        return;
    }
    listed.source = d->source->plus;
    d->work = add_rows(d, s, &listed, 0);
    listed.source = d->source->minus;
    d->work += add_rows(d, s, &listed, 1);
}

static void ran(DeltaLayer *d, const Layer *whole) {
    d->ran = whole->ran_events ? RAN_EVENTS : RAN_DENSE;
    d->work = whole->work;
}

// Computes the accumulators from the counts and keeps them.
static void compute_sums(DeltaLayer *d, Scratch *s) {
    Layer whole = d->layer;
    whole.readout = 1, whole.target = d->sums;
    product(&whole, s);
    ran(d, &whole);
    d->kept = 1;
    memset(d->touched, 1, (size_t)whole.out_h * (size_t)whole.out_w);
}

// Computes the counts from the counts, which is faster, and keeps no accumulators.
static void compute_counts(DeltaLayer *d, Scratch *s) {
    Layer *l = &d->layer;
    size_t bytes = (size_t)l->out_pitch * (l->wide_out ? 2 : 1);
    int64_t pixels = (int64_t)l->out_h * l->out_w;
    memcpy(s->old, l->target, bytes * (size_t)pixels);
    product(l, s);
    ran(d, l);
    d->kept = 0;
    for (int64_t p = 0; p < pixels; p++)
        note(d->target, (char *)l->target + bytes * (size_t)p, s->old + bytes * (size_t)p, p, p * l->out_pitch, l->out_pitch);
}

// Tells whether adding changes is less work than whatever computes the layer from its counts.
static int few_changes(const DeltaLayer *d) {
    const Layer *l = &d->layer;
    if (l->mode != AUTO) return l->mode == EVENTS;
    float least = (float)count_active(l), dense = l->break_even * (float)l->in_h * (float)l->in_w * (float)l->in_c;
    if (l->quads && dense < least) least = dense;
    return CHANGE_COST * (float)d->changes <= least;
}

// Closes the touched pixels of a product and notes what they changed.
static void close_sums(DeltaLayer *d) {
    Layer *l = &d->layer;
    if (l->readout) return;
    size_t bytes = l->wide_out ? 2 : 1;
    for (int64_t p = 0; p < (int64_t)l->out_h * l->out_w; p++) {
        if (!d->touched[p]) continue;
        for (int32_t first = 0; first < l->out_c; first += BLOCK) {
            int32_t some = l->out_c - first < BLOCK ? l->out_c - first : BLOCK;
            int64_t at = p * l->out_pitch + first;
            int16_t old[BLOCK];
            char *now = (char *)l->target + (size_t)at * bytes;
            memcpy(old, now, (size_t)some * bytes);
            close_block(l, d->sums + p * l->out_c + first, p, first);
            note(d->target, now, old, p, at, some);
        }
    }
}

static void step_product(DeltaLayer *d, Scratch *s) {
    int few = few_changes(d);
    d->many = !few;
    if ((d->fresh || !few) && !d->layer.readout && d->layer.mode != EVENTS) {
        compute_counts(d, s);
        return;
    }
    if (d->fresh || !few || !d->kept) {
        compute_sums(d, s);
    } else {
        mark(d);
        d->ran = RAN_CHANGES;
        add_changes(d, s);
    }
    close_sums(d);
}

// Computes the touched pixels of all other kinds anew.
static void close_others(DeltaLayer *d, Scratch *s) {
    Layer *l = &d->layer;
    size_t bytes = l->wide_out ? 2 : 1;
    int32_t some = l->kind == TABLE ? l->in_c : l->out_c;
    for (int64_t p = 0; p < (int64_t)l->out_h * l->out_w; p++) {
        if (!d->touched[p]) continue;
        int64_t at = p * l->out_pitch + l->first;
        char *now = (char *)l->target + (size_t)at * bytes;
        if (!l->readout) memcpy(s->old, now, (size_t)some * bytes);
        one_pixel(l, p);
        if (!l->readout) note(d->target, now, s->old, p, at, some);
        d->work += (int64_t)l->kh * l->kw * some;
    }
}

static void step_delta(DeltaLayer *d, Scratch *s) {
    Layer *l = &d->layer;
    d->changes = d->source->count + (l->kind == TABLE2 ? d->source2->count : 0);
    d->work = 0, d->ran = RAN_NOTHING, d->many = 0;
    // The parts of a concat write into one population; its first one clears it.
    if (!l->readout && (l->kind != TABLE || l->first == 0)) clear_change(d->target, l->out_h * l->out_w, l->out_pitch);
    if (!d->changes && !d->fresh) return;
    if (l->kind == PRODUCT) {
        step_product(d, s);
    } else {
        int64_t pixels = (int64_t)l->out_h * l->out_w;
        if (d->fresh) memset(d->touched, 1, (size_t)pixels);
        else mark(d);
        d->ran = RAN_CHANGES;
        close_others(d, s);
    }
    d->fresh = 0;
}

// Runs all layers; tells whether some product gained from the changes, or could not tell yet.
int pared_event_delta(DeltaLayer *layers, int32_t count, Scratch *s) {
    int gained = 0;
    for (int32_t i = 0; i < count; i++) {
        gained |= layers[i].fresh != 0;
        step_delta(layers + i, s);
        gained |= layers[i].layer.kind == PRODUCT && !layers[i].many;
        layers[i].all_changes += layers[i].changes, layers[i].all_work += layers[i].work;
    }
    return gained;
}

int pared_event_delta_bytes(void) { return (int)sizeof(DeltaLayer); }
