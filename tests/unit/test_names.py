"""Resolution of the model names that callers use."""

import json
import time
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.catalog.models import Stored, compare, read_list, read_model
from service.catalog.names import Alias, Models, Names
from service.errors import Forbidden, NotFound, ServiceError, Unavailable, UpstreamError

ACME, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
WENT = datetime(2026, 11, 3, tzinfo=UTC)


def model(name, kind="text", also_named=(), replacement=None, position=0, price=1):
    """Return a model as it is stored."""
    spec = {"pricing": {"input": {"usd": price}, "output": {"usd": price}}}
    if replacement is not None:
        spec["deprecation"] = {"replacementModelId": replacement}
    listing = json.dumps({"id": name, "type": kind, "model_spec": spec})
    read = read_model(listing)
    return type(read)(
        **{
            **{field: getattr(read, field) for field in read.__struct_fields__},
            "also_named": also_named,
            "position": position,
        }
    )


def current(*arguments, **more):
    return Stored(model=model(*arguments, **more), version=1)


def retired(*arguments, **more):
    return Stored(model=model(*arguments, **more), version=2, retired_at=WENT)


def alias(name, *targets, organization_id=None):
    return Alias(name=name, organization_id=organization_id, targets=targets, created_at=WENT)


NAMES = Names(
    Models(
        [
            current("llama-3.3-70b", also_named=("gpt-4o-mini",)),
            current("kimi-k2-6", also_named=("default", "fastest")),
            current("glm-5"),
            current("sd35", "image", also_named=("default", "dall-e-3")),
            retired("llama-2", replacement="llama-3"),
            retired("llama-3", replacement="llama-3-3-70b"),
            retired("lost"),
            retired("ring-a", replacement="ring-b"),
            retired("ring-b", replacement="ring-a"),
        ]
    ),
    [
        alias("fast", "kimi-k2-6", "llama-3.3-70b"),
        alias("fast", "glm-5", organization_id=ACME),
        alias("old", "lost", "llama-2", "llama-3.3-70b"),
        alias("gone", "lost"),
        alias("gpt-4o-mini", "glm-5", organization_id=OTHER),
    ],
)


def targets(name, allowed=None, organization_id=ACME, model_type=None, names=NAMES):
    allowed = None if allowed is None else frozenset(allowed)
    return names.targets(organization_id, name, allowed, model_type)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kimi-k2-6", ("kimi-k2-6",)),
        ("Kimi_K2.6", ("kimi-k2-6",)),
        ("venice-llama 3.3 70b", ("llama-3.3-70b",)),
        ("fastest", ("kimi-k2-6",)),
        ("gpt-4o-mini", ("llama-3.3-70b",)),
        ("dall-e-3", ("sd35",)),
        ("default", ("kimi-k2-6",)),
        ("llama-2", ("llama-3.3-70b",)),
        ("LLAMA.2", ("llama-3.3-70b",)),
        ("fast", ("glm-5",)),
        ("old", ("llama-3.3-70b",)),
        ("fast:a=b&c=d:e", ("glm-5:a=b&c=d:e",)),
        ("llama-2:a=b", ("llama-3.3-70b:a=b",)),
        ("kimi-k2-6:", ("kimi-k2-6:",)),
    ],
)
def test_names_are_resolved(name, expected):
    """A name, spelling, trait, other maker's name, retired id or alias resolves to models, each
    once and without retired ones; a suffix is kept."""
    assert targets(name) == expected


def test_the_organizations_alias_goes_first():
    """An organization's own alias overrides a shared one, and both override Venice's names."""
    assert targets("fast", organization_id=OTHER) == ("kimi-k2-6", "llama-3.3-70b")
    assert targets("fast:a=b", organization_id=OTHER) == ("kimi-k2-6:a=b", "llama-3.3-70b:a=b")
    assert targets("gpt-4o-mini", organization_id=OTHER) == ("glm-5",)
    assert targets("gpt-4o-mini") == ("llama-3.3-70b",)


def test_a_trait_is_of_a_type():
    """A trait that several types have resolves within the requested type."""
    assert targets("default", model_type="image") == ("sd35",)
    assert targets("default", model_type="text") == ("kimi-k2-6",)
    with pytest.raises(NotFound):
        targets("fastest", model_type="image")


@pytest.mark.parametrize(
    ("name", "allowed", "expected"),
    [
        ("kimi-k2-6", {"kimi-k2-6"}, ("kimi-k2-6",)),
        ("Kimi_K2.6:a=b", {"kimi-k2-6"}, ("kimi-k2-6:a=b",)),
        ("fastest", {"kimi-k2-6"}, ("kimi-k2-6",)),
        ("llama-2", {"llama-3.3-70b"}, ("llama-3.3-70b",)),
        ("fast", {"fast"}, ("kimi-k2-6", "llama-3.3-70b")),
        ("fast:a=b", {"fast"}, ("kimi-k2-6:a=b", "llama-3.3-70b:a=b")),
        ("fast", {"llama-3.3-70b"}, ("llama-3.3-70b",)),
        ("fast", {"llama-3.3-70b", "fast"}, ("kimi-k2-6", "llama-3.3-70b")),
        ("kimi-k2-6", {"llama-3.3-70b"}, None),
        ("kimi-k2-6", {"fast"}, None),
        ("fastest", {"fastest"}, None),
        ("llama-2", {"llama-2"}, None),
        ("kimi-k2-6:a=b", {"kimi-k2-6:a=b"}, None),
        ("fast", {"glm-5"}, None),
        ("kimi-k2-6", set(), None),
    ],
)
def test_what_a_key_may_use(name, allowed, expected):
    """A target may be used if its model or the alias that led to it is allowed; if none may, the
    error is a 403."""
    if expected is not None:
        assert targets(name, allowed, OTHER) == expected
        return
    with pytest.raises(Forbidden) as refused:
        targets(name, allowed, OTHER)
    assert (refused.value.code, refused.value.param) == ("model_not_allowed", "model")


