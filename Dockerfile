# The server as an image: docs/deploy.md. Both images hold the same Python 3.11, the first with a C++ compiler.
ARG BUILD_IMAGE=docker.io/library/python:3.11.15-bookworm
ARG BASE_IMAGE=docker.io/library/python:3.11.15-slim-bookworm

FROM ${BASE_IMAGE} AS base

FROM ${BUILD_IMAGE} AS build
# PyTorch's build, by the names of its package index: cpu, or cu130 for CUDA 13.
ARG TORCH_BUILD=cpu
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/${TORCH_BUILD}
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python3 -m venv /opt/tools && python3 -m venv --without-pip /opt/lewm
COPY constraints.txt ./
# The build secrets pip.conf and ca.crt are optional: an index of packages of your own, and its certificate.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    --mount=type=cache,target=/root/.cache/pip \
    /opt/tools/bin/pip install --constraint constraints.txt cyclonedx-bom debsbom \
    && /opt/tools/bin/pip --python /opt/lewm/bin/python install --no-deps \
        --constraint constraints.txt --index-url "${TORCH_INDEX_URL}" torch
# PyTorch's header files and its own tests are 0.2 GB.
RUN rm -r /opt/lewm/lib/python3.*/site-packages/torch/include /opt/lewm/lib/python3.*/site-packages/torch/test \
    && find /opt/lewm/lib/python3.*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete
COPY . .
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    --mount=type=cache,target=/root/.cache/pip \
    /opt/tools/bin/pip wheel --no-deps --wheel-dir /wheels . ./client \
    && /opt/tools/bin/pip --python /opt/lewm/bin/python install --constraint constraints.txt \
        /wheels/lewm_client-*.whl "$(echo /wheels/lewm_serve-*.whl)[tracing]"
# The bill of materials: what pip has installed, and Debian's packages of the base image.
COPY --from=base /var/lib/dpkg /base/var/lib/dpkg
RUN mkdir /sbom \
    && /opt/tools/bin/cyclonedx-py environment --output-file /sbom/python.cdx.json /opt/lewm/bin/python \
    && /opt/tools/bin/debsbom generate --root /base --sbom-type cdx --out /sbom/debian

# `--target sbom --output .` writes the bill of materials alone.
FROM scratch AS sbom
COPY --from=build /sbom /

FROM base AS server
ARG TORCH_BUILD=cpu
ARG BASE_IMAGE
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lewm-serve" \
    org.opencontainers.image.description="A planning server for LeWM world models" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}-${TORCH_BUILD}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE_IMAGE}"
# No program runs with the rights of another user, and none installs others: official Python images have pip.
RUN find / -xdev -type f -perm /6000 -exec chmod ug-s {} + \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/site-packages/pip*
COPY --from=build /sbom /usr/share/sbom/lewm-serve
COPY --from=build /opt/lewm /opt/lewm
ENV PATH=/opt/lewm/bin:${PATH} \
    LEWM_HOST=0.0.0.0 \
    LEWM_LOG_FORMAT=json
USER 10001:10001
EXPOSE 8000 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import http.client as h, os, ssl, sys; e = os.environ; at = '127.0.0.1', int(e.get('LEWM_METRICS_PORT') or e.get('LEWM_HTTP_PORT') or 8000); c = h.HTTPSConnection(*at, timeout=4, context=ssl._create_unverified_context()) if e.get('LEWM_TLS_CERT') else h.HTTPConnection(*at, timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["lewm"]
CMD ["serve"]
