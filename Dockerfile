# llmrun in a container: docker build -t llmrun . && docker run --rm -v llmrun:/data llmrun run tiny "Hello"
# For NVIDIA: docker build --build-arg BASE=nvidia/cuda:12.9.1-devel-ubuntu24.04 --build-arg CMAKE_ARGS="-DGGML_CUDA=on -DGGML_CUDA_NO_VMM=on" .
#   and docker run --gpus all. A server: docker run -p 127.0.0.1:8080:8080 -e LLMRUN_API_KEY=… llmrun serve MODEL --host 0.0.0.0 --allow-remote
ARG BASE=debian:trixie-slim
FROM ${BASE} AS build
ARG CMAKE_ARGS=""
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv python3-dev g++ git ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
WORKDIR /src
# Not for the CPU that builds, but for every one: the best that ggml has for it is taken when it runs.
RUN python3 -m venv /opt/llmrun \
    && LLMRUN_CMAKE_ARGS="${CMAKE_ARGS}" PATH=/opt/llmrun/bin:$PATH scripts/build_wheel /wheels \
    && /opt/llmrun/bin/pip install --no-cache-dir --find-links /wheels ".[serve]" \
    && find /opt/llmrun -name __pycache__ -prune -exec rm -rf {} +

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends python3 libgomp1 ca-certificates \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home llmrun && mkdir /data && chown llmrun /data
COPY --from=build /opt/llmrun /opt/llmrun
USER llmrun
ENV PATH=/opt/llmrun/bin:$PATH LLMRUN_HOME=/data HF_HOME=/data/hub
VOLUME /data
ENTRYPOINT ["llmrun"]
CMD ["--help"]
