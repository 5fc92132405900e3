"""Draws docs/img/demo.svg from a real run of the demo: `python scripts/demo_picture.py < typescript`.

script -qec "podlink demo --no-stay" /tmp/typescript; python scripts/demo_picture.py < /tmp/typescript
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

_WIDTH = 150
_FONT_FACES = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> None:
    lines = [line.split("\r")[-1] for line in sys.stdin.read().replace("\r\n", "\n").split("\n")]
    kept = [line for line in lines if not line.startswith(("Script ", "…"))]
    console = Console(record=True, width=_WIDTH, file=io.StringIO())
    console.print(Text("$ make demo", style="bold"))
    for line in kept:
        console.print(Text.from_ansi(line.replace("\x1b[2K", "")), overflow="crop", no_wrap=True)
    svg = console.export_svg(title="podlink demo")
    # No fonts from elsewhere: the picture must not call out when somebody reads the page.
    Path("docs/img").mkdir(parents=True, exist_ok=True)
    Path("docs/img/demo.svg").write_text(_FONT_FACES.sub("", svg))


if __name__ == "__main__":
    main()
