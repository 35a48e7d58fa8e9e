"""How texts are cleaned before they are divided into tokens."""

import html
import string
import unicodedata

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_as_clip(text: str) -> str:
    """The text as CLIP cleans it: ftfy, HTML unescaped twice, one space between words, lower case.

    It requires ftfy, which callers look for.
    """
    import ftfy  # pyright: ignore[reportMissingImports]

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def canonical(text: str) -> str:
    """The text in big_vision's canonical form: no ASCII punctuation, one space between words, lower case.

    An underscore becomes a space.
    """
    return " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


def plain(text: str) -> str:
    """The text in Unicode's NFC with one space between words, in lower case."""
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()
