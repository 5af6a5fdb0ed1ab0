# The speech server. Targets: cpu (the default is the last one), cuda.
#
#   docker build --target cpu -t higgs-native:cpu .
#   docker run -p 8000:8000 -v "$PWD/voices:/voices" higgs-native:cpu --model NAME
#
# Models from the Hub are kept in the volume /models.

FROM python:3.12-slim AS build-cpu
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
ENV PIP_CONSTRAINT=/source/constraints.txt PIP_BUILD_CONSTRAINT=/source/constraints.txt
RUN python -m venv /opt/higgs && /opt/higgs/bin/pip install --no-cache-dir '.[serve]'

FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS build-cuda
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
ENV SKBUILD_CMAKE_DEFINE=HIGGS_NATIVE_CUDA=ON
ENV PIP_CONSTRAINT=/source/constraints.txt PIP_BUILD_CONSTRAINT=/source/constraints.txt
RUN python3 -m venv /opt/higgs && /opt/higgs/bin/pip install --no-cache-dir '.[serve]'

# The kernels link the static CUDA runtime, and torch brings its libraries: the image needs no toolkit.
FROM ubuntu:24.04 AS cuda
RUN apt-get update && apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu && useradd --create-home --uid 1000 higgs && install -d -o higgs /models /voices
COPY --from=build-cuda /opt/higgs /opt/higgs
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV HF_HOME=/models HIGGS_NATIVE_VOICES=/voices PYTHONUNBUFFERED=1
USER higgs
VOLUME ["/models", "/voices"]
EXPOSE 8000
HEALTHCHECK --start-period=5m --interval=15s \
    CMD ["/opt/higgs/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# SIGTERM lets running requests finish.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/higgs/bin/higgs-native", "serve", "--host", "0.0.0.0"]

FROM python:3.12-slim AS cpu
RUN useradd --create-home --uid 1000 higgs && install -d -o higgs /models /voices
COPY --from=build-cpu /opt/higgs /opt/higgs
ENV HF_HOME=/models HIGGS_NATIVE_VOICES=/voices PYTHONUNBUFFERED=1
USER higgs
VOLUME ["/models", "/voices"]
EXPOSE 8000
HEALTHCHECK --start-period=5m --interval=15s \
    CMD ["/opt/higgs/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/higgs/bin/higgs-native", "serve", "--host", "0.0.0.0"]
