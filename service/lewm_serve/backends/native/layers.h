// What a layer does besides its products: norms, attention, and what becomes of a product's sums.

#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "product.h"

// What time is spent on, in ticks of the processor's clock, over all threads.
enum Kind { PRODUCTS, NORMS, ATTENTION, KINDS };
inline std::atomic<int64_t> ticks[KINDS];

class Timed {
   public:
    explicit Timed(Kind kind) : kind_(kind), begin_(__rdtsc()) {}
    ~Timed() { ticks[kind_].fetch_add(__rdtsc() - begin_, std::memory_order_relaxed); }

   private:
    const Kind kind_;
    const int64_t begin_;
};

// Memory that lasts from call to call; a thread has its own.
template <class T>
class Memory {
   public:
    T* of(int64_t size) {
        if (memory_.size() < static_cast<size_t>(size + BLOCK)) memory_.assign(size + BLOCK, 0);
        const auto begin = reinterpret_cast<uintptr_t>(memory_.data());
        return reinterpret_cast<T*>((begin + 63) / 64 * 64);
    }

    // With room for products, which read whole blocks, from any row on.
    Panels<T> panels(int64_t rows, int64_t columns) {
        const int64_t whole = padded(rows) + BLOCK;
        return {of(whole * padded(columns)), whole};
    }

   private:
    std::vector<T> memory_;
};

struct Moments {
    Floats mean, factor;
};

inline Moments moments(const float* x, int64_t width, float epsilon) {
    Floats total = _mm512_setzero_ps(), squares = total;
    for (int64_t i = 0; i < width; i += LANES) total += read(x + i);
    const float mean = sum(total) / width;
    for (int64_t i = 0; i < width; i += LANES) {
        const Floats away = read(x + i) - mean;
        squares += away * away;
    }
    const float variance = sum(squares) / width;
    return {_mm512_set1_ps(mean), _mm512_set1_ps(1 / __builtin_sqrtf(variance + epsilon))};
}

// LayerNorms without their affine parts: norm(x), or norm(norm(x) * (1 + scale) + shift) where
// there are modulations, in which shift and scale are columns from ``shift`` and behind it on.
inline void norm(Panels<const float> x, int64_t rows, int64_t width, const float* epsilons,
          const Inputs* modulations, int64_t shift, Panels<bfloat16> out) {
    constexpr int64_t MOST_WIDTH = 4096;
    const Timed timed(NORMS);
    alignas(64) float row_values[MOST_WIDTH];
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < width; i += LANES) write(row_values + i, read(x.at(row, i)));
        Moments own = moments(row_values, width, epsilons[0]);
        if (modulations) {
            const int64_t scale = shift + width;
            for (int64_t i = 0; i < width; i += LANES) {
                const Floats normed = (read(row_values + i) - own.mean) * own.factor;
                write(row_values + i, normed * (1.0f + read(modulations->at(row, scale + i))) +
                                          read(modulations->at(row, shift + i)));
            }
            own = moments(row_values, width, epsilons[1]);
        }
        for (int64_t i = 0; i < width; i += LANES)
            write(out.at(row, i), (read(row_values + i) - own.mean) * own.factor);
        if (width % BLOCK) write(out.at(row, width), _mm512_setzero_ps());
    }
}

// Causal attention of the tokens from ``first`` to the window's last: queries (n R, I), or without
// those of the window's first token, which sees itself alone -> answers (n R, I).
inline void attend(Inputs query, const std::vector<Inputs>& window, int64_t first, int64_t rows,
            int64_t heads, int64_t width, Panels<bfloat16> out) {
    const Timed timed(ATTENTION);
    const int64_t end = window.size(), inner = heads * width;
    constexpr int64_t MOST_TOKENS = 16;
    alignas(64) float shares[MOST_TOKENS][LANES] = {};
    for (int64_t token = first; token < end; ++token, out = out.from(rows)) {
        if (token == 0) {
            for (int64_t i = 0; i < inner; i += LANES)
                for (int64_t row = 0; row < rows; ++row)
                    write(out.at(row, i), read(window[0].at(row, inner + i)));
            continue;
        }
        for (int64_t begin = 0; begin < inner; begin += width)
            for (int64_t row = 0; row < rows; row += LANES) {
                const int64_t count = std::min(LANES, rows - row);
                for (int64_t seen = 0; seen <= token; ++seen)
                    for (int64_t i = 0; i < count; ++i) {
                        Floats score = _mm512_setzero_ps();
                        for (int64_t at = begin; at < begin + width; at += LANES)
                            score += read(query.at(row + i, at)) *
                                     read(window[seen].at(row + i, at));
                        shares[seen][i] = sum(score);
                    }
                Floats highest = read(shares[0]), total = _mm512_setzero_ps();
                for (int64_t seen = 1; seen <= token; ++seen)
                    highest = _mm512_max_ps(highest, read(shares[seen]));
                for (int64_t seen = 0; seen <= token; ++seen) {
                    const Floats share = exponential(read(shares[seen]) - highest);
                    write(shares[seen], share);
                    total += share;
                }
                for (int64_t seen = 0; seen <= token; ++seen)
                    write(shares[seen], read(shares[seen]) / total);
                for (int64_t i = 0; i < count; ++i)
                    for (int64_t at = begin; at < begin + width; at += LANES) {
                        Floats answer = _mm512_setzero_ps();
                        for (int64_t seen = 0; seen <= token; ++seen)
                            answer +=
                                shares[seen][i] * read(window[seen].at(row + i, inner + at));
                        write(out.at(row + i, at), answer);
                    }
            }
        query = query.from(rows);
    }
}

template <class Finish>
void timed_product(Inputs x, int64_t rows, const Linear& linear, bool tiles, Finish finish) {
    const Timed timed(PRODUCTS);
    product(x, rows, linear, tiles, finish);
}

// What becomes of a product's sums.
inline auto store(Panels<bfloat16> out) {
    return [=](int64_t row, int64_t output, Floats low, Floats high) {
        write(out.at(row, output), low);
        write(out.at(row, output) + LANES, high);
    };
}

template <Floats (*function)(Floats)>
auto store(Panels<bfloat16> out) {
    return [=](int64_t row, int64_t output, Floats low, Floats high) {
        write(out.at(row, output), function(low));
        write(out.at(row, output) + LANES, function(high));
    };
}

inline auto add_gated(Panels<float> x, int64_t width, Inputs modulations, int64_t gate) {
    return [=](int64_t row, int64_t output, Floats low, Floats high) {
        float* sums = x.at(row, output);
        write(sums, read(sums) + read(modulations.at(row, gate + output)) * low);
        output += LANES;
        if (output < width)
            write(sums + LANES,
                  read(sums + LANES) + read(modulations.at(row, gate + output)) * high);
    };
}

inline Inputs constant(Panels<bfloat16> panels) { return {panels.values, panels.rows}; }
