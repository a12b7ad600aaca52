#!/usr/bin/env bash
# The Rust suite: tests/rust.sh [--checked] [arguments of nextest, or of cargo test where there is none].
#
# --checked: against the library with overflow checks and debug assertions. It has a folder of its own, target/checked,
# for a library of another profile would replace the one that the program, the kernel and the cells link. What the
# ordinary build made of all other packages is copied there: their profile is the same, and none is compiled twice.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTFLAGS=-Cprefer-dynamic
host=$(rustc -vV | sed -n 's/^host: //p')
flags=()
if [ "${1:-}" = --checked ]; then
    shift
    from=${CARGO_TARGET_DIR:-target}
    to=$from/checked
    stamp=$(cat Cargo.lock Cargo.toml cli/Cargo.toml .cargo/config.toml <(rustc -vV) | cksum)
    if [ "$(cat "$to/.stamp" 2>/dev/null)" != "$stamp" ]; then
        rm -rf "$to"
        for part in debug "$host/debug"; do
            [ -d "$from/$part" ] || continue
            mkdir -p "$to/$part"
            (cd "$from/$part" && tar -cf - --exclude='*cltlab*' --exclude='suite-*' deps build .fingerprint) | tar -C "$to/$part" -xf -
        done
        echo "$stamp" >"$to/.stamp"
    fi
    export CARGO_TARGET_DIR=$to
    # At this level the library is compiled in half the time.
    for setting in overflow-checks=true debug-assertions=true opt-level=1; do flags+=(--config "profile.dev.package.cltlab.$setting"); done
fi
# --lib: units of the self-test, which [lib] test = false leaves out.
if command -v cargo-nextest >/dev/null; then
    exec cargo nextest run --locked "${flags[@]}" -p cltlab -p cltlab-cli --target "$host" --lib --test suite "$@"
fi
exec cargo test --locked "${flags[@]}" -p cltlab -p cltlab-cli --target "$host" --lib --test suite "$@"
