# A node of a Ray cluster, for the KubeRay example of docs/distributed-search.md; it holds the packages, and receives the
# code from the driver. With --build-arg CUDA=1 for NVIDIA GPUs. From the project's folder:
#   docker build -f deploy/docker/ray.Dockerfile -t convmixer-ray .
ARG DEBIAN=bookworm-20260824-slim

FROM debian:${DEBIAN} AS build
# Unpinned as in training.Dockerfile
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml requirements.lock ./
ARG CUDA=
RUN --mount=type=cache,target=/root/.cache \
    python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install -c requirements.lock uv \
 && python3 -m venv --without-pip /opt/venv \
 && /opt/uv/bin/uv pip install --python /opt/venv/bin/python --link-mode copy --compile-bytecode \
      -c requirements.lock -r pyproject.toml --extra kuberay ${CUDA:+--extra gpu}

FROM debian:${DEBIAN}
# KubeRay starts Ray with bash, and its health checks are wget's.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 tini wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home convmixer \
 && install --directory --owner=convmixer --group=convmixer /home/convmixer/.cache /work \
# Before KubeRay 1.4 the shell is a login shell, which sets its own PATH.
 && ln -s /opt/venv/bin/ray /usr/local/bin/ray
COPY --from=build /opt/venv /opt/venv
# The head forks a server for each client of ray://, which gRPC's handlers of forks may crash
# (https://github.com/ray-project/ray/issues/63202).
ENV GRPC_ENABLE_FORK_SUPPORT=0 \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/home/convmixer \
    LOGNAME=convmixer \
    KERAS_HOME=/home/convmixer/.cache/keras \
    MPLCONFIGDIR=/home/convmixer/.cache/matplotlib \
    MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /work
VOLUME ["/home/convmixer/.cache", "/work"]
EXPOSE 6379 8265 10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
  CMD ["wget", "--quiet", "--tries=1", "--timeout=4", "--output-document=-", "http://127.0.0.1:52365/api/local_raylet_healthz"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["ray", "start", "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--block"]
