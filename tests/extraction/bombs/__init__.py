"""Small files that are much to read: each is made here, none is committed."""

from tests.extraction.bombs import office, pdf, texts
from tests.extraction.bombs.values import Make

BOMBS: dict[str, tuple[str, Make]] = {
    make.__name__: (suffix, make)
    for module in (pdf, office, texts)
    for suffix, makes in module.BOMBS.items()
    for make in makes
}
