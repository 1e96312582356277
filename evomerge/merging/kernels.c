/* The compiled twins of eager.py, one variant per translation unit: see compiled.py for the macros.
 *
 * KIND      1 linear, 2 linear on deltas, 3 generalised task arithmetic, 4 histogram, 5 collect, 6 row ranks,
 *           7 sums of the lower bits, 8 linear by vectors, 9 linear on deltas by vectors
 * TYPE      16 bfloat16, 17 float16, 32 float32: of base, inputs and output alike, unless MIXED names each
 * MIXED     types of output, base and inputs, separated by commas
 * N         number of inputs
 * TRIM CAP ELECT NORM   0 or 1, for KIND 3
 * MASK      for KIND 3: 0 no random mask, 1 of one probability per input, 2 rising with the rank in the row
 *
 * Compile with -ffp-contract=off: a fused multiply-add rounds once where eager torch rounds twice.
 */
#include <stdint.h>
#include <string.h>

typedef uint32_t word;
#define SIGN_OFF 0x7fffffffu
#define UNROLL _Pragma("GCC unroll 64")

static inline float as_float(word bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline word as_word(float x) { word bits; memcpy(&bits, &x, 4); return bits; }

#ifdef MIXED
static const int types[] = {MIXED};
#define OUT_TYPE types[0]
#define BASE_TYPE types[1]
#define INPUT_TYPE(k) types[2 + (k)]
#else
#define OUT_TYPE TYPE
#define BASE_TYPE TYPE
#define INPUT_TYPE(k) TYPE
#endif

static inline float load(const void *from, int64_t i, int type) {
    if (type == 16) return as_float((word)((const uint16_t *)from)[i] << 16);
    if (type == 17) { _Float16 h; memcpy(&h, (const uint16_t *)from + i, 2); return (float)h; }
    return as_float(((const word *)from)[i]);
}

static inline void store(void *restrict to, int64_t i, float x, int type) {
    if (type == 16) { /* to nearest even; NaN is told by the caller's limit, its pattern does not matter */
        word b = as_word(x);
        ((uint16_t *)to)[i] = (uint16_t)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
    } else if (type == 17) {
        _Float16 h = (_Float16)x;
        memcpy((uint16_t *)to + i, &h, 2);
    } else {
        ((word *)to)[i] = as_word(x);
    }
}

/* The smallest pattern that rounds to infinity: for bfloat16 half-way between its largest number and the next power of
 * two, for float16 65520. */
static inline word limit(int type) { return type == 16 ? 0x7f7f8000u : type == 17 ? 0x477ff000u : 0x7f800000u; }

static inline word mix32(word h) {
    h ^= h >> 16;
    h *= 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16);
}

#if KIND == 1 || KIND == 2
int merge(const void *restrict base, const void *const *inputs, const float *coefficients, void *restrict out,
          int64_t n) {
    const void *x[N];
    float c[N];
    word peak = 0;
    for (int k = 0; k < N; k++) { x[k] = inputs[k]; c[k] = coefficients[k]; }
    for (int64_t i = 0; i < n; i++) {
        float total = 0.0f;
#if KIND == 2
        float origin = load(base, i, BASE_TYPE);
#endif
        UNROLL for (int k = 0; k < N; k++) {
#if KIND == 2
            float term = (load(x[k], i, INPUT_TYPE(k)) - origin) * c[k];
#else
            float term = load(x[k], i, INPUT_TYPE(k)) * c[k];
#endif
            total = k ? total + term : term;
        }
#if KIND == 2
        total += origin;
#endif
        word magnitude = as_word(total) & SIGN_OFF;
        peak = peak > magnitude ? peak : magnitude;
        store(out, i, total, OUT_TYPE);
    }
    return peak < limit(OUT_TYPE);
}
#endif

#if KIND == 8 || KIND == 9
/* Coefficients of N inputs by vector, table[k * vectors + v]. Without `columns` element e lies in vector e / length,
 * with it in vector e % vectors. */
