// A linear map of rows in bfloat16, added up in float32.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

constexpr int64_t BLOCK = 32;

constexpr int64_t padded(int64_t size) { return (size + BLOCK - 1) / BLOCK * BLOCK; }

// A matrix in panels of 32 columns, one after the other, in each of which row follows row: whatever
// runs down a panel finds its cache lines in a row, and a tile is one piece of memory.
template <class T>
struct Panels {
    T* values;
    int64_t rows;

    T* at(int64_t row, int64_t column) const {
        return values + (column / BLOCK * rows + row) * BLOCK + column % BLOCK;
    }
    Panels from(int64_t row) const { return {values + row * BLOCK, rows}; }
};

using Inputs = Panels<const bfloat16>;

// Weights lie in the order in which they are multiplied: a panel of 32 outputs is read once, from
// beginning to end, and serves all rows while it is in the nearest cache.
struct Linear {
    const bfloat16* weight;   // (outputs / 32, inputs / 32, 2, 16, 16, 2)
    const float* bias;        // (outputs,)
    int64_t inputs, outputs;  // multiples of 32
};

// Ask the kernel for the tile registers, which a process must do once: whether they may be used.
inline bool take_tiles() {
#ifdef __AMX_BF16__
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}

inline const bool has_tiles = take_tiles();

// Sums of one block, outputs side by side.
struct alignas(64) Sums {
    float rows[BLOCK][BLOCK];
};

#ifdef __AMX_BF16__

struct alignas(64) TileShape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// 32 rows, or 16 of them, times one panel of weights: four tiles of sums, fed by two of each side.
// ``meanwhile`` is called at each step: the processor's other parts are idle while tiles multiply.
template <class Meanwhile>
void multiply_tiles(Inputs x, int64_t rows, int64_t depth, const bfloat16* weights, Sums& sums,
                    Meanwhile meanwhile) {
    const bool both = rows > 16;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < depth; k += BLOCK, weights += BLOCK * BLOCK) {
        _tile_loadd(6, weights, 64);
        _tile_loadd(7, weights + BLOCK * BLOCK / 2, 64);
        _tile_loadd(4, x.at(0, k), 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (both) {
            _tile_loadd(5, x.at(16, k), 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        meanwhile();
    }
    _tile_stored(0, &sums.rows[0][0], sizeof sums.rows[0]);
    _tile_stored(1, &sums.rows[0][16], sizeof sums.rows[0]);
    if (both) {
        _tile_stored(2, &sums.rows[16][0], sizeof sums.rows[0]);
        _tile_stored(3, &sums.rows[16][16], sizeof sums.rows[0]);
    }
}

#endif

// The same by dot products of pairs, eight rows at a time.
inline void multiply_pairs(Inputs x, int64_t rows, int64_t depth, const bfloat16* weights,
                           Sums& sums) {
    constexpr int64_t HEIGHT = 8;
    for (int64_t row = 0; row < rows; row += HEIGHT) {
        Floats totals[HEIGHT][2] = {};
        const bfloat16* pair = weights;
        for (int64_t k = 0; k < depth; k += BLOCK, pair += BLOCK * BLOCK / 2)
            for (const bfloat16* from = x.at(row, k); from < x.at(row, k) + BLOCK;
                 from += 2, pair += BLOCK) {
                const __m512bh left = (__m512bh)_mm512_loadu_si512(pair);
                const __m512bh right = (__m512bh)_mm512_loadu_si512(pair + BLOCK * BLOCK / 2);
                for (int64_t i = 0; i < HEIGHT; ++i) {
                    int32_t two;
                    __builtin_memcpy(&two, from + i * BLOCK, sizeof two);
                    const __m512bh inputs = (__m512bh)_mm512_set1_epi32(two);
                    totals[i][0] = _mm512_dpbf16_ps(totals[i][0], inputs, left);
                    totals[i][1] = _mm512_dpbf16_ps(totals[i][1], inputs, right);
                }
            }
        for (int64_t i = 0; i < HEIGHT; ++i) {
            write(&sums.rows[row + i][0], totals[i][0]);
            write(&sums.rows[row + i][16], totals[i][1]);
        }
    }
}

// Blocks as they come out of a product, each finished while the next one is multiplied.
template <class Finish>
class Blocks {
   public:
    explicit Blocks(Finish finish) : finish_(finish) {}

    // Where the sums of a block are to go.
    Sums& begin() { return sums_[turn_]; }

    // What these sums are: so many rows from ``row`` on, 32 outputs from ``output`` on.
    void end(int64_t row, int64_t count, int64_t output, const float* bias) {
        finish(BLOCK);
        row_ = row;
        next_ = 0;
        count_ = count;
        output_ = output;
        low_ = read(bias + output);
        high_ = read(bias + output + LANES);
        turn_ ^= 1;
    }

    // Finish so many more rows of the last block.
    void finish(int64_t most) {
        const int64_t begin = next_, end = begin + most < count_ ? begin + most : count_;
        const Sums& sums = sums_[turn_ ^ 1];
        const Finish finish = finish_;
        const Floats low = low_, high = high_;
        for (int64_t row = begin; row < end; ++row)
            finish(row_ + row, output_, read(&sums.rows[row][0]) + low,
                   read(&sums.rows[row][16]) + high);
        next_ = end;
    }

   private:
    Finish finish_;
    Sums sums_[2];
    int64_t turn_ = 0, row_ = 0, next_ = 0, count_ = 0, output_ = 0;
    Floats low_, high_;
};

// Multiply rows by a map, and have ``finish(row, output, low, high)`` take 32 outputs at a time,
// from ``output`` on, bias added. Whole blocks of rows are read, so ``x`` must have them.
template <class Finish>
void product(Inputs x, int64_t rows, const Linear& linear, bool tiles, Finish finish) {
    if (rows == 0) return;
    // Tiles are loaded from memory that compilers do not know to be read.
    __asm__ volatile("" ::: "memory");
#ifdef __AMX_BF16__
    const int64_t steps = linear.inputs / BLOCK, at_once = (BLOCK + steps - 1) / steps;
    const int64_t heights = padded(rows) / BLOCK, lines = (BLOCK + heights - 1) / heights;
    if (tiles) {
        // Static, since compilers take no more than its first bytes for used here.
        static constexpr TileShape shape;
        _tile_loadconfig(&shape);
    }
#endif
    Blocks<Finish> blocks(finish);
    for (int64_t output = 0; output < linear.outputs; output += BLOCK) {
        const bfloat16* weights = linear.weight + output * linear.inputs;
        // Weights come from afar: those of the next panel, or of the next map, are sent for in time.
        [[maybe_unused]] const bfloat16* ahead = weights + BLOCK * linear.inputs;
        for (int64_t row = 0; row < rows; row += BLOCK) {
            const int64_t count = rows - row < BLOCK ? rows - row : BLOCK;
#ifdef __AMX_BF16__
            if (tiles)
                multiply_tiles(x.from(row), count, linear.inputs, weights, blocks.begin(), [&] {
                    for (int64_t line = 0; line < lines; ++line, ahead += BLOCK)
                        _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
                    blocks.finish(at_once);
                });
            else
#endif
                multiply_pairs(x.from(row), count, linear.inputs, weights, blocks.begin());
            blocks.end(row, count, output, linear.bias);
        }
    }
    blocks.finish(BLOCK);
#ifdef __AMX_BF16__
    if (tiles) _tile_release();
#endif
}
