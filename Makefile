# Two commands do all that a newcomer needs, set-up in them: `make up` and `make test`.
# As root on Debian with a Rust toolchain.

NODES ?= 3
UP_FLAGS ?=
# What a node needs, and what the demo's images and registry need.
PACKAGES := gcc libc6-dev containerd runc containernetworking-plugins iptables nftables iproute2 \
	docker-registry skopeo umoci busybox-static curl procps
# What the figures are put beside.
BENCH_PACKAGES := etcd-server

.PHONY: up build packages images test lint e2e soak soak-members mutants bench clean

## A cluster of three nodes on this machine, until Ctrl-C
up: packages build images
	target/release/rkube up --nodes $(NODES) --registry-images target/images $(UP_FLAGS)

## rkube and rkubectl in target/release
build:
	cargo build --release --bins

packages:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f='$${Status}\n' $$p 2>/dev/null \
		| grep -q '^install ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing:" $$missing; apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi

images: packages
	manifests/images/build.sh target/images

## Everything that has to hold: format, lints, unit, property, simulation and end-to-end tests
test: packages images lint
	cargo test --workspace

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

## Only the tests with real containers
e2e: packages images
	cargo test --test e2e

## Three real members, their leader killed, paused and cut off under load: FAULTS of each kind
FAULTS ?= 100
soak-members:
	RKUBE_FAULTS=$(FAULTS) cargo test --test members -- --nocapture 'nothing is lost'

## Simulated clusters under faults for MINUTES (default 10), from SEED on
soak:
	cargo run --release -p rkube-store --features sim --example soak -- $(or $(MINUTES),10) $(or $(SEED),1000)

## Historical bugs put back one at a time: does the simulator find them? See tests/mutants
mutants:
	tests/mutants/run

## Figures, each beside its floor or a peer of the same run
bench: PACKAGES += $(BENCH_PACKAGES)
bench: packages build images
	cargo bench --bench figures

clean:
	cargo clean
