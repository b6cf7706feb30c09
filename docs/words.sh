#!/bin/sh
# Searches README, CONTRIBUTING, SECURITY and docs/ for words that docs/reference/glossary.md and docs/style.md replace. The two and the page that is
# generated from the help texts (reference/cli.md, config.md, metrics.md) are not searched.
#
# `--rust` counts them in comments and strings of Rust, by directory; `--rust DIR` shows them in a directory.
set -eu
cd "$(dirname "$0")/.."

words='drawn [w]orld|\b(is|are) [t]old\b|\bgo(es)? on [w]ith|\b[r]eckon|of (its|one.s) [o]wn\b|where there is [n]one|\bdrawings?\b|\bdrawn by\b|\bpictures?\b|passed over|keeps? its promises|what (it|an answer) is worth|\bfrozen policy\b|\bgoing back\b'

# Beside those: what only comments, errors and help texts said. Names in code are not searched, and `tell`, `draw` and `read` have
# uses that stay (random numbers are drawn, files are read), so only phrases are listed.
rust_words="$words"'|\bdraw(s|n)? (an?|the|its|images?|from prompts?)\b|\btells?\b|\bgo(es|ne)? on\b|\bfor good\b|\bsaid of\b|\b(an?|the|its) folders?\b|\bworth\b|\bkeeps? what\b|\bhold(s)? compatible\b|\ball the same\b|\bis to be\b|\bare to be\b|\b(is|are) no (runs?|evaluation|plugins?|models?|images?|files?|folder|table|number|claim|key|rules?|object|word|answer|shared)\b|\bin turn\b|\bwhat stands\b|\bstands? (there|beside|in|at)\b|\blets? be\b|\beyes\b\)'

if [ "${1:-}" = --rust ]; then
    # A comment from `//` on, or a line with a quotation mark before the word.
    find_rust() { grep -rnEi "(//|\").*($rust_words)" "$@" --include='*.rs' || true; }
    if [ $# -gt 1 ]; then
        shift
        find_rust "$@"
        exit 0
    fi
    find_rust core cli plugins examples tests | awk -F: '
        { n = split($1, path, "/"); folder = path[1]; for (i = 2; i < n; i++) folder = folder "/" path[i]; count[folder]++; all++ }
        END { for (folder in count) printf "%6d  %s\n", count[folder], folder | "sort -k2"; close("sort -k2"); printf "%6d  lines\n", all }'
    exit 0
fi

found=$(grep -rnEi "$words" README.md CONTRIBUTING.md SECURITY.md docs --include='*.md' |
    grep -vE '^docs/(style|reference/(glossary|cli|config|metrics))\.md:' || true)
[ -z "$found" ] && exit 0
printf '%s\n' "$found"
printf '%s\n' 'error: words that the glossary replaces' 'hint: see docs/reference/glossary.md and docs/style.md' >&2
exit 1
