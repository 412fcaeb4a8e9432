// The parts of a predictor layer besides its products: layer norms, attention, small maps, and what
// is done with the results of a product.
//
// Rows are candidates; the rows of several tokens lie token by token. Widths are those of the
// model.

#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "product.h"

// Ticks of the processor's clock that each kind of work took, summed over all threads.
enum WorkKind { PRODUCTS, NORMS, ATTENTION, WORK_KINDS };
inline std::atomic<int64_t> work_ticks[WORK_KINDS];

// Adds the ticks from its construction to its destruction to a kind of work.
class WorkTimer {
   public:
    explicit WorkTimer(WorkKind kind) : kind_(kind), begin_(__rdtsc()) {}
    ~WorkTimer() { work_ticks[kind_].fetch_add(__rdtsc() - begin_, std::memory_order_relaxed); }

   private:
    const WorkKind kind_;
    const int64_t begin_;
};

// Memory that is kept from call to call. Each thread has its own.
template <class T>
class Scratch {
   public:
    // At least ``size`` values, aligned to a cache line.
    T* values(int64_t size) {
        if (memory_.size() < static_cast<size_t>(size + BLOCK)) memory_.assign(size + BLOCK, 0);
        const auto begin = reinterpret_cast<uintptr_t>(memory_.data());
        return reinterpret_cast<T*>((begin + 63) / 64 * 64);
    }

    // A matrix with room for products, which read whole blocks from any row on.
    Panels<T> panels(int64_t rows, int64_t columns) {
        const int64_t padded_rows = padded(rows) + BLOCK;
        return {values(padded_rows * padded(columns)), padded_rows};
    }

   private:
    std::vector<T> memory_;
};

// A small linear map in float32.
struct FloatMap {
    const float* weight;      // (inputs, outputs)
    const float* bias;        // (outputs,)
    int64_t inputs, outputs;  // outputs are a multiple of 32

    void operator()(const float* x, float* out) const {
        for (int64_t output = 0; output < outputs; output += LANES) {
            Floats total = load(bias + output);
            for (int64_t i = 0; i < inputs; ++i)
                total += x[i] * load(weight + i * outputs + output);
            store(out + output, total);
        }
    }
};

// What a layer norm subtracts and multiplies by, repeated in all lanes.
struct Moments {
    Floats mean, inverse_std;
};

inline Moments moments(const float* x, int64_t width, float epsilon) {
    Floats total = _mm512_setzero_ps(), squares = total;
    for (int64_t i = 0; i < width; i += LANES) total += load(x + i);
    const float mean = sum(total) / width;
    for (int64_t i = 0; i < width; i += LANES) {
        const Floats difference = load(x + i) - mean;
        squares += difference * difference;
    }
    const float variance = sum(squares) / width;
    return {_mm512_set1_ps(mean), _mm512_set1_ps(1 / __builtin_sqrtf(variance + epsilon))};
}

// Layer norms without affine parts, x (rows, width) -> out (rows, width): norm(x), or where there
// are modulations norm(norm(x) * (1 + scale) + shift). Shift and scale are the columns of
// ``modulations`` from ``shift_column`` on, ``width`` columns each.
inline void layer_norms(Panels<const float> x, int64_t rows, int64_t width, const float* epsilons,
                        const ConstPanels* modulations, int64_t shift_column,
                        Panels<bfloat16> out) {
    constexpr int64_t MAX_WIDTH = 4096;
    const WorkTimer timer(NORMS);
    alignas(64) float values[MAX_WIDTH];
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < width; i += LANES) store(values + i, load(x.at(row, i)));
        Moments current = moments(values, width, epsilons[0]);
        if (modulations) {
            const int64_t scale_column = shift_column + width;
            for (int64_t i = 0; i < width; i += LANES) {
                const Floats normed = (load(values + i) - current.mean) * current.inverse_std;
                store(values + i, normed * (1.0f + load(modulations->at(row, scale_column + i))) +
                                      load(modulations->at(row, shift_column + i)));
            }
            current = moments(values, width, epsilons[1]);
        }
        for (int64_t i = 0; i < width; i += LANES)
            store(out.at(row, i), (load(values + i) - current.mean) * current.inverse_std);
        if (width % BLOCK) store(out.at(row, width), _mm512_setzero_ps());
    }
}

// A layer norm with its affine part, and an activation of it, x (rows, width) -> out (rows, width).
template <Floats (*activation)(Floats)>
void norm_and_activate(Panels<const float> x, int64_t rows, int64_t width, const float* scale,
                       const float* offset, float epsilon, Panels<bfloat16> out) {
    constexpr int64_t MAX_WIDTH = 4096;
    const WorkTimer timer(NORMS);
    alignas(64) float values[MAX_WIDTH];
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < width; i += LANES) store(values + i, load(x.at(row, i)));
        const Moments current = moments(values, width, epsilon);
        for (int64_t i = 0; i < width; i += LANES) {
            const Floats normed = (load(values + i) - current.mean) * current.inverse_std;
            store(out.at(row, i), activation(normed * load(scale + i) + load(offset + i)));
        }
        if (width % BLOCK) store(out.at(row, width), _mm512_setzero_ps());
    }
}

