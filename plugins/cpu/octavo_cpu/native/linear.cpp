// Linear layers in float32: y = x W^T + b.
//
// Weights are packed once into panels of 16 outputs, each [inputs][16]. Every output is one chain of fused
// multiply-adds over the inputs, in order, whatever the number of rows: an answer is the same bit for bit in a
// batch of one and of a thousand.

#include "octavo_simd.h"

namespace {

constexpr long kPanel = 16;
constexpr long kDepth = 384;               // inputs of a panel that stay in the first cache while rows pass by
constexpr long kCacheFloats = 64 * 1024;  // of x, that stay in a core's second cache beside the weights

struct Panel {
    const float* weight;  // [inputs][16], and the panels behind it
    long inputs;
    const float* bias;  // 16 floats, or null
    long width;         // outputs from here on
    const float* ahead;
};

// Inputs [from, to) of R rows of x times P panels. Sums go on from those in `out`, unless `from` is 0.
template <int R, int P>
void tile(const Panel& panel, const float* x, long ldx, long from, long to, float* out, long ldo,
          const float* ahead) {
    __m256 sum[R][2 * P];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < 2 * P; p++)
            sum[r][p] = from == 0 ? _mm256_setzero_ps() : load_first(out + r * ldo + p * 8, panel.width - p * 8);
    const float* weight = panel.weight;
    const long inputs = panel.inputs;
    for (long k = from; k < to; k++) {
        __m256 w[2 * P];
#pragma GCC unroll 8
        for (int p = 0; p < 2 * P; p++) w[p] = _mm256_load_ps(weight + (p / 2 * inputs + k) * kPanel + p % 2 * 8);
        if (R > 3 && (k & 3) == 0) _mm_prefetch(reinterpret_cast<const char*>(ahead + k * 4), _MM_HINT_T1);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m256 value = _mm256_broadcast_ss(x + r * ldx + k);
#pragma GCC unroll 8
            for (int p = 0; p < 2 * P; p++) sum[r][p] = _mm256_fmadd_ps(value, w[p], sum[r][p]);
        }
    }
    const bool biased = panel.bias && to == inputs;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int p = 0; p < 2 * P; p++) {
            const long left = panel.width - p * 8;
            if (left <= 0) continue;
            if (biased) sum[r][p] = _mm256_add_ps(sum[r][p], load_first(panel.bias + p * 8, left));
            store_first(out + r * ldo + p * 8, left, sum[r][p]);
        }
}

using Tile = void (*)(const Panel&, const float*, long, long, long, float*, long, const float*);

// Few rows take several panels at a time, so that there are always enough independent sums.
constexpr Tile kTiles[3][6] = {
    {tile<1, 1>, tile<2, 1>, tile<3, 1>, tile<4, 1>, tile<5, 1>, tile<6, 1>},
    {tile<1, 2>, tile<2, 2>, tile<3, 2>, nullptr, nullptr, nullptr},
    {tile<1, 4>, tile<2, 4>, nullptr, nullptr, nullptr, nullptr},
};

void few_rows(Panel panel, const float* x, long rows, const float* packed, const float* bias, long outputs,
              float* out, long first, long last) {
    const long inputs = panel.inputs;
    for (long index = first; index < last;) {
        const int level = rows <= 2 && index + 4 <= last ? 2 : rows <= 3 && index + 2 <= last ? 1 : 0;
        panel.weight = packed + index * inputs * kPanel;
        panel.bias = bias ? bias + index * kPanel : nullptr;
        panel.width = outputs - index * kPanel;
        kTiles[level][rows - 1](panel, x, inputs, 0, inputs, out + index * kPanel, outputs, panel.weight);
        index += 1 << level;
    }
}

void many_rows(Panel panel, const float* x, long rows, const float* packed, const float* bias, long outputs,
               float* out, long first, long last) {
    const long inputs = panel.inputs;
    const long parts = (inputs + kDepth - 1) / kDepth, depth = (inputs + parts - 1) / parts;
    const long block = kCacheFloats / inputs < 6 ? 6 : kCacheFloats / inputs / 6 * 6;
    for (long start = 0; start < rows; start += block) {
        const long stop = start + block < rows ? start + block : rows;
        for (long index = first; index < last; index++) {
            panel.weight = packed + index * inputs * kPanel;
            panel.bias = bias ? bias + index * kPanel : nullptr;
            panel.width = outputs - index * kPanel;
            const float* next = index + 1 < last ? panel.weight + inputs * kPanel : packed + first * inputs * kPanel;
            for (long from = 0; from < inputs; from += depth) {
                const long to = from + depth < inputs ? from + depth : inputs;
                long count = 0;
                for (long row = start; row < stop; row += 6, count++) {
                    const long left = stop - row < 6 ? stop - row : 6;
                    kTiles[0][left - 1](panel, x + row * inputs, inputs, from, to, out + row * outputs + index * kPanel,
                                        outputs, next + (count & 3) * 4 * inputs);
                }
            }
        }
    }
}

}  // namespace

extern "C" {

// weight [outputs][inputs] to packed [ceil(outputs / 16)][inputs][16]; outputs that are not there are zero.
void octavo_linear_pack(const float* weight, long outputs, long inputs, float* packed) {
    const long panels = (outputs + kPanel - 1) / kPanel;
#pragma omp parallel for
    for (long panel = 0; panel < panels; panel++)
        for (long k = 0; k < inputs; k++)
            for (long j = 0; j < kPanel; j++) {
                const long row = panel * kPanel + j;
                packed[(panel * inputs + k) * kPanel + j] = row < outputs ? weight[row * inputs + k] : 0.0f;
            }
}

// x [rows][inputs] to out [rows][outputs]; bias [outputs] or null; packed is aligned to 32 bytes.
void octavo_linear(const float* x, long rows, const float* packed, long outputs, long inputs, const float* bias,
                   float* out, int threads) {
    if (rows == 0) return;
    const long panels = (outputs + kPanel - 1) / kPanel;
#pragma omp parallel num_threads(threads)
    {
        const Share share = share_of(panels);
        const Panel panel{nullptr, inputs, nullptr, 0, nullptr};
        (rows <= 3 ? few_rows : many_rows)(panel, x, rows, packed, bias, outputs, out, share.first, share.last);
    }
}
}
