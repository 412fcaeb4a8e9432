// The predictor of a LeWM in bfloat16, for processors that multiply in it (AVX-512 BF16, AMX).
//
// Candidates are rolled out in one call: products that are finished while their sums are in the
// nearest cache, and between them one pass for the norms and one for the attention. The residual
// stream, norms, softmax, gates, and all that is made of actions and latents before they are
// multiplied, are float32.
//
// Axes: R rows (candidates), T steps, A one action block, D latent, n new tokens, m tokens before
// them, W width, I heads * head width. Rows of tokens lie token by token.

#include "layers.h"

namespace {

// A small linear map in float32.
struct Exact {
    const float* weight;  // (inputs, outputs)
    const float* bias;
    int64_t inputs, outputs;  // outputs a multiple of 32

    void operator()(const float* x, float* out) const {
        for (int64_t output = 0; output < outputs; output += LANES) {
            Floats sum = read(bias + output);
            for (int64_t i = 0; i < inputs; ++i)
                sum += x[i] * read(weight + i * outputs + output);
            write(out + output, sum);
        }
    }
};

struct Block {
    Linear key_value, query, out, first, second;
    float epsilons[4];
};

struct Model {
    const Block* blocks;
    const Linear* modulations;  // of each layer
    const float* positions;     // (history, D)
    int64_t layers, history, latent, width, heads, head_width;
    Exact smooth, input;  // no input map where a latent is as wide as a token
    Linear condition, head_first, head_second;
    float epsilon;
    int32_t tiles;

