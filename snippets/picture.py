"""Write the README's picture, `docs/assets/picture.svg`: `make picture`.

The one figure that is committed, because the README is read where nothing is built. It is the
figure of chapter 1 as the last run of the pages drew it; a test says when it is out of date.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent
DRAWN = ROOT / "docs/foundations/figures/similarity-context.svg"
PICTURE = ROOT / "docs/assets/picture.svg"

if __name__ == "__main__":
    PICTURE.write_text(DRAWN.read_text("utf-8"), "utf-8")
    print(f"{PICTURE.relative_to(ROOT)} is what {DRAWN.relative_to(ROOT)} shows")
