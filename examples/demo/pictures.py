"""The photographs: those of a folder, or drawn ones."""

import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, UnidentifiedImageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
DRAWN_SIZE = (1200, 900)


def find(folder: Path) -> tuple[list[Path], int]:
    """All pictures in a folder and below it, and how many files only look like pictures by their name."""
    found = []
    broken = 0
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        try:
            with Image.open(path):  # reads the header only
                found.append(path)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            broken += 1
    return found, broken


def some(folder: Path, count: int) -> list[Path]:
    """The widest thumbnails of a few photographs, from first to last."""
    widest: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.glob("*.jpg")):
        photo, _, pixels = path.stem.rpartition("-")
        widest[photo] = max(widest.get(photo, (0, path)), (int(pixels), path))
    found = [path for _, path in widest.values()]
    return found[:: max(1, -(-len(found) // count))][:count]


def draw(folder: Path, count: int) -> Iterator[Path]:
    """Hills under a coloured sky, the same ones in each run."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"hills-{number:03d}.jpg"
        _hills(random.Random(number)).save(path, quality=88)
        yield path


def _hills(dice: random.Random) -> Image.Image:
    width, height = DRAWN_SIZE
    top = tuple(dice.randrange(20, 120) for _ in range(3))
    bottom = tuple(dice.randrange(150, 255) for _ in range(3))
    bands = 24
    picture = Image.new("RGB", (1, bands))
    for row in range(bands):
        mixed = [round(a + (b - a) * row / bands) for a, b in zip(top, bottom, strict=True)]
        picture.putpixel((0, row), (mixed[0], mixed[1], mixed[2]))
    picture = picture.resize(DRAWN_SIZE, Image.Resampling.BILINEAR)
    brush = ImageDraw.Draw(picture)
    x, y, radius = dice.randrange(width), dice.randrange(height // 2), dice.randrange(50, 130)
    brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 240, 200))
    for layer in range(5):
        level = height * (5 + layer) // 10
        shade = tuple(round(channel * (0.7 - 0.13 * layer)) for channel in bottom)
        ridge = [(0, height)]
        for step in range(0, width + 81, 80):
            ridge.append((step, level + dice.randrange(-70, 70)))
        brush.polygon([*ridge, (width, height)], fill=(shade[0], shade[1], shade[2]))
    return picture.filter(ImageFilter.GaussianBlur(1))
