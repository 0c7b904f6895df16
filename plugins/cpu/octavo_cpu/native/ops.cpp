// The small operations of a decoder layer in float32, each in one pass. Rows are contiguous unless a stride says
// otherwise; all strides count floats.

#include "octavo_simd.h"

#include <cmath>

namespace {

constexpr long kAlone = 16 * 1024;  // fewer floats than this are not worth another thread

inline int team(long floats, int threads) { return floats < kAlone ? 1 : threads; }

// What a row is multiplied with before its weight.
inline float norm_scale(const float* x, long size, float eps) {
    __m256 sum = _mm256_setzero_ps();
    for (long i = 0; i < size; i += 8) {
        const __m256 value = load_first(x + i, size - i);
        sum = _mm256_fmadd_ps(value, value, sum);
    }
    return 1.0f / std::sqrt(sum_of(sum) / static_cast<float>(size) + eps);
}

inline void norm_row(const float* x, const float* weight, long size, float eps, float* out) {
    const __m256 scale = _mm256_set1_ps(norm_scale(x, size, eps));
    for (long i = 0; i < size; i += 8) {
        const __m256 value = _mm256_mul_ps(load_first(x + i, size - i), scale);
        store_first(out + i, size - i, _mm256_mul_ps(value, load_first(weight + i, size - i)));
    }
}

// Pairs (i, i + width / 2) are turned; the first half of `sin` is negated, and both halves of `cos` are alike.
inline void turn(const float* x, const float* cos, const float* sin, long width, long size, float* out) {
    const long half = width / 2;
    for (long i = 0; i < half; i += 8) {
        const long left = half - i;
        const __m256 a = load_first(x + i, left), b = load_first(x + half + i, left);
        const __m256 low = _mm256_mul_ps(a, load_first(cos + i, left));
        const __m256 high = _mm256_mul_ps(b, load_first(cos + half + i, left));
        store_first(out + i, left, _mm256_fmadd_ps(b, load_first(sin + i, left), low));
        store_first(out + half + i, left, _mm256_fmadd_ps(a, load_first(sin + half + i, left), high));
    }
    for (long i = width; i < size; i++) out[i] = x[i];
}

}  // namespace

extern "C" {

void octavo_rms_norm(const float* x, const float* weight, long rows, long size, float eps, float* out, int threads) {
#pragma omp parallel for num_threads(team(rows* size, threads))
    for (long row = 0; row < rows; row++) norm_row(x + row * size, weight, size, eps, out + row * size);
}

// residual += x, then the norm of residual.
void octavo_add_rms_norm(const float* x, float* residual, const float* weight, long rows, long size, float eps,
                         float* out, int threads) {
#pragma omp parallel for num_threads(team(rows* size, threads))
    for (long row = 0; row < rows; row++) {
        float* sum = residual + row * size;
        for (long i = 0; i < size; i += 8) {
            const long left = size - i;
            store_first(sum + i, left, _mm256_add_ps(load_first(sum + i, left), load_first(x + row * size + i, left)));
        }
        norm_row(sum, weight, size, eps, out + row * size);
    }
}

// x [rows][2 size], gate and up side by side, to out [rows][size].
void octavo_silu_mul(const float* x, long rows, long size, float* out, int threads) {
    const __m256 one = _mm256_set1_ps(1.0f), zero = _mm256_setzero_ps();
#pragma omp parallel for num_threads(team(rows* size, threads))
    for (long row = 0; row < rows; row++) {
        const float *gate = x + 2 * row * size, *up = gate + size;
        for (long i = 0; i < size; i += 8) {
            const __m256 g = load_first(gate + i, size - i);
            const __m256 open = _mm256_div_ps(g, _mm256_add_ps(one, exp_of(_mm256_sub_ps(zero, g))));
            store_first(out + row * size + i, size - i, _mm256_mul_ps(open, load_first(up + i, size - i)));
        }
    }
}

// x [tokens][heads][size], tokens `stride` apart, to out, contiguous; cos and sin [tokens][width]. With weights,
// each head is normed first: those before `queries` with one, the others with the other.
void octavo_rope(const float* x, long stride, long tokens, long heads, long size, const float* cos, const float* sin,
                 long width, const float* query_weight, const float* key_weight, long queries, float eps, float* out,
                 int threads) {
#pragma omp parallel for num_threads(team(tokens* heads* size, threads))
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            const float* from = x + token * stride + head * size;
            float* to = out + (token * heads + head) * size;
            float normed[512];
            if (query_weight) {
                norm_row(from, head < queries ? query_weight : key_weight, size, eps, normed);
                from = normed;
            }
            turn(from, cos + token * width, sin + token * width, width, size, to);
        }
}
}
