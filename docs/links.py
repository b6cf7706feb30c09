#!/usr/bin/env python3
"""Checks the relative links of README.md, CONTRIBUTING.md, SECURITY.md and docs/: files exist, headings exist, pages are in SUMMARY.md,
and so are the source files, directories and glossary identifiers that the text names.

With `--book DIR`, checks the pages that mdBook wrote there instead: files exist, headings exist, images are there.
"""

import argparse
import html.parser
import pathlib
import re
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent


def prose(path):
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)


def anchors(path):
    def slug(title):
        title = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title))

    return {slug(title) for title in re.findall(r"^#+ (.+)$", prose(path), re.M)}


# A source file, or a path that begins with a directory of the repository: `grpo.rs`, `train/tasks.rs`, `core/engine/`.
SOURCE = re.compile(r"[a-z0-9_/.-]+\.rs|(?:core|cli|plugins|tests|schemas|fuzz|docs|examples)/[\w/.-]*")
SOURCE_ROOTS = [ROOT, ROOT / "core" / "engine" / "src"]


def missing_sources(page):
    """Names of source files in the text that do not exist. A bare file name may be in any directory of core/."""
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        if not SOURCE.fullmatch(span) or any((root / span).exists() for root in SOURCE_ROOTS):
            continue
        if "/" in span or not any((ROOT / "core").rglob(span)):
            yield span


def missing_identifiers():
    """Identifiers in the column "in code" of the glossary that no source file contains."""
    glossary = ROOT / "docs" / "reference" / "glossary.md"
    folders = [ROOT / name for name in ("core", "plugins", "cli", "schemas")]
    files = (file for folder in folders for ending in ("*.rs", "*.json") for file in folder.rglob(ending))
    words = {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    for row in re.findall(r"^\|(.+)\|$", glossary.read_text(encoding="utf-8"), re.M):
        cells = row.split("|")
        for span in re.findall(r"`([^`]+)`", cells[3]) if len(cells) == 5 else []:
            if "/" not in span and not set(re.findall(r"\w+", span)) <= words:
                yield span


def sources():
    docs = sorted((ROOT / "docs").rglob("*.md"))
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + docs
    faults, count = [], 0
    for page in pages:
        faults.extend(f"{page.relative_to(ROOT)}: no source `{span}`" for span in missing_sources(page))
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if re.match(r"[a-z]+:", target):
                continue
            count += 1
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.exists():
                faults.append(f"{page.relative_to(ROOT)}: no `{target}`")
            elif anchor and anchor not in anchors(file):
                faults.append(f"{page.relative_to(ROOT)}: no heading for `{target}`")
    faults.extend(f"docs/reference/glossary.md: no `{span}` in the code" for span in missing_identifiers())
    listed = set(re.findall(r"\]\(([^)\s]+)\)", prose(ROOT / "docs" / "SUMMARY.md")))
    for page in docs:
        name = page.relative_to(ROOT / "docs").as_posix()
        if name not in listed | {"SUMMARY.md"}:
            faults.append(f"docs/{name}: not in docs/SUMMARY.md")
    return pages, count, faults


class Page(html.parser.HTMLParser):
    """Links and anchors of an HTML page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        self.links.extend(attrs[key] for key in ("href", "src") if attrs.get(key))


def book(folder):
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html"))}
    faults, count = [], 0
    for path, page in pages.items():
        # Its links are absolute, from wherever the book is served.
        if path.name == "404.html":
            continue
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            count += 1
            name, _, anchor = urllib.parse.unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                faults.append(f"{path.relative_to(folder.resolve())}: no `{link}`")
            elif anchor and target in pages and anchor not in pages[target].ids:
                faults.append(f"{path.relative_to(folder.resolve())}: no heading for `{link}`")
    if not pages:
        faults.append(f"no pages in `{folder}`")
    return pages, count, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--book", type=pathlib.Path, metavar="DIR", help="a folder that mdBook wrote")
    args = parser.parse_args()
    pages, count, faults = book(args.book) if args.book else sources()
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{len(pages)} pages, {count} relative links, {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
