// The matrix product of rows with the weights of a linear map, in bfloat16 with float32 sums.

#pragma once

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

// Rows, inputs and outputs are multiplied in blocks of this size.
constexpr int64_t BLOCK = 32;

constexpr int64_t padded(int64_t size) { return (size + BLOCK - 1) / BLOCK * BLOCK; }

// A matrix of ``rows`` rows, stored as panels of 32 columns, one panel after the other. Within a
// panel, rows follow each other, so that a block is one contiguous piece of memory.
template <class T>
struct Panels {
    T* values;
    int64_t rows;

    T* at(int64_t row, int64_t column) const {
        return values + (column / BLOCK * rows + row) * BLOCK + column % BLOCK;
    }
    // The same matrix without the rows before ``row``.
    Panels from(int64_t row) const { return {values + row * BLOCK, rows}; }
};

using ConstPanels = Panels<const bfloat16>;

// A linear map. Its weights lie in the order in which they are multiplied: a panel of 32 outputs is
// read once, from start to end, and is used for all rows while it is in the first-level cache.
struct LinearMap {
    const bfloat16* weight;   // (outputs / 32, inputs / 32, 2, 16, 16, 2)
    const float* bias;        // (outputs,)
    int64_t inputs, outputs;  // multiples of 32
};

// Whether the processor multiplies bfloat16 in AMX tile registers, and the kernel, which is asked
// once a process, allows their use.
inline bool enable_tiles() {
    constexpr unsigned FEATURES = 7, AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(FEATURES, 0, &eax, &ebx, &ecx, &edx)) return false;
    if (!(edx & AMX_BF16) || !(edx & AMX_TILE)) return false;
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_TILE_DATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA) == 0;
}

inline const bool tiles_enabled = enable_tiles();

// The sums of one block: 32 rows, 32 outputs.
struct alignas(64) BlockSums {
    float rows[BLOCK][BLOCK];
};

