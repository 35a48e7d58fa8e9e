"""The hint of an error message about an unknown name."""

from vit_registers.config.convert import nearest


def test_a_near_name_is_suggested():
    assert nearest("digitz", ["cifar10", "digits"]) == "did you mean 'digits'?"


def test_few_names_are_listed():
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_of_many_names_the_first_are_listed():
    hint = nearest("zzz", (f"block/{i:03}" for i in range(200)))
    assert hint.startswith("known: block/000, block/001") and hint.endswith("... (200 in all)")
    assert len(hint) < 200
