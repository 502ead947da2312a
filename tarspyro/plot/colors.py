"""Colours of classes and curves that colour-blind readers can tell apart."""

__all__ = ["MARKERS", "PALETTE", "class_colors"]

import colorsys

# Ten colours of unlike lightness: M. Petroff (2021), Accessible color sequences for data
# visualization, arXiv:2107.02270, with black in place of its darker grey, which small dots do
# not show beside the other one.
PALETTE = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#92dadd",
    "#20242c",
    "#94a4a2",
)

# More than ten classes differ in the marker too.
MARKERS = ("o", "^", "s", "D", "v")


def class_colors(num: int) -> list[str]:
    """Returns as many different colours.

    Up to ten come from the palette; more are equally spaced hues of four lightnesses in turn.

    Example:
        >>> class_colors(2), len(set(class_colors(100)))
        (['#3f90da', '#ffa90e'], 100)
    """
    if num <= len(PALETTE):
        return list(PALETTE[:num])
    colors = []
    for index in range(num):
        lightness = (0.30, 0.55, 0.42, 0.66)[index % 4]
        channels = colorsys.hls_to_rgb(index / num, lightness, 0.75)
        colors.append("#" + "".join(f"{round(255 * channel):02x}" for channel in channels))
    return colors
