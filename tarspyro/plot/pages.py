"""Pages of one file, that need no server and no network."""

__all__ = ["page"]

import html

# Both colour schemes, and one column on a narrow screen.
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #6a737d; --paper: #fff;
  --card: #f6f8fa; --line: #d0d7de; --accent: #0969da; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --faint: #9aa4ae;
  --paper: #15181c; --card: #1e2329; --line: #3a424b; --accent: #58a6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .2rem 0 .8rem; }
h2 { font-size: 1.15rem; margin: 1.8rem 0 .6rem; }
pre, table { font-size: .875rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .7rem;
  background: var(--card); border-radius: .4rem; }
td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top; }
th { color: var(--faint); font-weight: normal; }
td { overflow-wrap: anywhere; }
a { color: var(--accent); }
"""


def page(title: str, body: str) -> str:
    """Returns a page.

    Arguments:
        title: The title, as text.
        body: What follows the title, as HTML.
    """
    name = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{name}</h1>\n{body}\n</body>\n</html>\n"
    )
