# Every task a person runs. `make` alone lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build test lint check e2e bench images generate demo demo-down clean

help: ## Lists the tasks
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo CLUSTER=current   the demo on the cluster that KUBECONFIG points to"

demo: ## Brings up a cluster, runs examples/loadtest-burst.yaml on it, prints the verdict
	@scripts/demo $(if $(CLUSTER),--cluster $(CLUSTER))

demo-down: ## Removes what the demo brought up
	@scripts/demo --down $(if $(CLUSTER),--cluster $(CLUSTER))

test: ## Lint, unit, property, chart and real-cluster tests
	@scripts/test

check: ## The tests that need no cluster
	cargo test --locked

e2e: ## The real-cluster tests alone, on the testbed
	@scripts/test --only cluster

lint: ## Formatting, clippy, licences, shell scripts
	@scripts/test --only lint

build: ## The `loadtest` CLI, for this machine
	cargo build --locked --release -p loadtest

bench: ## Runs ours and other load generators side by side, writes bench/RESULTS.md
	@python3 bench/bench.py

images: ## The three images, into target/images/*.tar
	@scripts/images

generate: ## Writes crds/ and the chart's copy of it from the Rust types
	@scripts/generate

clean: ## Removes what builds have left in this checkout
	cargo clean
