// The predictor of a LeWM in bfloat16, for processors with AVX-512 BF16, and AMX if there is any.
//
// One call rolls all candidates out. Each product of a layer is finished (bias, activation, gated
// residual sum) while its results are in the first-level cache. Between products there is one pass
// for the layer norms and one for the attention. Inputs of products are bfloat16. The residual
// stream, norms, softmax, gates, latents and actions are float32.
//
// Axes: R rows (candidates), T steps, A one action block, D latent, n new tokens, m known tokens
// before them, W width, I = heads * head width. The rows of several tokens lie token by token.
//
// Python passes the structs named in SHARED_STRUCTS; library.py declares the same fields.

#include <cstring>

#include "distance.h"

namespace {

// The activations of pred_proj, in the order of `lewm_models.config.ACTIVATIONS`.
enum Activation { GELU, RELU, SILU };

// The maps of one predictor block; one map computes keys and values. The epsilons are those of its
// four layer norms, in the order of their use.
struct LayerMaps {
    LinearMap key_value, query, out, mlp_first, mlp_second;
    float epsilons[4];
};

struct PredictorModel {
    const LayerMaps* blocks;
    const LinearMap* modulations;  // of each layer: condition -> shift, scale, gate, twice
    const float* positions;        // (history, D)
    int64_t layers, history, latent, width, heads, head_width;
    FloatMap action_first;      // with action_second: actions -> condition
    FloatMap input_projection;  // latents -> tokens; no weights where they are equally wide
    LinearMap action_second;
    LinearMap head_first, head_second;  // head_second has no weights where there is no pred_proj
    const float* head_norm;  // scales, then offsets (head_hidden,) of a LayerNorm, or null
    int64_t head_hidden;     // the outputs of head_first without padding
    float head_norm_epsilon;
    int32_t head_activation;  // an Activation
    float epsilon;            // of the norm after the last layer
    int32_t use_tiles;

