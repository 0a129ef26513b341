# Only Go 1.26, make and, for what touches disks, root are presumed.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOBUILD := CGO_ENABLED=0 GOOS=linux go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

# Debian's and Ubuntu's packages that the tests need: a compiler for -race, and
# the makers of all that a disk may hold.
TOOLS := gcc libc6-dev procps util-linux mount e2fsprogs xfsprogs btrfs-progs dosfstools \
	cryptsetup-bin lvm2 mdadm bcache-tools fdisk

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.0
DEPGUARD := github.com/OpenPeeDeeP/depguard/v2/cmd/depguard@v2.2.1

.PHONY: help build cross test test-vm demo bench sim mutants lint tools clean

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

build: ## the binary for this machine, bin/volpool
	$(GOBUILD) -o bin/volpool ./cmd/volpool

cross: ## the binaries for all machines, bin/volpool-linux-*
	GOARCH=amd64 $(GOBUILD) -o bin/volpool-linux-amd64 ./cmd/volpool
	GOARCH=arm64 $(GOBUILD) -o bin/volpool-linux-arm64 ./cmd/volpool

test: tools build ## all tests; as root none is left out
	go test -race -count=1 -timeout 20m ./...
	go test -count=1 ./integration/sim ./integration/herd # ordered by virtual time, which -race does not see
	@$(MAKE) --no-print-directory test-vm

test-vm: TOOLS := qemu-system-x86 busybox-static e2fsprogs util-linux libc-bin
test-vm: tools ## the whole job in virtual machines with real NVMe drives
	go test -count=1 -timeout 5m ./integration/vm -vm

demo: TOOLS := util-linux mount e2fsprogs # it needs no more
demo: tools build ## the whole job before your eyes, without AWS; needs root
	@go build -o bin/demo ./integration/demo
	@exec bin/demo bin/volpool

bench: build ## the figures
	go run ./integration/bench
	cd integration/herd && go test -count=1 -run Figures

mutants: ## break the protocol in one place at a time, and see that it is noticed
	go run ./integration/mutants $(if $(ONLY),-only '$(ONLY)')

sim: ## histories of the lease that a seed decides: N=100000, or SEED=one; AGENTS=50 of a hundred
	go test -count=1 -timeout 2h ./integration/sim -sim.n $(or $(N),100000) $(if $(SEED),-sim.seed $(SEED)) $(if $(AGENTS),-sim.agents $(AGENTS)) -v -run Simulation

lint: ## what can be said without running it
	go vet ./...
	go run $(STATICCHECK) ./...
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "gofmt -w would change:" $$files; exit 1; }
	go mod tidy -diff
	@for layer in lease mount pool cmd; do \
		echo "depguard $$layer/..."; \
		(cd .depguard/$$layer && go run $(DEPGUARD) ../../$$layer/...) || exit 1; \
	done

tools: ## the packages that the tests need
	@missing=; \
	for p in $(TOOLS); do \
		dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	command -v apt-get >/dev/null || { echo "make tools knows Debian and Ubuntu only; the tests need what these are there:$$missing"; exit 0; }; \
	[ "$$(id -u)" = 0 ] || { echo "missing; as root: apt-get install$$missing"; exit 1; }; \
	echo "installing$$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -qq update </dev/null || true; \
	apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $$missing </dev/null >/dev/null

clean: ## remove what was built
	rm -rf bin dist
