#!/usr/bin/env python3
"""Checks the relative links of README.md, CONTRIBUTING.md, SECURITY.md and docs/: files exist, headings exist, pages are in SUMMARY.md."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def prose(path):
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)


def anchors(path):
    def slug(title):
        title = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title))

    return {slug(title) for title in re.findall(r"^#+ (.+)$", prose(path), re.M)}


def main():
    docs = sorted((ROOT / "docs").rglob("*.md"))
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + docs
    faults, count = [], 0
    for page in pages:
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
    listed = set(re.findall(r"\]\(([^)\s]+)\)", prose(ROOT / "docs" / "SUMMARY.md")))
    for page in docs:
        name = page.relative_to(ROOT / "docs").as_posix()
        if name not in listed | {"SUMMARY.md"}:
            faults.append(f"docs/{name}: not in docs/SUMMARY.md")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{len(pages)} pages, {count} relative links, {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
