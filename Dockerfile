# An image for CPUs, without a backbone and without adapters: mount them (docs/serving.md).
# For CUDA: docker build --build-arg TORCH=https://download.pytorch.org/whl/cu126 .
FROM python:3.12-slim AS build
ARG TORCH=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN python -m venv /opt/ptuning \
 && torch="$(grep '^torch==' constraints.txt)" \
 && /opt/ptuning/bin/pip install --no-cache-dir "$torch" --index-url "$TORCH" \
 && grep -v '^torch==' constraints.txt > /tmp/constraints.txt \
 && /opt/ptuning/bin/pip install --no-cache-dir --constraint /tmp/constraints.txt '.[serve,tracing]'

FROM python:3.12-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/ptuning ptuning \
 && mkdir /adapters && chown ptuning /adapters
COPY --from=build /opt/ptuning /opt/ptuning
ENV PATH=/opt/ptuning/bin:$PATH HF_HUB_OFFLINE=1 HF_HOME=/var/lib/ptuning/huggingface \
    PTUNING_CACHE=/tmp/ptuning PYTHONUNBUFFERED=1
USER 10001
VOLUME /adapters
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s --interval=10s --timeout=3s CMD \
  ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["ptuning", "serve"]
CMD ["--folder", "/adapters", "--host", "127.0.0.1"]
