#!/usr/bin/env bash
# Gives the active Rust toolchain the target wasm32-wasip2. Does nothing if it has it.
#
#   .ci/wasm-target.sh                                 from rustup; if that fails, from Debian
#   ESTOP_WASM_TARGET_FROM=debian .ci/wasm-target.sh   from Debian at once
#
# From Debian means: the sources of exactly this rustc's standard library, and wasi-libc, from the mirror
# that apt is set up with, checked against Debian's keys; the standard library is then built here, in about
# a minute. It needs apt-get, dpkg and a crates.io that answers, changes nothing of the system's apt, and
# writes to the toolchain's folder only.
set -euo pipefail
cd "$(dirname "$0")/.."

target=wasm32-wasip2
sysroot=$(rustc --print sysroot)
rustlib=$sysroot/lib/rustlib/$target

has_target() {
    compgen -G "$rustlib/lib/libstd-*.rlib" >/dev/null
}

say() {
    echo "wasm-target: $*" >&2
}

from_rustup() {
    [[ ${ESTOP_WASM_TARGET_FROM:-} != debian ]] || return 1
    command -v rustup >/dev/null || return 1
    rustup target add "$target" && has_target
}

from_debian() {
    local version keyring mirror
    version=$(rustc --version | cut -d ' ' -f 2)
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # The mirror of the ordinary archive; the one for security updates has no other suites.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -E '/debian/?$' | sort -u | head -n 1 || true)
    mirror=${mirror:-http://deb.debian.org/debian}
    say "building the standard library of $version from $mirror"

    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # apt downloads as a user of its own, who must be able to enter.
    chmod 755 "$work"
    mkdir -p "$work"/{state/lists/partial,cache/archives/partial,debs,root,empty/src}
    for suite in trixie-backports forky; do
        echo "deb [signed-by=$keyring] $mirror $suite main"
    done >"$work/sources.list"
    local apt=(
        apt-get -q
        -o "Dir::State=$work/state" -o "Dir::Cache=$work/cache" -o "Dir::State::status=/var/lib/dpkg/status"
        -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=-"
    )
    "${apt[@]}" update >&2
    (cd "$work/debs" && "${apt[@]}" download "rust-src=$version*" wasi-libc >&2)
    for deb in "$work"/debs/*.deb; do
        dpkg -x "$deb" "$work/root"
    done

    # An empty crate whose build makes the standard library. With bitcode, or guests could not use LTO.
    printf '[package]\nname = "empty"\nedition = "2024"\n' >"$work/empty/Cargo.toml"
    : >"$work/empty/src/lib.rs"
    mkdir -p "$rustlib/lib/self-contained"
    cp "$work/root/usr/lib/$target"/{crt1*.o,libc.a} "$rustlib/lib/self-contained/"
    (
        cd "$work/empty"
        unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS CARGO_BUILD_TARGET
        export CARGO_TARGET_DIR=$work/target RUSTFLAGS=-Cembed-bitcode=yes RUSTC_BOOTSTRAP=1
        __CARGO_TESTS_ONLY_SRC_ROOT=$(echo "$work"/root/usr/src/rustc-*/library) \
            cargo build --release -Zbuild-std=std,panic_abort --target "$target" >&2
    )
    # libstd last: it says that the target is complete.
    local built=$work/target/$target/release/deps
    find "$built" -name 'lib*.r*' ! -name 'libempty-*' ! -name 'libstd-*' -exec cp -t "$rustlib/lib" {} +
    cp "$built"/libstd-*.r* "$rustlib/lib/"
}

# One at a time for each toolchain: the tests call this, and may run beside each other.
exec 9<"$sysroot"
flock 9
has_target || from_rustup || from_debian
has_target || { say "$sysroot has no $target"; exit 1; }