def test_an_unknown_name_suggests_similar_ones():
    """The error for an unknown name has up to three similar names that the caller may use,
    including aliases."""
    with pytest.raises(NotFound) as refused:
        targets("lama-3.3-70b:a=b")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert str(refused.value) == ("There is no model 'lama-3.3-70b'. Did you mean llama-3.3-70b?")
    with pytest.raises(NotFound, match=r"'lama-3.3-70b'\.$"):
        targets("lama-3.3-70b", {"glm-5"})
    with pytest.raises(NotFound, match="Did you mean fast"):
        targets("fasd")
    with pytest.raises(NotFound, match=r"no model 'x{200}'\.$"):
        targets("x" * 100_000)


@pytest.mark.parametrize("name", ["lama-3.3-70", "alias-of-somebody-", "x" * 100, "zzz"])
def test_an_unknown_name_costs_little_among_thousands(name):
    """An unknown name among thousands takes as few comparisons as among a few."""
    many = [alias(f"alias-of-somebody-{n}-with-a-long-name", "glm-5") for n in range(1000)]
    others = [
        alias(f"alias-{n}", "glm-5", organization_id=uuid.UUID(int=n + 9)) for n in range(5000)
    ]
    crowded = Names(NAMES.models, [*many, *others])
    took = []
    for _ in range(5):
        began = time.perf_counter()
        with pytest.raises(NotFound):
            crowded.targets(ACME, name, None, None)
        took.append(time.perf_counter() - began)
    # It took 374 ms before.
    assert min(took) < 0.01


def test_a_retired_name_has_an_error_of_its_own():
    """A retired name without a replacement is an error with the date, and a ring of replacements
    ends."""
    for name in ("lost", "ring-a"):
        with pytest.raises(NotFound, match="retired on 2026-11-03") as refused:
            targets(name)
        assert refused.value.code == "model_retired"
    with pytest.raises(NotFound) as refused:
        targets("gone")
    assert refused.value.code == "model_retired"


def test_before_models_are_known():
    """Before models are known a name stands for itself and an alias for its targets; a key with a
    list waits unless the list has the name."""
    names = Names(Models(), [alias("fast", "a", "b")])

    assert targets("anything:x=y", names=names) == ("anything:x=y",)
    assert targets("fast:x=y", names=names) == ("a:x=y", "b:x=y")
    assert targets("m:x=y", {"m"}, names=names) == ("m:x=y",)
    assert targets("fast", {"b"}, names=names) == ("b",)
    with pytest.raises(Unavailable):
        targets("other", {"m"}, names=names)


@given(
    name=st.text(max_size=30), allowed=st.none() | st.frozensets(st.sampled_from(["fast", "glm-5"]))
)
def test_any_name_is_resolved_or_refused(name, allowed):
    """Any name resolves to listed models or raises one of the documented errors."""
    try:
        found = targets(name, allowed)
    except ServiceError as error:
        assert isinstance(error, NotFound | Forbidden)
        assert error.param == "model"
    else:
        listed = {to.partition(":")[0] for to in found}
        assert listed
        assert listed <= set(NAMES.models.listed)


def test_what_is_new_in_a_list():
    """Comparing lists names only what differs: changed terms, and models that came, went or
    returned."""
    same, dearer, moved = model("same"), model("dearer"), model("moved")
    stored = {
        known.model.name: known
        for known in (
            Stored(model=same, version=1),
            Stored(model=dearer, version=1),
            Stored(model=moved, version=1),
            current("gone"),
            retired("back"),
            retired("away"),
        )
    }
    new, back = model("new"), model("back")
    now_dearer, now_moved = model("dearer", price=2), model("moved", position=7)
    changes = compare(stored, [same, now_dearer, now_moved, new, back, model("taken")], {"taken"})

    assert changes.added == [new, back]
    assert changes.changed == [(dearer, now_dearer)]
    assert changes.refreshed == [now_moved]
    assert [gone.name for gone in changes.gone] == ["gone"]
    assert not compare({"same": Stored(model=same, version=3)}, [same])


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"data":[]}', b'{"data":[{"id":1}]}', b'{"data":[{"id":""}]}', b"\xff"],
)
def test_an_invalid_list(body):
    """A response that is no list, or an empty one, is an upstream error, and changes nothing."""
    with pytest.raises(UpstreamError):
        read_list(body)


def test_a_list_is_read_once_for_each_name():
    """The first of two models with one name counts, Venice's bytes are kept, and prices are
    exact."""
    first = '{"id": "a",  "type":"text","model_spec":{"pricing":{"input":{"usd":0.10}}}}'
    (read,) = read_list(f'{{"data":[{first}, {{"id":"a"}}]}}'.encode())

    assert read.listing == first
    assert str(read.prices["input"]["usd"]) == "0.10"
