# The team's tracking server: MLflow with passwords, runs in PostgreSQL, artifacts in a folder or an S3-compatible store.
# From the project's folder:
#   docker build -f deploy/docker/tracking.Dockerfile -t convmixer-tracking .
ARG DEBIAN=bookworm-20260824-slim

FROM debian:${DEBIAN} AS build
# Unpinned as in training.Dockerfile
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock ./
# The extra `server` without the rest of the project, which is gigabytes
RUN --mount=type=cache,target=/root/.cache \
    python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install -c requirements.lock uv \
 && python3 -m venv --without-pip /opt/venv \
 && /opt/uv/bin/uv pip install --python /opt/venv/bin/python --link-mode copy --compile-bytecode \
      -c requirements.lock boto3 'mlflow[auth]' 'psycopg[binary]'

FROM debian:${DEBIAN}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home convmixer \
 && install --directory --owner=convmixer --group=convmixer /srv/artifacts
COPY --chmod=755 deploy/docker/with-secrets.sh /usr/local/bin/with-secrets
COPY --chmod=755 deploy/serve.sh deploy/docker/prepare.py /opt/deploy/
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/home/convmixer \
    LOGNAME=convmixer \
    MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet \
    ARTIFACTS=/srv/artifacts \
    HOST=0.0.0.0 \
    PORT=5000
USER 10001:10001
WORKDIR /tmp
VOLUME ["/srv/artifacts"]
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=4)"]
ENTRYPOINT ["/usr/bin/tini", "--", "with-secrets"]
CMD ["/opt/deploy/serve.sh"]
