/* The compiled twins of fused_eager.py, one variant per translation unit; appended to kernels.c, whose types it uses.
 *
 * KIND      101 ram, 102 sce, 103 nearswap, 104 gate, 105 magmax, 106 emr, 107 consensus, 108 sign, 109 pcb,
 *           110 universal
 * TYPE MIXED N   as in kernels.c
 * TRIM MASK SPREAD ELECT SHARP   0 or 1, the optional steps
 * GIVES     0 the merged tensor, 1 the squares of the merged deltas, in lanes, 2 the scores that entries are ranked by
 */
#define SHARED 4
#define PER_PARENT 8
#define LANES_OF_SUM 1024

struct numbers {
    float shared[SHARED], parent[N][PER_PARENT];
    word words[SHARED], parent_words[N][PER_PARENT];
};

static inline float size_of(float x) { return as_float(as_word(x) & SIGN_OFF); }
static inline float signed_like(float size, float sign) { return as_float(as_word(size) | (as_word(sign) & 0x80000000u)); }
static inline float chosen(float x, word mask) { return as_float(as_word(x) & (0u - mask)); }
/* by bits: compilers do not vectorise a choice between floats, nor the conversion of a comparison, everywhere */
static inline float either(word mask, float x, float y) {
    return as_float((as_word(x) & (0u - mask)) | (as_word(y) & ~(0u - mask)));
}
static inline float at_least(float x, float low) { return x < low ? low : x; }
static inline float no_more(float x, float high) { return x > high ? high : x; }
static inline word above(word size, word tie, word bits, word bound) { return size + (tie <= bound) > bits; }
static inline word agrees(float value, float total) {
    return (as_float(as_word(value) ^ (as_word(total) & 0x80000000u)) > 0.0f) & (total != 0.0f);
}

/* the twins of fused_math.py */
#define ROUND 12582912.0f
#define ROOT_HALF 0x3f3504f3
static inline float exp_2(float x) {
    float rounded = x + ROUND, f = x - (rounded - ROUND);
    float p = f * 0.00133908668f + 0.00966637395f;
    p = p * f + 0.0555035695f;
    p = p * f + 0.240223482f;
    p = p * f + 0.693147182f;
    p = p * f + 1.0f;
    return as_float(as_word(p) + (as_word(rounded) << 23)); /* the lowest bits of rounded are its whole number */
}
static inline float log_2(float x) {
    int32_t pattern = (int32_t)as_word(x) - ROOT_HALF;
    float f = as_float((word)((pattern & 0x7fffff) + ROOT_HALF)) - 1.0f;
    float p = f * -0.146203533f + 0.23420985f;
    p = p * f - 0.24882181f;
    p = p * f + 0.287075609f;
    p = p * f - 0.360241979f;
    p = p * f + 0.48092404f;
    p = p * f - 0.721352756f;
    p = p * f + 1.4426949f;
    return p * f + (float)(pattern >> 23);
}
static inline float tangent(float x) {
    float y = x * x;
    float p = y * -0.00308040925f + 0.0167767759f;
    p = p * y - 0.0516354591f;
    p = p * y + 0.132825136f;
    p = p * y - 0.333291799f;
    p = p * y + 0.999999464f;
    return p * x;
}

static inline float sum_of(const float *values) {
    float total = 0.0f;
    UNROLL for (int k = 0; k < N; k++) total += values[k];
    return total;
}

#if KIND == 105 || KIND == 106 || KIND == 107
static inline void weigh(const struct numbers *c, const float *delta, float *value) {
    UNROLL for (int k = 0; k < N; k++) value[k] = delta[k] * c->parent[k][0];
}
#endif

