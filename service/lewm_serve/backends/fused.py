"""The operations between the products of `FoldedKernel`, each as one Triton kernel.

PyTorch launches four kernels for a `gated_norm` and six for an `attend`, and writes what they pass
on to the memory of the GPU. `lewm_serve.backends.folded` computes the same in PyTorch. Sums are in
float32. Importing this module needs Triton, which comes with PyTorch for CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS_PER_PROGRAM = 16
"""Rows × heads whose attention one program computes."""


@triton.jit
def _standardised(x, epsilon, mask, width):  # type: ignore[no-untyped-def]
    mean = tl.sum(x, 0) / width
    centred = tl.where(mask, x - mean, 0.0)
    return centred / tl.sqrt(tl.sum(centred * centred, 0) / width + epsilon)


@triton.jit  # type: ignore[untyped-decorator]
def _gated_norm(  # type: ignore[no-untyped-def]
    x_in,
    branch,
    gate,
    shift,
    scale,
    x_out,
    normed,
    rows,
    token_stride,
    row_stride,
    first_epsilon,
    second_epsilon,
    width,
    HAS_BRANCH: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """One token of one row. The strides are those of gate, shift and scale."""
    token_row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    here = token_row * width + column
    there = (token_row // rows) * token_stride + (token_row % rows) * row_stride + column
    x = tl.load(x_in + here, mask, 0.0).to(tl.float32)
    if HAS_BRANCH:
        added = tl.load(branch + here, mask, 0.0).to(tl.float32)
        x += added * tl.load(gate + there, mask, 0.0).to(tl.float32)
        tl.store(x_out + here, x.to(x_out.dtype.element_ty), mask)
    y = _standardised(x, first_epsilon, mask, width)
    y = y * tl.load(scale + there, mask, 0.0).to(tl.float32)
    y += tl.load(shift + there, mask, 0.0).to(tl.float32)
    y = _standardised(tl.where(mask, y, 0.0), second_epsilon, mask, width)
    tl.store(normed + here, y.to(normed.dtype.element_ty), mask)


def gated_norm(
    x: Tensor,
    branch: tuple[Tensor, Tensor] | None,
    shift: Tensor,
    scale: Tensor,
    epsilons: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """See `lewm_serve.backends.folded.gated_norm`."""
    tokens, rows, width = x.shape
    x = x.contiguous()
    gate, output = (shift, x) if branch is None else branch
    added = x if branch is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    assert gate.stride() == shift.stride() == scale.stride()
    assert shift.stride(2) == 1
    _gated_norm[(tokens * rows,)](
        x,
        output.contiguous(),
        gate,
        shift,
        scale,
        added,
        normed,
        rows,
        shift.stride(0),
        shift.stride(1),
        *epsilons,
        width,
        HAS_BRANCH=branch is not None,
        BLOCK=triton.next_power_of_2(width),
    )
    return added, normed


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    queries,
    keys,
    values,
    attended,
    count,
    heads,
    query_token_stride,
    query_row_stride,
    key_token_stride,
    key_row_stride,
    value_token_stride,
    value_row_stride,
    head_width,
    NEW: tl.constexpr,  # noqa: N803
    VISIBLE: tl.constexpr,  # noqa: N803
    PAIRS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Some rows × heads, all tokens. ``count`` is the number of rows × heads."""
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    column = tl.arange(0, BLOCK)
    mask = (pair < count)[:, None] & (column < head_width)[None, :]
    row, inside = (pair // heads)[:, None], (pair % heads)[:, None] * head_width + column[None, :]
    for new in tl.static_range(NEW):
        query = tl.load(
            queries + new * query_token_stride + row * query_row_stride + inside, mask, 0.0
        ).to(tl.float32)
        highest = tl.full((PAIRS,), float("-inf"), tl.float32)
        total = tl.zeros((PAIRS,), tl.float32)
        sums = tl.zeros((PAIRS, BLOCK), tl.float32)
        for token in tl.static_range(VISIBLE - NEW + new + 1):
            key = tl.load(
                keys + token * key_token_stride + row * key_row_stride + inside, mask, 0.0
            )
            value = tl.load(
                values + token * value_token_stride + row * value_row_stride + inside, mask, 0.0
            )
            score = tl.sum(query * key.to(tl.float32), 1)
            higher = tl.maximum(highest, score)
            kept, weight = tl.exp(highest - higher), tl.exp(score - higher)
            sums = sums * kept[:, None] + weight[:, None] * value.to(tl.float32)
            total = total * kept + weight
            highest = higher
        place = attended + (new * count + pair)[:, None] * head_width + column[None, :]
        tl.store(place, (sums / total[:, None]).to(attended.dtype.element_ty), mask)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """See `lewm_serve.backends.folded.attend`."""
    new, rows, heads, head_width = queries.shape
    attended = torch.empty(
        new, rows, heads * head_width, dtype=queries.dtype, device=queries.device
    )
    strides: list[Any] = []
    for part in (queries, keys, values):
        assert part.stride(3) == 1
        assert part.stride(2) == head_width
        strides += [part.stride(0), part.stride(1)]
    _attend[(triton.cdiv(rows * heads, HEADS_PER_PROGRAM),)](
        queries,
        keys,
        values,
        attended,
        rows * heads,
        heads,
        *strides,
        head_width,
        NEW=new,
        VISIBLE=len(keys),
        PAIRS=HEADS_PER_PROGRAM,
        BLOCK=triton.next_power_of_2(head_width),
    )
    return attended