int merge(const void *restrict base, const void *const *inputs, const float *restrict table, int64_t vectors,
          int64_t length, int columns, void *restrict out, int64_t first, int64_t n) {
    const void *x[N];
    word peak = 0;
    int64_t span = columns ? vectors : length;
    for (int k = 0; k < N; k++) x[k] = inputs[k];
    for (int64_t start = 0; start < n;) {
        int64_t at = first + start, offset = at % span, end = start + span - offset;
        const float *c = table + (columns ? offset : at / length);
        int64_t step = columns ? 1 : 0;
        if (end > n) end = n;
        for (int64_t i = start; i < end; i++) {
            float total = 0.0f;
#if KIND == 9
            float origin = load(base, i, BASE_TYPE);
#endif
            UNROLL for (int k = 0; k < N; k++) {
                float share = c[k * vectors + step * (i - start)];
#if KIND == 9
                float term = (load(x[k], i, INPUT_TYPE(k)) - origin) * share;
#else
                float term = load(x[k], i, INPUT_TYPE(k)) * share;
#endif
                total = k ? total + term : term;
            }
#if KIND == 9
            total += origin;
#endif
            word magnitude = as_word(total) & SIGN_OFF;
            peak = peak > magnitude ? peak : magnitude;
            store(out, i, total, OUT_TYPE);
        }
        start = end;
    }
    return peak < limit(OUT_TYPE);
}
#endif

#if KIND == 3
struct parent {
    float gain, weight, keep, keep_step, divisor, divisor_step;
    word low, low_bound, high, high_bound, tie_salt, mask_bound, mask_salt;
};

int merge(const void *restrict base, const void *const *inputs, const uint8_t *const *ranks,
          const struct parent *parents, word tie_salt, float scale, void *restrict out, int64_t first, int64_t n) {
    const void *x[N];
    struct parent p[N];
    word peak = 0;
    for (int k = 0; k < N; k++) { x[k] = inputs[k]; p[k] = parents[k]; }
#if MASK == 2
    const uint8_t *rank[N];
    for (int k = 0; k < N; k++) rank[k] = ranks[k];
#endif
    word index = (word)first;
    for (int64_t i = 0; i < n; i++, index++) {
        float origin = load(base, i, BASE_TYPE), total = 0.0f, value[N];
#if NORM
        float divisor = 0.0f;
#endif
#if TRIM || CAP
        word common = mix32(index ^ tie_salt);
#endif
        UNROLL for (int k = 0; k < N; k++) {
            float delta = load(x[k], i, INPUT_TYPE(k)) - origin;
            word keep = 1u;
#if TRIM || CAP
            word magnitude = as_word(delta) & SIGN_OFF;
            word tie = common ^ p[k].tie_salt;
#endif
            /* above a cut: magnitude > bits, or magnitude == bits and tie <= bound */
#if TRIM
            keep &= magnitude + (tie <= p[k].low_bound) > p[k].low;
#endif
#if CAP
            keep &= magnitude + (tie <= p[k].high_bound) <= p[k].high;
#endif
#if MASK == 1
            keep &= mix32(index ^ p[k].mask_salt) <= p[k].mask_bound;
#endif
            delta *= p[k].gain;
#if MASK == 2
            float at = (float)rank[k][i];
            float drawn = (float)(int32_t)(mix32(index ^ p[k].mask_salt) >> 8) * 0x1p-24f;
            keep &= drawn < p[k].keep + p[k].keep_step * at;
            delta /= p[k].divisor + p[k].divisor_step * at;
#endif
            value[k] = as_float(as_word(delta) & (0u - keep));
            total += value[k];
#if NORM && !ELECT
            divisor += as_float(as_word(p[k].weight) & (0u - keep));
#endif
        }
#if ELECT
        float merged = total - total;
        word flip = as_word(total) & 0x80000000u;
        UNROLL for (int k = 0; k < N; k++) {
            int agrees = as_float(as_word(value[k]) ^ flip) > 0.0f;
            merged = agrees ? merged + value[k] : merged;
#if NORM
            divisor = agrees ? divisor + p[k].weight : divisor;
#endif
        }
        merged = total != 0.0f ? merged : 0.0f; /* a cancellation elects nothing */
#else
        float merged = total;
#endif
#if NORM
        merged /= divisor == 0.0f ? 1.0f : divisor;
#endif
        float result = merged * scale + origin;
        word magnitude = as_word(result) & SIGN_OFF;
        peak = peak > magnitude ? peak : magnitude;
        store(out, i, result, OUT_TYPE);
    }
    return peak < limit(OUT_TYPE);
}
#endif

