// Paged attention in float32: writes a step's keys and values, then attends, for decodes and prompts alike.
//
// A layer's cache is [2][blocks][kv_heads][block_size][size], keys then values. Work is divided into tiles: some
// positions of one sequence, for the query heads that share a key head. A tile passes over its keys 64 at a time
// with the running softmax of arXiv 2205.14135. What a query gets depends on nothing but its own sequence, never on
// who shares the batch.

#include "octavo_simd.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr long kKeys = 64;
constexpr long kRows = 24;  // query vectors in a tile
constexpr float kNothing = -std::numeric_limits<float>::infinity();

}  // namespace

extern "C" {

struct OctavoShape {
    long heads, kv_heads, size, block_size, window;  // window 0: none
    float scale, soft_cap;                           // soft_cap 0: none
};

struct OctavoStep {
    long tokens, rows, width;
    const long* slots;      // [tokens]
    const int* tables;      // [rows][width]
    const long* lengths;    // [rows]: keys there are after this step's were written
    const long* starts;     // [rows + 1]: first token of each row
};
}

namespace {

struct Tile {
    long row, first, count;  // positions [first, first + count) of the row's tokens in this step
    long head, heads;        // query heads, all of one key head
};

class Attention {
   public:
    Attention(const OctavoStep& step, const OctavoShape& shape, const float* query, long query_stride, float* cache,
              long blocks, float* out)
        : step_(step), shape_(shape), query_(query), query_stride_(query_stride), keys_(cache),
          values_(cache + blocks * shape.kv_heads * shape.block_size * shape.size), out_(out) {}

    void write(const float* key, long key_stride, const float* value, long value_stride, Share share) const {
        const size_t bytes = shape_.size * sizeof(float);
        for (long token = share.first; token < share.last; token++) {
            const long slot = step_.slots[token];
            if (slot < 0) continue;
            for (long head = 0; head < shape_.kv_heads; head++) {
                const long at = place(slot / shape_.block_size, slot % shape_.block_size, head);
                std::memcpy(keys_ + at, key + token * key_stride + head * shape_.size, bytes);
                std::memcpy(values_ + at, value + token * value_stride + head * shape_.size, bytes);
            }
        }
    }

    // `next` is what this thread does afterwards, or null: its first keys are fetched meanwhile.
    void attend(const Tile& tile, const Tile* next) const {
        const long size = shape_.size, rows = tile.count * tile.heads;
        const Keys keys = keys_of(tile);
        const long stop = keys.stop, origin = stop - tile.count, kv_head = keys.head;
        static thread_local std::vector<float> room;
        room.resize(rows * (2 * size + kKeys + 2) + kKeys * size);
        float *turned = room.data(), *queries = turned + kKeys * size, *sums = queries + rows * size;
        float *scores = sums + rows * size, *peaks = scores + rows * kKeys, *totals = peaks + rows;
        load_queries(tile, queries);
        std::fill(sums, sums + rows * size, 0.0f);
        std::fill(peaks, peaks + rows, kNothing);
        std::fill(totals, totals + rows, 0.0f);
        for (long from = keys.first; from < stop; from += kKeys) {
            const long count = std::min(kKeys, stop - from);
            if (tile.count == 1) {
                Keys soon{tile.row, kv_head, from + kKeys, stop};
                if (soon.first >= stop) soon = next ? keys_of(*next) : Keys{0, 0, 0, 0};
                score_directly(tile.row, kv_head, from, count, queries, rows, scores, soon);
            } else {
                turn_keys(tile.row, kv_head, from, count, turned);
                for (long r = 0; r < rows; r += 6)
                    score(queries + r * size, std::min(6L, rows - r), turned, count, scores + r * kKeys);
            }
            for (long r = 0; r < rows; r++)
                soften(scores + r * kKeys, origin + r / tile.heads, from, count, peaks[r], totals[r], sums + r * size);
            add_values(tile.row, kv_head, from, count, scores, rows, sums);
        }
        store(tile, sums, totals);
    }

   private:
    struct Keys {
        long row, head, first, stop;  // positions
    };

