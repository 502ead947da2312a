"""Measures of how the code of the library reads.

    python docs/scripts/house.py                (of this checkout)
    python docs/scripts/house.py FOLDER ...     (of others, side by side)

The measures, all over the library without its tests:

- lines: all lines of its files, and those that hold code (neither blank, nor a comment, nor in
  a docstring);
- mean line: the mean length of a line of code in characters, indentation included;
- longest line: in characters;
- bare Any: the share of annotations that are ``Any`` and nothing else;
- tuple assignments: the share of assignments of the form ``a, b = x, y``;
- raise: the lines that statements with ``raise`` take;
- README: its words, those of code included.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files(root: Path) -> list[Path]:
    """Returns the files of the library."""
    folders = ("tarspyro", "models", "guides")
    return sorted(file for folder in folders for file in (root / folder).rglob("*.py"))


def code_lines(text: str) -> list[str]:
    """Returns the lines that hold code."""
    held = set()
    skipped = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                held -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = text.splitlines()
    return [lines[number - 1] for number in sorted(held)]


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Yields every annotation of an argument, a result or a variable."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns


def is_tuple_assignment(node: ast.AST) -> bool:
    """Whether a statement assigns a tuple that is written out to several names."""
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)):
        return False
    return isinstance(node.targets[0], ast.Tuple)


def measure(root: Path) -> dict[str, str]:
    """Returns the measures of a checkout by their names."""
    texts = [file.read_text() for file in files(root)]
    trees = [ast.parse(text) for text in texts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    lines = [line for text in texts for line in text.splitlines()]
    code = [line for text in texts for line in code_lines(text)]
    given = [ast.unparse(annotation) for tree in trees for annotation in annotations(tree)]
    assignments = [node for node in nodes if isinstance(node, ast.Assign)]
    tuples = [node for node in assignments if is_tuple_assignment(node)]
    raised = sum(
        node.end_lineno - node.lineno + 1 for node in nodes if isinstance(node, ast.Raise)
    )
    tests = sum(len(file.read_text().splitlines()) for file in (root / "tests").rglob("*.py"))
    return {
        "files": f"{len(texts)}",
        "lines": f"{len(lines)}",
        "lines of code": f"{len(code)}",
        "mean line of code": f"{sum(map(len, code)) / len(code):.1f}",
        "longest line": f"{max(map(len, lines))}",
        "bare Any, % of annotations": f"{100 * given.count('Any') / len(given):.1f}",
        "tuple assignments, %": f"{100 * len(tuples) / len(assignments):.1f}",
        "lines of raise": f"{raised}",
        "test lines a library line": f"{tests / len(lines):.2f}",
        "words of the README": f"{len((root / 'README.md').read_text().split())}",
    }


def main(roots: list[Path]) -> None:
    """Prints the measures, a column for each checkout."""
    columns = [measure(root) for root in roots]
    for name in columns[0]:
        print(f"{name:30}", *(f"{column[name]:>10}" for column in columns))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]] or [ROOT])
