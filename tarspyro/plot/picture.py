"""The figure class of all pictures. Only this module imports Matplotlib when it is imported."""

__all__ = ["Picture"]

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that notebooks display on its own, without the global state of pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        return buffer.getvalue()