    int64_t inner() const { return heads * head_width; }
    int64_t predicted_stride() const { return padded(latent); }
};

// A token whose keys and values are known: (R, 2 I) for each layer, keys before values, in panels
// of ``rows`` rows. Layers are ``layer_stride`` values apart.
struct KnownToken {
    const bfloat16* values;
    int64_t rows, layer_stride;
};

using Window = std::vector<KnownToken>;

// Latents (R, D), ``stride`` values apart.
struct Latents {
    const float* values;
    int64_t stride;
};

// Computes the modulations of actions (T, R, A) -> out (layers, T R, 6 W), in panels. Steps and
// rows of the actions are ``step_stride`` and ``row_stride`` values apart.
void compute_modulations(const PredictorModel& model, const float* actions, int64_t steps,
                         int64_t rows, int64_t step_stride, int64_t row_stride, bfloat16* out) {
    static thread_local Scratch<bfloat16> hidden_scratch, condition_scratch;
    static thread_local Scratch<float> row_scratch;
    const int64_t count = steps * rows;
    const Panels<bfloat16> hidden = hidden_scratch.panels(count, model.action_first.outputs);
    const Panels<bfloat16> condition = condition_scratch.panels(count, model.action_second.outputs);
    float* values = row_scratch.values(model.action_first.outputs);
    for (int64_t step = 0; step < steps; ++step)
        for (int64_t row = 0; row < rows; ++row) {
            model.action_first(actions + step * step_stride + row * row_stride, values);
            for (int64_t i = 0; i < model.action_first.outputs; i += LANES)
                store(hidden.at(step * rows + row, i), silu(load(values + i)));
        }
    timed_product(constant(hidden), count, model.action_second, model.use_tiles,
                  store_in<silu>(condition));
    for (int64_t layer = 0; layer < model.layers; ++layer) {
        const LinearMap& map = model.modulations[layer];
        timed_product(constant(condition), count, map, model.use_tiles,
                      store_in(Panels<bfloat16>{out, count}));
        out += count * map.outputs;
    }
}

// Makes tokens (n R, W), in panels, of the latents of consecutive steps; ``known`` tokens come
// before them in the window.
Panels<float> make_tokens(const PredictorModel& model, const std::vector<Latents>& latents,
                          int64_t rows, int64_t known) {
    static thread_local Scratch<float> token_scratch, row_scratch;
    const int64_t count = latents.size();
    const Panels<float> x = token_scratch.panels(count * rows, model.width);
    float* positioned = row_scratch.values(padded(model.latent) + padded(model.width));
    float* projected =
        model.input_projection.weight ? positioned + padded(model.latent) : positioned;
    for (int64_t token = 0; token < count; ++token) {
        const float* position = model.positions + (known + token) * model.latent;
        for (int64_t row = 0; row < rows; ++row) {
            const float* latent = latents[token].values + row * latents[token].stride;
            for (int64_t i = 0; i < model.latent; ++i) positioned[i] = latent[i] + position[i];
            if (model.input_projection.weight) model.input_projection(positioned, projected);
            for (int64_t i = 0; i < model.width; i += LANES)
                store(x.at(token * rows + row, i), load(projected + i));
        }
    }
    return x;
}

// The hidden values of pred_proj: head_first, the norm if there is one, and the activation of
// normed (R, W) -> hidden (R, head_hidden).
template <Floats (*activation)(Floats)>
void head_hidden(const PredictorModel& model, ConstPanels normed, int64_t rows,
                 Panels<bfloat16> hidden) {
    if (!model.head_norm) {
        timed_product(normed, rows, model.head_first, model.use_tiles,
                      store_in<activation>(hidden));
        return;
    }
    static thread_local Scratch<float> scratch;
    const Panels<float> values = scratch.panels(rows, model.head_first.outputs);
    timed_product(normed, rows, model.head_first, model.use_tiles, store_in(values));
    norm_and_activate<activation>({values.values, values.rows}, rows, model.head_hidden,
                                  model.head_norm, model.head_norm + model.head_hidden,
                                  model.head_norm_epsilon, hidden);
}

// Appends the latents of consecutive steps to a window and predicts the latent that follows
// -> predicted (R, D), rows ``predicted_stride`` values apart.
//
// ``modulations`` (layers, ``modulation_rows``, 6 W) hold those of the new tokens from
// ``modulation_row`` on. The keys and values of the new tokens are written to ``keys_values``
// (layers, n R, 2 I) unless it is null.
void extend(const PredictorModel& model, const Window& window, const std::vector<Latents>& latents,
            int64_t rows, const bfloat16* modulations, int64_t modulation_rows,
            int64_t modulation_row, bfloat16* keys_values, float* predicted) {
    static thread_local Scratch<bfloat16> normed_scratch, key_value_scratch, query_scratch,
        attended_scratch, hidden_scratch;
    const int64_t known = window.size(), count = latents.size();
    const int64_t width = model.width, inner = model.inner();
    const bool use_tiles = model.use_tiles;
    Panels<float> x = make_tokens(model, latents, rows, known);
    const Panels<bfloat16> normed = normed_scratch.panels(count * rows, width);
    const Panels<bfloat16> query = query_scratch.panels(count * rows, inner);
    const Panels<bfloat16> attended = attended_scratch.panels(count * rows, inner);
    std::vector<ConstPanels> tokens(known + count);
    // The tokens whose output the layer computes: their index in the window, and their number.
    int64_t first_output = known, outputs = count;

    for (int64_t layer = 0; layer < model.layers; ++layer) {
        const LayerMaps& block = model.blocks[layer];
        ConstPanels layer_modulations =
            ConstPanels{modulations + layer * modulation_rows * 6 * width, modulation_rows}.from(
                modulation_row);
        layer_norms({x.values, x.rows}, count * rows, width, block.epsilons, &layer_modulations, 0,
                    normed);
        const Panels<bfloat16> key_value =
            keys_values
                ? Panels<bfloat16>{keys_values + layer * count * rows * 2 * inner, count * rows}
                : key_value_scratch.panels(count * rows, 2 * inner);
        timed_product(constant(normed), count * rows, block.key_value, use_tiles,
                      store_in(key_value));
        for (int64_t token = 0; token < known; ++token)
            tokens[token] = {window[token].values + layer * window[token].layer_stride,
                             window[token].rows};
        for (int64_t token = 0; token < count; ++token)
            tokens[known + token] = constant(key_value).from(token * rows);

        ConstPanels query_input = constant(normed);
        if (layer == model.layers - 1) {
            // Only the last token's output of the last layer is needed.
            const int64_t skipped = (count - 1) * rows;
            x = x.from(skipped);
            layer_modulations = layer_modulations.from(skipped);
            query_input = query_input.from(skipped);
            first_output = known + count - 1;
            outputs = 1;
        }
        // The first token of a window needs no query: it attends only to itself.
        const int64_t without_query = first_output == 0;
        timed_product(query_input.from(without_query * rows), (outputs - without_query) * rows,
                      block.query, use_tiles, store_in(query));
        attention(constant(query), tokens, first_output, rows, model.heads, model.head_width,
                  attended);
        timed_product(constant(attended), outputs * rows, block.out, use_tiles,
                      add_gated(x, width, layer_modulations, 2 * width));
        layer_norms({x.values, x.rows}, outputs * rows, width, block.epsilons + 2,
                    &layer_modulations, 3 * width, normed);
        const Panels<bfloat16> hidden =
            hidden_scratch.panels(outputs * rows, block.mlp_first.outputs);
        timed_product(constant(normed), outputs * rows, block.mlp_first, use_tiles,
                      store_in<gelu>(hidden));
        timed_product(constant(hidden), outputs * rows, block.mlp_second, use_tiles,
                      add_gated(x, width, layer_modulations, 5 * width));
    }

    layer_norms({x.values, x.rows}, rows, width, &model.epsilon, nullptr, 0, normed);
    const auto store_predicted = store_rows(predicted, model.predicted_stride());
    if (!model.head_second.weight) {
        timed_product(constant(normed), rows, model.head_first, use_tiles, store_predicted);
        return;
    }
    const Panels<bfloat16> hidden = hidden_scratch.panels(rows, model.head_first.outputs);
    switch (model.head_activation) {
        case GELU:
            head_hidden<gelu>(model, constant(normed), rows, hidden);
            break;
        case RELU:
            head_hidden<relu>(model, constant(normed), rows, hidden);
            break;
        case SILU:
            head_hidden<silu>(model, constant(normed), rows, hidden);
            break;
    }
    timed_product(constant(hidden), rows, model.head_second, use_tiles, store_predicted);
}

struct SharedStruct {
    const char* name;
    int64_t size;
};

constexpr SharedStruct SHARED_STRUCTS[] = {
    {"LinearMap", sizeof(LinearMap)},   {"FloatMap", sizeof(FloatMap)},
    {"LayerMaps", sizeof(LayerMaps)},   {"PredictorModel", sizeof(PredictorModel)},
    {"KnownToken", sizeof(KnownToken)}, {"DistanceNetwork", sizeof(DistanceNetwork)},
};

}  // namespace

