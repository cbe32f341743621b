# Triton for machines without a GPU, from wheels (deploy/triton/install.py): some hundred megabytes
# where the stock image has many gigabytes. Linux on x86-64 only.
ARG PYTHON_IMAGE=python:3.11.17-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY deploy/triton deploy/triton
RUN python3 deploy/triton/install.py --prefix /opt/triton
COPY deploy/docker/triton_ready.py /opt/triton/bin/triton-ready

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
# mkf's own part is Apache-2.0, Triton BSD-3-Clause; all licenses lie in /opt/triton/licenses.
LABEL org.opencontainers.image.title="mkf triton-cpu" \
      org.opencontainers.image.description="Triton Inference Server with an ONNX Runtime backend for the CPU" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0 AND BSD-3-Clause" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The base has an installer of packages, which nothing here runs.
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip \
    /usr/local/bin/pip* /usr/local/bin/wheel
RUN useradd --uid 1000 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin triton-server
COPY --from=builder /opt/triton /opt/triton
ENV PATH=/opt/triton/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000:1000
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--model-repository=/models"]
