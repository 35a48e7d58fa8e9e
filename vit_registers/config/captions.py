"""The settings of captions: `data.captions`."""

import dataclasses

from vit_registers.config.occasions import RESUME, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """Where the texts of images come from, and how they become token ids. Only image_text reads them."""

    # clip | clip(path='FILE') | sentencepiece(path='FILE') | bpe(vocab_size=NUMBER) (trained on the captions)
    # | bytes; docs/captions.md. A run is resumed with an equal one.
    tokenizer: str = setting("clip", RESUME)
    # Where captions are: a feature of a TFDS data set ("a/b" for b in a), a column of a list, a key of JSON.
    # None: captions/text, caption or captions.
    key: str | None = None
    # For data with classes instead of captions: the captions of a class, each with {} in the place of its
    # text, such as "a photo of a {}.". One is drawn for each image and step.
    templates: tuple[str, ...] = ()
    class_texts: tuple[str, ...] = ()  # a text for each class, in order; (): its name, with spaces for _
