"""The parts of the dashboard that need no service: formats, charts, URLs, attempts, seals."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest
from multidict import CIMultiDict

from service import crypto
from service.dashboard import attempts, charts, formats, origins, paths, sessions
from service.dashboard.attempts import SignInAttempts, network_of
from service.dashboard.forms import UtcMoment, form_state, stated_fields
from service.dashboard.reference import with_code
from service.errors import ClientError, RateLimited
from service.formats.addresses import parse_address
from service.ledger import refusals

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "$0.00"),
        ("0.00", "$0.00"),
        ("1234.5", "$1,234.50"),
        ("0.5", "$0.50"),
        ("0.123456", "$0.123"),
        ("0.000000001", "$0.000000001"),
        ("0.0000123456", "$0.0000123"),
        ("0.0099999", "$0.01"),
        ("-0.004", "-$0.004"),
        ("-3", "-$3.00"),
        ("999999999.999", "$1,000,000,000.00"),
        (None, "unknown"),
    ],
)
def test_money_has_its_unit_and_is_never_rounded_to_zero(amount, text):
    """An amount below a dollar keeps its first digits, whatever they are worth."""
    assert formats.usd(amount) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        ("5", "usd", "$5.00"),
        (1000, "requests", "1,000 requests"),
        (1, "requests", "1 request"),
        (3, "concurrency", "3 at a time"),
        (None, "tokens", "unknown"),
    ],
)
def test_amounts_of_limits_have_their_unit(value, unit, text):
    """An amount of a limit is written in the unit of the limit."""
    assert formats.amount(value, unit) == text


@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("hour", "an hour", "5 requests an hour"),
        ("day", "a day", "5 requests a day"),
        ("lifetime", "in all", "5 requests in total"),
        (None, "", "5 requests"),
    ],
)
def test_periods_have_their_article(name, text, refused):
    """Pages and refusals write the period of a limit in words."""
    limit = {"unit": "requests", "ceiling": 5, "period": name, "model": None}

    assert formats.period(name) == text
    assert refusals.describe(limit) == refused


def test_a_limit_of_which_exactly_the_share_is_used_is_near_its_end():
    """Shares are exact, so 80 % of a limit counts as 80 %."""
    assert formats.share("4", "5") >= formats.NEAR_SHARE > formats.share("3.99", "5")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "now"),
        (5, "5 s ago"),
        (125, "2 min ago"),
        (7_300, "2 h ago"),
        (200_000, "2 d ago"),
        (-7_300, "in 2 h"),
    ],
)
def test_times_are_relative(seconds, text):
    """A time is written as seen from now, in its largest unit."""
    assert formats.relative(NOW - timedelta(seconds=seconds), NOW) == text


def test_exact_times_are_utc():
    """A time of another zone is written in UTC."""
    at = datetime.fromisoformat("2026-11-28T14:00:00+02:00")

    assert formats.exact(at) == "2026-11-28 12:00:00 UTC"
    assert formats.iso(at) == "2026-11-28T12:00:00.000+00:00"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (3_600, "1 h"),
        (90_061, "1 d 1 h"),
        (4e7, "more than a year"),
    ],
)
def test_durations_have_two_units(seconds, text):
    """A duration is written in its two largest units."""
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.00001, "under 0.1 %"), (0.004, "0.4 %"), (0.12, "12 %"), (None, "unknown")],
)
def test_shares_are_never_rounded_to_zero(share, text):
    """A share that is not zero is not written as zero."""
    assert formats.percent(share) == text


def test_a_share_has_bounds():
    """More than the whole is the whole, and a whole of nothing is used up."""
    assert formats.share("6", "5") == 1
    assert formats.share(1, 4) == Decimal("0.25")
    assert formats.share(0, 0) == 1


def test_changes_need_something_before():
    """A change is a share of what was before, and nothing if there was nothing."""
    assert formats.change("15", "10") == "+50 %"
    assert formats.change("5", "10") == "-50 %"
    assert formats.change("5", "0") == ""


def points(*values, before=None):
    """Points of a chart with these values."""
    return [
        charts.Point(
            label=str(index),
            value=Decimal(value),
            text=f"${value}",
            before=None if before is None else Decimal(before[index]),
            before_text="" if before is None else f"${before[index]}",
        )
        for index, value in enumerate(values)
    ]


def test_the_largest_column_reaches_the_top():
    """Columns stand on the ground, and their heights have the proportions of the values."""
    chart = charts.columns(points(5, 10, 0))
    heights = [Decimal(column.height) for column in chart.columns]

    assert heights == [charts.HEIGHT / Decimal(2), charts.HEIGHT, 0]
    assert all(
        Decimal(column.y) + Decimal(column.height) == charts.HEIGHT for column in chart.columns
    )
    assert chart.top_text == "$10"


def test_a_small_value_can_be_seen():
    """A value that is not zero has a column, however small it is."""
    chart = charts.columns(points("0.000001", 1000))

    assert Decimal(chart.columns[0].height) == charts.MIN_HEIGHT


def test_columns_stay_within_the_chart():
    """With earlier values behind them, all columns are within the width of the chart."""
    chart = charts.columns(points(*range(31), before=list(range(31, 62))))

    assert chart.has_before
    assert len(chart.columns) == 62
    for column in chart.columns:
        assert Decimal(column.x) >= 0
        assert Decimal(column.x) + Decimal(column.width) <= charts.WIDTH
    assert chart.top_text == "$61"


@pytest.mark.parametrize("values", [(), (0,), (0, 0)])
def test_a_chart_of_nothing(values):
    """A chart without values, or of zeros, has no height."""
    chart = charts.columns(points(*values))

    assert all(Decimal(column.height) == 0 for column in chart.columns)


def test_urls_are_made_from_names():
    """Values fill the path, and others become the query, encoded; empty ones are left out."""
    assert paths.url("overview") == "/dashboard"
    assert paths.url("request", request_id="a/b?c") == "/dashboard/requests/a%2Fb%3Fc"
    assert paths.url("requests", from_="2026-11-01", model="<x>&y", key=None, tag="") == (
        "/dashboard/requests?from=2026-11-01&model=%3Cx%3E%26y"
    )
    with pytest.raises(KeyError):
        paths.url("nosuch")
    with pytest.raises(KeyError):
        paths.url("request")


@pytest.fixture
def clock(monkeypatch):
    """The time of the attempts, which a test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(attempts.time, "monotonic", lambda: clock.now)
    return clock


