"""Where a result may be written: never over something else, and known before any work."""

from pathlib import Path

from spaces.errors import UserError


def refuse_foreign(out: Path, mark: str, what: str, never: str | None = None) -> None:
    """Raises UserError when the folder `out` cannot be made, or holds something without the file
    `mark`, or with the file `never`."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        foreign = out.exists() and (
            not out.is_dir()
            or (any(out.iterdir()) and not (out / mark).is_file())
            or (never is not None and (out / never).exists())
        )
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error}); give another --out") from None
    if foreign:
        raise UserError(f"{out} exists and is no {what}; it is not overwritten: give another --out")
