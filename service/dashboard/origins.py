"""Whether a request that changes something comes from a page of our own."""

from urllib.parse import urlsplit

from aiohttp import web


def is_own_page(request: web.BaseRequest) -> bool:
    """Return whether the browser states that a page of this origin sent the request.

    ``Sec-Fetch-Site`` decides where there is one. Browsers omit it over plain HTTP, except on
    loopback addresses; then ``Origin`` must name the host that the request is for. The scheme is
    not compared, since an edge that ends TLS changes it.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("Origin", "")
    try:
        host = urlsplit(origin).netloc
    except ValueError:
        return False
    return bool(host) and host.lower() == request.headers.get("Host", "").lower()
