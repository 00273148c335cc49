"""Notes on trials, in a file of their own: the journal belongs to the process that searches."""

from typing import Any

from filelock import FileLock, Timeout

from search.journal import read_events
from search.run_folder import RunFolder, read_json, write_json
from spaces.errors import UserError

PATIENCE = 10.0  # seconds that one waits for others who write a note


def read_notes(run: RunFolder) -> dict[int, str]:
    """Trial -> note. Raises UserError when the file is damaged."""
    path = run.notes
    if not path.is_file():
        return {}
    notes: Any = read_json(path).get("notes")
    try:
        return {int(trial): str(text) for trial, text in notes.items()}
    except (AttributeError, ValueError):
        raise UserError(f"{path} is damaged: its notes are {notes!r}; restore it") from None


def write_note(run: RunFolder, trial: int, text: str) -> str:
    """Keep `text`, on one line, as the note on a trial, in place of an earlier one; an empty text
    removes it. Returns what is kept.

    Raises UserError for a trial that the run does not have, or when others hold the file.
    """
    asked = [event.trial for event in read_events(run.journal)[0] if event.kind == "ask"]
    if trial not in asked:
        has = f"its trials go up to {max(asked)}" if asked else "it has none yet"
        raise UserError(f"the run has no trial {trial}; {has}")
    text = " ".join(text.split())
    try:
        with FileLock(run.root / ".notes.lock", timeout=PATIENCE):
            notes = {**read_notes(run), trial: text}
            kept = {str(number): notes[number] for number in sorted(notes) if notes[number]}
            write_json(run.notes, {"notes": kept})
    except Timeout:
        raise UserError(f"somebody else writes notes of {run.root}; try again") from None
    except OSError as error:
        raise UserError(f"{run.notes} cannot be written: {error.strerror or error}") from None
    return text
