# Shared by the scripts; sourced, not run. Expects bash with `set -euo pipefail`.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '%s\n' "$*" >&2; }

# "1.95.0" of a rustc program, or nothing.
rustc_version() { "$1" --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p'; }

# True if the version $1 is at least $2 (major.minor).
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

RUST_MIN=1.87

# Sets CARGO (and exports RUSTC for a versioned one); false if there is no Rust that is new enough.
find_cargo() {
  local version name
  CARGO=
  if command -v cargo >/dev/null && command -v rustc >/dev/null; then
    version="$(rustc_version rustc)"
    if [ -n "$version" ] && at_least "$version" "$RUST_MIN"; then
      CARGO="$(command -v cargo)"
      return 0
    fi
  fi
  for name in $(compgen -c cargo-1. 2>/dev/null | grep -E '^cargo-1\.[0-9]+$' | sort -rV -u); do
    version="$(rustc_version "rustc-${name#cargo-}")"
    if [ -n "$version" ] && at_least "$version" "$RUST_MIN"; then
      CARGO="$(command -v "$name")"
      RUSTC="$(command -v "rustc-${name#cargo-}")"
      export RUSTC
      return 0
    fi
  done
  return 1
}

# Jobs for the build: one a core, but at least 1 GiB of memory each.
build_jobs() {
  local cores memory
  cores="$(nproc)"
  memory="$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)"
  [ "$memory" -lt 1 ] && memory=1
  [ "$cores" -lt "$memory" ] && echo "$cores" || echo "$memory"
}

# configure PRESET: once, or again when the preset's build folder has no build files. Prints the folder.
configure() {
  local preset="$1" dir
  case "$preset" in release) dir="$ROOT/build" ;; *) dir="$ROOT/build-$preset" ;; esac
  find_cargo || { say "no Rust of at least $RUST_MIN: run scripts/setup"; return 1; }
  if [ ! -f "$dir/build.ninja" ]; then
    say "configuring $dir"
    # The Rust library is the same in all of them.
    (cd "$ROOT" && cmake --preset "$preset" -DCARGO="$CARGO" -DCONSILIUM_CARGO_OUT="$ROOT/build/cargo") >&2 </dev/null || return 1
  fi
  printf '%s\n' "$dir"
}
