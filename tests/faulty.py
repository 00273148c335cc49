"""Faulty copies of the generated samples, one fault each, for every task's layout.

`FAULTS[name](sample, task, out)` copies a sample to `out`, spoils it and says where. What is
spoiled are train rows, but for "leaking". `faults_of(task)` names those that the layout can have.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

VIEWS = ("LI-A", "LI-B", "LV-A", "LV-B", "RI-A", "RI-B", "RV-A", "RV-B")
CHANNELS = ("red", "green", "blue", "yellow")


@dataclass(frozen=True)
class Fault:
    """What is wrong, and where."""

    folder: Path  # the faulty copy
    files: tuple[str, ...]  # changed, added or deleted image files, relative to the folder
    ids: tuple[str, ...]  # rows they belong to; without files: rows whose labels changed
    words: tuple[str, ...]  # that a good message contains


@dataclass(frozen=True)
class Form:
    """A task's layout, as far as spoiling it needs. Written apart from spaces/tasks, so that a
    fault there does not hide itself."""

    train: str  # table of the train rows
    test: str  # of the test rows; or their folder
    images: str  # an image file by {part}, {id} and {view} or {channel}
    spare: str  # id of a row that is added
    unknown: str  # a label that there is not
    label: int = 1  # column of the first label; all from there are labels but those of `last`
    last: int | None = None
    image: int | None = None  # column that holds the image's path
    headless: bool = False  # fields are separated by blanks, and no head names them
    views: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


FORMS = {
    "gene_expr": Form(
        "train.csv", "test.csv", "{part}/{id}.png", "TRAIN_9000", "much", label=2, image=1
    ),
    "breast_path": Form(
        "train/train_label", "test/test_data", "{part}/{part}_data/{id}.png", "9000", "2",
        headless=True,
    ),
    "aneurysm": Form(
        "train_set/train.csv", "test_set/test.csv", "{part}_set/{id}{view}.jpg", "2999", "2",
        views=VIEWS,
    ),
    "protein_atlas": Form(
        "train.csv", "sample_submission.csv", "{part}/{id}_{channel}.png",
        "00000000-bb99-11e8-b2b9-ac1f6b6435d0", "19", channels=CHANNELS,
    ),
    "csv": Form(
        "train.csv", "test.csv", "images/{id}.png", "S9000", "maybe", label=3, last=4, image=1
    ),
}  # fmt: skip


class Copy:
    """A sample's copy that can be spoiled; rows are lists of strings, their id first."""

    def __init__(self, sample: Path, task: str, out: Path) -> None:
        shutil.copytree(sample, out)
        self.folder, self.form = out, FORMS[task]
        lines = (out / self.form.train).read_text().splitlines()
        self.head = [] if self.form.headless else [lines.pop(0)]
        self.separator = " " if self.form.headless else ","
        self.rows = [line.split(self.separator) for line in lines]
        self.ids = [row[0] for row in self.rows]

    def images(self, name: str, part: str = "train") -> list[tuple[str, ...]]:
        """The images of the row with this id: one per view, of one file per channel."""
        return [
            tuple(
                self.form.images.format(part=part, id=name, view=view, channel=channel)
                for channel in self.form.channels or ("",)
            )
            for view in self.form.views or ("",)
        ]

    def files(self, name: str, part: str = "train") -> list[str]:
        return [file for image in self.images(name, part) for file in image]

    def test_ids(self) -> list[str]:
        path = self.folder / self.form.test
        if path.is_dir():
            return sorted(file.stem for file in path.iterdir())
        return [line.split(",")[0] for line in path.read_text().splitlines()[1:]]

    def labels(self, row: int) -> list[str]:
        return self.rows[row][self.form.label : self.form.last]

    def label(self, row: int, labels: list[str]) -> None:
        self.rows[row][self.form.label : self.form.last] = labels

    def other(self, row: int) -> int:
        """The first row whose labels are other than this row's."""
        return next(i for i in range(len(self.rows)) if self.labels(i) != self.labels(row))

    def add(self, images_of: int, row: int) -> tuple[list[str], list[str]]:
        """Add the row `row` again under the spare id, with copies of the images of the row
        `images_of`; the files copied, and those added."""
        spare, fields = self.form.spare, list(self.rows[row])
        old, new = self.files(self.ids[images_of]), self.files(spare)
        for source, target in zip(old, new, strict=True):
            shutil.copyfile(self.folder / source, self.folder / target)
        fields[0] = spare
        if self.form.image is not None:
            path = fields[self.form.image]
            fields[self.form.image] = path.replace(self.ids[row], spare)
        self.rows.append(fields)
        return old, new

    def edit(self, file: str, change: Callable[[Image.Image], Image.Image]) -> None:
        """Save an image anew after `change`, in its format."""
        path = self.folder / file
        with Image.open(path) as image:
            image.load()
        if path.suffix == ".jpg":
            change(image).save(path, quality=95)
        else:
            change(image).save(path)

    def fault(self, files: Iterable[str], ids: Iterable[str], words: Iterable[str]) -> Fault:
        """Write the table, and say what is wrong."""
        lines = [*self.head, *(self.separator.join(row) for row in self.rows)]
        (self.folder / self.form.train).write_text("\n".join(lines) + "\n")
        return Fault(self.folder, tuple(files), tuple(ids), tuple(words))


