#!/usr/bin/env bash
# Makes .venv/ from requirements.lock and installs this checkout into it; installs the system programs where it may.
# Called by `make setup`. Uses uv if it is there (seconds), else venv and pip. It never touches anything outside .venv/
# but system packages, and those only as root on Debian and its relatives. With `--servers` also the servers that tests want.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

python="${PYTHON:-}"
if [ -z "$python" ]; then
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python="$candidate"
      break
    fi
  done
fi
if [ -z "$python" ]; then
  say "error: no Python 3.11 or newer found"
  say "hint: install one, or name it: make setup PYTHON=/path/to/python3.11"
  exit 4
fi

# -- system programs -------------------------------------------------------------------------------------------------
declare -A package=([bwrap]=bubblewrap [git]=git [ssh-keygen]=openssh-client)
missing=()
for program in "${!package[@]}"; do
  command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
"$python" -c 'import ensurepip, venv' 2>/dev/null || command -v uv >/dev/null || missing+=("$(basename "$python")-venv")
if [ "${1:-}" = --servers ] && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && ! command -v initdb >/dev/null; then
  missing+=(postgresql)
fi
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]} ..."
    export DEBIAN_FRONTEND=noninteractive
    install=(apt-get install --yes --quiet --no-install-recommends "${missing[@]}")
    "${install[@]}" >/dev/null 2>&1 </dev/null \
      || { apt-get update --quiet >/dev/null 2>&1 </dev/null; "${install[@]}" >/dev/null </dev/null; } \
      || say "warning: could not install ${missing[*]}; going on without"
  else
    say "warning: missing: ${missing[*]}"
    say "hint: install them with your package manager, such as: sudo apt-get install ${missing[*]}"
  fi
fi

[ "${1:-}" = --servers ] && [ -e .venv/.ready ] && exit 0

# -- the virtual environment -----------------------------------------------------------------------------------------
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
  say "making .venv with $("$python" --version) ..."
  "$python" -m venv --clear .venv 2>/dev/null || uv venv --quiet --clear --seed --python "$python" .venv
fi
with_uv() {
  command -v uv >/dev/null || return 1
  uv pip install --quiet --python .venv/bin/python --require-hashes --requirement requirements.lock \
    && uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
}
with_pip() {
  .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock \
    && .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
}
say "installing the locked dependencies ..."
with_uv || with_pip || { say "error: could not install the dependencies"; say "hint: is a package index reachable?"; exit 4; }
.venv/bin/python -m compileall -q -j 0 .venv/lib src >/dev/null || true  # where Python may not write bytecode itself, every start would take seconds
touch .venv/.ready