def test_an_address_has_few_attempts(clock):
    """An address that used up its attempts waits; others do not, and its own come back."""
    counted = SignInAttempts()
    for _ in range(attempts.ATTEMPTS_OF_ADDRESS):
        counted.count(parse_address("192.0.2.1"))

    with pytest.raises(RateLimited) as refusal:
        counted.count(parse_address("192.0.2.1"))
    counted.count(parse_address("192.0.2.2"))
    assert refusal.value.retry_after_s == 6
    clock.now += refusal.value.retry_after_s
    counted.count(parse_address("192.0.2.1"))
    with pytest.raises(RateLimited):
        counted.count(parse_address("192.0.2.1"))


def test_all_addresses_together_have_few_attempts(clock):
    """An attacker with many addresses has no more attempts than the bound for all."""
    counted = SignInAttempts()
    allowed = 0
    for number in range(2 * attempts.ATTEMPTS_OF_ALL):
        try:
            counted.count(parse_address(f"198.51.{number // 250}.{number % 250}"))
        except RateLimited:
            break
        allowed += 1

    assert allowed == attempts.ATTEMPTS_OF_ALL


def test_few_addresses_are_kept(clock, monkeypatch):
    """The memory for addresses is bounded."""
    monkeypatch.setattr(attempts, "MAX_ADDRESSES", 50)
    counted = SignInAttempts()
    for number in range(200):
        clock.now += 60
        counted.count(parse_address(f"192.0.2.{number}"))

    assert len(counted) == 50


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("no address", "None"),
    ],
)
def test_an_ipv6_network_is_one_address(address, network):
    """All addresses of an IPv6 network of /64 share their attempts."""
    assert str(network_of(parse_address(address))) == network


@pytest.mark.parametrize(
    ("headers", "is_own"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://rialto.example"}, False),
        ({"Origin": "https://rialto.example"}, True),
        ({"Origin": "http://RIALTO.example"}, True),
        ({"Origin": "https://rialto.example:8443"}, False),
        ({"Origin": "https://rialto.example.evil.example"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "https://[broken"}, False),
        ({"Origin": ""}, False),
        ({}, False),
    ],
)
def test_only_own_pages_send_forms(headers, is_own):
    """A form is one of a page of ours only if the browser states so."""
    request = SimpleNamespace(headers=CIMultiDict({"Host": "rialto.example", **headers}))

    assert origins.is_own_page(request) is is_own


