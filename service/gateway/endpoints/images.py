"""Images: generated, edited, upscaled, cut out."""

from typing import Annotated, Any, ClassVar, Final

import msgspec

from service.catalog import Catalog
from service.catalog.prices import ImagePrice
from service.errors import ClientError
from service.formats import body
from service.gateway.call import Call, Inbound, Relay, check_end_user
from service.gateway.endpoints import members
from service.gateway.endpoints.members import Choices, plain_model, price_facts
from service.gateway.endpoints.units import UnitEndpoint, read_form
from service.gateway.endpoints.unlisted_prices import ENHANCE_NANOS, SEARCH_NANOS
from service.upstream import Metered

DEFAULT_EDIT_MODEL: Final = "firered-image-edit"
DEFAULT: Final = "default"

Prompt = Annotated[str, msgspec.Meta(min_length=1)]
Variants = Annotated[int, msgspec.Meta(ge=1, le=4)]
MEDIA: Final = frozenset({"image", "images", "images[]"})
Pictures = Annotated[list[Any], msgspec.Meta(max_length=100)]
Scale = Annotated[float, msgspec.Meta(ge=1, le=4)]


class ImageCall(Call, frozen=True, kw_only=True):
    """A call that is charged by the image."""

    count: int = 1
    resolution: str | None = None
    quality: str | None = None
    input_images: int = 0
    model_type: str = "image"
    """The type of model from which Venice chooses if the caller does not."""
    scale: str | None = None


class ImageEndpoint(UnitEndpoint[ImageCall]):
    """An endpoint that charges images by their tier; without a stated tier by the highest price."""

    def nanos(
        self, call: ImageCall, catalog: Catalog, metered: Metered | None = None
    ) -> int | None:
        """See :meth:`UnitEndpoint.nanos`."""
        named = [metered.model] if metered is not None and metered.model else []
        price = catalog.price(*named, call.model)
        prices = [price] if price is not None else []
        if call.is_default_model and not prices:
            prices = catalog.prices_of_type(call.model_type)
        return max(
            (n for price in prices if (n := self._of(call, price)) is not None), default=None
        )

    def _of(self, call: ImageCall, price: Any) -> int | None:
        if not isinstance(price, ImagePrice):
            return None
        if call.scale is not None:
            return price.upscale_nanos(call.scale)
        return price.images_nanos(
            call.count,
            resolution=call.resolution,
            quality=call.quality,
            input_images=call.input_images,
        )


class GenerateRequest(msgspec.Struct):
    """The members of ``POST /image/generate`` that are read here."""

    model: str
    prompt: Prompt
    variants: Variants = 1
    resolution: str | None = None
    quality: str | None = None
    enhance_prompt: bool | None = None
    enable_web_search: bool | None = None
    style_references: Any = None
    anon_user_id: str | msgspec.UnsetType = msgspec.UNSET


class GenerateEndpoint(ImageEndpoint):
    """``POST /image/generate``: images, as base64 in JSON or as binary."""

    path = "/image/generate"
    model_type = "image"
    request_type = GenerateRequest

    def parse(self, inbound: Inbound) -> ImageCall:
        """:raises ClientError: when Venice would certainly refuse the body."""
        json = body.read(inbound.content, self.body_limits)
        request = body.convert(json.value, GenerateRequest)
        facts = price_facts(json.members, members.IMAGE_GENERATE)
        if request.style_references not in (None, []):
            # Venice charges for them, but publishes no price.
            facts |= {"has_price": False, "unpriced": "style_references"}
        anonymous = request.anon_user_id
        return ImageCall(
            endpoint=self,
            **inbound.facts(json),
            model=plain_model(request.model),
            relay=Relay.PASSED,
            end_user=check_end_user(anonymous, "anon_user_id") if anonymous else None,
            count=request.variants,
            resolution=request.resolution,
            quality=request.quality,
            surcharge_nanos=ENHANCE_NANOS * bool(request.enhance_prompt)
            + SEARCH_NANOS * bool(request.enable_web_search),
            **facts,
        )


class GenerationsRequest(msgspec.Struct):
    """The members of ``POST /images/generations`` that are read here."""

    prompt: Prompt
    model: str | None = None
    n: Choices | None = None
    user: str | msgspec.UnsetType | None = msgspec.UNSET


