# The binary in an image.
#   docker build --target cpu -t fpo .
#   docker build --target cuda --build-arg DEVICE="cuda --nvrtc" -t fpo:cuda .
#   docker run --rm -v "$PWD:/work" fpo train --run runs/tiny
#   docker run --rm --gpus all -v "$PWD:/work" fpo:cuda train --device cuda --recipe gemma-2-2b-fpo
FROM rust:1.95-bookworm AS build
ARG DEVICE=cpu
WORKDIR /src
COPY . .
# In caches, so that a second build compiles what has changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo xtask build --device ${DEVICE} && cp target/release/fpo /usr/local/bin/fpo

FROM debian:bookworm-slim AS cpu
COPY --from=build /usr/local/bin/fpo /usr/local/bin/fpo
WORKDIR /work
ENTRYPOINT ["fpo"]
CMD ["--help"]

# NVRTC compiles the kernels at run time, and cuBLASLt multiplies matrices: both are in this image.
FROM nvidia/cuda:12.6.3-devel-ubuntu24.04 AS cuda
COPY --from=build /usr/local/bin/fpo /usr/local/bin/fpo
WORKDIR /work
ENTRYPOINT ["fpo"]
CMD ["--help"]
