"""Zero-shot classification: classes are described by texts, and an image has the class of the nearest one."""