// Causal attention of the tokens from ``first`` to the last one of a window -> out (n rows, inner),
// where inner = heads * head_width.
//
// Queries (n rows, inner) are scaled already. If ``first`` is 0, they begin with the second token:
// the first token attends only to itself, so its output is its value. Each token of the window
// holds keys and values (rows, 2 inner).
inline void attention(ConstPanels queries, const std::vector<ConstPanels>& window, int64_t first,
                      int64_t rows, int64_t heads, int64_t head_width, Panels<bfloat16> out) {
    const WorkTimer timer(ATTENTION);
    const int64_t end = window.size(), inner = heads * head_width;
    constexpr int64_t MAX_TOKENS = 16;
    // Scores, then their softmax, of up to 16 rows.
    alignas(64) float weights[MAX_TOKENS][LANES] = {};
    for (int64_t token = first; token < end; ++token, out = out.from(rows)) {
        if (token == 0) {
            for (int64_t i = 0; i < inner; i += LANES)
                for (int64_t row = 0; row < rows; ++row)
                    store(out.at(row, i), load(window[0].at(row, inner + i)));
            continue;
        }
        for (int64_t head = 0; head < inner; head += head_width)
            for (int64_t row = 0; row < rows; row += LANES) {
                const int64_t count = std::min(LANES, rows - row);
                for (int64_t seen = 0; seen <= token; ++seen)
                    for (int64_t i = 0; i < count; ++i) {
                        Floats score = _mm512_setzero_ps();
                        for (int64_t column = head; column < head + head_width; column += LANES)
                            score += load(queries.at(row + i, column)) *
                                     load(window[seen].at(row + i, column));
                        weights[seen][i] = sum(score);
                    }
                Floats highest = load(weights[0]), total = _mm512_setzero_ps();
                for (int64_t seen = 1; seen <= token; ++seen)
                    highest = _mm512_max_ps(highest, load(weights[seen]));
                for (int64_t seen = 0; seen <= token; ++seen) {
                    const Floats weight = exponential(load(weights[seen]) - highest);
                    store(weights[seen], weight);
                    total += weight;
                }
                for (int64_t seen = 0; seen <= token; ++seen)
                    store(weights[seen], load(weights[seen]) / total);
                for (int64_t i = 0; i < count; ++i)
                    for (int64_t column = head; column < head + head_width; column += LANES) {
                        Floats value = _mm512_setzero_ps();
                        for (int64_t seen = 0; seen <= token; ++seen)
                            value +=
                                weights[seen][i] * load(window[seen].at(row + i, inner + column));
                        store(out.at(row + i, column), value);
                    }
            }
        queries = queries.from(rows);
    }
}

template <class Finish>
void timed_product(ConstPanels x, int64_t rows, const LinearMap& map, bool use_tiles,
                   Finish finish) {
    const WorkTimer timer(PRODUCTS);
    product(x, rows, map, use_tiles, finish);
}

// The following functions make the ``finish`` of a product.

// Stores the results.
inline auto store_in(Panels<bfloat16> out) {
    return [=](int64_t row, int64_t output, Floats low, Floats high) {
        store(out.at(row, output), low);
        store(out.at(row, output) + LANES, high);
    };
}

// Stores an activation function of the results.
template <Floats (*activation)(Floats)>
auto store_in(Panels<bfloat16> out) {
    return [=](int64_t row, int64_t output, Floats low, Floats high) {
        store(out.at(row, output), activation(low));
        store(out.at(row, output) + LANES, activation(high));
    };
}

// Stores the results as float32, in rows that are ``stride`` values apart.
inline auto store_rows(float* out, int64_t stride) {
    return [=](int64_t row, int64_t output, Floats low, Floats high) {
        store(out + row * stride + output, low);
        store(out + row * stride + output + LANES, high);
    };
}

// Stores the results as float32.
inline auto store_in(Panels<float> out) {
    return [=](int64_t row, int64_t output, Floats low, Floats high) {
        store(out.at(row, output), low);
        store(out.at(row, output) + LANES, high);
    };
}

// Adds gate * result to the residual stream ``x`` (rows, width). The gate is the columns of
// ``modulations`` from ``gate_column`` on.
inline auto add_gated(Panels<float> x, int64_t width, ConstPanels modulations,
                      int64_t gate_column) {
    return [=](int64_t row, int64_t output, Floats low, Floats high) {
        float* residual = x.at(row, output);
        store(residual, load(residual) + load(modulations.at(row, gate_column + output)) * low);
        output += LANES;
        if (output < width)
            store(residual + LANES,
                  load(residual + LANES) + load(modulations.at(row, gate_column + output)) * high);
    };
}

// Adds the products of an activation function of the results with weights (outputs,) to totals
// (rows, 16), whose lanes are summed afterwards.
template <Floats (*activation)(Floats)>
auto add_weighted(float* totals, const float* weights) {
    return [=](int64_t row, int64_t output, Floats low, Floats high) {
        float* total = totals + row * LANES;
        store(total, load(total) + activation(low) * load(weights + output) +
                         activation(high) * load(weights + output + LANES));
    };
}

inline ConstPanels constant(Panels<bfloat16> panels) { return {panels.values, panels.rows}; }
