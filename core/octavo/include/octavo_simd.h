// What native libraries share: parts of a parallel region, and AVX2 in blocks of 8 floats.

#pragma once

#include <immintrin.h>
#include <omp.h>

struct Share {
    long first, last;
};

// This thread's part of `count` things, in the running parallel region.
inline Share share_of(long count) {
    const long threads = omp_get_num_threads(), index = omp_get_thread_num();
    return {count * index / threads, count * (index + 1) / threads};
}

// A mask for the first `count` of 8 lanes.
inline __m256i first_lanes(long count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

// Up to 8 floats; lanes from `count` on are zero.
inline __m256 load_first(const float* from, long count) {
    return count >= 8 ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first_lanes(count));
}

inline void store_first(float* to, long count, __m256 value) {
    if (count >= 8)
        _mm256_storeu_ps(to, value);
    else
        _mm256_maskstore_ps(to, first_lanes(count), value);
}

// out[r][0 .. 8 C) = sum over k in [0, count) of a[r][k] * b[k][0 .. 8 C), added to what is there where `More`.
template <int R, int C, bool More>
inline void product(const float* a, long lda, const float* b, long ldb, long count, float* out, long ldo) {
    __m256 sum[R][C];  // in registers, as every loop over it is unrolled
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) sum[r][c] = More ? _mm256_loadu_ps(out + r * ldo + c * 8) : _mm256_setzero_ps();
    for (long k = 0; k < count; k++) {
        __m256 row[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) row[c] = _mm256_loadu_ps(b + k * ldb + c * 8);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m256 value = _mm256_broadcast_ss(a + r * lda + k);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) sum[r][c] = _mm256_fmadd_ps(value, row[c], sum[r][c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) _mm256_storeu_ps(out + r * ldo + c * 8, sum[r][c]);
}

inline float sum_of(__m256 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

inline float largest_of(__m256 x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// e^x to about 1e-7 of it: 2^n times a polynomial in the rest. 0 below -87.3, clamped above 88.3; NaN stays NaN.
inline __m256 exp_of(__m256 x) {
    const __m256 low = _mm256_set1_ps(-87.33654f);
    const __m256 under = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
    // The second operand is returned where one is NaN.
    const __m256 y = _mm256_max_ps(low, _mm256_min_ps(_mm256_set1_ps(88.37626f), x));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(y, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), y);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(under, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}
