"""The listing of all methods: ``tarspyro list``."""

__all__ = ["list_methods"]

from tarspyro.commands.methods import METHODS
from tarspyro.commands.methods.method import Method
from tarspyro.commands.methods.sources import SOURCES


def list_methods() -> None:
    """Prints every method with its paper, data, settings and command, and the data sets."""
    for name, method in METHODS.items():
        data = ", ".join(
            f"{data} ({method.epochs_of(data)} epochs)" for data in method.form.names
        )
        print(f"{name}: {method.title}")
        print(f"    paper     {method.paper}")
        print(f"    data      {data}")
        print(f"    own data  {method.own_data}")
        print(f"    settings  {' '.join(_as_typed(method))}")
        print(f"    command   tarspyro train {name}\n")

    print("Data sets, the first of a method being its default:")
    for name, source in SOURCES.items():
        print(f"    {name:13} {source.kind}: {source.about}")


def _as_typed(method: Method) -> list[str]:
    """Returns the options that have a default value, as a user would type them."""
    typed = []
    for setting in method.settings:
        value = method.options[setting.name]
        if value is None or value is False or setting.name in ("epochs", "seed"):
            continue

        words = [setting.flag]
        if value is not True:
            words += map(str, value if setting.several else [value])
        typed.append(" ".join(words))
    return typed
