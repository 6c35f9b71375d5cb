"""Embeddings."""

from typing import Final

import msgspec

from service import body
from service.accounts import Caller
from service.errors import ClientError
from service.gateway.call import Bound, Inbound, check_model
from service.gateway.tokens import TokenCall, TokenEndpoint, TokenRequest, end_user, read

MOST_INPUTS: Final = 2048


class EmbeddingsRequest(TokenRequest, kw_only=True):
    """The members of a request that are read here."""

    input: msgspec.Raw


class EmbeddingsEndpoint(TokenEndpoint[TokenCall]):
    """``POST /embeddings``: embeddings of texts."""

    path = "/embeddings"
    model_type = "embedding"
    request_type = EmbeddingsRequest
    gives_output = False

    def parse(self, inbound: Inbound) -> TokenCall:
        """:raises ClientError: for what Venice would surely refuse."""
        inbound, request = read(inbound, EmbeddingsRequest, has_parameters=False)
        check_model(request.model)
        return TokenCall(
            endpoint=self,
            **inbound.facts(),
            model=request.model,
            end_user=end_user(request),
            present=frozenset(
                name for name in SPLICED if getattr(request, name) is not msgspec.UNSET
            ),
            parts=_count(request.input),
            # Nothing of Venice's is added to what is embedded.
            has_venice_prompt=False,
        )

    def upstream_body(self, call: TokenCall, caller: Caller, bound: Bound) -> bytes:
        """The caller's bytes with what names the end user replaced."""
        gone = call.present - {"user"}
        content = body.without_members(call.body, gone) if gone else call.body
        return body.set_members(
            content, {"user": caller.pseudonym(call.end_user or "")}, call.present
        )


def _count(stated: msgspec.Raw) -> int:
    """How many texts there are.

    :raises ClientError: when there are none, too many, or something else.
    """
    if bytes(stated)[:1] == b'"':
        return 1
    try:
        texts = msgspec.json.decode(stated, type=list[str])
    except msgspec.ValidationError:
        raise ClientError(
            "input: must be a text or a list of texts. Venice takes no arrays of tokens; LangChain"
            " sends texts with check_embedding_ctx_length=False.",
            param="input",
        ) from None
    if not 1 <= len(texts) <= MOST_INPUTS:
        raise ClientError(f"input: must have 1 to {MOST_INPUTS:,} texts.", param="input")
    return len(texts)


SPLICED: Final = ("user", "safety_identifier", "anon_user_id")
EMBEDDINGS: Final = EmbeddingsEndpoint()