/* The merged delta of one element. */
#if KIND == 101
static inline float merged(const struct numbers *c, word index, const float *delta) {
    float total = 0.0f, alone = 0.0f, count = 0.0f, all = sum_of(delta);
    UNROLL for (int k = 0; k < N; k++) {
        word active = size_of(delta[k]) > c->shared[1];
        float kept = chosen(delta[k], active);
        total += kept;
        alone += kept * c->parent[k][0];
        count += chosen(1.0f, active);
    }
    float mean = total / at_least(count, 1.0f);
    return (all - all) + either(count > 1.0f, mean, alone);
}
#elif KIND == 102
static inline float spread(const float *delta) {
    float mean = sum_of(delta) / (float)N, square[N];
    UNROLL for (int k = 0; k < N; k++) square[k] = (delta[k] - mean) * (delta[k] - mean);
    return sum_of(square);
}
static inline float merged(const struct numbers *c, word index, const float *delta) {
    float total = sum_of(delta), result = total - total, divisor = 0.0f;
    UNROLL for (int k = 0; k < N; k++) {
        word agree = agrees(delta[k], total);
        result += chosen(delta[k] * c->parent[k][0], agree);
        divisor += chosen(c->parent[k][0], agree);
    }
    result /= divisor == 0.0f ? 1.0f : divisor;
#if TRIM
    word tie = mix32(index ^ c->words[2]) ^ c->words[3];
    result = chosen(result, above(as_word(spread(delta)), tie, c->words[0], c->words[1]));
#endif
    return result;
}
#elif KIND == 105
static inline float merged(const struct numbers *c, word index, const float *delta) {
    float value[N];
    weigh(c, delta, value);
    float best = value[0], total = sum_of(value);
    UNROLL for (int k = 1; k < N; k++) best = size_of(value[k]) >= size_of(best) ? value[k] : best;
    return best + (total - total);
}
#elif KIND == 106
static inline float merged(const struct numbers *c, word index, const float *delta) {
    float value[N];
    weigh(c, delta, value);
    float total = sum_of(value), largest = total - total;
    UNROLL for (int k = 0; k < N; k++) {
        float size = chosen(size_of(value[k]), agrees(value[k], total));
        largest = size > largest ? size : largest;
    }
    return signed_like(largest, total);
}
#elif KIND == 107
static inline float merged(const struct numbers *c, word index, const float *delta) {
    float value[N], votes = 0.0f;
    weigh(c, delta, value);
    float total = sum_of(value);
    UNROLL for (int k = 0; k < N; k++) {
        votes += chosen(1.0f, size_of(value[k]) > size_of(total - value[k]) * c->shared[1]);
    }
    return chosen(total, votes >= c->shared[2]) + (total - total);
}
#elif KIND == 108
static inline float merged(const struct numbers *c, word index, const float *delta) {
    float total = 0.0f, all = sum_of(delta);
#if TRIM
    word common = mix32(index ^ c->words[0]);
#endif
    UNROLL for (int k = 0; k < N; k++) {
        word moves = delta[k] != 0.0f;
#if TRIM
        const word *w = c->parent_words[k];
        moves &= above(as_word(delta[k]) & SIGN_OFF, common ^ w[2], w[0], w[1]);
#endif
        total += chosen(signed_like(1.0f, delta[k]), moves) * c->parent[k][0];
    }
    return total + (all - all);
}
#elif KIND == 109
static inline void score(const struct numbers *c, const float *delta, float *kept, float *balance) {
    float directed[N], within[N], common[N][N];
    UNROLL for (int k = 0; k < N; k++) {
        const float *p = c->parent[k];
        word moves = delta[k] != 0.0f;
        kept[k] = no_more(at_least(size_of(delta[k]), p[0]), p[1]);
        float size = (kept[k] - p[2]) * p[3];
        directed[k] = chosen(signed_like(size, delta[k]), moves);
        within[k] = exp_2((size * size) * c->shared[1]);
        kept[k] = chosen(signed_like(kept[k], delta[k]), moves);
    }
    UNROLL for (int i = 0; i < N; i++) {
        UNROLL for (int j = 0; j < N; j++) common[i][j] = j < i ? common[j][i] : tangent(directed[i] * directed[j]);
    }
    UNROLL for (int k = 0; k < N; k++) balance[k] = within[k] * sum_of(common[k]);
}
static inline float merged(const struct numbers *c, word index, const float *delta) {
    float kept[N], balance[N], all = sum_of(delta), result = all - all, divisor = 0.0f;
    score(c, delta, kept, balance);
    UNROLL for (int k = 0; k < N; k++) {
        const float *p = c->parent[k];
        float share = (no_more(at_least(balance[k], p[4]), p[5]) - p[4]) * p[6];
        share = p[6] > 0.0f ? share : 1.0f;
        result += (kept[k] * p[7]) * share;
        divisor += share;
    }
    return result / at_least(divisor, 1e-12f);
}
#elif KIND == 110
static inline float merged(const struct numbers *c, word index, const float *delta) {
    float value[N];
#if TRIM
    word common = mix32(index ^ c->words[0]);
#endif
    UNROLL for (int k = 0; k < N; k++) {
        const float *p = c->parent[k];
        const word *w = c->parent_words[k];
        word keep = 1u;
        float weighed = delta[k] * p[0];
#if TRIM
        keep &= above(as_word(delta[k]) & SIGN_OFF, common ^ w[2], w[0], w[1]);
#endif
#if SPREAD
        float size = size_of(delta[k]);
        float probability = no_more(at_least((size / (size + p[1])) * p[2] + p[3], p[4]), 1.0f);
        float drawn = (float)(int32_t)(mix32(index ^ w[4]) >> 8) * 0x1p-24f;
        keep &= !(drawn >= probability); /* NaN is kept, so that it shows */
        weighed /= probability;
#elif MASK
        keep &= mix32(index ^ w[4]) <= w[3];
#endif
        value[k] = chosen(weighed, keep);
    }
    float total = sum_of(value), result = total - total;
#if ELECT
    UNROLL for (int k = 0; k < N; k++) value[k] *= either(agrees(value[k], total), 1.0f, c->shared[1]);
#endif
#if SHARP
    float size[N], most;
    UNROLL for (int k = 0; k < N; k++) size[k] = log_2(size_of(value[k]));
    most = size[0];
    UNROLL for (int k = 1; k < N; k++) most = at_least(size[k], most);
    UNROLL for (int k = 0; k < N; k++) {
        result += value[k] * exp_2(at_least((size[k] - most) * c->shared[2], -126.0f));
    }
#else
    UNROLL for (int k = 0; k < N; k++) result += value[k];
#endif
    return result;
}
#endif

