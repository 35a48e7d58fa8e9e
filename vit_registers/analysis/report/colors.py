"""The colours of figures. Those of the page are in page_style.py."""

BLUE, ORANGE, GREEN, GREY, RED = "#2b6cb0", "#dd6b20", "#2f855a", "#718096", "#c53030"
PALE = "#edf2f7"  # what is not attended to, or belongs to no group
MODELS = (BLUE, ORANGE, GREEN, "#6b46c1", RED, "#0987a0", GREY, "#b83280")
AMOUNTS, SIMILARITIES, DEVIATIONS = "inferno", "viridis", "coolwarm"  # scales of matplotlib


def color_of(place: int) -> str:
    """The colour of the model at that place of a report."""
    return MODELS[place % len(MODELS)]
