# All tasks of this project. `make` without a task lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build test lint check e2e chaos fuzz bench images dist dist-install generate demo demo-down clean

help: ## Lists the tasks
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  demo, demo-down and e2e take CLUSTER=current: they then use the cluster that KUBECONFIG points to."
	@echo "  See 'scripts/e2e --help' and the first lines of scripts/demo."

demo: ## Starts a cluster, runs examples/loadtest-burst.yaml on it, prints the verdict
	@scripts/demo $(if $(CLUSTER),--cluster $(CLUSTER))

demo-down: ## Removes everything that the demo has created
	@scripts/demo --down $(if $(CLUSTER),--cluster $(CLUSTER))

test: ## Runs all tests: lint, unit, property, chart and end-to-end tests
	@scripts/test

check: ## Runs the tests that need no cluster
	cargo test --locked

e2e: ## Runs the end-to-end tests only, on the testbed or on CLUSTER=current
	@scripts/e2e $(if $(CLUSTER),--cluster $(CLUSTER))

chaos: ## Tests all faults on the testbed, prints what happened
	@scripts/test --only faults

fuzz: ## Runs each fuzz target for a minute
	@scripts/fuzz

lint: ## Checks formatting, lints, dependencies and shell scripts
	@scripts/test --only lint

build: ## Builds the optimized `loadtest` CLI: target/optimized/loadtest
	cargo build --locked --profile optimized -p loadtest

bench: ## Compares this load generator with others, writes bench/RESULTS.md
	@python3 bench/bench.py

images: ## Builds the three images into target/images/*.tar
	@scripts/images

dist: ## Builds and tests all files of a release in target/dist (RELEASE=v0.1.0: of that tag)
	@scripts/dist $(if $(RELEASE),--release $(RELEASE))

dist-install: ## Installs target/dist on a new testbed, and runs a test there
	@scripts/dist-install

generate: ## Writes the CRDs, the table of docs/metrics.md, the schema of results and the dashboards
	@scripts/generate

clean: ## Removes build results from this checkout
	cargo clean
