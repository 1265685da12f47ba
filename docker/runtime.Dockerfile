# The base of endpoint images: Python, torch and gen-worker in one environment, `/opt/venv`.
#
# Built from the root of this repository; `docker-bake.hcl` names the versions of each flavor:
#
#   docker buildx bake --file docker/docker-bake.hcl cpu
#
ARG OS_IMAGE=debian:bookworm-slim
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.9.9

FROM ${UV_IMAGE} AS uv

FROM ${OS_IMAGE}
ARG PYTHON_VERSION=3.12
ARG TORCH_VERSION=2.9.1
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

COPY --from=uv /uv /usr/local/bin/uv
ENV VIRTUAL_ENV=/opt/venv \
    UV_PROJECT_ENVIRONMENT=/opt/venv \
    UV_PYTHON_INSTALL_DIR=/opt/python \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1 \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
RUN uv python install "${PYTHON_VERSION}" \
    && uv venv --python "${PYTHON_VERSION}" /opt/venv \
    && uv pip install --no-cache --index-url "${TORCH_INDEX}" "torch==${TORCH_VERSION}"
# Projects depend on `gen-worker` by its name: it is this one, whatever a public index has under the name.
COPY . /src
RUN uv build --wheel --out-dir /opt/index/gen-worker /src \
    && cd /opt/index/gen-worker \
    && for wheel in *.whl; do echo "<a href=\"$wheel\">$wheel</a>"; done > index.html \
    && uv pip install --no-cache --index file:///opt/index "gen-worker[torch,images,audio,http]" "torch==${TORCH_VERSION}" \
    && rm -rf /src
# An endpoint is built on this Python or not at all: uv would else replace the environment by one for another.
ENV UV_INDEX=file:///opt/index \
    UV_PYTHON=/opt/venv/bin/python \
    UV_PYTHON_DOWNLOADS=never

# An endpoint runs as this user; what it writes goes to these folders, which may be volumes.
RUN useradd --uid 1000 --create-home worker \
    && install --directory --owner worker /cache /run/gen-worker /app /state
ENV TENSORHUB_CACHE_DIR=/cache \
    GEN_WORKER_RUN_DIR=/run/gen-worker
WORKDIR /app