// The operand of LDTILECFG: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Multiplies up to 32 rows of ``x`` (rows, inputs) with one panel of weights -> sums, in tile
// registers: four tiles of sums, two of rows, two of weights. Up to 16 rows need half of them.
// ``meanwhile`` is called after each step, since other units of the processor are idle while tiles
// are multiplied.
template <class Meanwhile>
void multiply_with_tiles(ConstPanels x, int64_t rows, int64_t inputs, const bfloat16* weights,
                         BlockSums& sums, Meanwhile meanwhile) {
    const bool both_halves = rows > 16;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t input = 0; input < inputs; input += BLOCK, weights += BLOCK * BLOCK) {
        _tile_loadd(6, weights, 64);
        _tile_loadd(7, weights + BLOCK * BLOCK / 2, 64);
        _tile_loadd(4, x.at(0, input), 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (both_halves) {
            _tile_loadd(5, x.at(16, input), 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        meanwhile();
    }
    _tile_stored(0, &sums.rows[0][0], sizeof sums.rows[0]);
    _tile_stored(1, &sums.rows[0][16], sizeof sums.rows[0]);
    if (both_halves) {
        _tile_stored(2, &sums.rows[16][0], sizeof sums.rows[0]);
        _tile_stored(3, &sums.rows[16][16], sizeof sums.rows[0]);
    }
}

// The same with AVX-512 dot products of pairs of inputs, eight rows at a time.
inline void multiply_with_dot_products(ConstPanels x, int64_t rows, int64_t inputs,
                                       const bfloat16* weights, BlockSums& sums) {
    constexpr int64_t ROWS_AT_ONCE = 8;
    for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
        Floats totals[ROWS_AT_ONCE][2] = {};
        const bfloat16* weight = weights;
        for (int64_t input = 0; input < inputs; input += BLOCK, weight += BLOCK * BLOCK / 2)
            for (const bfloat16* pair = x.at(row, input); pair < x.at(row, input) + BLOCK;
                 pair += 2, weight += BLOCK) {
                const __m512bh low = (__m512bh)_mm512_loadu_si512(weight);
                const __m512bh high = (__m512bh)_mm512_loadu_si512(weight + BLOCK * BLOCK / 2);
                for (int64_t i = 0; i < ROWS_AT_ONCE; ++i) {
                    int32_t two_inputs;
                    __builtin_memcpy(&two_inputs, pair + i * BLOCK, sizeof two_inputs);
                    const __m512bh repeated = (__m512bh)_mm512_set1_epi32(two_inputs);
                    totals[i][0] = _mm512_dpbf16_ps(totals[i][0], repeated, low);
                    totals[i][1] = _mm512_dpbf16_ps(totals[i][1], repeated, high);
                }
            }
        for (int64_t i = 0; i < ROWS_AT_ONCE; ++i) {
            store(&sums.rows[row + i][0], totals[i][0]);
            store(&sums.rows[row + i][16], totals[i][1]);
        }
    }
}

// The blocks of a product, one after the other: while the sums of a block are computed, the rows of
// the block before it are handed to ``Finish``. See `product`.
template <class Finish>
class BlockPipeline {
   public:
    explicit BlockPipeline(Finish finish) : finish_(finish) {}

    // Where the sums of the next block have to be written.
    BlockSums& next_sums() { return sums_[next_]; }

    // The sums of the next block are complete: ``count`` rows from ``row`` on, 32 outputs from
    // ``output`` on. All rows of the block before it are finished first.
    void complete(int64_t row, int64_t count, int64_t output, const float* bias) {
        finish_rows(BLOCK);
        row_ = row;
        finished_ = 0;
        count_ = count;
        output_ = output;
        bias_low_ = load(bias + output);
        bias_high_ = load(bias + output + LANES);
        next_ ^= 1;
    }

    // Finish up to ``most`` more rows of the last complete block.
    void finish_rows(int64_t most) {
        const int64_t begin = finished_, end = begin + most < count_ ? begin + most : count_;
        const BlockSums& sums = sums_[next_ ^ 1];
        const Finish finish = finish_;
        const Floats low = bias_low_, high = bias_high_;
        for (int64_t row = begin; row < end; ++row)
            finish(row_ + row, output_, load(&sums.rows[row][0]) + low,
                   load(&sums.rows[row][16]) + high);
        finished_ = end;
    }

   private:
    Finish finish_;
    BlockSums sums_[2];
    int64_t next_ = 0, row_ = 0, finished_ = 0, count_ = 0, output_ = 0;
    Floats bias_low_, bias_high_;
};

// Multiplies the rows of ``x`` (rows, inputs) with a linear map and adds its bias. Calls
// ``finish(row, output, low, high)`` for each row and each 32 outputs: ``low`` holds the 16 results
// from ``output`` on, ``high`` the next 16. Reads whole blocks of 32 rows, so ``x`` must have room.
template <class Finish>
void product(ConstPanels x, int64_t rows, const LinearMap& map, bool use_tiles, Finish finish) {
    if (rows == 0) return;
    // Compilers do not know that tile instructions read memory, so stores must not move past here.
    __asm__ volatile("" ::: "memory");
    const int64_t steps = map.inputs / BLOCK, row_blocks = padded(rows) / BLOCK;
    // In each step of a block: rows of the block before to finish, cache lines to prefetch.
    const int64_t rows_a_step = (BLOCK + steps - 1) / steps;
    const int64_t lines_a_step = (BLOCK + row_blocks - 1) / row_blocks;
    if (use_tiles) {
        // Static, since compilers assume that only its first bytes are used here.
        static constexpr TileConfig config;
        _tile_loadconfig(&config);
    }
    BlockPipeline<Finish> blocks(finish);
    for (int64_t output = 0; output < map.outputs; output += BLOCK) {
        const bfloat16* weights = map.weight + output * map.inputs;
        // The weights of the next panel, or of the map that follows in memory, are prefetched.
        const bfloat16* next_weights = weights + BLOCK * map.inputs;
        for (int64_t row = 0; row < rows; row += BLOCK) {
            const int64_t count = rows - row < BLOCK ? rows - row : BLOCK;
            if (use_tiles)
                multiply_with_tiles(
                    x.from(row), count, map.inputs, weights, blocks.next_sums(), [&] {
                        for (int64_t line = 0; line < lines_a_step; ++line, next_weights += BLOCK)
                            _mm_prefetch(reinterpret_cast<const char*>(next_weights), _MM_HINT_T1);
                        blocks.finish_rows(rows_a_step);
                    });
            else
                multiply_with_dot_products(x.from(row), count, map.inputs, weights,
                                           blocks.next_sums());
            blocks.complete(row, count, output, map.bias);
        }
    }
    blocks.finish_rows(BLOCK);
    if (use_tiles) _tile_release();
}
