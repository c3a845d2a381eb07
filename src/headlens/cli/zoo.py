"""`headlens zoo`: the models that ship with the package."""

from cyclopts import App

from headlens.cli import _console

zoo = App(name="zoo", help="The small trained models that ship with headlens: list them, or print where one is.")


@zoo.command(name="list")
def list_() -> int:
    """List the models by the names that every command takes, with what each is."""
    from headlens import zoo as shipped

    for name in shipped.names():
        _console.out.print(f"zoo:{name:14} {shipped.summary(name)}", soft_wrap=True)
    return 0


@zoo.command
def path(name: str, /) -> int:
    """Print the folder of one model.

    Parameters
    ----------
    name
        With or without the zoo: in front.
    """
    from headlens import zoo as shipped

    print(shipped.path(name.removeprefix("zoo:")))
    return 0
