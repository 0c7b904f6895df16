// Linear layers with integer weights in groups: y = x W^T + b, where W = scale * code + offset in each group.
//
// Rows of x become 16-bit integers with a scale of their own, as fine as 32-bit sums over a group allow, so that
// nearly all of the error is that of the weights. Sums within a group are exact, and groups are added in order:
// an answer is the same bit for bit whatever the number of rows.
//
// Weights lie in panels of 16 outputs, a pair of inputs at a time: [inputs / 2][16][2] bytes for codes of 8 bits
// (128 subtracted), [inputs / 2][16] for codes of 4, the even input in the low half of the byte.

#include "octavo_simd.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr long kPanel = 16;
constexpr long kCacheBytes = 192 * 1024;  // of x as integers, that stay in a core's second cache

struct Rows {
    std::vector<int16_t> values;  // [rows][inputs]
    std::vector<float> scales;    // [rows]
    std::vector<float> sums;      // [rows][groups]: of the integers in a group
};

struct Layer {
    const uint8_t* packed;
    const float *scales, *offsets;  // [panels][groups][16]
    long outputs, inputs, group;
    long groups() const { return inputs / group; }
};

void quantise_row(const float* x, const Layer& layer, float largest, long row, Rows& rows) {
    __m256 most = _mm256_setzero_ps(), spoiled = most;
    const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (long i = 0; i < layer.inputs; i += 8) {
        const __m256 value = load_first(x + i, layer.inputs - i);
        most = _mm256_max_ps(most, _mm256_and_ps(no_sign, value));
        spoiled = _mm256_fmadd_ps(value, _mm256_setzero_ps(), spoiled);  // NaN where anything is not finite
    }
    const float scale = std::max(largest_of(most) / largest, 1e-30f);
    const __m256 inverse = _mm256_set1_ps(1.0f / scale);
    int16_t* to = rows.values.data() + row * layer.inputs;
    rows.scales[row] = sum_of(spoiled) == 0.0f ? scale : NAN;
    for (long group = 0; group < layer.groups(); group++) {
        __m256i sum = _mm256_setzero_si256();
        for (long i = group * layer.group; i < (group + 1) * layer.group; i += 8) {
            const long left = (group + 1) * layer.group - i;
            const __m256i value = _mm256_cvtps_epi32(_mm256_mul_ps(load_first(x + i, left), inverse));
            sum = _mm256_add_epi32(sum, value);
            alignas(32) int32_t lanes[8];
            const __m128i narrow =
                _mm_packs_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
            if (left >= 8) {
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), narrow);
            } else {
                _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), value);
                for (long j = 0; j < left; j++) to[i + j] = static_cast<int16_t>(lanes[j]);
            }
        }
        rows.sums[row * layer.groups() + group] = sum_of(_mm256_cvtepi32_ps(sum));
    }
}

// Two registers of 8 outputs, each lane a pair of 16-bit weights.
template <int Bits>
inline void load_pair(const uint8_t* from, __m256i& low, __m256i& high) {
    if (Bits == 8) {
        low = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        high = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16)));
    } else {
        const __m256i mask = _mm256_set1_epi32(0x000f000f);
        const __m256i a = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
        const __m256i b = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8)));
        low = _mm256_and_si256(_mm256_or_si256(a, _mm256_slli_epi32(a, 12)), mask);
        high = _mm256_and_si256(_mm256_or_si256(b, _mm256_slli_epi32(b, 12)), mask);
    }
}

inline __m256i pair_at(const int16_t* from) {
    int32_t both;
    __builtin_memcpy(&both, from, 4);
    return _mm256_set1_epi32(both);
}