    Keys keys_of(const Tile& tile) const {
        const long last = step_.starts[tile.row + 1] - step_.starts[tile.row];
        const long origin = step_.lengths[tile.row] - last + tile.first;  // position of the first query
        const long first = shape_.window ? std::max(0L, origin - shape_.window + 1) / kKeys * kKeys : 0;
        return {tile.row, tile.head / (shape_.heads / shape_.kv_heads), first, origin + tile.count};
    }

    long place(long block, long offset, long head) const {
        return ((block * shape_.kv_heads + head) * shape_.block_size + offset) * shape_.size;
    }

    long place_of(long row, long position, long head) const {
        const int block = step_.tables[row * step_.width + position / shape_.block_size];
        return place(block, position % shape_.block_size, head);
    }

    // Scaled queries of a tile: [positions][heads][size].
    void load_queries(const Tile& tile, float* queries) const {
        const __m256 scale = _mm256_set1_ps(shape_.scale);
        for (long i = 0; i < tile.count; i++) {
            const long token = step_.starts[tile.row] + tile.first + i;
            const float* from = query_ + token * query_stride_ + tile.head * shape_.size;
            for (long j = 0; j < tile.heads * shape_.size; j += 8, queries += 8)
                _mm256_storeu_ps(queries, _mm256_mul_ps(_mm256_loadu_ps(from + j), scale));
        }
    }

    // Where 8 keys from `from` on lie; those that are not there repeat the last one.
    void find_keys(long row, long head, long from, long count, const float** key) const {
        const float* next = nullptr;
        for (long j = 0; j < 8; j++) {
            if (j < count) next = j && (from + j) % shape_.block_size ? next + shape_.size : keys_ + place_of(row, from + j, head);
            key[j] = next;
        }
    }

    // Scores of one position's queries for up to 64 keys, which are read where they lie. Blocks lie anywhere, and
    // memory is slow to find them, so the 64 keys and values after these are fetched meanwhile, evenly spread.
    void score_directly(long row, long head, long from, long count, const float* queries, long rows, float* scores,
                        const Keys& soon) const {
        const float* key[8];
        const bool whole = shape_.block_size % 8 == 0;  // 8 keys lie side by side
        for (long group = 0; group < kKeys; group += 8) {
            const long first = soon.first + group;
            const float* ahead = whole && first < soon.stop ? keys_ + place_of(soon.row, first, soon.head) : nullptr;
            if (group < count) find_keys(row, head, from + group, std::min(8L, count - group), key);
            for (long r = 0; r < rows; r++) {
                const __m256 found = dots(queries + r * shape_.size, key, ahead, r, (7 + rows) / rows);
                if (group < count) _mm256_storeu_ps(scores + r * kKeys + group, found);
            }
            if (group + 8 >= count && !ahead) break;
        }
    }

