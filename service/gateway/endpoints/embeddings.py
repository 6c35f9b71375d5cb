"""Embeddings."""

from typing import Any, Final

import msgspec

from service.accounts import Caller
from service.errors import ClientError
from service.gateway.call import Bound, Inbound
from service.gateway.endpoints import members
from service.gateway.endpoints.tokens import (
    END_USER_FIELDS,
    TokenCall,
    TokenEndpoint,
    TokenRequest,
    read,
)

MOST_INPUTS: Final = 2048


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
        """:raises ClientError: for what Venice would surely refuse."""
        _, request, facts = read(inbound, self, EmbeddingsRequest)
        facts["parts"] = _count(request.input)
        # Nothing of Venice's is added to what is embedded.
        return TokenCall(**{**facts, "has_venice_prompt": False})

    def upstream_body(self, call: TokenCall, caller: Caller, bound: Bound) -> bytes:
        """The caller's bytes with what names the end user replaced."""
        assert call.document is not None  # noqa: S101 - for the type checker
        gone = dict.fromkeys(END_USER_FIELDS, msgspec.UNSET)
        user = {"user": caller.pseudonym(call.end_user or "")}
        return call.document.edited({**gone, **user}).content


def _count(stated: Any) -> int:
    """How many texts there are.

    :raises ClientError: when there are none, too many, or something else.
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
    if not 1 <= len(texts) <= MOST_INPUTS:
        raise ClientError(f"input: must have 1 to {MOST_INPUTS:,} texts.", param="input")
    return len(texts)


EMBEDDINGS: Final = EmbeddingsEndpoint()
