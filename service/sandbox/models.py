"""The simulated models. The names are Venice's; the prices are invented but in Venice's formats."""

import difflib
from collections.abc import Iterator
from typing import Final

from service.sandbox.model import USUAL, Model, Rates, leaf
from service.sandbox.refusals import Refusal, model_not_found

TYPES: Final = frozenset(
    {"asr", "decision", "embedding", "image", "inpaint", "music", "text", "tts", "upscale", "video"}
)
SEES: Final = USUAL | {"Reasoning", "ReasoningEffort", "Vision", "MultipleImages"}
_MAX_COMPARED_LENGTH: Final = 100

MODELS: Final = (
    Model(
        id="zai-org-glm-5-1",
        name="GLM 5.1",
        context=202_752,
        capabilities=USUAL | {"Reasoning", "Code"},
        traits=("default", "most_intelligent", "function_calling_default"),
        rates=Rates(input="0.85", output="2.75", cache_input="0.17"),
    ),
    Model(
        id="kimi-k2-6",
        name="Kimi K2.6",
        context=262_144,
        capabilities=USUAL | {"Reasoning", "Vision"},
        traits=("fastest", "default_vision", "default_reasoning"),
        rates=Rates(input="0.75", output="3.5", cache_input="0.15"),
        returns="reasoning_content",
    ),
    Model(
        id="llama-3.3-70b",
        name="Llama 3.3 70B",
        rates=Rates(input="0.7", output="2.8"),
    ),
    Model(
        id="venice-uncensored",
        name="Venice Uncensored",
        context=32_768,
        capabilities=frozenset({"ResponseSchema", "WebSearch"}),
        traits=("most_uncensored",),
        rates=Rates(input="0.2", output="0.9"),
    ),
    Model(
        id="qwen3-coder-480b",
        name="Qwen 3 Coder 480B",
        context=262_144,
        capabilities=USUAL | {"Code"},
        traits=("default_code",),
        rates=Rates(input="0.7515", output="3.0125"),
        needs_system_first=True,
    ),
    Model(
        id="claude-opus-4-8",
        name="Claude Opus 4.8",
        privacy="anonymized",
        context=1_000_000,
        capabilities=USUAL | {"Reasoning", "Vision", "MultipleImages", "Code"},
        rates=Rates(input="6", output="30", cache_input="0.6", cache_write="7.5"),
        extended_above=32_000,
        extended=Rates(input="12", output="45", cache_input="1.2", cache_write="15"),
        returns="reasoning_details",
    ),
    Model(
        id="claude-sonnet-4-6",
        name="Claude Sonnet 4.6",
        privacy="anonymized",
        context=1_000_000,
        capabilities=SEES | {"Code"},
        rates=Rates(input="3.6", output="18", cache_input="0.36", cache_write="4.5"),
        returns="reasoning_details",
    ),
    Model(
        id="openai-gpt-52",
        name="GPT-5.2",
        privacy="anonymized",
        context=256_000,
        capabilities=USUAL | {"Reasoning", "ReasoningEffort"},
        rates=Rates(input="2.19", output="17.5", cache_input="0.219"),
    ),
    Model(
        id="openai-gpt-53-codex",
        name="GPT-5.3 Codex",
        privacy="anonymized",
        context=400_000,
        capabilities=SEES | {"Code"},
        rates=Rates(input="2.19", output="17.5", cache_input="0.219"),
    ),
    Model(
        id="openai-gpt-4o-mini-2024-07-18",
        name="GPT-4o Mini",
        privacy="anonymized",
        context=128_000,
        capabilities=USUAL | {"Vision", "MultipleImages"},
        rates=Rates(input="0.19", output="0.75"),
    ),
    Model(
        id="openai-gpt-oss-120b",
        name="GPT OSS 120B",
        context=128_000,
        capabilities=frozenset({"FunctionCalling", "WebSearch", "Reasoning", "ReasoningEffort"}),
        rates=Rates(input="0.07", output="0.3"),
    ),
    Model(
        id="deepseek-v4-pro",
        name="DeepSeek V4 Pro",
        context=1_000_000,
        capabilities=USUAL | {"Reasoning", "ReasoningEffort", "Code"},
        rates=Rates(input="1.65", output="3.3", cache_input="0.33"),
        returns="reasoning_content",
    ),
    Model(
        id="qwen3-235b-a22b-thinking-2507",
        name="Qwen 3 235B Thinking",
        context=128_000,
        capabilities=USUAL | {"Reasoning", "ReasoningEffort"},
        rates=Rates(input="0.45", output="3.5"),
        needs_system_first=True,
    ),
    Model(
        id="qwen3-vl-235b-a22b",
        name="Qwen 3 VL 235B",
        context=128_000,
        capabilities=USUAL | {"Vision", "MultipleImages"},
        rates=Rates(input="0.21", output="1.9"),
        needs_system_first=True,
    ),
    Model(
        id="gemini-3-flash-preview",
        name="Gemini 3 Flash Preview",
        privacy="anonymized",
        context=256_000,
        capabilities=SEES | {"AudioInput", "VideoInput"},
        rates=Rates(input="0.7", output="3.75", cache_input="0.07"),
        returns="thought_signature",
    ),
    Model(
        id="grok-4-5",
        name="Grok 4.5",
        context=500_000,
        capabilities=SEES | {"XSearch", "Code"},
        rates=Rates(input="2.27", output="6.8", cache_input="0.57"),
    ),
    Model(
        id="e2ee-qwen3-30b",
        name="Qwen 3 30B, end-to-end encrypted",
        capabilities=frozenset({"E2EE", "TeeAttestation"}),
        rates=Rates(input="0.5", output="1.5"),
    ),
    Model(
        id="llama-3.2-3b",
        name="Llama 3.2 3B",
        rates=Rates(input="0.15", output="0.6"),
        spec={
            "deprecation": {
                "autoRemap": True,
                "date": "2027-01-31T00:00:00.000Z",
                "startsAt": "2027-01-16T00:00:00.000Z",
                "removesAt": "2027-01-31T00:00:00.000Z",
                "replacementModelId": "llama-3.3-70b",
            }
        },
    ),
    Model(id="unpriced-preview", name="A preview without a price", spec={"betaModel": True}),
    Model(
        id="text-embedding-bge-m3",
        name="BGE-M3",
        type="embedding",
        traits=("default",),
        rates=Rates(input="0.15", output="0.6"),
        spec={"embeddingDimensions": 1024, "maxInputTokens": 8192},
    ),
    Model(
        id="text-embedding-qwen3-8b",
        name="Qwen 3 Embedding 8B",
        type="embedding",
        rates=Rates(input="0.01", output="0.01"),
        spec={
            "embeddingDimensions": 4096,
            "maxInputTokens": 32_768,
            "supportsCustomDimensions": True,
        },
    ),
    Model(
        id="venice-sd35",
        name="Venice SD35",
        type="image",
        traits=("default",),
        unit_price="0.01",
        spec={
            "pricing": {
                "generation": leaf("0.01"),
                "upscale": {"2x": leaf("0.02"), "4x": leaf("0.08")},
            }
        },
    ),
    Model(
        id="nano-banana-pro",
        name="Nano Banana Pro",
        type="image",
        privacy="anonymized",
        unit_price="0.18",
        spec={
            "pricing": {
                "resolutions": {"1K": leaf("0.18"), "2K": leaf("0.24"), "4K": leaf("0.35")},
                "upscale": {"2x": leaf("0.02"), "4x": leaf("0.08")},
            }
        },
    ),
    Model(
        id="tts-kokoro",
        name="Kokoro",
        type="tts",
        traits=("default",),
        spec={"pricing": {"input": leaf("3.5")}, "voices": ["af_sky", "am_adam"]},
    ),
    Model(
        id="nvidia/parakeet-tdt-0.6b-v3",
        name="Parakeet",
        type="asr",
        traits=("default",),
        spec={"pricing": {"per_audio_second": leaf("0.0001")}},
    ),
    Model(
        id="firered-image-edit",
        name="FireRed Edit",
        type="inpaint",
        traits=("default",),
        unit_price="0.04",
        spec={
            "pricing": {
                "inpaint": leaf("0.04"),
                "inputImages": {"included": 1, "additional": leaf("0.01")},
            }
        },
    ),
    Model(
        id="upscaler",
        name="Upscaler",
        type="upscale",
        traits=("default",),
        unit_price="0.02",
        spec={"pricing": {"upscale": {"2x": leaf("0.02"), "4x": leaf("0.08")}}},
    ),
    Model(
        id="tts-chatterbox-hd",
        name="Chatterbox HD",
        type="tts",
        spec={"pricing": {"input": leaf("50")}, "voices": ["Aurora"]},
    ),
    Model(
        id="elevenlabs-music",
        name="ElevenLabs Music",
        type="music",
        traits=("default",),
        spec={
            "pricing": {
                "durations": {
                    "30": {**leaf("0.4"), "min_seconds": 3, "max_seconds": 30},
                    "120": {**leaf("1.2"), "min_seconds": 31, "max_seconds": 120},
                }
            }
        },
    ),
    Model(id="wan-2.5-preview-text-to-video", name="Wan 2.5 Preview", type="video"),
    Model(
        id="jev-latest",
        name="Jev",
        type="decision",
        traits=("default",),
        rates=Rates(input="0.5", output="1.5"),
    ),
)

