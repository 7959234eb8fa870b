#!/usr/bin/env bash
# What auditors verify an evidence bundle with: jq and sqlite3. Installs them where they are missing and that can be done (root,
# apt). Where it cannot, the tests that need them say that they were skipped.
set -euo pipefail

missing=()
for tool in jq sqlite3; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
((${#missing[@]})) || exit 0
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "tools: ${missing[*]} missing, and cannot be installed by this user" >&2
    exit 0
fi
if ! { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y "${missing[@]}"; } >&2; then
    echo "tools: ${missing[*]} could not be installed" >&2
fi
