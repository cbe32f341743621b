# The one-shot job that exports both models into the model repository. For most sources it holds ONNX
# Runtime and no torch; a MODEL of timm: or checkpoint: adds torch and timm.
#
# torch's wheels of the default index bring CUDA along, which an export does not use. Where there is
# an index of CPU builds, name it in .env: PIP_EXTRA_INDEX_URL=...
ARG PYTHON_IMAGE=python:3.11.17-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
WORKDIR /src
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/mkf
ENV PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt pyproject.toml deploy/docker/requirements.py ./
ARG MODEL=demo
ARG PIP_EXTRA_INDEX_URL=
RUN case "$MODEL" in timm:*|checkpoint:*) train=train ;; *) train= ;; esac \
    && python3 requirements.py serve report $train > requirements.txt \
    && /opt/pip/bin/pip --python /opt/mkf/bin/python install --requirement requirements.txt
COPY README.md LICENSE ./
COPY mkf mkf
COPY services services
COPY deploy/docker/export_once.py /opt/mkf/bin/export-once
RUN /opt/pip/bin/pip --python /opt/mkf/bin/python install --no-deps . \
    && find /opt/mkf -type d -name tests -prune -exec rm -r {} +

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="mkf export" \
      org.opencontainers.image.description="Exports a network and its idealized version into a Triton model repository" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The base has an installer of packages, which nothing here runs.
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip \
    /usr/local/bin/pip* /usr/local/bin/wheel
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin mkf \
    && install --directory --owner mkf --group mkf /models /cache
COPY --from=builder /opt/mkf /opt/mkf
# Weights of a hub are kept in /cache, which is a volume; everything else is written to /tmp.
ENV PATH=/opt/mkf/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    TORCH_HOME=/cache/torch \
    MPLCONFIGDIR=/tmp/matplotlib \
    HOME=/tmp
USER 10001:10001
ENTRYPOINT ["export-once"]
CMD ["demo", "/models"]