    // Products of one query with 8 keys; at each step `lines` cache lines of the keys and values ahead are fetched.
    __m256 dots(const float* query, const float* const* key, const float* ahead, long r, long lines) const {
        __m256 sum[8];
        const long half = shape_.size * 8, values = values_ - keys_;
        long place = r * shape_.size * lines * 2;
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) sum[j] = _mm256_setzero_ps();
        for (long d = 0; d < shape_.size; d += 8) {
            const __m256 value = _mm256_loadu_ps(query + d);
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) sum[j] = _mm256_fmadd_ps(value, _mm256_loadu_ps(key[j] + d), sum[j]);
            if (!ahead) continue;
            for (long line = 0; line < lines; line++, place += 16)
                if (place < 2 * half) {
                    const float* at = ahead + (place < half ? place : values + place - half);
                    _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
                }
        }
        const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
        const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(sum[4], sum[5]), _mm256_hadd_ps(sum[6], sum[7]));
        return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }

    // Keys to [16 keys][size] panels, turned: [size][16]. Keys that are not there repeat the last one.
    void turn_keys(long row, long head, long from, long count, float* turned) const {
        const long size = shape_.size;
        for (long group = 0; group < count; group += 8) {
            const float* key[8];
            find_keys(row, head, from + group, std::min(8L, count - group), key);
            float* to = turned + group / 16 * 16 * size + group % 16;
            for (long d = 0; d < size; d += 8) turn_square(key, d, to + d * 16);
        }
        if ((count + 7) / 8 % 2) {  // the other half of the last panel is read, and not used
            float* to = turned + count / 16 * 16 * size + 8;
            for (long d = 0; d < size; d++) _mm256_storeu_ps(to + d * 16, _mm256_setzero_ps());
        }
    }

    static void turn_square(const float* const* from, long d, float* to) {
        __m256 a[8], b[8];
        for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(from[i] + d);
        for (int i = 0; i < 8; i += 2) {
            b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
            a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xEE);
            a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
            a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xEE);
        }
        for (int i = 0; i < 4; i++) {
            _mm256_storeu_ps(to + i * 16, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
            _mm256_storeu_ps(to + (i + 4) * 16, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
        }
    }

    template <int R>
    void score_rows(const float* queries, const float* turned, long count, float* scores) const {
        for (long j = 0; j < count; j += 16) {
            product<R, 2, false>(queries, shape_.size, turned + j * shape_.size, 16, shape_.size, scores + j, kKeys);
        }
    }

    void score(const float* queries, long rows, const float* turned, long count, float* scores) const {
        switch (rows) {
            case 1: return score_rows<1>(queries, turned, count, scores);
            case 2: return score_rows<2>(queries, turned, count, scores);
            case 3: return score_rows<3>(queries, turned, count, scores);
            case 4: return score_rows<4>(queries, turned, count, scores);
            case 5: return score_rows<5>(queries, turned, count, scores);
            default: return score_rows<6>(queries, turned, count, scores);
        }
    }

    // Scores to weights; what was summed so far is brought to the new peak.
    void soften(float* scores, long position, long from, long count, float& peak, float& total, float* sums) const {
        if (shape_.soft_cap > 0)
            for (long j = 0; j < count; j++) scores[j] = shape_.soft_cap * std::tanh(scores[j] / shape_.soft_cap);
        const long seen = std::min(count, position + 1 - from);
        const long hidden = shape_.window ? std::max(0L, position - shape_.window + 1 - from) : 0;
        if (hidden >= seen) {
            std::memset(scores, 0, kKeys * sizeof(float));
            return;
        }
        for (long j = 0; j < hidden; j++) scores[j] = kNothing;
        for (long j = std::max(0L, seen); j < kKeys; j++) scores[j] = kNothing;
        __m256 most = _mm256_loadu_ps(scores);
        for (long j = 8; j < kKeys; j += 8) most = _mm256_max_ps(most, _mm256_loadu_ps(scores + j));
        const float now = std::max(peak, largest_of(most));
        __m256 sum = _mm256_setzero_ps();
        for (long j = 0; j < kKeys; j += 8) {
            const __m256 weight = exp_of(_mm256_sub_ps(_mm256_loadu_ps(scores + j), _mm256_set1_ps(now)));
            _mm256_storeu_ps(scores + j, weight);
            sum = _mm256_add_ps(sum, weight);
        }
        if (peak != kNothing && now != peak) {
            const float shrink = std::exp(peak - now);
            total *= shrink;
            for (long d = 0; d < shape_.size; d += 8)
                _mm256_storeu_ps(sums + d, _mm256_mul_ps(_mm256_loadu_ps(sums + d), _mm256_set1_ps(shrink)));
        }
        peak = now;
        total += sum_of(sum);
    }

    template <int C>
    static void add_some(long rows, const float* weights, const float* values, long size, long count, float* sums) {
        switch (rows) {
            case 1: return product<1, C, true>(weights, kKeys, values, size, count, sums, size);
            case 2: return product<2, C, true>(weights, kKeys, values, size, count, sums, size);
            case 3: return product<3, C, true>(weights, kKeys, values, size, count, sums, size);
            case 4: return product<4, C, true>(weights, kKeys, values, size, count, sums, size);
            case 5: return product<5, C, true>(weights, kKeys, values, size, count, sums, size);
            default: return product<6, C, true>(weights, kKeys, values, size, count, sums, size);
        }
    }

    static void add_wide(long rows, const float* weights, const float* values, long size, long count, float* sums) {
        switch (rows) {
            case 1: return product<1, 4, true>(weights, kKeys, values, size, count, sums, size);
            case 2: return product<2, 4, true>(weights, kKeys, values, size, count, sums, size);
            default: return product<3, 4, true>(weights, kKeys, values, size, count, sums, size);
        }
    }

    // sums += weights times values, a block of the cache at a time.
    void add_values(long row, long head, long from, long count, const float* weights, long rows, float* sums) const {
        const long size = shape_.size;
        for (long j = 0; j < count;) {
            const long here = std::min(count - j, shape_.block_size - (from + j) % shape_.block_size);
            const float* values = values_ + place_of(row, from + j, head);
            const long wide = rows <= 3 ? size / 32 * 32 : 0;  // few rows, more columns: enough independent sums
            for (long d = 0; d < wide; d += 32)
                add_wide(rows, weights + j, values + d, size, here, sums + d);
            for (long d = wide; d < size; d += 16)
                for (long r = 0; r < rows; r += 6) {
                    const long some = std::min(6L, rows - r);
                    if (size - d >= 16)
                        add_some<2>(some, weights + r * kKeys + j, values + d, size, here, sums + r * size + d);
                    else
                        add_some<1>(some, weights + r * kKeys + j, values + d, size, here, sums + r * size + d);
                }
            j += here;
        }
    }

    void store(const Tile& tile, const float* sums, const float* totals) const {
        for (long i = 0; i < tile.count; i++)
            for (long h = 0; h < tile.heads; h++, sums += shape_.size, totals++) {
                const long token = step_.starts[tile.row] + tile.first + i;
                float* to = out_ + (token * shape_.heads + tile.head + h) * shape_.size;
                const __m256 share = _mm256_set1_ps(1.0f / *totals);
                for (long d = 0; d < shape_.size; d += 8)
                    _mm256_storeu_ps(to + d, _mm256_mul_ps(_mm256_loadu_ps(sums + d), share));
            }
    }

    const OctavoStep& step_;
    const OctavoShape& shape_;
    const float* query_;
    const long query_stride_;
    float *keys_, *values_, *out_;
};

