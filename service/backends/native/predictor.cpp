// The predictor of a LeWM in bfloat16, for processors that multiply in it (AVX-512 BF16, AMX).
//
// A window is extended by new tokens in one call: products that are finished while their sums are
// in the nearest cache, and between them one pass for the norms and one for the attention. The
// residual stream, norms, softmax and gates are float32.
//
// Axes: R rows (candidates), n new tokens, m tokens before them, W width, I heads * head width. All
// matrices lie in panels; rows of tokens lie token by token.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "product.h"

namespace {

struct Block {
    Linear key_value, query, out, first, second;
    float epsilons[4];
};

struct Model {
    const Block* blocks;
    int64_t layers, width, heads, head_width;
    Linear head_first, head_second;
    float epsilon;
    int32_t tiles;
};

// A token whose keys and values are known: (R, 2 I) of each layer, keys before values, in panels
// of ``rows`` rows.
struct Token {
    const bfloat16* values;
    int64_t rows, layer_stride;
};

// What time is spent on, in ticks of the processor's clock, over all threads.
enum Kind { PRODUCTS, NORMS, ATTENTION, KINDS };
std::atomic<int64_t> ticks[KINDS];

class Timed {
   public:
    explicit Timed(Kind kind) : kind_(kind), begin_(__rdtsc()) {}
    ~Timed() { ticks[kind_].fetch_add(__rdtsc() - begin_, std::memory_order_relaxed); }

   private:
    const Kind kind_;
    const int64_t begin_;
};

// Memory of a thread's own that lasts from call to call.
class Memory {
   public:
    Panels<bfloat16> of(int64_t rows, int64_t columns) {
        // Products read whole blocks, from any row on.
        const int64_t whole = padded(rows) + BLOCK;
        const size_t size = whole * padded(columns) + BLOCK;
        if (memory_.size() < size) memory_.assign(size, 0);
        const auto begin = reinterpret_cast<uintptr_t>(memory_.data());
        return {reinterpret_cast<bfloat16*>(padded(begin / 2) * 2), whole};
    }

