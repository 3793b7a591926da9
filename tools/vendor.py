"""Fetch the third-party files that the site serves itself (`make vendor`).

A page asks no other host for anything, so the typesetter of the formulas and
the typeface of the prose live in this repository:

    snippets/vendor/      KaTeX's script, which typesets formulas at build time
    docs/assets/katex/    KaTeX's style sheet and fonts, which display them
    docs/assets/fonts/    Source Serif 4, upright and italic, cut to what is read here

The results are committed: building, testing and reading the book need neither
npm nor this script. To take a newer version, change PACKAGES, run the script
once, read the digest it refuses, check it against `npm view NAME@VERSION
dist.integrity`, write it down here, and run again. Needs npm and a network.

The typeface is cut: its weights to those that the style sheet asks for, its
features to those that a paragraph uses, its letters to English's and to those
of names. The latter (the Ł of the bibliography) are files of their own, which
the style sheet's `unicode-range` keeps from every page that has none of them.

Only woff2 is kept, for every browser that MkDocs Material supports reads it;
the style sheet then names no file that is not there. KaTeX's `font-display:
block` stays: its calligraphic, blackboard and Fraktur letters are plain ASCII
in the page, so `swap` would first show another formula (R for the reals), and
then move the line when the metrics change. The fonts come from the same host
and most are under 20 kB, so the blank is short.
"""

import base64
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont

ROOT = Path(__file__).resolve().parent.parent

KATEX = "katex@0.19.1"
SERIF = "@fontsource-variable/source-serif-4@5.3.1"
PACKAGES = {  # what npm calls `dist.integrity`: sha512 of the tarball
    KATEX: (
        "sha512-jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0"
        "/YeOy15lDgRhKvr5614uRrEfA=="
    ),
    SERIF: (
        "sha512-4Rtay22SC4lMvw11r/+9kxANB6P3M0X8s1NudBC2v0J1KU2y3DcMoNcT3lBoZ"
        "/CqLirzf+StlO6UlJilyrvaUg=="
    ),
}

FEATURES = ["ccmp", "kern", "liga", "locl", "mark", "mkmk"]  # digits are tabular without one
WEIGHTS = (400, 700)
DASHES = range(0x2010, 0x2027)  # and quotation marks
LETTERS = {  # of each file that is kept: the file of the package, and which of its letters
    "english": ("latin", {*range(0x20, 0x7F), *range(0xA0, 0xC0), 0xD7, 0xF7, *DASHES, 0x2212}),
    "latin-1": ("latin", {*range(0xC0, 0x100)} - {0xD7, 0xF7}),
    "latin-ext": ("latin-ext", {*range(0x100, 0x180), *range(0x218, 0x21C)}),
}

# The licence reserves the name "Source" for the typeface as its makers left it.
FAMILY, RENAMED = "Source Serif 4", "Book Serif"

OURS = ("snippets/vendor", "docs/assets/katex", "docs/assets/fonts")


def fetch(package: str) -> dict[str, bytes]:
    """Return the files of an npm package, the tarball's digest checked first."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", folder, package],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (tarball,) = Path(folder).glob("*.tgz")
        digest = hashlib.sha512(tarball.read_bytes()).digest()
        integrity = "sha512-" + base64.b64encode(digest).decode()
        if integrity != PACKAGES[package]:
            raise SystemExit(f"{package}: expected {PACKAGES[package]}, got {integrity}")
        with tarfile.open(tarball) as archive:
            return {
                member.name.removeprefix("package/"): file.read()
                for member in archive
                if (file := archive.extractfile(member)) is not None
            }


def woff2_only(css: str) -> str:
    """Drop the woff and ttf sources from a style sheet.

    >>> woff2_only('src:url(a.woff2) format("woff2"),url(a.woff) format("x")}')
    'src:url(a.woff2) format("woff2")}'
    """
    return re.sub(r',url\([^)]+\.(?:woff|ttf)\) format\("[^"]+"\)', "", css)


def katex(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return what the repository keeps of KaTeX, by path."""
    site, build = "docs/assets/katex", "snippets/vendor"
    css = woff2_only(files["dist/katex.min.css"].decode())
    head = f"/* {KATEX}, woff2 only: written by tools/vendor.py */\n"
    kept = {
        f"{site}/LICENSE": files["LICENSE"],
        f"{site}/katex.min.css": (head + css.rstrip() + "\n").encode(),
        f"{build}/LICENSE": files["LICENSE"],
        f"{build}/katex.min.js": files["dist/katex.min.js"],
    }
    for font in re.findall(r"url\((fonts/[^)]+)\)", css):
        kept[f"{site}/{font}"] = files[f"dist/{font}"]
    return kept


def cut(font: bytes, letters: set[int]) -> bytes:
    """Keep of a variable font what a page can show of it."""
    options = Options(flavor="woff2", layout_features=FEATURES, name_IDs=[0, 1, 2, 13, 14])
    with TTFont(io.BytesIO(font), recalcTimestamp=False) as whole:
        part = instantiateVariableFont(whole, {"wght": WEIGHTS})
        subsetter = Subsetter(options)
        subsetter.populate(unicodes=letters)
        subsetter.subset(part)
        for record in part["name"].names:
            if record.nameID != 0:  # whose work it is
                record.string = str(record).replace(FAMILY, RENAMED)
        part.flavor = "woff2"
        part.save(out := io.BytesIO())
    return out.getvalue()


def serif(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return what the repository keeps of Source Serif 4, by path."""
    site = "docs/assets/fonts"
    kept = {f"{site}/OFL.txt": files["LICENSE"]}
    for part, (script, letters) in LETTERS.items():
        for style in ("normal", "italic"):
            whole = files[f"files/source-serif-4-{script}-wght-{style}.woff2"]
            kept[f"{site}/book-serif-{part}-{style}.woff2"] = cut(whole, letters)
    return kept


def main() -> None:
    kept = katex(fetch(KATEX)) | serif(fetch(SERIF))
    for folder in OURS:  # a font that a new version dropped must go
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    for path, content in kept.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(content)
        print(f"{len(content):>7} {path}")


if __name__ == "__main__":
    main()
