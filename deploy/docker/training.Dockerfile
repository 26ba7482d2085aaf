# Training on CPUs; with --build-arg CUDA=1 on NVIDIA GPUs, which then need nothing but the driver. From the project's folder:
#   docker build -f deploy/docker/training.Dockerfile -t convmixer-training .
ARG DEBIAN=bookworm-20260824-slim

FROM debian:${DEBIAN} AS build
# Debian's mirrors keep one version of a package, so a pinned one could not be installed for long. The tag of the base and
# the suite decide.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/convmixer
COPY pyproject.toml requirements.lock ./
ARG CUDA=
RUN --mount=type=cache,target=/root/.cache \
    python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install -c requirements.lock uv \
 && python3 -m venv --without-pip /opt/venv \
 && /opt/uv/bin/uv pip install --python /opt/venv/bin/python --link-mode copy --compile-bytecode \
      -c requirements.lock -r pyproject.toml --extra postgres ${CUDA:+--extra gpu}
COPY MLproject conda.yaml ./
COPY experiments experiments
COPY pipeline pipeline
# The file system will be read-only, so that Python could not keep what it compiles.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash pipeline

FROM debian:${DEBIAN}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home convmixer \
 && install --directory --owner=convmixer --group=convmixer /home/convmixer/.cache /work
COPY --chmod=755 deploy/docker/with-secrets.sh /usr/local/bin/with-secrets
# The packages are a layer of their own, which a change of the code leaves as it is.
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/convmixer /opt/convmixer
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/convmixer \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/home/convmixer \
    LOGNAME=convmixer \
    KERAS_HOME=/home/convmixer/.cache/keras \
    MPLCONFIGDIR=/home/convmixer/.cache/matplotlib \
    MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A number, because Kubernetes' runAsNonRoot cannot judge a name
USER 10001:10001
WORKDIR /work
# Checkpoints and what waits for the tracking server; without a server also runs
VOLUME ["/home/convmixer/.cache", "/work"]
ENTRYPOINT ["/usr/bin/tini", "--", "with-secrets"]
CMD ["python", "-m", "pipeline", "--help"]
