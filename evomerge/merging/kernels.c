/* The compiled twins of eager.py, one variant per translation unit: see compiled.py for the macros.
 *
 * KIND      1 linear, 2 linear on deltas, 3 generalised task arithmetic, 4 histogram, 5 collect
 * TYPE      16 bfloat16, 17 float16, 32 float32: of base, inputs and output alike
 * N         number of inputs
 * TRIM CAP MASK ELECT NORM   0 or 1, for KIND 3
 *
 * Compile with -ffp-contract=off: a fused multiply-add rounds once where eager torch rounds twice.
 */
#include <stdint.h>
#include <string.h>

typedef uint32_t word;
#define SIGN_OFF 0x7fffffffu

static inline float as_float(word bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline word as_word(float x) { word bits; memcpy(&bits, &x, 4); return bits; }

#if TYPE == 16
typedef uint16_t element;
#define LIMIT 0x7f7f8000u /* rounds to infinity: half-way between the largest bfloat16 and the next power of two */
static inline float widen(element x) { return as_float((word)x << 16); }
static inline element narrow(float x) {
    word b = as_word(x); /* to nearest even; NaN is told by the caller's limit, its pattern does not matter */
    return (element)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}
#elif TYPE == 17
typedef uint16_t element;
#define LIMIT 0x477ff000u /* 65520 */
static inline float widen(element x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
static inline element narrow(float x) { _Float16 h = (_Float16)x; element e; memcpy(&e, &h, 2); return e; }
#else
typedef uint32_t element;
#define LIMIT 0x7f800000u
static inline float widen(element x) { return as_float(x); }
static inline element narrow(float x) { return as_word(x); }
#endif

static inline word mix32(word h) {
    h ^= h >> 16;
    h *= 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16);
}

#define UNROLL _Pragma("GCC unroll 64")

#if KIND == 1 || KIND == 2
int merge(const element *restrict base, const element *const *inputs, const float *coefficients,
          element *restrict out, int64_t n) {
    const element *x[N];
    float c[N];
    word peak = 0;
    for (int k = 0; k < N; k++) { x[k] = inputs[k]; c[k] = coefficients[k]; }
    for (int64_t i = 0; i < n; i++) {
        float total = 0.0f;
#if KIND == 2
        float origin = widen(base[i]);
#endif
        UNROLL for (int k = 0; k < N; k++) {
#if KIND == 2
            float term = (widen(x[k][i]) - origin) * c[k];
#else
            float term = widen(x[k][i]) * c[k];
#endif
            total = k ? total + term : term;
        }
#if KIND == 2
        total += origin;
#endif
        word magnitude = as_word(total) & SIGN_OFF;
        peak = peak > magnitude ? peak : magnitude;
        out[i] = narrow(total);
    }
    return peak < LIMIT;
}
#endif

#if KIND == 3
struct parent { float gain, weight; word low, low_bound, high, high_bound, tie_salt, mask_bound, mask_salt; };

int merge(const element *restrict base, const element *const *inputs, const struct parent *parents, word tie_salt,
          float scale, element *restrict out, int64_t n, int64_t first) {
    const element *x[N];
    struct parent p[N];
    word peak = 0;
    for (int k = 0; k < N; k++) { x[k] = inputs[k]; p[k] = parents[k]; }
    for (int64_t i = 0; i < n; i++) {
        float origin = widen(base[i]), total = 0.0f, value[N];
        word index = (word)(i + first);
#if TRIM || CAP
        word common = mix32(index ^ tie_salt);
#endif
        UNROLL for (int k = 0; k < N; k++) {
            float delta = widen(x[k][i]) - origin;
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
#if MASK
            keep &= mix32(index ^ p[k].mask_salt) <= p[k].mask_bound;
#endif
            value[k] = as_float(as_word(delta * p[k].gain) & (0u - keep));
            total += value[k];
        }
#if ELECT
        float merged = total - total, divisor = 0.0f;
        word flip = as_word(total) & 0x80000000u;
        UNROLL for (int k = 0; k < N; k++) {
            word agrees = 0u - (as_float(as_word(value[k]) ^ flip) > 0.0f);
            merged += as_float(as_word(value[k]) & agrees);
            divisor += as_float(as_word(p[k].weight) & agrees);
        }
        merged = as_float(as_word(merged) & (0u - (total != 0.0f))); /* a cancellation elects nothing */
#if NORM
        merged /= divisor == 0.0f ? 1.0f : divisor;
#endif
#else
        float merged = total;
#endif
        float result = merged * scale + origin;
        word magnitude = as_word(result) & SIGN_OFF;
        peak = peak > magnitude ? peak : magnitude;
        out[i] = narrow(result);
    }
    return peak < LIMIT;
}
#endif

#if KIND == 4
#define LANES 4 /* equal neighbours would wait for each other's count */
void histogram(const element *restrict base, const element *restrict x, int64_t n, int64_t *counts, word *scratch) {
    memset(scratch, 0, LANES * 32768 * sizeof(word));
    for (int64_t i = 0; i < n; i++) {
        word bin = (as_word(widen(x[i]) - widen(base[i])) & SIGN_OFF) >> 16;
        scratch[(i % LANES) * 32768 + bin]++;
    }
    for (int b = 0; b < 32768; b++) {
        counts[b] = 0;
        for (int lane = 0; lane < LANES; lane++) counts[b] += scratch[lane * 32768 + b];
    }
}
#endif

#if KIND == 5
#define GROUP 64 /* a bin holds well below 1 % of a tensor, so most groups are skipped after one vector test */
int64_t collect(const element *restrict base, const element *restrict x, int64_t n, word bin, word *restrict indices,
                uint16_t *restrict low) {
    word magnitude[GROUP];
    int64_t found = 0;
    for (int64_t start = 0; start < n; start += GROUP) {
        int m = n - start < GROUP ? (int)(n - start) : GROUP;
        word any = 0;
        if (m == GROUP) {
            for (int j = 0; j < GROUP; j++) {
                magnitude[j] = as_word(widen(x[start + j]) - widen(base[start + j])) & SIGN_OFF;
                any |= (magnitude[j] >> 16) == bin;
            }
            if (!any) continue;
        } else {
            for (int j = 0; j < m; j++) magnitude[j] = as_word(widen(x[start + j]) - widen(base[start + j])) & SIGN_OFF;
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
