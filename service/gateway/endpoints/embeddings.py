"""Embeddings."""

from typing import Any, Final

import msgspec

from service.errors import ClientError
from service.gateway.call import Inbound
from service.gateway.endpoints import members
from service.gateway.endpoints.tokens import (
    TokenCall,
    TokenEndpoint,
    TokenRequest,
    read,
)

MAX_INPUTS: Final = 2048


class EmbeddingsRequest(TokenRequest, kw_only=True):
    """The members of a request that are read here."""

    input: Any


class EmbeddingsEndpoint(TokenEndpoint[TokenCall]):
    """``POST /embeddings``: embeddings of texts."""

    path = "/embeddings"
    answer_member = "data"
    model_type = "embedding"
    request_type = EmbeddingsRequest
    gives_output = False
    table = members.EMBEDDINGS

    def parse(self, inbound: Inbound) -> TokenCall:
        """:raises ClientError: when Venice would certainly refuse the body."""
        _, request, facts = read(inbound, self, EmbeddingsRequest)
        facts["parts"] = _count(request.input)
        # Venice adds no prompt of its own to embedded texts.
        return TokenCall(**{**facts, "has_venice_prompt": False})


def _count(stated: Any) -> int:
    """Count the texts.

    :raises ClientError: when the input is not a text or a list of 1 to ``MAX_INPUTS`` texts.
    """
    if isinstance(stated, str):
        return 1
    try:
        texts = msgspec.convert(stated, list[str])
    except msgspec.ValidationError:
        raise ClientError(
            "input: must be a text or a list of texts. Venice takes no arrays of tokens; LangChain"
            " sends texts with check_embedding_ctx_length=False.",
            param="input",
        ) from None
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise ClientError(f"input: must have 1 to {MAX_INPUTS:,} texts.", param="input")
    return len(texts)


EMBEDDINGS: Final = EmbeddingsEndpoint()
