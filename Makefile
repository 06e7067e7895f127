# Only Go and make are needed; "make help" tells what there is.

GO      ?= go
KERNELS := $(or $(KERNEL),6.12 6.1)
FUZZTIME ?= 10s

# What also builds where there is no Linux.
PORTABLE := ./cmd/... ./usb/... ./usbip/... ./emulate/...

sources = go.mod go.sum $(shell find $1 -name '*.go' ! -name '*_test.go' ! -path '*/testdata/*')

.NOTPARALLEL:
.PHONY: help build demo test test-host test-fuzz test-guest soak cross lint bench fuzz fetch update-cache clean

help: ## Tell what there is.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-20s  %s\n' "$$name" "$$text"; done

build: bin/usbns ## Build bin/usbns, a static binary.

bin/usbns: $(call sources,.)
	CGO_ENABLED=0 $(GO) build -trimpath -o $@ ./cmd/usbns

bin/vmexec: $(call sources,internal/vmexec internal/debpkg)
	CGO_ENABLED=0 $(GO) build -trimpath -o $@ ./internal/vmexec

demo: bin/usbns ## Show two private controllers at work. Needs no root.
	@bin/usbns demo

test: lint cross fetch test-host test-fuzz test-guest ## Run every check and every test. Needs no root.

# The race detector needs cgo. What a shell command says of the compiler decides.
compiles := printf '\#include <stdlib.h>\nint main(void) { return 0; }\n' | $$($(GO) env CC) -x c -o /dev/null - 2>/dev/null

# Directories of test files in which grep finds something.
tested = $(sort $(dir $(shell grep -rl --include='*_test.go' $1 . | grep -v /testdata/)))

# Allocations are counted without the race detector, which allocates itself.
test-host: ## Run the tests that need no guest, under the race detector.
	@if $(compiles); then \
		echo '$(GO) test -race ./...'; CGO_ENABLED=1 $(GO) test -race ./... && \
		$(GO) test -run 'Allocate$$' $(call tested,AllocsPerRun); \
	else \
		echo 'not run: the race detector, which needs a C compiler (apt-get install gcc libc6-dev)'; \
		test -z "$$CI" && CGO_ENABLED=0 $(GO) test ./...; \
	fi

# A number of inputs, and not a time, so that a slow machine does the same.
test-fuzz: ## Run each fuzz target for a moment.
	@$(MAKE) --no-print-directory fuzz FUZZTIME=1000x

test-guest: bin/usbns fetch ## Run the guest tests on kernels 6.12 and 6.1, or on KERNEL=6.12 alone.
	@test -e bin/guests || exit 0; \
	for kernel in $(KERNELS); do \
		echo "guest tests on kernel $$kernel"; \
		CGO_ENABLED=0 $(GO) test -p 2 -tags guest -run '^TestGuest' -exec "$(CURDIR)/bin/vmexec -kernel $$kernel" $(call tested,'^//go:build guest$$') || exit; \
	done

soak: bin/usbns fetch ## Start and end containers a thousand times in guests, and look for what is left. Takes half an hour.
	@for kernel in $(KERNELS); do \
		CGO_ENABLED=0 $(GO) test -timeout 60m -tags guest -run '^TestSoak' -v -exec "$(CURDIR)/bin/vmexec -kernel $$kernel" ./cmd/usbns || exit; \
	done

fetch: bin/vmexec ## Fetch QEMU, kernels and stock tools from Debian into the user's cache.
	@rm -f bin/guests; if bin/vmexec -fetch; then touch bin/guests; else test -z "$$CI"; fi

update-cache: bin/vmexec ## Fetch what Debian has newer of that.
	bin/vmexec -update
	$(GO) clean -testcache

cross: ## Build for arm64, and what is to work on macOS, on Windows and with 32 bits.
	GOARCH=arm64 CGO_ENABLED=0 $(GO) build ./...
	@for os in darwin windows; do \
		echo "GOOS=$$os $(GO) build $(PORTABLE)"; \
		CGO_ENABLED=0 GOOS=$$os $(GO) build $(PORTABLE) || exit; \
	done
	CGO_ENABLED=0 GOOS=linux GOARCH=386 $(GO) vet ./usb ./usbip ./emulate

lint: ## Check the form of the code.
	@unformatted=$$($(GO) tool gofumpt -l .) || exit; \
	if [ -n "$$unformatted" ]; then echo "not formatted, run $(GO) tool gofumpt -w .:" $$unformatted; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags guest ./...
	$(GO) tool staticcheck ./...
	$(GO) tool staticcheck -tags guest ./...

bench: ## Run the benchmarks: how near to a bare program beside them they come.
	$(GO) test -p 1 -run '^$$' -bench . -benchmem $(call tested,'^func Benchmark')

fuzz: ## Run each fuzz target for FUZZTIME, 10s if not set; 5000x is a number of inputs.
	@grep -r --include='*_test.go' -o '^func Fuzz[A-Za-z0-9_]*' . | sort | while IFS=: read -r file name; do \
		echo "$(GO) test -fuzz $${name#func } $$(dirname $$file)"; \
		$(GO) test -run '^$$' -fuzz "^$${name#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x "$$(dirname $$file)" || exit; \
	done

clean: ## Remove what was built here. The cache of Debian packages stays.
	rm -rf bin
