# The project's images. Each image contains one static program and nothing else. `make images`
# (scripts/images) builds the programs and then the images, with commands such as:
#   docker build -f Dockerfile --target loadtest-runner FOLDER_WITH_THE_BINARIES
FROM scratch AS base
ARG VERSION
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/cell0/loadtest-operator"
# A numeric user ID: the kubelet can't verify that a user name is not root.
USER 65532:65532

FROM base AS loadtest-operator
LABEL org.opencontainers.image.title="loadtest-operator" \
      org.opencontainers.image.description="Runs LoadTest resources on Kubernetes"
COPY loadtest-operator /loadtest-operator
EXPOSE 8080
ENTRYPOINT ["/loadtest-operator"]

FROM base AS loadtest-runner
LABEL org.opencontainers.image.title="loadtest-runner" \
      org.opencontainers.image.description="The load generator that the loadtest-operator starts"
COPY loadtest-runner /loadtest-runner
# The allocator returns freed memory to the system at once. By default, it keeps it for some time. A process that copies its
# histograms in each second would then hold several MiB more.
ENV MIMALLOC_PURGE_DELAY=0
EXPOSE 9464
ENTRYPOINT ["/loadtest-runner"]

FROM base AS cell0-simulator
LABEL org.opencontainers.image.title="cell0-simulator" \
      org.opencontainers.image.description="A simulator of Cell 0 OS with exactly defined responses"
COPY cell0-simulator /cell0-simulator
EXPOSE 18800 18801 18802
ENTRYPOINT ["/cell0-simulator"]

# The end-to-end tests, for `make e2e CLUSTER=current`. This image is not part of the product.
FROM base AS loadtest-e2e
LABEL org.opencontainers.image.title="loadtest-e2e" \
      org.opencontainers.image.description="The end-to-end tests of the loadtest-operator"
COPY loadtest-e2e /loadtest-e2e
ENTRYPOINT ["/loadtest-e2e"]