    int64_t inner() const { return heads * head_width; }
};

// A token whose keys and values are known: (R, 2 I) of each layer, keys before values, in panels
// of ``rows`` rows.
struct Token {
    const bfloat16* values;
    int64_t rows, layer_stride;
};

using Window = std::vector<Token>;

// Latents (R, D), so far apart.
struct Latents {
    const float* values;
    int64_t stride;
};

// What actions (T, R, A) do to each layer -> (layers, T R, 6 W), in panels. Steps and rows are so
// far apart.
void modulate(const Model& model, const float* actions, int64_t steps, int64_t rows,
              int64_t step_stride, int64_t row_stride, bfloat16* out) {
    static thread_local Memory<bfloat16> smoothed_memory, condition_memory;
    static thread_local Memory<float> row_memory;
    const int64_t count = steps * rows;
    const Panels<bfloat16> smoothed = smoothed_memory.panels(count, model.smooth.outputs);
    const Panels<bfloat16> condition = condition_memory.panels(count, model.condition.outputs);
    float* values = row_memory.of(model.smooth.outputs);
    for (int64_t step = 0; step < steps; ++step)
        for (int64_t row = 0; row < rows; ++row) {
            model.smooth(actions + step * step_stride + row * row_stride, values);
            for (int64_t i = 0; i < model.smooth.outputs; i += LANES)
                write(smoothed.at(step * rows + row, i), silu(read(values + i)));
        }
    timed_product(constant(smoothed), count, model.condition, model.tiles,
                  store<silu>(condition));
    for (int64_t layer = 0; layer < model.layers; ++layer) {
        const Linear& map = model.modulations[layer];
        timed_product(constant(condition), count, map, model.tiles,
                      store(Panels<bfloat16>{out, count}));
        out += count * map.outputs;
    }
}

// Latents of consecutive steps as tokens behind ``before`` others -> (n R, W), in panels.
Panels<float> tokens_of(const Model& model, const std::vector<Latents>& latents, int64_t rows,
                        int64_t before) {
    static thread_local Memory<float> token_memory, row_memory;
    const int64_t count = latents.size();
    const Panels<float> x = token_memory.panels(count * rows, model.width);
    float* placed = row_memory.of(padded(model.latent) + padded(model.width));
    float* projected = model.input.weight ? placed + padded(model.latent) : placed;
    for (int64_t token = 0; token < count; ++token) {
        const float* position = model.positions + (before + token) * model.latent;
        for (int64_t row = 0; row < rows; ++row) {
            const float* latent = latents[token].values + row * latents[token].stride;
            for (int64_t i = 0; i < model.latent; ++i) placed[i] = latent[i] + position[i];
            if (model.input.weight) model.input(placed, projected);
            for (int64_t i = 0; i < model.width; i += LANES)
                write(x.at(token * rows + row, i), read(projected + i));
        }
    }
    return x;
}

// Put latents of consecutive steps behind a window, and predict the one after the last -> (R, D),
// ``head_second.outputs`` apart.
//
// ``modulations`` (layers, T R, 6 W) hold those of the tokens from ``row`` on. ``own`` (layers, n R,
// 2 I) takes the tokens' keys and values, unless it is null.
void extend(const Model& model, const Window& window, const std::vector<Latents>& latents,
            int64_t rows, const bfloat16* modulations, int64_t modulation_rows, int64_t row,
            bfloat16* own, float* predicted) {
    static thread_local Memory<bfloat16> normed_memory, key_value_memory, query_memory,
        answer_memory, hidden_memory;
    const int64_t before = window.size(), count = latents.size();
    const int64_t width = model.width, inner = model.inner();
    const bool tiles = model.tiles;
    Panels<float> x = tokens_of(model, latents, rows, before);
    const Panels<bfloat16> normed = normed_memory.panels(count * rows, width);
    const Panels<bfloat16> query = query_memory.panels(count * rows, inner);
    const Panels<bfloat16> answer = answer_memory.panels(count * rows, inner);
    std::vector<Inputs> tokens(before + count);
    int64_t first = before, asking = count;

    for (int64_t layer = 0; layer < model.layers; ++layer) {
        const Block& block = model.blocks[layer];
        Inputs own_modulations =
            Inputs{modulations + layer * modulation_rows * 6 * width, modulation_rows}.from(row);
        norm({x.values, x.rows}, count * rows, width, block.epsilons, &own_modulations, 0, normed);
        const Panels<bfloat16> key_value =
            own ? Panels<bfloat16>{own + layer * count * rows * 2 * inner, count * rows}
                : key_value_memory.panels(count * rows, 2 * inner);
        timed_product(constant(normed), count * rows, block.key_value, tiles, store(key_value));
        for (int64_t token = 0; token < before; ++token)
            tokens[token] = {window[token].values + layer * window[token].layer_stride,
                             window[token].rows};
        for (int64_t token = 0; token < count; ++token)
            tokens[before + token] = constant(key_value).from(token * rows);

        Inputs asked = constant(normed);
        if (layer == model.layers - 1) {
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
        attend(constant(query), tokens, first, rows, model.heads, model.head_width, answer);
        timed_product(constant(answer), asking * rows, block.out, tiles,
                      add_gated(x, width, own_modulations, 2 * width));
        norm({x.values, x.rows}, asking * rows, width, block.epsilons + 2, &own_modulations,
             3 * width, normed);
        const Panels<bfloat16> hidden = hidden_memory.panels(asking * rows, block.first.outputs);
        timed_product(constant(normed), asking * rows, block.first, tiles, store<gelu>(hidden));
        timed_product(constant(hidden), asking * rows, block.second, tiles,
                      add_gated(x, width, own_modulations, 5 * width));
    }

    norm({x.values, x.rows}, rows, width, &model.epsilon, nullptr, 0, normed);
    const Linear &first_map = model.head_first, &second_map = model.head_second;
    const Panels<bfloat16> hidden = hidden_memory.panels(rows, first_map.outputs);
    timed_product(constant(normed), rows, first_map, tiles, store<gelu>(hidden));
    timed_product(constant(hidden), rows, second_map, tiles,
                  [=](int64_t row, int64_t output, Floats low, Floats high) {
                      write(predicted + row * second_map.outputs + output, low);
                      write(predicted + row * second_map.outputs + output + LANES, high);
                  });
}

}  // namespace

extern "C" {

// Whether the tile registers are there and may be used.
int32_t tiles_available() { return has_tiles; }

// The clock, and in ``spent`` what products with what finishes them, norms and attention took of it.
int64_t read_ticks(int64_t* spent) {
    std::copy(ticks, ticks + KINDS, spent);
    return __rdtsc();
}

// Begin windows with latents (n, R, D) and actions (n, R, A) -> their keys and values (layers, n R,
// 2 I), and the latent after the last one (R, D).
void begin(const Model* model, const float* latents, const float* actions, int64_t count,
           int64_t rows, bfloat16* own, float* predicted) {
    static thread_local Memory<bfloat16> modulation_memory;
    const int64_t width = model->width, each = rows * model->latent;
    bfloat16* modulations = modulation_memory.of(model->layers * count * rows * 6 * width);
    const int64_t actions_each = model->smooth.inputs;
    modulate(*model, actions, count, rows, rows * actions_each, actions_each, modulations);
    std::vector<Latents> given;
    for (int64_t token = 0; token < count; ++token)
        given.push_back({latents + token * each, model->latent});
    extend(*model, {}, given, rows, modulations, count * rows, 0, own, predicted);
}

// Roll out from the newest latents (R, D), after ``context`` - 1 others, by actions (T, R, A)
// -> predicted latents (T, R, D), ``head_second.outputs`` apart.
//
// ``shared`` holds one window after the other, of the frames before the newest: the first begins
// at the oldest frame and has ``context`` - 1 tokens, each further one begins a frame later.
void roll(const Model* model, const Token* shared, int64_t context, const float* latest,
          const float* actions, int64_t steps, int64_t rows, int64_t step_stride,
          int64_t row_stride, float* predicted) {
    static thread_local Memory<bfloat16> modulation_memory;
    static thread_local std::vector<Memory<bfloat16>> own_memory;
    const int64_t width = model->width, stride = model->head_second.outputs;
    const int64_t keys_values = rows * 2 * model->inner();
    bfloat16* modulations = modulation_memory.of(model->layers * steps * rows * 6 * width);
    modulate(*model, actions, steps, rows, step_stride, row_stride, modulations);
    own_memory.resize(std::max<size_t>(own_memory.size(), model->history));
    std::vector<Latents> latents{{latest, model->latent}};
    Window window(shared, shared + context - 1);
    const Token* next = shared + context - 1;
    for (int64_t step = 0; step < steps; ++step) {
        const int64_t first = std::max<int64_t>(0, context + step - model->history);
        int64_t begin = step;
        if (first > 0) {
            // Positions restart: the window is computed anew, on top of what is shared.
            const int64_t known = std::max<int64_t>(0, context - 1 - first);
            window.assign(next, next + known);
            next += known;
            begin = std::max<int64_t>(0, first - context + 1);
        }
        const std::vector<Latents> newest(latents.begin() + begin, latents.end());
        const bool grows = window.size() + newest.size() < static_cast<size_t>(model->history);
        bfloat16* own = grows ? own_memory[step].of(model->layers * keys_values) : nullptr;
        float* out = predicted + step * rows * stride;
        extend(*model, window, newest, rows, modulations, steps * rows, begin * rows, own, out);
        if (grows) window.push_back({own, rows, keys_values});
        latents.push_back({out, stride});
    }
}

}  // extern "C"
