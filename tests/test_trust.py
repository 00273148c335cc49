"""What may make a score untrue is told; what is cropped and masked is so everywhere."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ensemble.inference import Inference
from search.data.cache import open_store
from search.data.check import check_images, inspect
from search.data.cleaning import NOTHING, cleaner
from search.data.decode import UnreadableImage, decode
from search.data.table import read_table
from search.pictures import draw
from spaces.errors import UserError
from spaces.registry import load_task
from tests.datafolder import make_folder, truncate
from tests.faulty import FAULTS
from tests.test_borders import framed, written
from tests.test_samples import write_small

TASK = load_task("gene_expr")
CROP, MASK = {**NOTHING, "crop_borders": True}, {**NOTHING, "mask_captions": True}


@pytest.fixture(scope="module")
def breast(tmp_path_factory):
    """A sound, a bordered and a captioned small sample."""
    root = tmp_path_factory.mktemp("breast")
    sound = write_small("breast_path", root / "sound")
    return {
        "sound": sound,
        **{
            name: FAULTS[name](sound, "breast_path", root / name).folder
            for name in ("bordered", "captioned", "corrupt")
        },
    }


def copied(root, source, target):
    (root / target).write_bytes((root / source).read_bytes())


class TestGroups:
    @pytest.fixture
    def root(self, tmp_path):
        root = make_folder(tmp_path / "data", columns={"slide": [f"s{i % 3}" for i in range(48)]})
        copied(root, "train/0000.png", "train/0005.png")  # s0 = s2
        return root

    def test_groups_that_part_duplicates_are_a_fault(self, root):
        with pytest.raises(UserError) as caught:
            inspect(TASK, root, groups="slide")
        (fault,) = caught.value.faults
        assert "0000 (s0) = 0005 (s2)" in fault
        assert "--group-duplicates" in fault

    def test_they_are_joined_when_asked(self, root):
        report = inspect(TASK, root, groups="slide", group_duplicates=True)
        assert report.to_dict()["groups"] == {"s0": 32, "s1": 16}
        assert sorted(report.to_dict()["fold_sizes"]) == [16, 32]
        assert report.fold_N[0] == report.fold_N[5]

    def test_groups_that_keep_duplicates_together_stay(self, tmp_path):
        root = make_folder(tmp_path / "data", columns={"slide": [f"s{i % 3}" for i in range(48)]})
        copied(root, "train/0002.png", "train/0005.png")  # both s2
        report = inspect(TASK, root, groups="slide")
        assert report.to_dict()["groups"] == {"s0": 16, "s1": 16, "s2": 16}
        assert report.alike.train == ((2, 5),)


def test_a_brighter_copy_in_test_is_told(tmp_path):
    root = make_folder(tmp_path / "data")
    pixels = np.asarray(Image.open(root / "train/0003.png")).astype(int)
    Image.fromarray((pixels * 0.9 + 10).astype(np.uint8)).save(root / "test/0001.png")
    report = inspect(TASK, root)
    assert report.alike.crossing == ((3, 1),)
    assert report.images.duplicates == ()
    assert any("0003 = T001" in warning for warning in report.warnings)


def test_test_images_of_another_kind_are_told(tmp_path):
    root = make_folder(tmp_path / "data", tests=20)
    assert not any("look different" in warning for warning in inspect(TASK, root).warnings)
    for path in (root / "test").iterdir():
        pixels = np.asarray(Image.open(path))
        Image.fromarray(pixels // 2).save(path)
    report = inspect(TASK, root)
    assert any("test images look different" in warning for warning in report.warnings)
    assert report.to_dict()["told_apart"]["train_or_test"]["auc"] > 0.8


class TestChannels:
    """Images of four files, each a channel."""

    @pytest.fixture
    def image(self, tmp_path):
        from spaces.samples.tissue import SLIDES, draw_tile, draw_tissue

        rng = np.random.default_rng(0)
        tile = draw_tile(rng, draw_tissue(rng, SLIDES[0]), SLIDES[0])
        self.root, self.files = tmp_path, tuple(f"a_{name}.png" for name in "rgby")
        self.planes = [*np.moveaxis(tile, 2, 0), tile[..., 0]]
        return self.write(self.planes)

    def write(self, planes):
        for file, plane in zip(self.files, planes, strict=True):
            Image.fromarray(plane).save(self.root / file)
        return self.look

    def look(self):
        return check_images(self.root, self.files, channels=[self.files])

    def test_a_border_is_shared_by_all(self, image):
        assert image().borders == {}
        planes = [framed(plane[..., None], 6, 6, 6, 6)[..., 0] for plane in self.planes]
        (found,) = self.write(planes)().borders.items()
        assert found[0] == self.files[0]
        assert (found[1].top, found[1].left) == (6, 6)
        others = [np.pad(plane, 6, mode="reflect") for plane in self.planes]
        assert self.write([planes[0], *others[1:]])().borders == {}

    def test_a_caption_in_one_is_found_and_masked_there(self, image):
        colour, _ = written(self.planes[3][..., None].repeat(3, 2), (0, 0, 0), 0, text="LI-A")
        planes = [*self.planes[:3], colour[..., 0]]
        report = self.write(planes)()
        assert list(report.captions) == [self.files[0]]
        clean, _ = cleaner(MASK)
        masked = clean(np.dstack(planes))
        assert masked.shape == (*planes[0].shape, 4)
        before = np.abs(planes[3].astype(int) - self.planes[3]).mean()
        assert np.abs(masked[..., 3].astype(int) - self.planes[3]).mean() < before

    def test_files_that_differ_in_size_are_a_fault_of_the_file(self, image):
        report = self.write([*self.planes[:3], self.planes[3][:40]])()
        ((file, reason),) = report.unreadable.items()
        assert file == self.files[3]
        assert "64 x 40" in reason
        assert "64 x 64" in reason

    def test_threads_progress_and_order(self, image):
        seen = []
        one, four = (
            check_images(
                self.root, self.files, workers, lambda *steps: seen.append(steps),
                channels=[self.files],
            )
            for workers in (1, 4)
        )  # fmt: skip
        assert seen == [(i, 4) for i in range(1, 5)] * 2
        assert one.to_dict() == four.to_dict()
        assert one.paths == self.files
        assert np.array_equal(one.thumbs_FHW3, four.thumbs_FHW3)


class TestCleaning:
    def store(self, breast, name, options, cache):
        task, folder = load_task("breast_path"), breast[name]
        table = read_table(task.layout, folder, (), task.task_type)
        clean, key = cleaner(options)
        return open_store(folder, table.files, 64, cache, clean=clean, clean_key=key)

    def test_nothing_is_done_unasked(self):
        assert cleaner(NOTHING) == (None, "")
        keys = {cleaner(options)[1] for options in (CROP, MASK, {**CROP, **MASK, **CROP})}
        assert len(keys) == 2
        assert cleaner({"crop_borders": True, "mask_captions": True})[1] not in keys

    @pytest.mark.parametrize(("name", "options"), [("bordered", CROP), ("captioned", MASK)])
    def test_a_cleaned_store_looks_like_the_sound_one(self, breast, name, options, tmp_path):
        sound = self.store(breast, "sound", NOTHING, tmp_path)
        plain = self.store(breast, name, NOTHING, tmp_path)
        cleaned = self.store(breast, name, options, tmp_path)
        assert len({store.key for store in (sound, plain, cleaned)}) == 3

        def apart(store):
            pixels = store.images_NHWC.astype(int) - sound.images_NHWC
            return np.abs(pixels).mean(axis=(1, 2, 3))

        before_N, after_N = apart(plain), apart(cleaned)
        spoiled = np.arange(len(before_N)) % 3 == 0
        assert (after_N[spoiled] < 0.4 * before_N[spoiled]).all()
        assert after_N[spoiled].max() < 15
        assert (after_N[~spoiled] == 0).all()

    def bundle(self, options):
        """As much of a bundle as the decoding of its images needs."""
        member = SimpleNamespace(name="m", decode_size=64, folds=("0",))
        return SimpleNamespace(
            layout=load_task("breast_path").layout,
            members=[member],
            target_names=("label",),
            clean=options,
            model_bytes=lambda member: 0,
            blend=SimpleNamespace(apply=lambda preds: preds[0]),
        )

    def predicted(self, breast, name, options, monkeypatch):
        """What a bundle's member is given of the folder's train images."""

        def member(self, member, images_XHWC, keep, meter):
            return np.array(images_XHWC)

        monkeypatch.setattr(Inference, "_member", member)
        task, folder = load_task("breast_path"), breast[name]
        table = read_table(task.layout, folder, (), task.task_type)
        (images,) = Inference(self.bundle(options), "cpu", None, 64).chunks(folder, table.files)
        return images

    def test_a_bundle_cleans_as_its_training_did(self, breast, monkeypatch, tmp_path):
        for options in (CROP, NOTHING):
            images = self.predicted(breast, "bordered", options, monkeypatch)
            store = self.store(breast, "bordered", options, tmp_path)
            assert np.array_equal(images, store.images_NHWC)

    def test_a_bad_image_stops_a_prediction_by_name(self, breast, monkeypatch):
        with pytest.raises(UserError) as caught:
            self.predicted(breast, "corrupt", CROP, monkeypatch)
        (fault,) = caught.value.faults
        assert "train/train_data" in fault
        assert "unreadable" in fault


class TestPictures:
    @pytest.mark.parametrize("name", ["bordered", "captioned", "near_duplicate"])
    def test_what_is_told_is_shown(self, name, tmp_path):
        sound = write_small("protein_atlas", tmp_path / "sound")
        folder = FAULTS[name](sound, "protein_atlas", tmp_path / name).folder
        report = inspect(load_task("protein_atlas"), folder, folds=2)
        drawn = draw(report, tmp_path / "pictures")
        kind = {"bordered": "borders", "captioned": "captions", "near_duplicate": "duplicates"}
        assert drawn == [f"{kind[name]}.png"]
        with Image.open(tmp_path / "pictures" / drawn[0]) as picture:
            assert min(picture.size) > 64

    def test_what_is_left_of_a_broken_image_is_shown(self, tmp_path):
        root = make_folder(tmp_path / "data")
        truncate(root / "train/0001.png")
        (root / "train/0002.png").write_bytes(b"no image at all")
        report = inspect(TASK, root, skip_bad=True)
        assert len(report.quarantined) == 2
        assert "unreadable.png" in draw(report, tmp_path / "pictures")
        with Image.open(tmp_path / "pictures/unreadable.png") as picture:
            assert 90 < picture.width < 150, "one image: of the other there is nothing to see"
        with pytest.raises(UnreadableImage):
            decode(root / "train/0001.png", None)

    def test_a_sound_folder_has_none(self, tmp_path):
        report = inspect(TASK, make_folder(tmp_path / "data"))
        assert draw(report, tmp_path / "pictures") == []
        assert not (tmp_path / "pictures").exists()


def test_quarantine_and_duplicates_together(tmp_path):
    """Pairs are of the rows that are left."""
    root = make_folder(tmp_path / "data")
    truncate(root / "train/0001.png")
    copied(root, "train/0000.png", "train/0005.png")
    report = inspect(TASK, root, skip_bad=True)
    assert [report.table.ids[i] for i in report.alike.train[0]] == ["0000", "0005"]
    assert report.alike.train == ((0, 4),)


def test_rows_that_vary_in_nothing_are_refused(tmp_path):
    root = make_folder(tmp_path / "data")
    header, *lines = (root / "train.csv").read_text().splitlines()
    rows = [",".join([*line.split(",")[:2], *["1"] * 5]) for line in lines]
    (root / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    with pytest.raises(UserError, match=r"train\.csv has constant targets only: g0") as caught:
        inspect(TASK, root)
    assert len(caught.value.faults) == 1
