"""Text for a terminal, with its control characters made visible."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder

_CONTROLS = re.compile(r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\udc80-\udcff]")
"""All control characters (C0, DEL, C1) but newline, tab, and a carriage return before a newline;
and bytes that are no text, as the error handler `surrogateescape` decodes them."""

_CONTROL_KEY = 0x40
"""The bit between a control character and the key that is pressed with Ctrl for it."""


def visible(text: str) -> str:
    """Replace control characters as less(1) and git do: `^[` for ESC, `<U+009B>` for CSI."""
    return _CONTROLS.sub(_replacement, text)


def _replacement(control: re.Match[str]) -> str:
    code = ord(control[0])
    if code < 0x80:
        return f"^{chr(code ^ _CONTROL_KEY)}"
    return f"<U+{code:04X}>" if code < 0x100 else f"<{code & 0xFF:02X}>"


class VisibleControls:
    """Makes control characters visible in a text that arrives in chunks.

    A terminal obeys them: they set its title, write its clipboard, or overwrite what it shows. Part
    of a character, or a carriage return, at the end of a chunk is kept until the next chunk.

    @ivar in_a_line: whether what was shown last is no line end.
    """

    def __init__(self, encoding: str) -> None:
        """@param encoding: of the terminal."""
        self._encoding = encoding
        self._decoder = getincrementaldecoder(encoding)("surrogateescape")
        self._kept = ""
        self.in_a_line = False

    def convert(self, data: bytes, *, last: bool = False) -> bytes:
        """Return what to show for a chunk; after the `last` one nothing is kept."""
        text = self._kept + self._decoder.decode(data, last)
        self._kept = "\r" if text.endswith("\r") and not last else ""
        shown = visible(text.removesuffix(self._kept))
        self.in_a_line = not shown.endswith("\n") if shown else self.in_a_line
        return shown.encode(self._encoding)
