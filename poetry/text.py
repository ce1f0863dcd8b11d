"""What makes an error or a name one line of text that is fit to print."""

from __future__ import annotations

from typing import Any


def is_of_openssl(error: object) -> bool:
    """Check whether OpenSSL raised an error: of a fatal alert, or of what is no TLS."""
    return type(error).__module__.startswith("OpenSSL.")


def text_of(error: Any) -> str:
    """Return the message of an error; of one of OpenSSL, which lists (library, function, reason),
    its reasons; without a message, the name of its type.
    """
    if is_of_openssl(error) and all(isinstance(reasons, list) for reasons in error.args):
        text = "; ".join(str(each[-1]) for reasons in error.args for each in reasons if each[-1])
    else:
        text = str(error)
    return text or type(error).__name__


def one_line(value: object) -> str:
    """Return a value as text, with its line ends as blanks."""
    return " ".join(filter(None, map(str.strip, str(value).splitlines())))


def printable(text: str) -> str:
    """Return a text in one line, with what cannot be printed escaped as in Python's strings, and
    bytes that are no text (`surrogateescape`) as in its bytes.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    byte = ord(character) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else repr(character)[1:-1]