COMPATIBLE: Final = {
    "text": {
        "gpt-4o": "zai-org-glm-5-1",
        "gpt-4o-mini": "llama-3.3-70b",
        "gpt-5.2": "kimi-k2-6",
    },
    "embedding": {"text-embedding-ada-002": "text-embedding-bge-m3"},
    "image": {"dall-e-3": "venice-sd35"},
}


def of_type(kind: str) -> Iterator[Model]:
    """Yield the models of a type. ``all`` and ``code`` also work, as at Venice."""
    for model in MODELS:
        if kind in (model.type, "all") or (kind == "code" and "Code" in model.capabilities):
            yield model


def traits(kind: str) -> dict[str, str]:
    """Map traits to model ids."""
    return {trait: model.id for model in MODELS if model.type == kind for trait in model.traits}


def _normalize(name: str) -> str:
    for separator in "._ ":
        name = name.replace(separator, "-")
    return name.lower()


_BY_ID: Final = {model.id: model for model in MODELS}
_BY_NORMALIZED: Final = {_normalize(model.id): model for model in MODELS}
_ALIASES: Final = {
    kind: {name: _BY_ID[to] for name, to in {**COMPATIBLE.get(kind, {}), **traits(kind)}.items()}
    for kind in TYPES
}


def find(name: str, kind: str) -> Model | None:
    """Find a model of a type by id, trait, compatible name or an accepted spelling."""
    model = _BY_ID.get(name) or _ALIASES[kind].get(name)
    if model is None:
        normalized = _normalize(name)
        model = _BY_NORMALIZED.get(normalized) or _BY_NORMALIZED.get(
            normalized.removeprefix("venice-")
        )
    return model if model is not None and model.type == kind else None


def get(name: str, kind: str) -> Model:
    """Find a model like :func:`find`.

    :raises Refusal: 400 for a model of another type, 404 when there is none.
    """
    model = find(name, kind)
    if model is not None:
        return model
    if name in _BY_ID:
        text = f"The model '{name}' is not a model of type {kind}."
        raise Refusal(400, {"error": text, "code": "INVALID_MODEL"})
    names = [model.id for model in MODELS if model.type == kind]
    nearest = difflib.get_close_matches(name[:_MAX_COMPARED_LENGTH], names, n=1, cutoff=0.4)
    raise model_not_found(name, nearest[0] if nearest else None)
