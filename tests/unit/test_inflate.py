"""Compressed bodies are unpacked in bounded steps, or refused."""

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
    """The whole body, and the size of its largest step."""
    inflater, pieces = inflate.Inflater(coding), [b""]
    for chunk in chunks:
        inflater.feed(chunk)
        while piece := inflater.step():
            pieces.append(piece)
    inflater.end()
    return b"".join(pieces), max(map(len, pieces))


def raw_deflate(content):
    """``deflate`` without zlib's header, as some clients send it."""
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
    """However they were cut; no step is larger than its bound."""
    body = compress(content)
    size = max(size, len(body) // 1000)
    chunks = [body[at : at + size] for at in range(0, len(body), size)]

    whole, largest = unpacked(coding, *chunks)
    assert whole == content
    assert largest <= inflate.STEP_BYTES


def test_members_that_follow_one_another_are_one_body():
    """As ``cat a.gz b.gz`` makes them; but not any number."""
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
def test_what_is_not_encoded_so_is_refused(coding, body):
    """Cut, followed by something else, or of another format."""
    with pytest.raises(ClientError) as refusal:
        unpacked(coding, body)
    assert refusal.value.status == 400


def test_a_body_that_unpacks_to_far_more_is_given_up():
    """After a part of it: nobody has to hold the rest to find that out."""
    inflater = inflate.Inflater("gzip")
    inflater.feed(packed(b"\0" * 100 * MEBIBYTE))
    size = 0
    with pytest.raises(PayloadTooLarge):
        while piece := inflater.step():
            size += len(piece)
    assert size <= inflate.MAX_RATIO * 110_000


@pytest.mark.parametrize("header", ["", "identity", " Identity "])
def test_a_body_may_be_plain(header):
    """And say so."""
    assert inflate.coding_of(header) is None


@pytest.mark.parametrize("header", ["br", "zstd", "compress", "gzip, gzip", "gzip,br", "gzip;q=1"])
def test_other_codings_are_unsupported(header):
    """Stacked ones too."""
    with pytest.raises(UnsupportedEncoding):
        inflate.coding_of(header)
