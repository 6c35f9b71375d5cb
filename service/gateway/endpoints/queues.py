"""Jobs of video and long audio: Venice charges them when it queues them.

The bound is Venice's own quote, which is requested before admission. Venice charges it when it
accepts the job, so the cost is right whether or not the caller fetches the result. Quotes and
results are free.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar, Final

import msgspec

from service import money
from service.catalog import Catalog
from service.catalog.prices import count_characters
from service.errors import UpstreamError
from service.formats import body
from service.gateway.call import Call, Inbound, check_end_user
from service.gateway.endpoints import members
from service.gateway.endpoints.members import plain_model, price_facts
from service.gateway.endpoints.units import UnitEndpoint
from service.upstream import Metered, Venice

FREE_PATHS: Final = (
    "/video/quote",
    "/video/retrieve",
    "/video/complete",
    "/audio/quote",
    "/audio/retrieve",
    "/audio/complete",
    "/audio/voice-changer/quote",
    "/audio/voice-changer/retrieve",
    "/audio/voice-changer/complete",
)
"""Paths that Venice does not charge for: a job was paid when it was queued."""


class Quote(msgspec.Struct):
    """Venice's quote, in US dollars."""

    quote: Decimal


class QueueCall(Call, frozen=True, kw_only=True):
    """A job for Venice's queue. ``quote_nanos`` is its price; None before the quote is known."""

    is_priced_by_venice = True

    quote_path: str
    quoted: Mapping[str, Any]
    """The body of the request for the quote."""
    quote_nanos: int | None = None

    def for_model(self, name: str) -> "QueueCall":
        """See :meth:`Call.for_model`; the quote is for that model too."""
        if name == self.model:
            return self
        return msgspec.structs.replace(
            super().for_model(name), quoted={**self.quoted, "model": name}
        )

    async def priced(self, venice: Venice) -> "QueueCall":
        """See :meth:`Call.priced`."""
        if not self.has_price:
            return self
        answer = await venice.quote(self.quote_path, msgspec.json.encode(self.quoted))
        try:
            quote = msgspec.json.decode(answer, type=Quote).quote
            nanos = money.parse_usd(quote)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise UpstreamError("Venice's quote cannot be read.") from error
        if nanos < 0:
            raise UpstreamError("Venice's quote is below nothing.")
        return msgspec.structs.replace(self, quote_nanos=nanos)


class QueueEndpoint(UnitEndpoint[QueueCall]):
    """An endpoint that queues jobs, which cost their quote."""

    quote_path: ClassVar[str]
    answer_member = "queue_id"

    def nanos(
        self,
        call: QueueCall,
        catalog: Catalog,
        metered: Metered | None = None,
    ) -> int | None:
        """See :meth:`UnitEndpoint.nanos`."""
        return call.quote_nanos


class VideoRequest(msgspec.Struct):
    """The members of ``POST /video/queue`` that determine its price."""

    model: str
    duration: Any = msgspec.UNSET
    aspect_ratio: Any = msgspec.UNSET
    resolution: Any = msgspec.UNSET
    upscale_factor: Any = msgspec.UNSET
    audio: Any = msgspec.UNSET
    video_url: str | msgspec.UnsetType | None = msgspec.UNSET
    reference_video_urls: Any = msgspec.UNSET
    anon_user_id: str | None = None


QUOTED: Final = ("model", "duration", "aspect_ratio", "resolution", "upscale_factor", "audio")


class VideoEndpoint(QueueEndpoint):
    """``POST /video/queue``: a video, which the caller fetches later."""

    path = "/video/queue"
    model_type = "video"
    request_type = VideoRequest
    quote_path = "/video/quote"

    def parse(self, inbound: Inbound) -> QueueCall:
        """:raises ClientError: for what Venice would surely refuse."""
        json = body.read(inbound.content, self.body_limits)
        request = body.convert(json.value, VideoRequest)
        plain_model(request.model)
        quoted = _stated(request, QUOTED)
        # The quote cannot know the length of a video that Venice has not seen.
        facts = price_facts(json.members, members.VIDEO_QUEUE)
        if request.reference_video_urls not in (msgspec.UNSET, None, []):
            facts |= {"has_price": False, "unpriced": "reference_video_urls"}
        if isinstance(request.video_url, str):
            if not request.video_url.startswith("http"):
                facts |= {"has_price": False, "unpriced": "video_url"}
            quoted["video_url"] = request.video_url
        end_user = request.anon_user_id
        return QueueCall(
            endpoint=self,
            **inbound.facts(json),
            model=request.model,
            end_user=check_end_user(end_user, "anon_user_id") if end_user else None,
            quote_path=self.quote_path,
            quoted=quoted,
            **facts,
        )


class AudioRequest(msgspec.Struct):
    """The members of ``POST /audio/queue`` that determine its price."""

    model: str
    prompt: str
    duration_seconds: Any = msgspec.UNSET


class AudioQueueEndpoint(QueueEndpoint):
    """``POST /audio/queue``: music, effects, long speech."""

    path = "/audio/queue"
    request_type = AudioRequest
    quote_path = "/audio/quote"

    def parse(self, inbound: Inbound) -> QueueCall:
        """:raises ClientError: for what Venice would surely refuse."""
        json = body.read(inbound.content, self.body_limits)
        request = body.convert(json.value, AudioRequest)
        quoted = _stated(request, ("model", "duration_seconds"))
        quoted["character_count"] = count_characters(request.prompt)
        return QueueCall(
            endpoint=self,
            **inbound.facts(json),
            model=plain_model(request.model),
            quote_path=self.quote_path,
            quoted=quoted,
            **price_facts(json.members, members.AUDIO_QUEUE),
        )


class VoiceChangerEndpoint(QueueEndpoint):
    """``POST /audio/voice-changer/queue``: a recording in another voice. Its price depends on the
    length of the recording, which is not known here."""

    path = "/audio/voice-changer/queue"
    reads_body = False
    file_names = ("audio",)
    quote_path = "/audio/voice-changer/quote"

    def parse(self, inbound: Inbound) -> QueueCall:
        """Accepts any body."""
        return QueueCall(
            endpoint=self,
            **inbound.facts(),
            content_type=inbound.content_type,
            model="voice-changer",
            has_model=False,
            quote_path=self.quote_path,
            quoted={},
            has_price=False,
        )


def _stated(request: msgspec.Struct, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(request, name) for name in names}
    return {name: value for name, value in values.items() if value is not msgspec.UNSET}


ENDPOINTS: Final = (VideoEndpoint(), AudioQueueEndpoint(), VoiceChangerEndpoint())
