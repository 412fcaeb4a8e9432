// The learned distance from a goal, an MLP with two hidden layers, in bfloat16.
//
// Axes: R rows (latents), D latent, H hidden values.

#pragma once

#include <cmath>

#include "layers.h"

// The first layer sees the standardised latent and the standardised goal. Its bias belongs to the
// part of the goal, which is computed once a call.
struct DistanceNetwork {
    const float* mean;         // (D,)
    const float* inverse_std;  // (D,)
    int64_t latent_dim;
    FloatMap goal;        // goal -> its part of the first layer
    LinearMap latent;     // latents -> their part of the first layer; its bias is not used
    LinearMap hidden;     // from the first hidden layer to the second
    const float* output;  // (H,), padded with zeros
    float output_bias;
    int32_t use_tiles;
};

// softplus(x) = log(1 + exp(x)), without overflow.
inline float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(x))); }

// The distances of latents (R, D), one row after the other, from a goal (D,) -> out (R,).
inline void compute_distances(const DistanceNetwork& network, const float* latents, int64_t rows,
                              const float* goal, float* out) {
    static thread_local Scratch<bfloat16> latent_scratch, hidden_scratch;
    static thread_local Scratch<float> goal_scratch, row_scratch, total_scratch;
    const int64_t latent_dim = network.latent_dim, padded_dim = network.latent.inputs;
    float* standardised = row_scratch.values(padded_dim);
    std::fill(standardised, standardised + padded_dim, 0.0f);
    const auto standardise = [&](const float* latent) {
        for (int64_t i = 0; i < latent_dim; ++i)
            standardised[i] = (latent[i] - network.mean[i]) * network.inverse_std[i];
    };

    standardise(goal);
    LinearMap first = network.latent;
    float* goal_part = goal_scratch.values(first.outputs);
    network.goal(standardised, goal_part);
    first.bias = goal_part;

    const Panels<bfloat16> inputs = latent_scratch.panels(rows, padded_dim);
    for (int64_t row = 0; row < rows; ++row) {
        standardise(latents + row * latent_dim);
        for (int64_t i = 0; i < padded_dim; i += LANES)
            store(inputs.at(row, i), load(standardised + i));
    }
    const Panels<bfloat16> hidden = hidden_scratch.panels(rows, first.outputs);
    timed_product(constant(inputs), rows, first, network.use_tiles, store_in<gelu>(hidden));
    float* totals = total_scratch.values(rows * LANES);
    std::fill(totals, totals + rows * LANES, 0.0f);
    timed_product(constant(hidden), rows, network.hidden, network.use_tiles,
                  add_weighted<gelu>(totals, network.output));
    for (int64_t row = 0; row < rows; ++row)
        out[row] = softplus(sum(load(totals + row * LANES)) + network.output_bias);
}