def corrupt(sample: Path, task: str, out: Path) -> Fault:
    """An image whose second half is cut off."""
    copy = Copy(sample, task, out)
    name = copy.ids[2]
    file = copy.files(name)[-1]
    data = (out / file).read_bytes()
    (out / file).write_bytes(data[: len(data) // 2])
    return copy.fault([file], [name], [file, "unreadable"])


def empty(sample: Path, task: str, out: Path) -> Fault:
    """An image file of no bytes."""
    copy = Copy(sample, task, out)
    name = copy.ids[3]
    file = copy.files(name)[0]
    (out / file).write_bytes(b"")
    return copy.fault([file], [name], [file, "unreadable"])


def missing(sample: Path, task: str, out: Path) -> Fault:
    """A row without its images."""
    copy = Copy(sample, task, out)
    name = copy.ids[4]
    files = copy.files(name)
    for file in files:
        (out / file).unlink()
    return copy.fault(files, [name], [name])


def missing_view(sample: Path, task: str, out: Path) -> Fault:
    """A row without the last of its views."""
    copy = Copy(sample, task, out)
    name = copy.ids[4]
    files = copy.images(name)[-1]
    for file in files:
        (out / file).unlink()
    return copy.fault(files, [name], [name, copy.form.views[-1]])


def missing_channel(sample: Path, task: str, out: Path) -> Fault:
    """An image without the last of its channels."""
    copy = Copy(sample, task, out)
    name = copy.ids[4]
    file = copy.images(name)[0][-1]
    (out / file).unlink()
    return copy.fault([file], [name], [name, copy.form.channels[-1]])


def duplicate(sample: Path, task: str, out: Path) -> Fault:
    """A row a second time: same bytes, same labels, another id."""
    copy = Copy(sample, task, out)
    _, new = copy.add(5, 5)
    return copy.fault(new, [copy.ids[5], copy.form.spare], [copy.ids[5], copy.form.spare])


def near_duplicate(sample: Path, task: str, out: Path) -> Fault:
    """A row a second time: its images slightly brighter and saved anew."""
    copy = Copy(sample, task, out)
    _, new = copy.add(6, 6)
    for file in new:
        copy.edit(file, lambda image: image.point(lambda value: min(255, value * 1.02 + 3)))
    return copy.fault(new, [copy.ids[6], copy.form.spare], [copy.ids[6], copy.form.spare])


def conflicting(sample: Path, task: str, out: Path) -> Fault:
    """The same images under another id, with other labels."""
    copy = Copy(sample, task, out)
    _, new = copy.add(7, copy.other(7))
    return copy.fault(new, [copy.ids[7], copy.form.spare], [copy.ids[7], copy.form.spare, "label"])


def mislabelled(sample: Path, task: str, out: Path) -> Fault:
    """A row with a label that there is not."""
    copy = Copy(sample, task, out)
    copy.label(8, [copy.form.unknown, *copy.labels(8)[1:]])
    return copy.fault([], [copy.ids[8]], [copy.ids[8], copy.form.unknown])


def leaking(sample: Path, task: str, out: Path) -> Fault:
    """A test row that shows a train row's images."""
    copy = Copy(sample, task, out)
    name, test = copy.ids[9], copy.test_ids()[0]
    files = copy.files(test, "test")
    for source, target in zip(copy.files(name), files, strict=True):
        shutil.copyfile(out / source, out / target)
    return copy.fault(files, [name, test], [name, test, "train", "test"])


def bordered(sample: Path, task: str, out: Path) -> Fault:
    """Every third image within a black frame, of a tenth of its side each way."""

    def frame(image: Image.Image) -> Image.Image:
        width, height = image.size
        across, down = round(width / 10), round(height / 10)
        inner = image.resize((width - 2 * across, height - 2 * down))
        framed = Image.new(image.mode, image.size)
        framed.paste(inner, (across, down))
        return framed

    return _each_third(sample, task, out, frame, ["border"])


def captioned(sample: Path, task: str, out: Path) -> Fault:
    """Every third image with a word in a corner."""

    def write(image: Image.Image) -> Image.Image:
        white = 255 if image.mode == "L" else (255, 255, 255)
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, 27, 11), fill=0 if image.mode == "L" else (0, 0, 0))
        draw.text((2, 0), "R 12", fill=white)
        return image

    return _each_third(sample, task, out, write, ["caption"])