def test_a_request_without_a_host_is_nobodys():
    """An empty Origin does not match an empty Host."""
    assert not origins.is_own_page(SimpleNamespace(headers=CIMultiDict({"Origin": "null"})))


class TestSealer:
    def test_a_value_comes_back(self):
        """What was sealed opens, and no two seals are alike."""
        sealer = crypto.Sealer(["a" * 32], "tests")

        assert sealer.unseal(sealer.seal(b"content")) == b"content"
        assert sealer.seal(b"content") != sealer.seal(b"content")

    def test_an_older_key_still_opens(self):
        """After a rotation of the list the value opens; with the new key alone it does not."""
        sealed = crypto.Sealer(["old" * 12], "tests").seal(b"content")

        assert crypto.Sealer(["new" * 12, "old" * 12], "tests").unseal(sealed) == b"content"
        assert crypto.Sealer(["new" * 12], "tests").unseal(sealed) is None

    def test_a_value_of_another_purpose_does_not_open(self):
        """Each purpose has keys of its own."""
        sealed = crypto.Sealer(["a" * 32], "tests").seal(b"content")

        assert crypto.Sealer(["a" * 32], "others").unseal(sealed) is None

    @pytest.mark.parametrize("text", ["", "x", "A" * 200, "ä", "=" * 40, "\0", "A" * 16])
    def test_other_texts_do_not_open(self, text):
        """A text that nobody sealed is no value and no error."""
        assert crypto.Sealer(["a" * 32], "tests").unseal(text) is None

    def test_an_altered_value_does_not_open(self):
        """A change of any character is noticed."""
        sealer = crypto.Sealer(["a" * 32], "tests")
        sealed = sealer.seal(b"content")
        for place in range(len(sealed)):
            other = "A" if sealed[place] != "A" else "B"
            opened = sealer.unseal(sealed[:place] + other + sealed[place + 1 :])
            # The last character may have bits that stand for nothing.
            assert opened is None or place == len(sealed) - 1


@pytest.mark.parametrize(
    ("age_s", "is_over"),
    [
        (0, False),
        (sessions.SESSION_S - 1, False),
        (sessions.SESSION_S, True),
        (-sessions.CLOCK_SKEW_S, False),
        (-sessions.CLOCK_SKEW_S - 1, True),
    ],
)
def test_a_session_lasts_twelve_hours(age_s, is_over):
    """A session is over after its time, and one from the future never began."""
    session = sessions.Session(key_digest=b"x" * 32, token="t", started_at=1_000_000)

    assert sessions.SESSION_S == 12 * 3600
    assert session.is_over(1_000_000 + age_s) is is_over


def test_empty_fields_are_absent():
    """Fields without a text count as absent, and texts lose the space around them."""
    assert stated_fields({"a": " x ", "b": "", "c": "  "}) == {"a": "x"}
    with pytest.raises(ClientError) as refusal:
        stated_fields({"a": "x\0"})
    assert refusal.value.param == "a"


@pytest.mark.parametrize(
    "text", ["2026-11-28T12:00", "2026-11-28T12:00:00Z", "2026-11-28T14:00:00+02:00"]
)
def test_times_of_forms_are_utc(text):
    """A time without a zone, as browsers send it, is in UTC."""
    assert UtcMoment(text).at == NOW


def test_a_refused_form_shows_what_was_stated():
    """A form that was refused has its fields again, and the fault beside the field."""
    error = ClientError("name: too long.", param="name")
    fresh = form_state("/a", {}, None)
    refused = form_state("/a", {"name": "x"}, error)

    assert (fresh.value("name", "default"), fresh.fault("name")) == ("default", "")
    assert (refused.value("name", "default"), refused.fault("name")) == ("x", "name: too long.")
    assert refused.value("other", "default") == ""
    assert refused.id("name") != form_state("/b", {}, None).id("name")


def test_code_in_texts_is_escaped():
    """A part in backticks becomes code, and markup in any part stays text."""
    assert str(with_code("<b> and `<i>`")) == "&lt;b&gt; and <code>&lt;i&gt;</code>"
