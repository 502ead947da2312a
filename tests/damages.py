"""Damaged files, and what is asked of the errors that they bring."""

import hypothesis.strategies as st

# Where a file is cut, or which bytes of it become which; positions are taken modulo its
# length.
DAMAGES = st.one_of(
    st.integers(0, 2**16),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=3),
)


def damaged(content, damage):
    """Cuts bytes at a position, or changes some of them."""
    if isinstance(damage, int):
        return content[: damage % len(content)]
    changed = bytearray(content)
    for position, value in damage:
        changed[position % len(content)] = value
    return bytes(changed)


def one_sentence(error):
    """The message of an error that pytest caught, which has to be one sentence."""
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", "?")), text
    return text


def everything(folder):
    """All that is below a folder, with the content of its files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in folder.rglob("*")
    }
