# An endpoint's image. Copy it to the root of the project as `Dockerfile`, and `endpoint.dockerignore` as `.dockerignore`;
# build it there:
#
#   docker build --build-arg BASE_IMAGE=gen-runtime:cuda12.8-torch2.9 --tag my-endpoint .
#
ARG BASE_IMAGE=gen-runtime:cuda12.8-torch2.9
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.9.9

FROM ${UV_IMAGE} AS uv

FROM ${BASE_IMAGE}
COPY --from=uv /uv /usr/local/bin/uv
WORKDIR /app
# What the project needs beside the base, whose own torch, CUDA libraries and gen-worker stay.
COPY pyproject.toml uv.lock* ./
RUN kept="$(uv pip freeze | sed -nE 's/^(torch[a-z]*|triton|nvidia-[a-z0-9-]+|gen-worker)[ =@].*/--no-install-package \1/p')"; \
    if [ -f uv.lock ]; then uv sync --frozen --no-dev --inexact --no-install-project $kept; \
    else uv sync --no-dev --inexact --no-install-project $kept; fi

COPY . .
# What the image serves, written down once: a module that cannot be imported fails the build.
RUN mkdir -p .cozy \
    && python -m gen_worker.discover > .cozy/manifest.json \
    && python -m compileall -q .

USER worker
# Probes and metrics are served where `GEN_WORKER_HTTP` says, as `0.0.0.0:8082`; unset: nowhere.
EXPOSE 8082
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["gen-worker", "ps", "--json"]
ENTRYPOINT ["python", "-m", "gen_worker.entrypoint"]
