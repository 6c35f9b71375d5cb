"""Queued jobs for video, long audio and voice changes: quote, queue, retrieve and complete.

A job is charged when it is queued, and is done after ``POLLS`` polls. Its id is valid for 24 hours.
"""

import time
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from service.sandbox import models
from service.sandbox.audio import BYTES_PER_S, silence
from service.sandbox.exchange import Exchange, Plain, Response, key_of
from service.sandbox.faults import FaultKind
from service.sandbox.model import nanos, nanos_of, usd
from service.sandbox.refusals import Refusal, invalid, issue

POLLS: Final = 2
LIFETIME_S: Final = 24 * 3600
MAX_JOBS: Final = 10_000
AVERAGE_MS: Final = 60_000
SECOND_NANOS: Final = nanos("0.05")
VOICE_SECOND_NANOS: Final = nanos("0.01")
# A minimal MP4 header.
MP4: Final = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomsimu"


class VideoQuote(Struct, kw_only=True):
    """The fields of ``/video/quote``. Unknown ones are ignored, as by Venice."""

    model: str
    duration: str
    aspect_ratio: str | None = None
    resolution: str | None = None
    upscale_factor: int | None = None
    audio: bool | None = None
    video_url: str | None = None
    reference_video_urls: list[str] | None = None


class VideoQueue(VideoQuote, forbid_unknown_fields=True, kw_only=True):
    """The supported fields of ``/video/queue``."""

    prompt: Annotated[str, Meta(min_length=1)]
    negative_prompt: str | None = None
    image_url: str | None = None
    seed: int | None = None
    consents: dict[str, Any] | None = None
    anon_user_id: str | None = None


class AudioQuote(Struct, forbid_unknown_fields=True, kw_only=True):
    """All fields of ``/audio/quote``."""

    model: str
    duration_seconds: int | str | None = None
    character_count: int | None = None


class AudioQueue(Struct, forbid_unknown_fields=True, kw_only=True):
    """The supported fields of ``/audio/queue``."""

    model: str
    prompt: Annotated[str, Meta(min_length=1)]
    lyrics_prompt: str | None = None
    duration_seconds: int | str | None = None
    force_instrumental: bool | None = None
    voice: str | None = None


class Ticket(Struct, forbid_unknown_fields=True, kw_only=True):
    """Identifies a job for retrieval and completion."""

    model: str
    queue_id: str
    delete_media_on_completion: bool = False


@dataclass(slots=True, kw_only=True)
class Job:
    """A job in the queue."""

    key: str
    model: str
    content_type: str
    body: bytes
    queued_at: float
    polls: int = 0


JOBS: Final = web.AppKey("JOBS", dict[str, Job])

_VIDEO_QUOTE: Final = msgspec.json.Decoder(VideoQuote)
_VIDEO_QUEUE: Final = msgspec.json.Decoder(VideoQueue)
_AUDIO_QUOTE: Final = msgspec.json.Decoder(AudioQuote)
_AUDIO_QUEUE: Final = msgspec.json.Decoder(AudioQueue)
_TICKET: Final = msgspec.json.Decoder(Ticket)


def _video_nanos(payload: VideoQuote) -> int:
    models.get(payload.model, "video")
    try:
        seconds = int(payload.duration.removesuffix("s"))
    except ValueError:
        raise invalid(issue("Invalid enum value", "duration")) from None
    scale = 2 if payload.resolution == "1080p" else 1
    return seconds * SECOND_NANOS * scale


def quote_video(exchange: Exchange) -> Response:
    """``POST /video/quote``."""
    return _quote(_video_nanos(exchange.decode(_VIDEO_QUOTE)))


def queue_video(exchange: Exchange) -> Response:
    """``POST /video/queue``."""
    payload = exchange.decode(_VIDEO_QUEUE)
    cost_nanos = _video_nanos(payload)
    if payload.model.startswith("seedance") and payload.consents is None:
        raise Refusal(409, {"error": {"code": "needs_consent"}, "consent_flow": "simulated"})
    return _queue(exchange, payload.model, cost_nanos, MP4, "video/mp4")


def _audio_nanos(model_name: str, seconds: int | str | None) -> int:
    model = models.get(model_name, "music")
    try:
        length = int(seconds or 0)
    except ValueError:
        raise invalid(issue("Expected a number", "duration_seconds")) from None
    tiers = model.spec["pricing"]["durations"].values()
    for tier in tiers:
        if length <= tier["max_seconds"]:
            return nanos_of(tier)
    raise invalid(issue("Too long", "duration_seconds"))