def _each_third(
    sample: Path,
    task: str,
    out: Path,
    change: Callable[[Image.Image], Image.Image],
    words: list[str],
) -> Fault:
    copy = Copy(sample, task, out)
    images = [(name, image) for name in copy.ids for image in copy.images(name)][::3]
    files = [file for _, image in images for file in image]
    for file in files:
        copy.edit(file, change)
    return copy.fault(files, dict.fromkeys(name for name, _ in images), words)


def odd_size(sample: Path, task: str, out: Path) -> Fault:
    """A row of larger images, that are not square."""
    copy = Copy(sample, task, out)
    files = copy.files(copy.ids[10])
    for file in files:
        copy.edit(file, lambda image: image.resize((90, 70)))
    return copy.fault(files, [copy.ids[10]], ["90x70", "size"])


def odd_mode(sample: Path, task: str, out: Path) -> Fault:
    """Two rows in other modes: with transparency and of 16 bits; of JPEGs, RGB and CMYK."""
    copy = Copy(sample, task, out)
    first, second = (copy.files(copy.ids[row]) for row in (11, 12))
    jpeg = first[0].endswith(".jpg")

    def deep(image: Image.Image) -> Image.Image:
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)

    for file in first:
        copy.edit(file, lambda image: image.convert("RGB" if jpeg else "RGBA"))
    for file in second:
        copy.edit(file, (lambda image: image.convert("CMYK")) if jpeg else deep)
    return copy.fault([*first, *second], copy.ids[11:13], ["converted"])


def single_class(sample: Path, task: str, out: Path) -> Fault:
    """All rows with the labels of the first."""
    copy = Copy(sample, task, out)
    changed = [row for row in range(len(copy.ids)) if copy.labels(row) != copy.labels(0)]
    for row in changed:
        copy.label(row, copy.labels(0))
    word = "constant" if task == "gene_expr" else "class"
    return copy.fault([], [copy.ids[row] for row in changed], [word])


FAULTS: dict[str, Callable[[Path, str, Path], Fault]] = {
    fault.__name__: fault
    for fault in (
        corrupt, empty, missing, missing_view, missing_channel, duplicate, near_duplicate,
        conflicting, mislabelled, leaking, bordered, captioned, odd_size, odd_mode, single_class,
    )
}  # fmt: skip


def faults_of(task: str) -> list[str]:
    """Names of the faults that the task's layout can have."""
    absent = {
        "missing_view": not FORMS[task].views,
        "missing_channel": not FORMS[task].channels,
    }
    return [name for name in FAULTS if not absent.get(name)]
