#!/usr/bin/env python3
"""Lists the public items of the SDK, the crate `unirl`, as `core/api.txt`. `--check` compares instead of writing.

Reads the pages that `cargo doc --no-deps -p unirl` writes. An item is a module, macro, struct, enum, trait, type alias, constant,
function or method that a plugin can name and that is not `#[doc(hidden)]`; fields, variants and implementations of traits are not
counted, nor are re-exports, which the list shows as `use`.
"""

import argparse
import difflib
import html.parser
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ROOT / "target" / "doc" / "unirl"
LIST = ROOT / "core" / "api.txt"
# The number of items that an author can survey.
MOST = 150
UPDATE = "cargo doc --no-deps -p unirl && python3 docs/api.py"

# The parts of a page that declare items: the page's own item, its methods and constants, and re-exports.
MEMBER = re.compile(r"(?:ty)?method\.(\w+)|associated(?:constant|type)\.(\w+)")


def on_one_line(declaration):
    return re.sub(r",? ([)\]])", r"\1", re.sub(r"([(\[]) ", r"\1", " ".join(declaration.split())))


class Page(html.parser.HTMLParser):
    """The declarations on a page, and its links to modules and items."""

    def __init__(self, path):
        super().__init__()
        self.declaration = ""  # of the item that the page is about
        self.members = []  # names and declarations
        self.uses = []
        self.links = []  # classes and targets
        self.open = []  # the open elements, each with the texts that it collects
        self.member = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        classes = (attributes.get("class") or "").split()
        name = attributes.get("id") or ""
        collected = None
        if tag == "a" and "href" in attributes:
            self.links.append((classes, attributes["href"]))
        if tag == "section":
            found = MEMBER.fullmatch(name) if "trait-impl" not in classes else None
            self.member = next(filter(None, found.groups())) if found else ""
        if tag == "pre" and "item-decl" in classes and not self.declaration:
            collected = lambda text: setattr(self, "declaration", text)
        elif tag in ("h3", "h4") and "code-header" in classes and self.member:
            collected = lambda text, name=self.member: self.members.append((name, text))
        elif tag == "dt" and name.startswith("reexport."):
            collected = self.uses.append
        if tag in ("br", "div"):
            self.handle_data(" ")
        if tag not in ("wbr", "br", "img", "meta", "link", "input"):
            hidden = tag == "summary" or "tooltip" in classes
            self.open.append((tag, collected, [], hidden))

    def handle_endtag(self, tag):
        while self.open:
            opened, collected, texts, _ = self.open.pop()
            if collected:
                collected(on_one_line("".join(texts)))
            if opened == tag:
                return

    def handle_data(self, data):
        # A `<summary>` around a section is no part of a declaration; one inside is the button that shows the fields.
        for _, collected, texts, hidden in reversed(self.open):
            if collected:
                texts.append(data)
                return
            if hidden:
                return


def surface():
    """The lines of the list, and the number of items."""
    lines = []

    def add(kind, path, declaration):
        lines.append((path, f"{kind} {path}" + (f": {declaration}" if declaration else "")))

    def module(folder, path):
        page = Page(folder / "index.html")
        for use in page.uses:
            lines.append((path, f"{use.rstrip(';')} in {path}"))
        for classes, target in page.links:
            if classes == ["mod"]:
                name = target.removesuffix("/index.html")
                add("mod", f"{path}::{name}", "")
                module(folder / name, f"{path}::{name}")

    module(PAGES, "unirl")
    for classes, target in Page(PAGES / "all.html").links:
        found = re.fullmatch(r"((?:\w+/)*)(\w+)\.(\w+)\.html", target)
        if classes or not found:
            continue
        folders, kind, name = found.groups()
        path = "::".join(["unirl", *folders.split("/")[:-1], name])
        page = Page(PAGES / target)
        declaration = page.declaration
        if kind == "trait":
            declaration = declaration.split(" {")[0]  # its methods have lines of their own
        add(kind, path, declaration)
        for member, declaration in page.members:
            add("const" if "const " in declaration.split("fn ")[0] else "method", f"{path}::{member}", declaration)
    texts = [text for _, text in sorted(set(lines))]
    return texts, sum(not text.startswith("pub use ") for text in texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the list instead of writing it")
    arguments = parser.parse_args()
    if not (PAGES / "all.html").is_file():
        sys.exit(f"error: no `{(PAGES / 'all.html').relative_to(ROOT)}`\nhint: run `cargo doc --no-deps -p unirl`")
    texts, count = surface()
    new = "".join(f"{line}\n" for line in [f"{count} public items of `unirl`, at most {MOST}", *texts])
    if count > MOST:
        print(new, end="")
        sys.exit(f"error: `unirl` has {count} public items, expected at most {MOST}\n"
                 "hint: make items that no author of a plugin needs private, or mark them `#[doc(hidden)]`")
    if not arguments.check:
        LIST.write_text(new, encoding="utf-8")
        print(f"{LIST.relative_to(ROOT)}: {count} public items")
        return
    old = LIST.read_text(encoding="utf-8") if LIST.is_file() else ""
    if old != new:
        name = str(LIST.relative_to(ROOT))
        sys.stdout.writelines(difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), name, f"{name} as documented"))
        sys.exit(f"error: the public items of `unirl` are not those of `{name}`\nhint: if the change is wanted: `{UPDATE}`")
    print(f"{LIST.relative_to(ROOT)}: {count} public items, as documented")


if __name__ == "__main__":
    main()