def quote_audio(exchange: Exchange) -> Response:
    """``POST /audio/quote``."""
    payload = exchange.decode(_AUDIO_QUOTE)
    return _quote(_audio_nanos(payload.model, payload.duration_seconds))


def queue_audio(exchange: Exchange) -> Response:
    """``POST /audio/queue``."""
    payload = exchange.decode(_AUDIO_QUEUE)
    cost_nanos = _audio_nanos(payload.model, payload.duration_seconds)
    return _queue(exchange, payload.model, cost_nanos, silence(1), "audio/wav", status="QUEUED")


def quote_voice(exchange: Exchange) -> Response:
    """``POST /audio/voice-changer/quote``."""
    payload = exchange.decode(msgspec.json.Decoder(dict[str, Any]))
    seconds = payload.get("duration_seconds", 0)
    if not isinstance(seconds, int | float):
        raise invalid(issue("Expected a number", "duration_seconds"))
    return _quote(int(seconds) * VOICE_SECOND_NANOS)


def transcribe_video(_: Exchange) -> Response:
    """``POST /video/transcriptions``. Retired, although Venice's description still has it."""
    raise Refusal(410, {"error": "This endpoint was retired. Use /audio/transcriptions."})


def queue_voice(exchange: Exchange) -> Response:
    """``POST /audio/voice-changer/queue``. Reports the charged length of the sound."""
    seconds = -(-len(exchange.form().file("audio")) // BYTES_PER_S)
    return _queue(
        exchange,
        "voice-changer",
        seconds * VOICE_SECOND_NANOS,
        silence(1),
        "audio/wav",
        status="QUEUED",
        duration_seconds=seconds,
    )


def _quote(cost_nanos: int) -> Response:
    return Plain(body=msgspec.json.encode({"quote": usd(cost_nanos)}))


def _queue(
    exchange: Exchange,
    model: str,
    cost_nanos: int,
    body: bytes,
    content_type: str,
    **more: object,
) -> Response:
    jobs = exchange.request.app[JOBS]
    while len(jobs) >= MAX_JOBS:
        del jobs[next(iter(jobs))]
    queue_id = str(uuid.uuid4())
    jobs[queue_id] = Job(
        key=key_of(exchange.request),
        model=model,
        content_type=content_type,
        body=body,
        queued_at=time.time(),
    )
    exchange.charge_nanos(cost_nanos)
    answer = {"model": model, "queue_id": queue_id, **more}
    return Plain(body=msgspec.json.encode(answer))


def retrieve(exchange: Exchange) -> Response:
    """``POST …/retrieve``. Returns a job's progress or its result."""
    ticket = exchange.decode(_TICKET)
    job = _job(exchange, ticket)
    job.polls += 1
    if exchange.has(FaultKind.JOB_FAILED):
        raise Refusal(
            422,
            {
                "error": {
                    "message": "The provider refused the content.",
                    "type": "provider_content_policy",
                    "credits_refunded": True,
                    "recommended_model": None,
                }
            },
        )
    if job.polls <= POLLS:
        answer = {
            "status": "PROCESSING",
            "average_execution_time": AVERAGE_MS,
            "execution_duration": round((time.time() - job.queued_at) * 1000),
        }
        return Plain(body=msgspec.json.encode(answer))
    if ticket.delete_media_on_completion:
        del exchange.request.app[JOBS][ticket.queue_id]
    return Plain(body=job.body, content_type=job.content_type)


def complete(exchange: Exchange) -> Response:
    """``POST …/complete``. Deletes a job."""
    ticket = exchange.decode(_TICKET)
    _job(exchange, ticket)
    del exchange.request.app[JOBS][ticket.queue_id]
    return Plain(body=msgspec.json.encode({"success": True}))


def _job(exchange: Exchange, ticket: Ticket) -> Job:
    job = exchange.request.app[JOBS].get(ticket.queue_id)
    expected = (key_of(exchange.request), ticket.model)
    if job is None or (job.key, job.model) != expected or time.time() - job.queued_at > LIFETIME_S:
        raise Refusal(400, {"error": "Request ID is invalid.", "code": "REQUEST_ID_NOT_FOUND"})
    return job
