// Vectors of 16 floats, loaded from and stored to float32 or bfloat16, and functions of them.

#pragma once

#include <cstdint>

// GCC 12 warns about its own header (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

constexpr int64_t LANES = 16;

using Floats = __m512;
using bfloat16 = uint16_t;  // the upper half of a float32

inline Floats load(const float* from) { return _mm512_loadu_ps(from); }

inline Floats load(const bfloat16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline void store(float* to, Floats values) { _mm512_storeu_ps(to, values); }

// Rounds to nearest, ties to even.
inline void store(bfloat16* to, Floats values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(values));
}

inline float sum(Floats values) { return _mm512_reduce_add_ps(values); }

// exp(x) for x up to 88, with a relative error of 2e-6. Below -87 the result is exp(-87).
inline Floats exponential(Floats x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    const Floats scaled = x * 1.44269504f;
    const Floats whole = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT);
    const Floats rest = (scaled - whole) * 0.693147181f;
    const float taylor[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    Floats value = _mm512_setzero_ps();
    for (const float term : taylor) value = value * rest + term;
    return _mm512_scalef_ps(value, whole);
}

// x * sigmoid(x)
inline Floats silu(Floats x) { return x / (1.0f + exponential(_mm512_setzero_ps() - x)); }

inline Floats relu(Floats x) { return _mm512_max_ps(x, _mm512_setzero_ps()); }

// The exact GELU, x * Phi(x), with an absolute error of 7e-5: a thirtieth of the rounding error of
// bfloat16 near 1. Phi - 1/2 is approximated by an odd polynomial up to |x| = 4.25 and is constant
// beyond.
inline Floats gelu(Floats x) {
    const Floats edge = _mm512_set1_ps(4.25f);
    const Floats inside = _mm512_max_ps(_mm512_min_ps(x, edge), _mm512_setzero_ps() - edge);
    const Floats square = inside * inside;
    const float terms[] = {6.76627284e-11f, -6.33662468e-9f, 2.60961851e-7f,
                           -6.2995041e-6f,  1.00902271e-4f,  -1.15759904e-3f,
                           9.99651555e-3f,  -6.66732555e-2f, 0.399114411f};
    Floats value = _mm512_setzero_ps();
    for (const float term : terms) value = value * square + term;
    return x * (0.5f + inside * value);
}
