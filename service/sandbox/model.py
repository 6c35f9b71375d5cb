"""A simulated model: its prices and its entry in Venice's list."""

import functools
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import msgspec

NANOS_PER_USD: Final = 1_000_000_000
TOKENS_PER_PRICE: Final = 1_000_000
USUAL: Final = frozenset({"FunctionCalling", "ResponseSchema", "WebSearch"})
CREATED: Final = 1_767_225_600


@functools.cache
def nanos(usd: str) -> int:
    """Convert a price in USD to nano-dollars."""
    return int(Decimal(usd) * NANOS_PER_USD)


def usd(amount_nanos: int) -> msgspec.Raw:
    """Format nano-dollars as a decimal JSON number, without a float."""
    dollars, fraction = divmod(amount_nanos, NANOS_PER_USD)
    decimals = f".{fraction:09d}".rstrip("0") if fraction else ""
    return msgspec.Raw(f"{dollars}{decimals}".encode())


def leaf(price: str) -> dict[str, msgspec.Raw]:
    """Return a price in Venice's format."""
    return {"usd": usd(nanos(price)), "diem": usd(nanos(price))}


def nanos_of(price: dict[str, msgspec.Raw]) -> int:
    """Convert a price in Venice's format to nano-dollars."""
    return nanos(bytes(price["usd"]).decode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Prices in USD per million tokens."""

    input: str
    output: str
    cache_input: str | None = None
    cache_write: str | None = None

    def entry(self) -> dict[str, Any]:
        """Return the prices as in ``model_spec.pricing``."""
        names = ("input", "output", "cache_input", "cache_write")
        prices = {name: getattr(self, name) for name in names}
        return {name: leaf(price) for name, price in prices.items() if price is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model with its prices and its entry in Venice's list."""

    id: str
    name: str
    type: str = "text"
    privacy: str = "private"
    context: int = 131_072
    capabilities: frozenset[str] = USUAL
    traits: tuple[str, ...] = ()
    rates: Rates | None = None
    extended_above: int = 0
    extended: Rates | None = None
    unit_price: str = "0"
    returns: str = ""
    """The member of a message with tool calls that the next request must repeat."""
    needs_system_first: bool = False
    """True if the model refuses a system message after others."""
    spec: dict[str, Any] = field(default_factory=dict)

    def cost_nanos(self, prompt_tokens: int, completion_tokens: int) -> int | None:
        """Return a call's cost in nano-dollars, rounded up; None without a price."""
        rates = self.rates
        if self.extended is not None and prompt_tokens > self.extended_above:
            rates = self.extended
        if rates is None:
            return None
        sum_ = prompt_tokens * nanos(rates.input) + completion_tokens * nanos(rates.output)
        return -(-sum_ // TOKENS_PER_PRICE)

    def entry(self) -> dict[str, Any]:
        """Return the model's entry in ``GET /models``."""
        spec: dict[str, Any] = {
            "name": f"{self.name} (simulated)",
            "modelSource": "https://sandbox.invalid",
            "privacy": self.privacy,
            "offline": False,
            "traits": list(self.traits),
            **self.spec,
        }
        if self.rates is not None:
            spec["pricing"] = self.rates.entry()
            if self.extended is not None:
                extended = {"context_token_threshold": self.extended_above, **self.extended.entry()}
                spec["pricing"]["extended"] = extended
        listed = {
            "id": self.id,
            "object": "model",
            "created": CREATED,
            "owned_by": "venice.ai",
            "type": self.type,
            "model_spec": spec,
        }
        if self.type == "text":
            spec.update(self._text_spec())
            listed["context_length"] = self.context
        return listed

    def _text_spec(self) -> dict[str, Any]:
        named = (
            "AudioInput E2EE FunctionCalling LogProbs MultipleImages Reasoning ReasoningEffort "
            "ResponseSchema TeeAttestation VideoInput Vision WebSearch XSearch"
        )
        supports = {f"supports{name}": name in self.capabilities for name in named.split()}
        return {
            "availableContextTokens": self.context,
            "maxCompletionTokens": min(self.context, 32_768),
            "capabilities": {
                "optimizedForCode": "Code" in self.capabilities,
                "quantization": "not-available",
                **supports,
            },
            "constraints": {"temperature": {"default": 0.7}, "top_p": {"default": 0.9}},
        }

    def headers(self) -> dict[str, str]:
        """Return the headers about the model that Venice sends with each response."""
        headers = {"x-venice-model-id": self.id, "x-venice-model-name": f"{self.name} (simulated)"}
        deprecation = self.spec.get("deprecation")
        if deprecation is not None:
            replacement = deprecation["replacementModelId"]
            text = f"{self.id} will be removed; use {replacement}"
            headers["x-venice-model-deprecation-warning"] = text
            headers["x-venice-model-deprecation-date"] = deprecation["date"]
            headers["x-venice-deprecated"] = "true"
            headers["x-venice-deprecated-replacement"] = replacement
        return headers
