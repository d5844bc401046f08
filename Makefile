.DEFAULT_GOAL := help
.PHONY: help demo test race soak fuzz lint vet arch vuln cross bench examples ci

GO   ?= go
LINT := $(GO) tool -modfile=tools/go.mod golangci-lint

# The race detector needs a C compiler. Without one the tests still run; .ci/run insists on it.
CGO  := $(shell $(GO) env CGO_ENABLED 2>/dev/null)
RACE := $(if $(filter 1,$(CGO)),-race)

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Northwind's 830 orders as workflows, on real parts (KEEP=1 keeps the database, NOTIFY=off only polls)
	$(GO) run ./examples/orders $(if $(filter-out 0 no off,$(KEEP)),-keep) $(if $(NOTIFY),-notify=$(NOTIFY))

# The tests mostly wait for servers and processes, so more of them run at a time than there are cores.
test: ## Run all tests, with the race detector, on a throwaway PostgreSQL (or on DATABASE_URL)
	@$(if $(RACE),,echo "no C compiler found: testing without the race detector")
	$(GO) test $(RACE) -shuffle=on -parallel=8 -timeout=20m ./...

race: ## Run all tests three times over with the race detector, on one and on four threads: finds what hides
	$(GO) test -race -shuffle=on -count=3 -cpu=1,4 -timeout=60m ./...

# What is reduced in make test, and what hunts for rare interleavings at full size anyway.
SOAK := Swallowed|Chaos|OpenTransaction|Mode|Generated|Linearizable|ThousandsOfStarts|FrozenWorker|Killed|RacingPublishers|ExecutedOnce|WhateverOrder|FloodOfStarts|FloodAtASubscription|OutageOfMinutes|IsKept|IsTriedAgain|KillsUnderLoad|StormOfHints|Fault

soak: ## Run the tests that make test reduces at their full size: 100,000 commits, chaos, 2,400 generated workflows, the fault matrix (up to two hours)
	ROMANCY_SOAK=1 $(GO) test $(RACE) -count=1 -v -timeout=90m -run '$(SOAK)' -skip '^TestFaultMatrix$$' ./bus ./outbox ./workflow ./integration
	ROMANCY_SOAK=1 $(GO) test -count=1 -v -timeout=90m -run '^TestFaultMatrix$$' ./integration

fuzz: ## Decode forged payloads for 30 s, and give the engine forged notifications for 30 s
	$(GO) test -run '^$$' -fuzz '^FuzzDecode$$' -fuzztime 30s ./bus
	$(GO) test -run '^$$' -fuzz '^FuzzHint$$' -fuzztime 30s ./workflow

lint: ## Run the linters (the first run builds them: two to three minutes)
	$(LINT) run ./...
	@if [ -f integration/bench/go.mod ]; then cd integration/bench && \
		$(GO) tool -modfile=../../tools/go.mod golangci-lint run --config ../../.golangci.yml ./...; fi

vet: ## Compile and vet everything, and check that go.mod is tidy
	$(GO) mod tidy -diff
	$(GO) vet ./...
	@if [ -f integration/bench/go.mod ]; then cd integration/bench && $(GO) vet ./...; fi

arch: ## Check who imports whom, and the size of files
	$(GO) test -count=1 ./internal/archtest

vuln: ## Look for known vulnerabilities that our code calls (says so where their database cannot be reached; VULNDB=url: another one)
	@tools/vulncheck.sh

cross: ## Check that what differs by operating system compiles for another
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 $(GO) vet ./internal/pgtest

bench: ## Print the benchmark tables (BENCH=name: only that one, QUICK=1: shorter)
	@if [ ! -f integration/bench/go.mod ]; then \
		echo "make bench: there is no benchmark program in this tree (integration/bench/go.mod is missing)" >&2; exit 1; fi
	cd integration/bench && $(GO) run . $(if $(BENCH),-bench=$(BENCH)) $(if $(filter-out 0 no off,$(QUICK)),-quick)

examples: ## Compile and vet all examples, and run the quick start and the Watermill application on a throwaway PostgreSQL
	$(GO) build -o /dev/null ./examples/...
	$(GO) vet ./examples/...
	$(GO) test -count=1 -v ./examples/quickstart
	$(GO) test $(RACE) -count=1 ./examples/watermill

# One after the other, cheapest first, whatever -j says; each step can fail. make test, the other of the README's two
# commands, is among them.
CI_STEPS := arch vet cross vuln lint test fuzz examples demo

ci: ## All that a change must pass: the steps above except race and bench, and the demo polling only
	@for step in $(CI_STEPS); do \
		echo; echo "=== make $$step"; \
		$(MAKE) --no-print-directory $$step || { echo "=== make $$step FAILED" >&2; exit 1; }; \
	done
	@echo; echo "=== make demo NOTIFY=off"
	@$(MAKE) --no-print-directory demo NOTIFY=off
	@echo; echo "=== make ci passed"
