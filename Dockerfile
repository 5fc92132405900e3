# syntax=docker/dockerfile:1
# One image for every program. Build it so (multi-arch: add --platform linux/amd64,linux/arm64):
#
#   docker buildx build --build-arg BASE_DIGEST=sha256:... -t podlink/podlink:0.1.0 .
#
# The base is named by its digest, Python packages by their hashes, and nothing is compiled: the same
# inputs give the same files. Dates come from SOURCE_DATE_EPOCH.
ARG BASE=docker.io/library/python:3.13-slim-bookworm
ARG BASE_DIGEST

FROM ${BASE}@${BASE_DIGEST} AS build
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY requirements/image.lock requirements/sidecar.lock requirements/
RUN python -m pip install --no-cache-dir --no-compile --disable-pip-version-check \
        --require-hashes --only-binary=:all: --target /opt/podlink/lib -r requirements/image.lock
COPY kit kit
COPY proto proto
COPY certs certs
COPY policy policy
COPY registry registry
COPY sidecar sidecar
COPY injector injector
COPY traces traces
COPY cni cni
COPY charts/podlink/files charts/podlink/files
COPY scripts/assemble.py scripts/assemble.py
COPY LICENSE LICENSE
# Copies our packages, takes off what nothing reads at run time, compiles, and writes the SBOM.
RUN python scripts/assemble.py /opt/podlink

FROM ${BASE}@${BASE_DIGEST}
ARG SOURCE_DATE_EPOCH=0
# nft for the capture container. Python's own library is compiled like ours: slim bases come without its
# bytecode, and a sidecar then takes twice the CPU to start. The rest of the base is as its digest says.
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends nftables \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
    && rm -rf /usr/local/lib/python3*/site-packages/pip* /usr/local/bin/pip* \
    && python -m compileall -q --invalidation-mode unchecked-hash -x '/(tests?|lib2to3|idlelib)/' \
        "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/podlink /opt/podlink
ENV PYTHONPATH=/opt/podlink/app:/opt/podlink/lib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="podlink" \
      org.opencontainers.image.licenses="Apache-2.0"
# The programs; capture and the CNI installer ask for root in their own security context.
USER 65532:65532
CMD ["python", "-m", "registry"]
