"""What the commands share: the console that they tell on, and how they end where something is wrong."""

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from contsteal import files

console = Console(highlight=False, soft_wrap=True)


def finish(work: Callable[[], int], *errors: type[Exception]) -> int:
    """Return the exit code of `work`; an error that its user can act on is told, and the code is 1.

    Such are ValueError, StorageError and `errors`; any other is a fault of ours and is raised.
    """
    try:
        return work()
    except (ValueError, files.StorageError, *errors) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        return 1
