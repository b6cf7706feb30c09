#!/bin/sh
# Searches README, CONTRIBUTING, SECURITY, docs/, and the comments and strings of Rust for words that docs/reference/glossary.md and
# docs/style.md replace. Not searched: these two pages, and those that are generated from help texts and schemas.
set -eu
cd "$(dirname "$0")/.."

words='drawn [w]orld|\b(is|are) [t]old\b|\bgo(es)? on [w]ith|\b[r]eckon|of (its|one.s) [o]wn\b|where there is [n]one|\bdrawings?\b|\bdrawn by\b|\bpictures?\b|passed over|keeps? its promises|what (it|an answer) is worth|\bfrozen policy\b|\bgoing back\b'

# Comments and strings of Rust may also not use these. Random numbers are drawn and files are read, so only phrases are listed.
rust_words="$words"'|\bdraw(s|n)? (an?|the|its|images?|from prompts?)\b|\btells?\b|\bgo(es|ne)? on\b|\bfor good\b|\bsaid of\b|\bworth\b|\bkeeps? what\b|\ball the same\b|\b(is|are) to be\b|\b(is|are) no (runs?|evaluation|plugins?|models?|images?|files?|folder|table|number|claim|key|rules?|object|word|answer|shared)\b|\bwhat stands\b|\bstands? (there|beside|in|at)\b|\blets? be\b'

# English that is data: the vocabulary of prompts and answers, the judge of answers, former names of settings, the wire, fixtures.
data='^(core/prompts/src/|core/engine/src/pretrain.rs|cli/src/endpoint|tests/mutants/|tests/tests/(plugins|docs)\.rs)|alias = |x-former-names|serde\(rename|fixtures/pictures|draw a chart'

rust=$(grep -rnEi "(//|\").*($rust_words)" core cli plugins examples tests --include='*.rs' | grep -vE "$data" || true)
found=$(grep -rnEi "$words" README.md CONTRIBUTING.md SECURITY.md docs --include='*.md' |
    grep -vE '^docs/(style|reference/(glossary|cli|config|metrics))\.md:' || true)
[ -z "$found$rust" ] && exit 0
printf '%s\n' "$found" "$rust"
printf '%s\n' 'error: words that the glossary replaces' 'hint: see docs/reference/glossary.md and docs/style.md' >&2
exit 1