   private:
    std::vector<bfloat16> memory_;
};

struct Moments {
    Floats mean, factor;
};

Moments moments(const float* x, int64_t width, float epsilon) {
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
void norm(Panels<const float> x, int64_t rows, int64_t width, const float* epsilons,
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
void attend(Inputs query, const std::vector<Inputs>& window, int64_t first, int64_t rows,
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
auto store(Panels<bfloat16> out) {
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

auto add_gated(Panels<float> x, int64_t width, Inputs modulations, int64_t gate) {
    return [=](int64_t row, int64_t output, Floats low, Floats high) {
        float* sums = x.at(row, output);
        write(sums, read(sums) + read(modulations.at(row, gate + output)) * low);
        output += LANES;
        if (output < width)
            write(sums + LANES,
                  read(sums + LANES) + read(modulations.at(row, gate + output)) * high);
    };
}

Inputs constant(Panels<bfloat16> panels) { return {panels.values, panels.rows}; }

}  // namespace

extern "C" {

// Whether the tile registers are there and may be used.
int32_t tiles_available() { return has_tiles; }

// The clock, and in ``spent`` what products with what finishes them, norms and attention took of it.
int64_t read_ticks(int64_t* spent) {
    std::copy(ticks, ticks + KINDS, spent);
    return __rdtsc();
}

// What actions do to each layer: x (rows, inputs), a linear map, SiLU, and each layer's map
// -> (layers, rows, 6 W).
void modulate(const Linear* condition, const Linear* layers, int64_t count, int32_t tiles,
              const bfloat16* x, int64_t x_rows, int64_t rows, bfloat16* out) {
    static thread_local Memory memory;
    const Panels<bfloat16> active = memory.of(rows, condition->outputs);
    timed_product({x, x_rows}, rows, *condition, tiles, store<silu>(active));
    for (int64_t layer = 0; layer < count; ++layer) {
        timed_product(constant(active), rows, layers[layer], tiles, store(Panels<bfloat16>{out, rows}));
        out += rows * layers[layer].outputs;
    }
}

// Put tokens x (n R, W), which are used up, behind a window of ``before`` tokens.
//
// ``modulations`` (layers, T R, 6 W) hold those of the tokens from row ``step`` on. ``own`` (layers,
// n R, 2 I) takes the tokens' keys and values, unless it is null; ``latents`` (R, D) the latent after
// the last one.
void extend(const Model* model, const Token* window, int64_t before, float* values, int64_t rows,
            int64_t count, const bfloat16* modulations, int64_t modulation_rows, int64_t step,
            bfloat16* own, float* latents) {
    static thread_local Memory normed_memory, key_value_memory, query_memory, answer_memory,
        hidden_memory;
    const int64_t width = model->width, inner = model->heads * model->head_width;
    const bool tiles = model->tiles;
    Panels<float> x{values, count * rows};
    const Panels<bfloat16> normed = normed_memory.of(count * rows, width);
    const Panels<bfloat16> query = query_memory.of(count * rows, inner);
    const Panels<bfloat16> answer = answer_memory.of(count * rows, inner);
    std::vector<Inputs> tokens(before + count);
    int64_t first = before, asking = count;

    for (int64_t layer = 0; layer < model->layers; ++layer) {
        const Block& block = model->blocks[layer];
        Inputs own_modulations =
            Inputs{modulations + layer * modulation_rows * 6 * width, modulation_rows}.from(step);
        norm({x.values, x.rows}, count * rows, width, block.epsilons, &own_modulations, 0, normed);
        Panels<bfloat16> key_value{own + layer * count * rows * 2 * inner, count * rows};
        if (own == nullptr) key_value = key_value_memory.of(count * rows, 2 * inner);
        timed_product(constant(normed), count * rows, block.key_value, tiles, store(key_value));
        for (int64_t token = 0; token < before; ++token)
            tokens[token] = {window[token].values + layer * window[token].layer_stride,
                             window[token].rows};
        for (int64_t token = 0; token < count; ++token)
            tokens[before + token] = constant(key_value).from(token * rows);

        Inputs asked = constant(normed);
        if (layer == model->layers - 1) {
            // Of the last layer only the last token's answer is wanted.
            const int64_t passed = (count - 1) * rows;
            x = x.from(passed);
            own_modulations = own_modulations.from(passed);
            asked = asked.from(passed);
            first = before + count - 1;
            asking = 1;
        }
        // A window's first token asks nothing.
        const int64_t silent = first == 0;
        timed_product(asked.from(silent * rows), (asking - silent) * rows, block.query, tiles,
                store(query));
        attend(constant(query), tokens, first, rows, model->heads, model->head_width, answer);
        timed_product(constant(answer), asking * rows, block.out, tiles,
                add_gated(x, width, own_modulations, 2 * width));
        norm({x.values, x.rows}, asking * rows, width, block.epsilons + 2, &own_modulations,
             3 * width, normed);
        const Panels<bfloat16> hidden = hidden_memory.of(asking * rows, block.first.outputs);
        timed_product(constant(normed), asking * rows, block.first, tiles, store<gelu>(hidden));
        timed_product(constant(hidden), asking * rows, block.second, tiles,
                add_gated(x, width, own_modulations, 5 * width));
    }

    norm({x.values, x.rows}, rows, width, &model->epsilon, nullptr, 0, normed);
    const Linear &first_map = model->head_first, &second_map = model->head_second;
    const Panels<bfloat16> hidden = hidden_memory.of(rows, first_map.outputs);
    timed_product(constant(normed), rows, first_map, tiles, store<gelu>(hidden));
    timed_product(constant(hidden), rows, second_map, tiles,
            [=](int64_t row, int64_t output, Floats low, Floats high) {
                write(latents + row * second_map.outputs + output, low);
                write(latents + row * second_map.outputs + output + LANES, high);
            });
}

}  // extern "C"
