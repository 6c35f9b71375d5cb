"""Where a call goes: to one model after another, each under a hold of its own bound."""

import contextlib
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog

from service.accounts import Caller
from service.catalog import Catalog
from service.errors import (
    ClientError,
    Forbidden,
    LimitExceeded,
    RateLimited,
    ServiceError,
    Unavailable,
    UpstreamError,
)
from service.gateway.call import Bound, Call, Quote
from service.ids import uuid7
from service.ledger import Admission, Hold, Ledger, Limit, Sent, has_room_for, is_too_large, left_of
from service.upstream import Venice

log = structlog.get_logger()

NUMBER_BYTES: Final = 16
"""The length of a number in JSON with the punctuation around it."""
REFUSED: Final = (LimitExceeded, RateLimited, UpstreamError)
"""Refusals after which the call may go to another model."""
NO_BOUND: Final = Bound(nanos=None)


class Route(msgspec.Struct, eq=False):
    """The models that a call may go to, in order, and the current one."""

    _ledger: Ledger
    catalog: Catalog
    _venice: Venice
    caller: Caller
    call: Call
    _remaining: list[Call]
    _attempts: int
    """For how many attempts a hold is: the first of two may have been charged."""
    bound: Bound = NO_BOUND
    hold: Hold | None = None
    """There once the call is admitted."""
    model_name: str = ""
    """The ledger's name for the model, without a suffix."""
    admission: Admission | None = None
    sent: Sent = msgspec.field(default_factory=Sent)
    """What is known of the call at Venice, which the ledger keeps while it is in flight."""

    @property
    def has_next(self) -> bool:
        """Whether another model is left to try."""
        return bool(self._remaining)

    @property
    def may_repeat(self) -> bool:
        """Whether the hold is for two attempts, the first of which may have been charged."""
        return self._attempts > 1

    async def admit(self) -> ServiceError | None:
        """Take the hold for the first of the models that has room for it. If all were refused,
        return the refusal for the first; all of them can be asked for again then.

        :raises ServiceError: when nobody could decide.
        """
        refusal: ServiceError | None = None
        refused = []
        while self._remaining:
            call = self._remaining.pop(0)
            try:
                await self._take(call, functools.partial(self._ledger.admit, sent=self.sent))
            except REFUSED as error:
                refusal = refusal or error
                refused.append(call)
            else:
                return None
        self._remaining.extend(refused)
        return refusal

    async def admit_later(self, refusal: ServiceError) -> None:
        """Ask for admission once more, where the limit that refused has room within a second.

        :raises ServiceError: the refusal that stays.
        """
        if await self._ledger.wait_for_room(refusal):
            later = await self.admit()
            if later is None:
                return
            refusal = later
        self._ledger.count_refusal(refusal)
        raise refusal

    async def advance(self) -> bool:
        """Go on to the next model whose bound its limits have room for, in one step with giving up
        the hold of this one; False where there is none."""
        while self._remaining:
            call = self._remaining.pop(0)
            try:
                await self._take(call, self._ledger.move)
            except (ClientError, UpstreamError) as error:
                log.info("model skipped", model=call.model_name, code=error.code)
            except Unavailable:
                # Without books no call begins: this one ends as if there were no other model.
                self._remaining.clear()
            else:
                return True
        return False

    async def quote(self) -> Quote:
        """Quote the call for the first model that would admit it, else for the first model.
        Nothing is held.

        :raises Unavailable: when the books cannot decide.
        """
        first, *others = self._remaining
        quote = first_quote = await self._quote_of(first, is_last=not others)
        while quote.refusal is not None and others:
            quote = await self._quote_of(others.pop(0), is_last=not others)
        return first_quote if quote.refusal is not None else quote

    async def _take(self, call: Call, take: Callable[[Hold], Awaitable[Admission]]) -> None:
        """Take the hold for one model, or move the hold to it. If its limits can never afford the
        call, but some of its output, take the hold for that; before it would be cut, a call goes to
        the other models."""
        if call.is_priced_by_venice:
            call = await call.priced(self._venice)
        are_prices_known = self.catalog.is_loaded
        bound = call.endpoint.bound(call, self.caller, self.catalog)
        hold, least = self._hold(call, bound), None
        try:
            try:
                admission = await take(hold)
            except (LimitExceeded, RateLimited) as error:
                least = None if self._remaining else self._affordable(error, call, bound)
                if least is None:
                    raise
                hold = self._hold(call, bound, least)
                admission = await take(hold)
        except (LimitExceeded, RateLimited) as error:
            answered = _as_answered(error, call, are_prices_known=are_prices_known)
            if answered.is_final and self.hold is None and is_too_large(answered):
                with contextlib.suppress(Unavailable):
                    limits = await self._ledger.limits_of(hold)
                    self._advise(answered, call, least or bound, limits)
            raise answered from error
        self.call, self.hold, self.admission = call, hold, admission
        self.model_name = hold.model
        self.bound = bound
        if (admission.bound_nanos, admission.bound_tokens) != (hold.bound_nanos, hold.bound_tokens):
            self.bound = self._cut(call, bound, admission)

    async def _quote_of(self, call: Call, *, is_last: bool) -> Quote:
        if call.is_priced_by_venice:
            call = await call.priced(self._venice)
        are_prices_known = self.catalog.is_loaded
        bound = call.endpoint.bound(call, self.caller, self.catalog)
        hold, least = self._hold(call, bound), None
        dry_run = await self._ledger.would_admit(hold)
        if is_last and isinstance(dry_run.outcome, ServiceError):
            least = self._affordable(dry_run.outcome, call, bound)
            if least is not None:
                dry_run = await self._ledger.would_admit(self._hold(call, bound, least))
        nanos, tokens, refusal = hold.bound_nanos, hold.bound_tokens, None
        if isinstance(dry_run.outcome, ServiceError):
            refusal = _as_answered(dry_run.outcome, call, are_prices_known=are_prices_known)
            if is_too_large(refusal):
                self._advise(refusal, call, least or bound, dry_run.limits)
        else:
            nanos, tokens = dry_run.outcome.bound_nanos, dry_run.outcome.bound_tokens
            if (nanos, tokens) != (hold.bound_nanos, hold.bound_tokens):
                bound = self._cut(call, bound, dry_run.outcome)
        bound = msgspec.structs.replace(bound, nanos=nanos, tokens=tokens)
        return Quote(call=call, bound=bound, limits=dry_run.limits, refusal=refusal)

    def _cut(self, call: Call, bound: Bound, admission: Admission) -> Bound:
        """The bound with its output cut to what the admission grants each attempt."""
        granted = admission if self._attempts == 1 else _part(admission, self._attempts)
        return call.endpoint.cut(call, bound, granted, self.catalog)

    def _affordable(self, refusal: ServiceError, call: Call, bound: Bound) -> Bound | None:
        """The bound with the least output to which the refused call may be cut, if the limit that
        refused it has room for that."""
        least = call.endpoint.least(call, bound, self.caller, self.catalog)
        if least is None:
            return None
        needed = _times(least, self._attempts)
        return least if has_room_for(refusal, needed.nanos, needed.tokens) else None

    def _advise(
        self, refusal: ServiceError, call: Call, bound: Bound, limits: Sequence[Limit]
    ) -> None:
        """Add to the refusal the largest part of the need, and how much output would be admitted
        now, if any would."""
        attempts = self._attempts
        unit = str((refusal.limit or {})["unit"])
        if largest := call.endpoint.largest_part(call, bound, unit, self.catalog):
            refusal.advise(f"The largest part is {largest}.")
        nanos, tokens = left_of(limits)
        if call.max_output is None:
            # The member that the caller will add is text that is bounded, too.
            input_tokens = bound.input_tokens + len(call.output_field) + NUMBER_BYTES
            bound = msgspec.structs.replace(bound, input_tokens=input_tokens)
        max_output = call.endpoint.max_output_within(
            call,
            bound,
            None if nanos is None else nanos // attempts,
            bound.tokens if tokens is None else min(bound.tokens, tokens // attempts),
            self.catalog,
        )
        if max_output:
            refusal.advise(f"With {call.output_field} ≤ {max_output} it fits.")

    def _hold(self, call: Call, bound: Bound, least: Bound | None = None) -> Hold:
        """The hold that the call asks admission for; with ``least`` what its limits can afford of
        it, but not less than that.

        :raises Forbidden: when the caller's key makes no calls.
        """
        caller = self.caller
        if caller.role != "inference" or caller.api_key_id is None:
            raise Forbidden("Only a key of role inference can make this call.")
        if self._attempts > 1:
            bound = _times(bound, self._attempts)
            least = None if least is None else _times(least, self._attempts)
        return Hold(
            organization_id=caller.organization_id,
            # The books may know the hold of a refused call, so each admission has a new one.
            id=uuid7() if self.hold is None else self.hold.id,
            api_key_id=caller.api_key_id,
            key_digest=caller.key_digest,
            request_id=call.request_id,
            endpoint=call.endpoint.path,
            model=call.model_name,
            is_stream=call.is_stream,
            bound_nanos=bound.nanos,
            bound_tokens=bound.tokens,
            least_nanos=None if least is None else least.nanos,
            least_tokens=None if least is None else least.tokens,
            end_user=caller.end_user_digest(call.end_user).hex() if call.end_user else None,
            tags=call.tags,
            requested_model=call.requested_model,
            price_version=self.catalog.price_version(call.model),
        )


def _times(bound: Bound, attempts: int) -> Bound:
    """The bound of so many attempts together."""
    nanos = None if bound.nanos is None else bound.nanos * attempts
    return msgspec.structs.replace(bound, nanos=nanos, tokens=bound.tokens * attempts)


def _part(admission: Admission, attempts: int) -> Admission:
    """What an admission for so many attempts grants each of them."""
    nanos = admission.bound_nanos
    return msgspec.structs.replace(
        admission,
        bound_nanos=None if nanos is None else nanos // attempts,
        bound_tokens=admission.bound_tokens // attempts,
    )


def _as_answered(refusal: ServiceError, call: Call, *, are_prices_known: bool) -> ServiceError:
    """The error that the caller of a refused call gets."""
    if isinstance(refusal, LimitExceeded | RateLimited) and not are_prices_known:
        # The bound was computed without prices and windows, so it proves nothing, even if they are
        # known by now.
        return Unavailable("The prices are not known yet.", retry_after_s=1)
    if refusal.code == "price_unknown" and call.unpriced is not None:
        return LimitExceeded(
            f"{call.unpriced}: its price is unknown, so a limit of money refuses it. Remove the"
            " field.",
            code=refusal.code,
            param=call.unpriced,
            limit=refusal.limit,
            rates=refusal.rates,
        )
    return refusal
