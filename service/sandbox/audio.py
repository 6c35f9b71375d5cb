"""Speech, transcription and voices. Every sound is silence."""

import io
import uuid
import wave
from collections.abc import Generator
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from service.sandbox import models
from service.sandbox.exchange import Exchange, Plain, Response, Stream
from service.sandbox.model import nanos, nanos_of
from service.sandbox.refusals import Refusal

DEFAULT_SPEECH_MODEL: Final = "tts-kokoro"
DEFAULT_TRANSCRIPTION_MODEL: Final = "nvidia/parakeet-tdt-0.6b-v3"
DEFAULT_VOICE_MODEL: Final = "tts-chatterbox-hd"
MILLION: Final = 1_000_000
BYTES_PER_S: Final = 16_000
MAX_FILE_BYTES: Final = 25 * 1024 * 1024
VOICE_NANOS: Final = nanos("0.5")
SAMPLE_RATE: Final = 8_000


class SpeechRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields of ``/audio/speech``."""

    input: Annotated[str, Meta(min_length=1, max_length=4096)]
    model: str = DEFAULT_SPEECH_MODEL
    voice: str | UnsetType = UNSET
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1
    streaming: bool = False
    language: str | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET


_SPEECH: Final = msgspec.json.Decoder(SpeechRequest)


def speak(exchange: Exchange) -> Response:
    """``POST /audio/speech``. Returns a WAV in any format, whole or sentence by sentence."""
    payload = exchange.decode(_SPEECH)
    model = models.get(payload.model, "tts")
    price = nanos_of(model.spec["pricing"]["input"])
    exchange.charge_nanos(-(-len(payload.input) * price // MILLION))
    sound = silence(1)
    headers = {**model.headers(), "x-venice-audio-format": "wav"}
    if payload.streaming:
        pieces = _pieces(sound, payload.input.count(".") + 1)
        return Stream(pieces=pieces, content_type="audio/wav", headers=headers)
    return Plain(body=sound, content_type="audio/wav", headers=headers)


def _pieces(sound: bytes, count: int) -> Generator[bytes, None, None]:
    size = -(-len(sound) // count)
    for start in range(0, len(sound), size):
        yield sound[start : start + size]


def transcribe(exchange: Exchange) -> Response:
    """``POST /audio/transcriptions``. Counts a second per 16,000 bytes."""
    form = exchange.form()
    sound = form.file("file")
    if len(sound) > MAX_FILE_BYTES:
        raise Refusal(413, {"code": "PAYLOAD_TOO_LARGE", "error": "File exceeds 25MB"})
    model = models.get(form.texts.get("model", DEFAULT_TRANSCRIPTION_MODEL), "asr")
    seconds = -(-len(sound) // BYTES_PER_S)
    exchange.charge_nanos(seconds * nanos_of(model.spec["pricing"]["per_audio_second"]))
    text = "This is a simulated transcription."
    if form.texts.get("response_format") == "text":
        return Plain(body=text.encode(), content_type="text/plain", headers=model.headers())
    answer: dict[str, object] = {"text": text}
    if exchange.states_usage:
        answer["duration"] = seconds
    return Plain(body=msgspec.json.encode(answer), headers=model.headers())


def clone(exchange: Exchange) -> Response:
    """``POST /audio/voices``. Returns the id of a voice that is not stored."""
    form = exchange.form()
    form.file("file")
    model = models.get(form.texts.get("model", DEFAULT_VOICE_MODEL), "tts")
    exchange.charge_nanos(VOICE_NANOS)
    answer = {"id": f"vv_{uuid.uuid4().hex}", "model": model.id}
    return Plain(body=msgspec.json.encode(answer))


def silence(seconds: int) -> bytes:
    """Create a WAV file of silence."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes(b"\x80" * SAMPLE_RATE * seconds)
    return file.getvalue()
