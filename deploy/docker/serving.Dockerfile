# One registered model behind `mlflow models serve`: what `mlflow models generate-dockerfile` makes, but with pinned
# packages, without nginx, and not as root. From the project's folder, where the model is to be in build/model:
#   mlflow artifacts download --artifact-uri models:/digits@champion --dst-path build/model
#   docker build -f deploy/docker/serving.Dockerfile -t digits .
ARG DEBIAN=bookworm-20260824-slim

FROM debian:${DEBIAN} AS build
# Unpinned as in training.Dockerfile
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY build/model/requirements.txt requirements.lock ./
# The model names what it needs; the lock pins what that needs in turn.
RUN --mount=type=cache,target=/root/.cache \
    python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install -c requirements.lock uv \
 && python3 -m venv --without-pip /opt/venv \
 && /opt/uv/bin/uv pip install --python /opt/venv/bin/python --link-mode copy --compile-bytecode \
      -c requirements.lock -r requirements.txt

FROM debian:${DEBIAN}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home convmixer
COPY --from=build /opt/venv /opt/venv
COPY build/model /opt/ml/model
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/home/convmixer \
    LOGNAME=convmixer \
    MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_HOST=0.0.0.0 \
    MLFLOW_PORT=8080 \
    MLFLOW_WORKERS=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"MLFLOW_PORT\"]}/ready', timeout=4)"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "mlflow", "models", "serve", "--model-uri", "/opt/ml/model", "--env-manager", "local"]
