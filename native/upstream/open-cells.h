// Attention on the CPU over a KV cache that many sequences share: a token may see few of its cells, and its mask tells
// which. Upstream asks the mask for every cell, or computes tiles of 64 tokens and cells where any may be seen. Included
// by ggml's ops.cpp, compiled for each CPU variant.
#pragma once

#include "ggml-cpu-impl.h"
#include "ggml.h"

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

constexpr ggml_fp16_t safex_closed = 0xfc00;  // -inf

// The first cell from `cell` on that may be seen; `end` where there is none.
static inline int64_t safex_next_open(const ggml_fp16_t * mask, int64_t cell, int64_t end) {
#if defined(__AVX2__)
    const __m256i closed = _mm256_set1_epi16(static_cast<short>(safex_closed));
    for (; cell + 16 <= end; cell += 16) {
        const __m256i cells = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(mask + cell));
        const auto    open  = ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi16(cells, closed)));
        if (open != 0) {
            return cell + __builtin_ctz(open) / 2;
        }
    }
#else
    constexpr uint64_t closed = 0xfc00fc00fc00fc00u;
    for (uint64_t cells; cell + 4 <= end; cell += 4) {
        memcpy(&cells, mask + cell, sizeof(cells));
        if (cells != closed) {
            break;
        }
    }
#endif
    while (cell < end && mask[cell] == safex_closed) {
        cell++;
    }
    return cell;
}

// Whether the tiles that `n_rows` rows of the mask need hold so few open cells that they cost more than the cells alone.
static inline bool safex_mostly_closed(const char * mask, size_t row_bytes, int n_rows, int64_t n_cells, int tile) {
    constexpr int64_t worth  = 8;  // cells in a tile for the price of one alone
    int64_t           n_open = 0, n_tiles = 0;
    for (int64_t start = 0; start < n_cells; start += tile) {
        const int64_t end   = start + tile < n_cells ? start + tile : n_cells;
        int           found = 0;
        for (int row = 0; row < n_rows; row++) {
            const auto * cells = reinterpret_cast<const ggml_fp16_t *>(mask + static_cast<size_t>(row) * row_bytes);
            for (int64_t cell = start; cell < end; cell++) {
                found += cells[cell] != safex_closed;
            }
        }
        n_open += found;
        n_tiles += found > 0;
    }
    return n_open * worth < n_tiles * tile * n_rows;
}

// Computes all rows of an attention token by token, all heads of a token one after another, so that its cells stay in the
// cache; `attend` computes row head * n_tokens + token. False, and nothing done, where the mask leaves too many cells open.
template <typename Attend>
static bool safex_by_token(const ggml_compute_params * params, const ggml_tensor * q, const ggml_tensor * k,
                           const ggml_tensor * mask, int tile, const Attend & attend) {
    const int64_t n_tokens = q->ne[1];
    if (!mask || n_tokens == 1 || q->ne[3] != 1 || mask->ne[2] != 1 || mask->ne[3] != 1) {
        return false;
    }
    for (int64_t token = 0; token < n_tokens; token += tile) {
        const auto   n_rows = static_cast<int>(token + tile < n_tokens ? tile : n_tokens - token);
        const char * rows   = static_cast<const char *>(mask->data) + static_cast<size_t>(token) * mask->nb[1];
        if (!safex_mostly_closed(rows, mask->nb[1], n_rows, k->ne[1], tile)) {
            return false;
        }
    }
    const int64_t n_groups = k->ne[2];  // of heads that read the same cells
    const int64_t n_heads  = q->ne[2] / n_groups;
    const int64_t n_units  = n_tokens * n_groups;
    for (int64_t unit = params->ith * n_units / params->nth; unit < (params->ith + 1) * n_units / params->nth; unit++) {
        for (int64_t i = 0; i < n_heads; i++) {
            attend((unit % n_groups * n_heads + i) * n_tokens + unit / n_groups);
        }
    }
    return true;
}
