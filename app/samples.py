"""The sample documents of `make demo` and of the tests, in five formats, written by this project."""

import io
import textwrap
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

SEARCHES = (
    "How many weeks of parental leave do I get?",
    "What does the keeper do when fog comes in?",
    "Which temperature should water for filter coffee have?",
)
"""Questions that the samples answer: from the DOCX, the PDF and the Markdown file, in this order."""

_LIGHTHOUSE = (
    "Log of the Lighthouse at Skerry Point",
    "The lamp is lit half an hour before sunset and put out half an hour after sunrise. The keeper on watch winds "
    "the clockwork every four hours, trims the wicks and notes the weather, the state of the sea and every ship "
    "that passes.",
    "When fog comes in, the keeper starts the fog signal at once: two blasts of three seconds every minute, until "
    "the island of Vane, four miles to the north, can be seen again. During fog nobody leaves the station, and the "
    "lamp stays lit by day as well.",
    "On the ninth of February a storm from the north-west broke two panes of the lantern. The keepers hung a "
    "storm sail over the gap, and the light did not fail. New glass came with the relief boat on the twentieth.",
    "Oil is brought twice a year. A full tank holds nine hundred gallons, which lasts seven months in winter and "
    "eleven in summer.",
)
_LEAVE = (
    "Leave policy of Harbour Instruments",
    "Every employee has thirty days of paid holiday a year. Holiday that is not taken by the end of March of the "
    "following year lapses, unless illness or the needs of the company stood in the way.",
    "Parental leave is twenty-six weeks at full pay for each parent. It may be taken in up to three parts until "
    "the child's third birthday, and is to be announced eight weeks ahead. Whoever wants to work part-time "
    "afterwards has a right to do so.",
    "Those who are ill tell their team by nine in the morning. A doctor's note is needed from the fourth day on.",
    "For moving house, one's own wedding and the death of a close relative there are two more days each.",
)
_COFFEE = """\
# Filter coffee, by hand

Good filter coffee needs fresh beans, a grinder and patience.

## What you need

- 60 grams of coffee for a litre of water, ground like coarse sand
- water between 92 and 96 degrees Celsius: boil it and wait for half a minute
- a paper filter, rinsed, so that it does not taste of paper

## How to brew

Pour twice the coffee's weight of water over it and let it bloom for thirty seconds. Then pour slowly, in circles.
After three to four minutes the water should have run through. If it is bitter, grind coarser; if it is sour, finer.
"""
_BEES = """\
<!DOCTYPE html>
<html lang="en"><head><title>A year with bees</title><style>p { color: black }</style></head><body>
<h1>A year with bees</h1>
<p>In spring the queen lays up to two thousand eggs a day. A colony that feels cramped will swarm, so the
beekeeper adds a box of empty frames as soon as the cherry trees flower.</p>
<p>Honey is taken when the bees have capped two thirds of the comb; it then holds less than eighteen per cent of
water and keeps for years. A third of the harvest stays with the colony.</p>
<p>Against the varroa mite, the hive is treated with formic acid after the last harvest and with oxalic acid around
the winter solstice, when there is no brood.</p>
<script>console.log("not a word of this is text")</script>
</body></html>
"""
_GARDEN = """\
Notes on the walled garden

The south wall keeps the frost away until the middle of November. Figs and apricots stand against it; they are
pruned in late winter and tied in before the buds open.

Potatoes follow beans, cabbage follows potatoes, and every fourth year a bed rests under clover. The compost is
turned three times and is ready after ten months. Rainwater from the roof of the shed fills two barrels of three
hundred litres.
"""
_TIDES = """\
harbour,high_water,low_water,range_metres
Skerry Point,06:12,12:25,3.4
Vane Island,06:31,12:44,3.1
Old Quay,05:58,12:09,4.2
"""


def write_samples(folder: Path) -> list[Path]:
    """Write the samples into `folder`; their paths, by name."""
    contents = {
        "lighthouse-log.pdf": _pdf(_LIGHTHOUSE),
        "leave-policy.docx": _docx(_LEAVE),
        "coffee.md": _COFFEE.encode(),
        "bees.html": _BEES.encode(),
        "garden.txt": _GARDEN.encode(),
        "tides.csv": _TIDES.encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return sorted(folder / name for name in contents)


def _docx(paragraphs: Sequence[str]) -> bytes:
    """A minimal WordprocessingML package (ECMA-376 part 1)."""
    body = "".join(f"<w:p><w:r><w:t>{escape(text)}</w:t></w:r></w:p>" for text in paragraphs)
    names = "http://schemas.openxmlformats.org"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{names}/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        'wordprocessingml.document.main+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{names}/package/2006/relationships"><Relationship Id="r1" '
        f'Type="{names}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/>'
        "</Relationships>",
        "word/document.xml": f'<w:document xmlns:w="{names}/wordprocessingml/2006/main"><w:body>{body}</w:body>'
        "</w:document>",
    }
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}')
    return package.getvalue()


def _pdf(paragraphs: Sequence[str]) -> bytes:
    """A one-page PDF 1.4 with a text layer in Helvetica (ISO 32000-1, 7.5 and 9.4)."""
    lines = [line for text in paragraphs for line in [*textwrap.wrap(text, 88), ""]]
    shown = "".join(f"({_pdf_string(line)}) Tj T*\n" for line in lines)
    content = f"BT /F1 11 Tf 14 TL 56 780 Td\n{shown}ET".encode("latin-1")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    document = b"%PDF-1.4\n"
    offsets = []
    for number, each in enumerate(objects, 1):
        offsets.append(len(document))
        document += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return (
        document
        + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (
            size,
            table,
            size,
            len(document),
        )
    )


def _pdf_string(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