// The longest work first: late tiles of a prompt see the most keys.
std::vector<Tile> tiles_of(const OctavoStep& step, const OctavoShape& shape, int threads) {
    const long shared = shape.heads / shape.kv_heads;
    const long heads = step.tokens * shape.kv_heads < 4 * threads ? 1 : std::min(shared, kRows);
    const long positions = std::max(1L, kRows / heads);
    std::vector<Tile> tiles;
    for (long row = step.rows - 1; row >= 0; row--) {
        const long count = step.starts[row + 1] - step.starts[row];
        for (long first = (count - 1) / positions * positions; first >= 0; first -= positions)
            for (long head = 0; head < shape.heads;) {
                const long some = std::min(heads, shared - head % shared);  // a tile stays within one key head
                tiles.push_back({row, first, std::min(positions, count - first), head, some});
                head += some;
            }
    }
    return tiles;
}

}  // namespace

extern "C" {

// query [tokens][heads][size], key and value [tokens][kv_heads][size], their tokens a stride apart; out is
// contiguous. `size` is a multiple of 8.
void octavo_attention(const OctavoStep* step, const OctavoShape* shape, const float* query, long query_stride,
                      const float* key, long key_stride, const float* value, long value_stride, float* cache,
                      long blocks, float* out, int threads) {
    const Attention attention(*step, *shape, query, query_stride, cache, blocks, out);
    const std::vector<Tile> tiles = tiles_of(*step, *shape, threads);
    std::atomic<size_t> next{0};
#pragma omp parallel num_threads(threads)
    {
        attention.write(key, key_stride, value, value_stride, share_of(step->tokens));
#pragma omp barrier  // rows may share blocks that are written in this very step
        for (size_t i = next++; i < tiles.size();) {
            const size_t after = next++;
            attention.attend(tiles[i], after < tiles.size() ? &tiles[after] : nullptr);
            i = after;
        }
    }
}
}
