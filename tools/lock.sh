#!/usr/bin/env bash
# Writes requirements.lock from pyproject.toml: every version pinned with its hashes, for every platform, and no host name in it.
# Called by `make lock`, after a change to the dependencies. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/.."
uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
  --group dev --all-extras pyproject.toml --output-file requirements.lock "$@"
