# The gateway's image: Python, the locked wheels and the service. Nothing in it compiles or installs.
#
# 3.14 is the newest Python for which every locked dependency has a compiled wheel, on amd64 and on
# arm64: for 3.15 there is only the slow pure-Python one of frozenlist.
FROM python:3.14-slim AS base

FROM base AS build
COPY requirements/serve.txt /tmp/
RUN python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv install --no-cache-dir --require-hashes \
        --only-binary :all: --requirement /tmp/serve.txt
WORKDIR /app
COPY LICENSE ./
COPY scripts/migrate.sh scripts/rialto scripts/
COPY migrations migrations
COPY service service
# The sources never change in an image, so their bytecode is made here and is not checked again.
RUN python -m compileall -q --invalidation-mode unchecked-hash service \
    && chmod -R a+rX . \
    && chmod a+x scripts/migrate.sh scripts/rialto

FROM base
ENV ENVIRONMENT=production \
    PATH=/opt/venv/bin:/app/scripts:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    USER=rialto
# The account has a name because yoyo asks who applies a migration and fails where nobody knows.
RUN useradd --uid 10001 --user-group --no-log-init --no-create-home --home-dir /app \
        --shell /usr/sbin/nologin rialto \
    && /usr/local/bin/python -m pip uninstall --yes --root-user-action=ignore pip
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# It asks at HOST, or at the loopback address where that is every interface.
# A start may wait 600 s for its database; failures before the first success do not count.
HEALTHCHECK --interval=30s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os, sys; a = os.environ.get('HOST', '').strip(); c = h.HTTPConnection(a if a.strip('0.:') else '127.0.0.1', int(os.environ.get('PORT') or 8080), timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "service"]