/* The merged element. */
static inline float combined(const struct numbers *c, word index, float origin, const float *x, float row) {
#if KIND == 103
    float delta = x[0] - origin, t = c->shared[1];
    float step = origin + signed_like(t, delta);
    return (size_of(delta) <= t ? x[0] : step) + (delta - delta);
#elif KIND == 104
    float delta = x[0] - origin;
    return (size_of(delta) * row >= c->shared[1] ? x[0] : origin) + (delta - delta);
#else
    float delta[N];
    UNROLL for (int k = 0; k < N; k++) delta[k] = x[k] - origin;
    return merged(c, index, delta) * c->shared[0] + origin;
#endif
}

static void gather(struct numbers *c, const float *shared, const float *parent, const word *words,
                   const word *parent_words) {
    memcpy(c->shared, shared, sizeof c->shared);
    memcpy(c->parent, parent, sizeof c->parent);
    memcpy(c->words, words, sizeof c->words);
    memcpy(c->parent_words, parent_words, sizeof c->parent_words);
}

#if GIVES == 2
/* The scores of each list, one list after the other. */
int merge(const void *restrict base, const void *const *inputs, const float *shared, const float *parent,
          const word *words, const word *parent_words, const float *rows, int64_t width, float *restrict scores,
          int64_t first, int64_t n) {
    const void *x[N];
    struct numbers c;
    gather(&c, shared, parent, words, parent_words);
    for (int k = 0; k < N; k++) x[k] = inputs[k];
    for (int64_t i = 0; i < n; i++) {
        float origin = load(base, i, BASE_TYPE), delta[N];
        UNROLL for (int k = 0; k < N; k++) delta[k] = load(x[k], i, INPUT_TYPE(k)) - origin;
#if KIND == 102
        scores[i] = spread(delta);
#elif KIND == 109
        float kept[N], balance[N];
        score(&c, delta, kept, balance);
        UNROLL for (int k = 0; k < N; k++) scores[k * n + i] = balance[k];
#endif
    }
    return 1;
}
#elif GIVES == 1
/* Lane j gets the squares of elements j, j + 1024, ..., in order. */
int merge(const void *restrict base, const void *const *inputs, const float *shared, const float *parent,
          const word *words, const word *parent_words, const float *rows, int64_t width, double *restrict lanes,
          int64_t first, int64_t n) {
    const void *x[N];
    struct numbers c;
    gather(&c, shared, parent, words, parent_words);
    for (int k = 0; k < N; k++) x[k] = inputs[k];
    for (int64_t start = 0; start < n; start += LANES_OF_SUM) {
        int64_t m = n - start < LANES_OF_SUM ? n - start : LANES_OF_SUM;
        for (int64_t j = 0; j < m; j++) {
            float origin = load(base, start + j, BASE_TYPE), delta[N];
            UNROLL for (int k = 0; k < N; k++) delta[k] = load(x[k], start + j, INPUT_TYPE(k)) - origin;
            double value = (double)merged(&c, (word)(start + j) + (word)first, delta);
            lanes[j] += value * value;
        }
    }
    return 1;
}
#else
/* Element i of the part is element first + i of the tensor; width elements are a row. */
int merge(const void *restrict base, const void *const *inputs, const float *shared, const float *parent,
          const word *words, const word *parent_words, const float *rows, int64_t width, void *restrict out,
          int64_t first, int64_t n) {
    const void *x[N];
    struct numbers c;
    word peak = 0;
    gather(&c, shared, parent, words, parent_words);
    for (int k = 0; k < N; k++) x[k] = inputs[k];
    for (int64_t start = 0; start < n;) {
        int64_t end = n;
        float row = 0.0f;
#if KIND == 104
        int64_t at = start + first;
        row = rows[at / width];
        end = n - start > width - at % width ? start + width - at % width : n;
#endif
        for (int64_t i = start; i < end; i++) {
            float origin = load(base, i, BASE_TYPE), value[N];
            UNROLL for (int k = 0; k < N; k++) value[k] = load(x[k], i, INPUT_TYPE(k));
            float result = combined(&c, (word)i + (word)first, origin, value, row);
            word magnitude = as_word(result) & SIGN_OFF;
            peak = peak > magnitude ? peak : magnitude;
            store(out, i, result, OUT_TYPE);
        }
        start = end;
    }
    return peak < limit(OUT_TYPE);
}
#endif
