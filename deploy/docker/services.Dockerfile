# The two services: Python and what they need, no compiler, no pip, no torch, no ONNX Runtime (Triton
# runs the models).
#
# To pin the base by its digest, ask a registry for it and put it behind the tag, here and in .env:
#     docker buildx imagetools inspect python:3.11.17-slim-bookworm
#     PYTHON_IMAGE=python:3.11.17-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11.17-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
WORKDIR /src
# pip has an environment of its own, so that the image's has none.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/mkf
# Older and newer versions of pip take the constraints of a build from different variables.
ENV PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt pyproject.toml deploy/docker/requirements.py ./
# The services read no ONNX file.
RUN python3 requirements.py services --without onnx > requirements.txt \
    && /opt/pip/bin/pip --python /opt/mkf/bin/python install --requirement requirements.txt
COPY README.md LICENSE ./
COPY mkf mkf
COPY services services
RUN /opt/pip/bin/pip --python /opt/mkf/bin/python install --no-deps . \
    && find /opt/mkf -type d -name tests -prune -exec rm -r {} +

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="mkf services" \
      org.opencontainers.image.description="Classification and evaluation of a learned and an idealized ConvNeXt" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The base has an installer of packages, which nothing here runs.
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip \
    /usr/local/bin/pip* /usr/local/bin/wheel
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin mkf \
    && install --directory --owner mkf --group mkf /results
COPY --from=builder /opt/mkf /opt/mkf
ENV PATH=/opt/mkf/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 50051 50052 9464
ENTRYPOINT ["mkf-serve"]
CMD ["all"]
