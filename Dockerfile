# Fairway in a container: docs/installation.md shows how to build and run it.
#   docker build --tag fairway .                                for a CPU
#   docker build --tag fairway --build-arg DEVICE=cuda .        for NVIDIA GPUs
ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS base-cpu
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

FROM python:3.11-slim-bookworm AS base-cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles the launchers of its kernels. Debian's security updates replace versions, so none is named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM base-${DEVICE} AS program
WORKDIR /opt/fairway
# First the libraries alone: a change of the sources then installs none of them again.
COPY pyproject.toml requirements.lock ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > libraries.txt \
    && pip install --no-cache-dir --requirement libraries.txt --constraint requirements.lock "obstore>=0.12,<0.13" "optuna>=5,<6"
COPY LICENSE prefect.yaml ./
COPY docs/package.md docs/
COPY flows flows
COPY presets presets
COPY schemas schemas
COPY stages stages
RUN pip install --no-cache-dir --no-deps . \
    && rm -rf /opt/fairway \
    && useradd --create-home --uid 1000 fairway \
    && mkdir -p /srv/fairway \
    && chown fairway /srv/fairway

# Prefect writes its browser pages there at the start of its server; its own folder belongs to root.
ENV PREFECT_SERVER_UI_STATIC_DIRECTORY=/tmp/prefect-pages
# Store, Prefect's files and texts are in the folder that is mounted here.
WORKDIR /srv/fairway
USER 1000
ENTRYPOINT ["fairway"]
CMD ["run", "--preset", "demo"]
