# The pipeline without network and as any user: docker build -t dsd . && docker run --rm --network none --user 1234:1234 dsd
# With a GPU, and with what must survive the container: docs/running.md.
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
COPY requirements.lock /tmp/
RUN /opt/venv/bin/pip install --no-cache-dir --requirement /tmp/requirements.lock

# DVC asks for the user's name, which a number alone has not; HOME may be missing or read-only.
ENV PATH=/opt/venv/bin:$PATH \
    VIRTUAL_ENV=/opt/venv \
    PYTHONPATH=/dsd \
    PYTHONUNBUFFERED=1 \
    USER=dsd \
    HOME=/tmp \
    DO_NOT_TRACK=true \
    DVC_NO_ANALYTICS=true \
    DVC_STUDIO_OFFLINE=true \
    DVC_SITE_CACHE_DIR=/dsd/.dvc/tmp/site \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=/dsd
WORKDIR /dsd
COPY . .
RUN python -m flows.dvc.repository && mkdir -p .dsd .dvc/cache .dvc/tmp && chmod -R a+rwX /dsd

# The first process: it waits until stages have saved, and reaps orphans.
ENTRYPOINT ["python", "-m", "pipeline.execution.supervise"]
CMD ["sh", "-c", "python -m pipeline check && dvc repro && python -m pipeline show"]