// sum += w * x over pairs. In assembly, since compilers first compute all products and then run out of registers.
inline void add_products(__m256i& sum, __m256i w, __m256i x) {
    __m256i both;
    asm("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(both) : "x"(w), "x"(x));
}

// R rows of x times one panel.
template <int Bits, int R>
void tile(const Layer& layer, const Rows& rows, long row, long panel, const float* bias, float* out) {
    const long inputs = layer.inputs, groups = layer.groups(), pairs = layer.group / 2;
    const uint8_t* weight = layer.packed + panel * inputs * (kPanel * Bits / 8);
    const int16_t* x = rows.values.data() + row * inputs;
    __m256 total[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) total[r][0] = total[r][1] = _mm256_setzero_ps();
    for (long group = 0; group < groups; group++) {
        __m256i sum[R][2];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
        for (long k = 0; k < pairs; k++, weight += kPanel * Bits / 4, x += 2) {
            __m256i low, high;
            load_pair<Bits>(weight, low, high);
            if (R == 1) _mm_prefetch(reinterpret_cast<const char*>(weight + 2048), _MM_HINT_T0);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const __m256i value = pair_at(x + r * inputs);
                add_products(sum[r][0], low, value);
                add_products(sum[r][1], high, value);
            }
        }
        const long at = (panel * groups + group) * kPanel;
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) {
            const __m256 scale = _mm256_loadu_ps(layer.scales + at + p * 8);
            const __m256 offset = _mm256_loadu_ps(layer.offsets + at + p * 8);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const __m256 together = _mm256_set1_ps(rows.sums[(row + r) * groups + group]);
                total[r][p] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][p]), scale, total[r][p]);
                total[r][p] = _mm256_fmadd_ps(together, offset, total[r][p]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) {
            const long first = panel * kPanel + p * 8, left = layer.outputs - first;
            if (left <= 0) continue;
            __m256 value = _mm256_mul_ps(total[r][p], _mm256_set1_ps(rows.scales[row + r]));
            if (bias) value = _mm256_add_ps(value, load_first(bias + first, left));
            store_first(out + (row + r) * layer.outputs + first, left, value);
        }
}

using Tile = void (*)(const Layer&, const Rows&, long, long, const float*, float*);
template <int Bits>
constexpr Tile kTiles[6] = {tile<Bits, 1>, tile<Bits, 2>, tile<Bits, 3>, tile<Bits, 4>, tile<Bits, 5>, tile<Bits, 6>};

void multiply(const Layer& layer, const Rows& rows, long count, const float* bias, float* out, const Tile* tiles,
              Share panels) {
    const long block = std::max(6L, kCacheBytes / 2 / layer.inputs / 6 * 6);
    for (long start = 0; start < count; start += block) {
        const long stop = std::min(count, start + block);
        for (long panel = panels.first; panel < panels.last; panel++)
            for (long row = start; row < stop; row += 6)
                tiles[std::min(6L, stop - row) - 1](layer, rows, row, panel, bias, out);
    }
}

}  // namespace

extern "C" {

// codes [outputs][inputs], below 16 for 4 bits, to panels; `inputs` is even.
void octavo_grouped_pack(const uint8_t* codes, int bits, long outputs, long inputs, uint8_t* packed) {
    const long panels = (outputs + kPanel - 1) / kPanel;
#pragma omp parallel for
    for (long panel = 0; panel < panels; panel++)
        for (long k = 0; k < inputs; k += 2)
            for (long j = 0; j < kPanel; j++) {
                const long row = std::min(panel * kPanel + j, outputs - 1);
                const uint8_t even = codes[row * inputs + k], odd = codes[row * inputs + k + 1];
                const long at = (panel * inputs + k) / 2 * kPanel + j;
                if (bits == 4) {
                    packed[at] = static_cast<uint8_t>(even | odd << 4);
                } else {
                    packed[2 * at] = static_cast<uint8_t>(even - 128);
                    packed[2 * at + 1] = static_cast<uint8_t>(odd - 128);
                }
            }
}

// x [rows][inputs] to out [rows][outputs]; scales and offsets [panels][groups][16]; bias [outputs] or null.
void octavo_grouped(const float* x, long count, const uint8_t* packed, int bits, const float* scales,
                    const float* offsets, long outputs, long inputs, long group, const float* bias, float* out,
                    int threads) {
    static thread_local Rows rows;
    const Layer layer{packed, scales, offsets, outputs, inputs, group};
    if (rows.values.size() < static_cast<size_t>(count * inputs)) rows.values.resize(count * inputs);
    if (rows.scales.size() < static_cast<size_t>(count)) rows.scales.resize(count);
    if (rows.sums.size() < static_cast<size_t>(count * layer.groups())) rows.sums.resize(count * layer.groups());
    Rows& shared = rows;  // of this thread, whoever reads it
    const double room = 2147483647.0 / (bits == 4 ? 15.0 : 128.0) / static_cast<double>(group);
    const float largest = static_cast<float>(std::floor(std::min(32767.0, room)));
#pragma omp parallel num_threads(threads)
    {
        const Share mine = share_of(count);
        for (long row = mine.first; row < mine.last; row++) quantise_row(x + row * inputs, layer, largest, row, shared);
#pragma omp barrier
        multiply(layer, shared, count, bias, out, bits == 4 ? kTiles<4> : kTiles<8>,
                 share_of((outputs + kPanel - 1) / kPanel));
    }
}
}
