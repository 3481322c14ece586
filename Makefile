# test needs what testscripts/deps.sh installs; the rest needs Go alone.

PREFIX ?= /usr/local
MANDIR ?= $(PREFIX)/share/man

# Go and the tests keep what they download in the home of who runs them.
ifeq ($(HOME),)
export HOME := $(shell getent passwd "$$(id -u)" | cut -d: -f6)
endif

.PHONY: all test soak lint deps bench bench-9p bench-replicate install uninstall clean

all:
	go build -o mezzo ./cmd/mezzo

test: deps lint
	go test -timeout 20m ./...
	go test -race -short -timeout 20m ./...

# The random tests, with new seeds each round, for MINUTES.
MINUTES ?= 30
soak: deps
	./internal/testutil/soak.sh $(MINUTES) $(PACKAGES)

deps:
	./testscripts/deps.sh

lint:
	@f=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$f" ] || { echo "gofmt: $$f"; exit 1; }
	go vet ./...
	go tool staticcheck ./...

# Replication beside cp, rsync, Unison and lsyncd, those that are installed, on the
# disk of SCRATCH; smaller with FILES=, MIB=, ROUNDS=, CREATES=, REPLICAS=.
SCRATCH ?= /tmp
bench-replicate: all
	./testscripts/bench_replicate.sh "$$PWD/mezzo" $(SCRATCH)

bench:
	go test -run '^$$' -bench . -benchmem ./...

# Side by side with diod and hugelgupf's localfs; ARGS as in go run ./cmd/bench9p -help.
bench-9p:
	go run ./cmd/bench9p $(ARGS)

install: all
	install -D -m 755 mezzo $(DESTDIR)$(PREFIX)/bin/mezzo
	ln -sf mezzo $(DESTDIR)$(PREFIX)/bin/mount.mezzo
	for p in man/*.[1-9]; do install -D -m 644 $$p $(DESTDIR)$(MANDIR)/man$${p##*.}/$${p##*/}; done

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/mezzo $(DESTDIR)$(PREFIX)/bin/mount.mezzo
	for p in man/*.[1-9]; do rm -f $(DESTDIR)$(MANDIR)/man$${p##*.}/$${p##*/}; done

clean:
	rm -f mezzo
