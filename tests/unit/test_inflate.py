"""Compressed bodies are decompressed in bounded steps, or refused."""

import functools
import gzip
import random
import zlib

import pytest

from service.errors import ClientError, PayloadTooLarge, UnsupportedEncoding
from service.formats import inflate

MEBIBYTE = 1024 * 1024
packed = functools.partial(gzip.compress, mtime=0)
NOISE = random.Random(1).randbytes(3 * MEBIBYTE)


def unpacked(coding, *chunks):
    """Return the whole body and the size of its largest step."""
    inflater, pieces = inflate.Inflater(coding), [b""]
    for chunk in chunks:
        inflater.feed(chunk)
        while piece := inflater.step():
            pieces.append(piece)
    inflater.end()
    return b"".join(pieces), max(map(len, pieces))


def raw_deflate(content):
    """Return ``deflate`` data without zlib's header, as some clients send it."""
    return zlib.compress(content)[2:-4]


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", packed),
        ("x-gzip", packed),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
    ],
)
@pytest.mark.parametrize("content", [b"", b"x", b"x" * 5 * MEBIBYTE, NOISE])
@pytest.mark.parametrize("size", [7, 65_536, 4 * MEBIBYTE])
def test_bodies_come_out_whole(coding, compress, content, size):
    """A body in any pieces is decompressed completely, and no step exceeds its bound."""
    body = compress(content)
    size = max(size, len(body) // 1000)
    chunks = [body[at : at + size] for at in range(0, len(body), size)]

    whole, largest = unpacked(coding, *chunks)
    assert whole == content
    assert largest <= inflate.STEP_BYTES


def test_consecutive_members_are_one_body():
    """Consecutive gzip members, as ``cat a.gz b.gz`` makes them, are one body, up to a maximum
    number."""
    assert unpacked("gzip", packed(b"a") + packed(b"b"))[0] == b"ab"
    with pytest.raises(ClientError):
        unpacked("gzip", packed(b"") * (inflate.MAX_MEMBERS + 1))


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"{}"),
        ("gzip", packed(NOISE)[:-1]),
        ("gzip", packed(b"a")[:5]),
        ("gzip", packed(b"a") + b"rest"),
        ("gzip", zlib.compress(b"a")),
        ("deflate", zlib.compress(NOISE)[:-1]),
        ("deflate", zlib.compress(b"a") * 2),
        ("deflate", b"\xff\xff"),
    ],
)
def test_invalid_data_is_refused(coding, body):
    """Data that is truncated, has a trailer or is of another format is refused."""
    with pytest.raises(ClientError) as refusal:
        unpacked(coding, body)
    assert refusal.value.status == 400


def test_a_body_that_unpacks_to_far_more_is_given_up():
    """A body that inflates to far more is refused after a part of it."""
    inflater = inflate.Inflater("gzip")
    inflater.feed(packed(b"\0" * 100 * MEBIBYTE))
    size = 0
    with pytest.raises(PayloadTooLarge):
        while piece := inflater.step():
            size += len(piece)
    assert size <= inflate.MAX_RATIO * 110_000


@pytest.mark.parametrize("header", ["", "identity", " Identity "])
def test_a_body_may_be_plain(header):
    """A body with the encoding ``identity`` is accepted."""
    assert inflate.coding_of(header) is None


@pytest.mark.parametrize("header", ["br", "zstd", "compress", "gzip, gzip", "gzip,br", "gzip;q=1"])
def test_other_codings_are_unsupported(header):
    """Other encodings are unsupported, also stacked ones."""
    with pytest.raises(UnsupportedEncoding):
        inflate.coding_of(header)
