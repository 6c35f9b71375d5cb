"""Speech, transcriptions, voices."""

from typing import Annotated, Final

import msgspec

from service.catalog import Catalog
from service.catalog.prices import AudioPrice, count_characters
from service.errors import ClientError
from service.formats import body
from service.gateway.call import Call, Inbound, Relay
from service.gateway.endpoints import members
from service.gateway.endpoints.members import plain_model, price_facts
from service.gateway.endpoints.units import UnitEndpoint, read_form
from service.upstream import Metered

DEFAULT_SPEECH_MODEL: Final = "tts-kokoro"
DEFAULT_TRANSCRIPTION_MODEL: Final = "nvidia/parakeet-tdt-0.6b-v3"
DEFAULT_VOICE_MODEL: Final = "tts-chatterbox-hd"
MIN_BYTES_PER_S: Final = 500
"""Speech needs more: the leanest codecs take about 600 (AMR at 4.75 kbit/s)."""

SpokenText = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class AudioCall(Call, frozen=True, kw_only=True):
    """A call that is charged by the character or by the second."""

    characters: int | None = None
    most_seconds: int | None = None


class AudioEndpoint(UnitEndpoint[AudioCall]):
    """An endpoint that charges by the character or by the second, as its model does."""

    def nanos(
        self, call: AudioCall, catalog: Catalog, metered: Metered | None = None
    ) -> int | None:
        """See :meth:`UnitEndpoint.nanos`."""
        price = catalog.price(call.model)
        if not isinstance(price, AudioPrice):
            return None
        seconds = metered.duration_s if metered is not None else call.most_seconds
        return price.nanos(characters=call.characters, seconds=seconds)


class SpeechRequest(msgspec.Struct):
    """The members of ``POST /audio/speech`` that are read here."""

    input: SpokenText
    model: str | None = None
    streaming: bool | None = None


class SpeechEndpoint(AudioEndpoint):
    """``POST /audio/speech``: speech from text, passed on as it arrives."""

    path = "/audio/speech"
    model_type = "tts"
    request_type = SpeechRequest

    def parse(self, inbound: Inbound) -> AudioCall:
        """:raises ClientError: when Venice would certainly refuse the body."""
        json = body.read(inbound.content, self.body_limits)
        request = body.convert(json.value, SpeechRequest)
        return AudioCall(
            endpoint=self,
            **inbound.facts(json),
            model=plain_model(request.model or DEFAULT_SPEECH_MODEL),
            model_members=("model",) if request.model else (),
            relay=Relay.PASSED,
            is_stream=bool(request.streaming),
            characters=count_characters(request.input),
            **price_facts(json.members, members.SPEECH),
        )


class TranscriptionRequest(msgspec.Struct):
    """The fields of ``POST /audio/transcriptions`` that are read here."""

    model: str | None = None
    response_format: str | None = None


class TranscriptionEndpoint(AudioEndpoint):
    """``POST /audio/transcriptions``: the text of a sound file, and its duration."""

    path = "/audio/transcriptions"
    answer_member = "text"
    model_type = "asr"
    request_type = TranscriptionRequest
    file_names = ("file",)
    takes_json = False

    def parse(self, inbound: Inbound) -> AudioCall:
        """:raises ClientError: when Venice would certainly refuse the body."""
        form = read_form(inbound, TranscriptionRequest)
        request, json, parts = form
        files = [part for part in parts if part.name == "file" and part.text is None]
        if len(files) != 1:
            raise ClientError("file: must be there once, as a file.", param="file")
        is_json = request.response_format in (None, "", "json")
        return AudioCall(
            endpoint=self,
            **inbound.facts(json),
            content_type=inbound.read_type(),
            model=plain_model(request.model or DEFAULT_TRANSCRIPTION_MODEL),
            model_members=("model",) if request.model else (),
            relay=Relay.WHOLE if is_json else Relay.PASSED,
            **price_facts(form.members, members.TRANSCRIPTION),
            most_seconds=-(-files[0].length_bytes // MIN_BYTES_PER_S),
        )


class VoiceRequest(msgspec.Struct):
    """The fields of ``POST /audio/voices`` that are read here."""

    model: str | None = None


class VoiceEndpoint(AudioEndpoint):
    """``POST /audio/voices``: a voice cloned from a recording."""

    path = "/audio/voices"
    request_type = VoiceRequest
    file_names = ("file",)

    def parse(self, inbound: Inbound) -> AudioCall:
        """:raises ClientError: when Venice would certainly refuse the body."""
        request, json, _ = read_form(inbound, VoiceRequest)
        return AudioCall(
            endpoint=self,
            **inbound.facts(json),
            content_type=inbound.read_type(),
            model=plain_model(request.model or DEFAULT_VOICE_MODEL),
            model_members=("model",) if request.model else (),
            # Venice states a price for the model's speech, but not for its voices.
            has_price=False,
        )


TRANSCRIPTIONS: Final = TranscriptionEndpoint()
ENDPOINTS: Final = (SpeechEndpoint(), TRANSCRIPTIONS, VoiceEndpoint())