class GenerationsEndpoint(ImageEndpoint):
    """``POST /images/generations``: images, in OpenAI's format."""

    path = "/images/generations"
    model_type = "image"
    request_type = GenerationsRequest

    def parse(self, inbound: Inbound) -> ImageCall:
        """:raises ClientError: when Venice would certainly refuse the body."""
        json = body.read(inbound.content, self.body_limits)
        request = body.convert(json.value, GenerationsRequest)
        model = plain_model(request.model or DEFAULT)
        user = request.user
        return ImageCall(
            endpoint=self,
            **inbound.facts(json),
            model=model,
            model_members=("model",) if request.model else (),
            # Venice uses its default model for an unknown name.
            is_default_model=True,
            relay=Relay.PASSED,
            end_user=check_end_user(user, "user") if user else None,
            count=request.n or 1,
            # Venice accepts a quality here and ignores it, so any quality may be charged.
            **price_facts(json.members, members.IMAGE_GENERATIONS),
        )


class EditRequest(msgspec.Struct):
    """The members of the two endpoints for edits that are read here."""

    prompt: Prompt
    model: str | None = None
    modelId: str | None = None  # noqa: N815 - Venice's name for it
    resolution: str | None = None
    quality: str | None = None
    enhance_prompt: bool | None = None
    images: Pictures | None = None


class EditEndpoint(ImageEndpoint):
    """``POST /image/edit``: the edited image."""

    path = "/image/edit"
    model_type = "inpaint"
    request_type = EditRequest
    file_names = ("image",)

    def parse(self, inbound: Inbound) -> ImageCall:
        """:raises ClientError: when Venice would certainly refuse the body."""
        form = read_form(inbound, EditRequest, MEDIA)
        request, json, parts = form
        names = {name for name in (request.model, request.modelId) if name}
        if len(names) > 1:
            raise ClientError("model: modelId names another model.", param="model")
        stated = [(part.name, part.text or b"") for part in parts] or list(form.members.items())
        input_images = sum(_count_pictures(name, value) for name, value in stated if name in MEDIA)
        return ImageCall(
            endpoint=self,
            **inbound.facts(json),
            content_type=inbound.read_type(),
            model=plain_model(names.pop() if names else DEFAULT_EDIT_MODEL),
            model_members=tuple(name for name in ("model", "modelId") if getattr(request, name)),
            relay=Relay.PASSED,
            resolution=request.resolution,
            quality=request.quality,
            input_images=max(1, input_images),
            surcharge_nanos=ENHANCE_NANOS * bool(request.enhance_prompt),
            **price_facts(form.members, members.IMAGE_EDIT),
        )


def _count_pictures(name: str, value: Any) -> int:
    """Count the pictures of a member: a file, a text or a list of texts.

    :raises ClientError: for a list within a text, which Venice may read as any number of pictures.
    """
    if isinstance(value, list):
        return len(value)
    if value is None:
        return 0
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        raise ClientError(f"{name}: must be a picture or a URL of one.", param=name)
    return 1


class MultiEditEndpoint(EditEndpoint):
    """``POST /image/multi-edit``: one image made from several."""

    path = "/image/multi-edit"
    file_names = ("images",)


class UpscaleRequest(msgspec.Struct):
    """The members of ``POST /image/upscale`` that are read here."""

    scale: Scale = 2


class UpscaleEndpoint(ImageEndpoint):
    """``POST /image/upscale``: the upscaled image, a PNG."""

    path = "/image/upscale"
    request_type = UpscaleRequest
    file_names = ("image",)

    def parse(self, inbound: Inbound) -> ImageCall:
        """:raises ClientError: when Venice would certainly refuse the body."""
        form = read_form(inbound, UpscaleRequest)
        request, json, _ = form
        return ImageCall(
            endpoint=self,
            **inbound.facts(json),
            content_type=inbound.read_type(),
            model="upscaler",
            has_model=False,
            # Venice chooses the model.
            is_default_model=True,
            relay=Relay.PASSED,
            model_type="upscale",
            scale="2x" if request.scale <= 2 else "4x",
            **price_facts(form.members, members.IMAGE_UPSCALE),
        )


class CutOutEndpoint(ImageEndpoint):
    """``POST /image/background-remove``: the image without its background, a PNG."""

    path = "/image/background-remove"
    reads_body = False
    file_names = ("image",)
    model: ClassVar[str] = "background-remove"

    def parse(self, inbound: Inbound) -> ImageCall:
        """Accepts any body. Venice states no price for it."""
        return ImageCall(
            endpoint=self,
            **inbound.facts(),
            content_type=inbound.content_type,
            model=self.model,
            has_model=False,
            relay=Relay.PASSED,
            has_price=False,
        )


EDIT: Final = EditEndpoint()
MULTI_EDIT: Final = MultiEditEndpoint()
ENDPOINTS: Final = (
    GenerateEndpoint(),
    GenerationsEndpoint(),
    EDIT,
    MULTI_EDIT,
    UpscaleEndpoint(),
    CutOutEndpoint(),
)
