#!/bin/sh
# Searches README, CONTRIBUTING, SECURITY and docs/ for words that docs/reference/glossary.md and docs/style.md replace. The two and the page that is
# generated from the help texts (reference/cli.md, config.md, metrics.md) are not searched.
set -eu
cd "$(dirname "$0")/.."

words='drawn [w]orld|\b(is|are) [t]old\b|\bgo(es)? on [w]ith|\b[r]eckon|of (its|one.s) [o]wn\b|where there is [n]one|\bdrawings?\b|\bdrawn by\b|\bpictures?\b|passed over|keeps? its promises|what (it|an answer) is worth|\bfrozen policy\b|\bgoing back\b'

found=$(grep -rnEi "$words" README.md CONTRIBUTING.md SECURITY.md docs --include='*.md' |
    grep -vE '^docs/(style|reference/(glossary|cli|config|metrics))\.md:' || true)
[ -z "$found" ] && exit 0
printf '%s\n' "$found"
printf '%s\n' 'error: words that the glossary replaces' 'hint: see docs/reference/glossary.md and docs/style.md' >&2
exit 1
