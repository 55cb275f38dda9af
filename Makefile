# Entry points only; each is a script of its own.

.PHONY: all demo test test-vm bench soak fuzz install uninstall lint fmt

all:
	scripts/build.sh

demo:
	scripts/demo.sh

test:
	scripts/test.sh

test-vm:
	scripts/test-vm.sh

bench:
	scripts/bench.sh

soak:
	scripts/soak.sh

fuzz:
	scripts/fuzz.sh

install:
	scripts/install.sh

uninstall:
	scripts/uninstall.sh

lint:
	scripts/lint.sh

fmt:
	cargo fmt --all
