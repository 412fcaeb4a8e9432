"""FrameLatents as bytes, and what is not one."""

import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lewm_serve.frames.redis_tier import HEADER, MAGIC, InvalidCacheValue, pack, unpack

LATENT = torch.tensor([0.5, -1.25, 3e-7])


def test_a_latent_comes_back_bit_for_bit() -> None:
    assert torch.equal(unpack(pack(LATENT), 3), LATENT)
    assert len(pack(LATENT)) == HEADER.size + 12


def test_the_layout_is_little_endian_float32() -> None:
    assert pack(torch.tensor([1.0]))[-4:] == b"\x00\x00\x80\x3f"


def test_other_widths_are_foreign() -> None:
    for width in (0, 2, 4):
        with pytest.raises(InvalidCacheValue):
            unpack(pack(LATENT), width)


@pytest.mark.parametrize("place", range(HEADER.size + 12))
def test_one_changed_byte_is_seen(place: int) -> None:
    value = bytearray(pack(LATENT))
    value[place] ^= 1
    with pytest.raises(InvalidCacheValue):
        unpack(bytes(value), 3)


@given(st.binary(max_size=40))
def test_foreign_bytes_are_told_apart(value: bytes) -> None:
    with pytest.raises(InvalidCacheValue):
        unpack(value, 3)


def test_what_is_not_finite_is_foreign() -> None:
    with pytest.raises(InvalidCacheValue, match="finite"):
        unpack(pack(torch.tensor([float("nan")])), 1)


def test_a_header_that_promises_more_than_there_is() -> None:
    data = bytes(8)
    with pytest.raises(InvalidCacheValue, match="8 bytes"):
        unpack(HEADER.pack(MAGIC, 3, zlib.crc32(data)) + data, 3)
