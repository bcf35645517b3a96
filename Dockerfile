# The project's images: one static program each, and nothing else. `make images`
# (scripts/images) builds the programs and then these:
#   docker build -f Dockerfile --target loadtest-runner FOLDER_WITH_THE_BINARIES
FROM scratch AS base
ARG VERSION
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/cell0/loadtest-operator"
# A number: with a name, the kubelet can't tell that it isn't root.
USER 65532:65532

FROM base AS loadtest-operator
LABEL org.opencontainers.image.title="loadtest-operator" \
      org.opencontainers.image.description="Runs LoadTests: load tests as Kubernetes resources"
COPY loadtest-operator /loadtest-operator
EXPOSE 8080
ENTRYPOINT ["/loadtest-operator"]

FROM base AS loadtest-runner
LABEL org.opencontainers.image.title="loadtest-runner" \
      org.opencontainers.image.description="The load generator that the loadtest-operator starts"
COPY loadtest-runner /loadtest-runner
EXPOSE 9464
ENTRYPOINT ["/loadtest-runner"]

FROM base AS cell0-simulator
LABEL org.opencontainers.image.title="cell0-simulator" \
      org.opencontainers.image.description="A stand-in for Cell 0 OS with exactly scripted answers"
COPY cell0-simulator /cell0-simulator
EXPOSE 18800 18801 18802
ENTRYPOINT ["/cell0-simulator"]