#if KIND >= 4 && KIND <= 7
static inline word size_of(const void *base, const void *x, int64_t i) {
    return as_word(load(x, i, INPUT_TYPE(0)) - load(base, i, BASE_TYPE)) & SIGN_OFF;
}
#endif

#if KIND == 4
#define LANES 4 /* equal neighbours would wait for each other's count */
void histogram(const void *restrict base, const void *restrict x, int64_t n, int64_t *counts, word *scratch) {
    memset(scratch, 0, LANES * 32768 * sizeof(word));
    for (int64_t i = 0; i < n; i++) scratch[(i % LANES) * 32768 + (size_of(base, x, i) >> 16)]++;
    for (int b = 0; b < 32768; b++) {
        counts[b] = 0;
        for (int lane = 0; lane < LANES; lane++) counts[b] += scratch[lane * 32768 + b];
    }
}
#endif

#if KIND == 7
/* The sum of the lower 16 bits of the magnitudes in each bin: with the bin's count it is the sum of the magnitudes. */
void lower_sums(const void *restrict base, const void *restrict x, int64_t n, int64_t *sums) {
    memset(sums, 0, 32768 * sizeof(int64_t));
    for (int64_t i = 0; i < n; i++) {
        word size = size_of(base, x, i);
        sums[size >> 16] += size & 0xffffu;
    }
}
#endif

#if KIND == 5
#define GROUP 64 /* a bin holds well below 1 % of a tensor, so most groups are skipped after one vector test */
int64_t collect(const void *restrict base, const void *restrict x, int64_t n, word bin, word *restrict indices,
                uint16_t *restrict low) {
    word magnitude[GROUP];
    int64_t found = 0;
    for (int64_t start = 0; start < n; start += GROUP) {
        int m = n - start < GROUP ? (int)(n - start) : GROUP;
        word any = 0;
        if (m == GROUP) {
            for (int j = 0; j < GROUP; j++) {
                magnitude[j] = size_of(base, x, start + j);
                any |= (magnitude[j] >> 16) == bin;
            }
            if (!any) continue;
        } else {
            for (int j = 0; j < m; j++) magnitude[j] = size_of(base, x, start + j);
        }
        for (int j = 0; j < m; j++) {
            if ((magnitude[j] >> 16) == bin) {
                indices[found] = (word)(start + j);
                low[found++] = (uint16_t)magnitude[j];
            }
        }
    }
    return found;
}
#endif

#if KIND == 6
/* The mean rank of each magnitude in its row, in 255ths of the highest rank; pairs holds 2 * length entries. */
void row_ranks(const void *restrict base, const void *restrict x, int64_t rows, int64_t length, uint8_t *restrict out,
               uint64_t *restrict pairs) {
    for (int64_t r = 0; r < rows; r++) {
        int64_t start = r * length, counts[4][256];
        uint64_t *from = pairs, *to = pairs + length;
        memset(counts, 0, sizeof counts);
        for (int64_t j = 0; j < length; j++) {
            word size = size_of(base, x, start + j);
            from[j] = (uint64_t)size << 32 | (uint64_t)j;
            for (int d = 0; d < 4; d++) counts[d][size >> 8 * d & 255u]++;
        }
        for (int d = 0; d < 4; d++) { /* radix sort, from the lowest digit */
            int64_t sum = 0, largest = 0;
            for (int b = 0; b < 256; b++) {
                int64_t here = counts[d][b];
                largest = here > largest ? here : largest;
                counts[d][b] = sum;
                sum += here;
            }
            if (largest == length) continue;
            for (int64_t j = 0; j < length; j++) to[counts[d][from[j] >> (32 + 8 * d) & 255u]++] = from[j];
            uint64_t *swap = from; from = to; to = swap;
        }
        for (int64_t left = 0, right; left < length; left = right) {
            word size = (word)(from[left] >> 32);
            for (right = left + 1; right < length && (word)(from[right] >> 32) == size;) right++;
            int64_t top = length > 1 ? length - 1 : 1;
            uint8_t rank = (uint8_t)(((left + right - 1) * 255 + top) / (2 * top));
            for (int64_t j = left; j < right; j++) out[start + (int64_t)(word)from[j]] = rank;
        }
    }
}
#endif