extern "C" {

// The size in bytes of a struct that Python passes, by its name; -1 if there is no such struct.
int64_t struct_size(const char* name) {
    for (const SharedStruct& shared : SHARED_STRUCTS)
        if (std::strcmp(shared.name, name) == 0) return shared.size;
    return -1;
}

// Whether the tile registers exist and may be used.
int32_t tiles_available() { return tiles_enabled; }

// Writes the ticks that each kind of work took so far, in the order of WorkKind; the ticks now.
int64_t read_ticks(int64_t* ticks) {
    std::copy(work_ticks, work_ticks + WORK_KINDS, ticks);
    return __rdtsc();
}

// Begins a window with latents (n, R, D) and actions (n, R, A) -> the tokens' keys and values
// (layers, n R, 2 I) and the predicted latent after the last one (R, D), rows ``predicted_stride``
// values apart.
void begin_window(const PredictorModel* model, const float* latents, const float* actions,
                  int64_t count, int64_t rows, bfloat16* keys_values, float* predicted) {
    static thread_local Scratch<bfloat16> modulation_scratch;
    const int64_t width = model->width, token_stride = rows * model->latent;
    const int64_t action_width = model->action_first.inputs;
    bfloat16* modulations = modulation_scratch.values(model->layers * count * rows * 6 * width);
    compute_modulations(*model, actions, count, rows, rows * action_width, action_width,
                        modulations);
    std::vector<Latents> tokens;
    for (int64_t token = 0; token < count; ++token)
        tokens.push_back({latents + token * token_stride, model->latent});
    extend(*model, {}, tokens, rows, modulations, count * rows, 0, keys_values, predicted);
}

// Rolls out from the newest latents (R, D), which follow ``context`` - 1 other frames, with actions
// (T, R, A) -> predicted latents (T, R, D), rows ``predicted_stride`` values apart.
//
// ``shared`` holds the windows of the frames before the newest, one after the other. The first
// begins at the oldest frame and has ``context`` - 1 tokens; each next one begins a frame later.
void roll_out(const PredictorModel* model, const KnownToken* shared, int64_t context,
              const float* latest, const float* actions, int64_t steps, int64_t rows,
              int64_t step_stride, int64_t row_stride, float* predicted) {
    static thread_local Scratch<bfloat16> modulation_scratch;
    static thread_local std::vector<Scratch<bfloat16>> step_scratch;
    const int64_t width = model->width, stride = model->predicted_stride();
    const int64_t layer_stride = rows * 2 * model->inner();
    bfloat16* modulations = modulation_scratch.values(model->layers * steps * rows * 6 * width);
    compute_modulations(*model, actions, steps, rows, step_stride, row_stride, modulations);
    step_scratch.resize(std::max<size_t>(step_scratch.size(), model->history));
    std::vector<Latents> latents{{latest, model->latent}};
    Window window(shared, shared + context - 1);
    const KnownToken* next_shared = shared + context - 1;
    for (int64_t step = 0; step < steps; ++step) {
        const int64_t first_frame = std::max<int64_t>(0, context + step - model->history);
        int64_t first_new = step;
        if (first_frame > 0) {
            // Positions restart at 0 when the window slides: it is computed anew, on top of the
            // shared window that begins at the same frame.
            const int64_t known = std::max<int64_t>(0, context - 1 - first_frame);
            window.assign(next_shared, next_shared + known);
            next_shared += known;
            first_new = std::max<int64_t>(0, first_frame - context + 1);
        }
        const std::vector<Latents> newest(latents.begin() + first_new, latents.end());
        const bool grows = window.size() + newest.size() < static_cast<size_t>(model->history);
        bfloat16* keys_values =
            grows ? step_scratch[step].values(model->layers * layer_stride) : nullptr;
        float* out = predicted + step * rows * stride;
        extend(*model, window, newest, rows, modulations, steps * rows, first_new * rows,
               keys_values, out);
        if (grows) window.push_back({keys_values, rows, layer_stride});
        latents.push_back({out, stride});
    }
}

// The distances of latents (R, D), one row after the other, from a goal (D,) -> out (R,).
void goal_distances(const DistanceNetwork* network, const float* latents, int64_t rows,
                    const float* goal, float* out) {
    compute_distances(*network, latents, rows, goal, out);
}

}  // extern "C"
