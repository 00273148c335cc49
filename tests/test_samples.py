"""The generated samples have their tasks' layouts, are deterministic and can be learned; their
faulty copies are faulty where they say."""

import functools
import importlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spaces.samples.angiography import draw_view
from tests.faulty import FAULTS, FORMS, VIEWS, faults_of

NEW = ("breast_path", "aneurysm", "protein_atlas", "csv")
# What makes each sample small; its files are of the same kind.
SMALL = {
    "gene_expr": {"TILES": (6, 6, 6, 4)},
    "breast_path": {"ROWS": {"train": (14, 6), "test": (3, 2)}},
    "aneurysm": {
        "PATIENTS": {"train": (14, 8), "test": (4, 3)},
        "POSITIVES": dict.fromkeys(
            ("ICA", "PCOM", "AntChor", "ACA", "ACOM", "MCA", "VA", "PICA", "SCA", "BA", "PCA"),
            (1, 1),
        ),
    },
    "protein_atlas": {"ROWS": {"train": 20, "test": 16}},
    "csv": {"PATIENTS": {"train": 4, "test": 1}},
}
# The views that show each artery, by the competition's own anatomy.
SHOWN = {
    "I-A": {"ACA", "MCA", "ACOM", "PCOM", "ICA"},
    "I-B": {"ACA", "MCA", "AntChor", "PCOM", "ICA"},
    "V-A": {"PCA", "BA", "SCA", "VA"},
    "V-B": {"PCA", "BA", "PICA", "VA"},
}


def write(task, folder, seed=0):
    importlib.import_module(f"spaces.samples.{task}").write_sample(folder, seed)
    return folder


def write_small(task, folder, seed=0):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL[task].items():
            patch.setattr(f"spaces.samples.{task}.{name}", value)
        return write(task, folder, seed)


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def image_files(task, part, id_):
    form = FORMS[task]
    return [
        form.images.format(part=part, id=id_, view=view, channel=channel)
        for view in form.views or ("",)
        for channel in form.channels or ("",)
    ]


def read(path, **dtypes):
    return pd.read_csv(path, dtype=dtypes or None)


def pixels(*paths):
    return np.stack([np.array(Image.open(path)) for path in paths])


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The four samples in full, written when first asked for."""
    root = tmp_path_factory.mktemp("samples")

    @functools.cache
    def sample(task):
        return write(task, root / task)

    return sample


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    return {task: write_small(task, root / task) for task in SMALL}


@pytest.fixture(scope="module")
def faulty(small, tmp_path_factory):
    """Faulty copies of the small samples, made when first asked for."""
    root = tmp_path_factory.mktemp("faulty")

    @functools.cache
    def fault(task, name):
        return FAULTS[name](small[task], task, root / f"{task}-{name}")

    return fault


@pytest.fixture(scope="module")
def sound(small):
    """What the small samples' files hold."""
    return {task: contents(folder) for task, folder in small.items()}


@pytest.mark.parametrize("task", NEW)
class TestSample:
    def test_a_seed_decides_every_byte(self, task, sound, tmp_path):
        first = sound[task]
        assert contents(write_small(task, tmp_path / "same")) == first
        other = contents(write_small(task, tmp_path / "other", seed=1))
        images = {name for name in first if name.endswith(("png", "jpg"))}
        assert not {first[name] for name in images} & set(other.values())
        assert len({first[name] for name in images}) == len(images)

    def test_importing_it_loads_nothing_heavy(self, task):
        heavy = "{'numpy', 'pandas', 'PIL', 'torch'} & set(sys.modules)"
        code = f"import sys, spaces.samples.{task}; print({heavy})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "set()"

    def test_it_is_small(self, task, samples):
        assert sum(map(len, contents(samples(task)).values())) < 3.2e6

    def test_every_file_belongs_to_a_row(self, task, samples):
        form, folder = FORMS[task], samples(task)
        table = (folder / form.train).read_text().splitlines()
        separator = " " if form.headless else ","
        ids = {"train": [line.split(separator)[0] for line in table[not form.headless :]]}
        ids["test"] = (folder / "truth/test.csv").read_text().splitlines()[1:]
        ids["test"] = [line.split(",")[0] for line in ids["test"]]
        expected = {
            file for part in ids for id_ in ids[part] for file in image_files(task, part, id_)
        }
        found = {name for name in contents(folder) if name.endswith(("png", "jpg"))}
        assert found == expected
        assert all(len(set(names)) == len(names) for names in ids.values())


class TestBreastPath:
    def rows(self, folder):
        lines = (folder / "train/train_label").read_text().splitlines()
        keys, labels = zip(*(line.split(" ") for line in lines), strict=True)
        return [folder / f"train/train_data/{key}.png" for key in keys], np.array(labels, int)

    def test_the_layout_is_the_competitions(self, samples):
        folder = samples("breast_path")
        paths, label_N = self.rows(folder)
        truth = read(folder / "truth/test.csv")
        assert list(truth.columns) == ["key", "label"]
        assert np.bincount(label_N).tolist() == [168, 72]
        assert np.bincount(truth["label"]).tolist() == [56, 24]
        assert {path.name for path in folder.iterdir()} == {"train", "test", "truth"}
        assert [path.name for path in (folder / "test").iterdir()] == ["test_data"]
        assert pixels(*paths).shape == (240, 64, 64, 3)
        assert all(path.stem == str(int(path.stem)) for path in paths)

    def test_colour_tells_a_part_and_shapes_tell_more(self, samples):
        paths, label_N = self.rows(samples("breast_path"))
        images = pixels(*paths).astype(float)
        colour_NF = np.hstack([images.mean(axis=(1, 2)), images.std(axis=(1, 2))])
        # How alike dark spots are some pixels apart: the size of nuclei, whatever their stain.
        red = images[..., 0]
        red = (red - red.mean(axis=(1, 2), keepdims=True)) / red.std(axis=(1, 2), keepdims=True)
        shape_NF = np.stack(
            [
                sum((red * np.roll(red, step, axis)).mean(axis=(1, 2)) for axis in (1, 2))
                for step in (1, 2, 3, 4, 5, 6, 8)
            ],
            axis=1,
        )

        def auroc(features_NF):
            model = make_pipeline(StandardScaler(), RidgeClassifier())
            score_N = cross_val_predict(model, features_NF, label_N, method="decision_function")
            return roc_auc_score(label_N, score_N)

        assert 0.65 < auroc(colour_NF) < 0.85
        assert auroc(colour_NF) + 0.06 < auroc(shape_NF) < 0.97


class TestAneurysm:
    def test_the_layout_is_the_competitions(self, samples):
        from spaces.tasks.aneurysm import LOCATIONS

        folder = samples("aneurysm")
        train = read(folder / "train_set/train.csv", Index=str)
        test = read(folder / "test_set/test.csv", Index=str)
        truth = read(folder / "truth/test.csv", Index=str)
        assert list(train.columns) == list(truth.columns) == ["Index", "Aneurysm", *LOCATIONS]
        assert list(test.columns) == ["Index"]
        assert list(test["Index"]) == list(truth["Index"])
        assert (len(train), len(test)) == (160, 60)
        assert train["Index"].between("1001", "2611").all()
        assert test["Index"].str.fullmatch(r"0\d{3}").all()
        image = Image.open(folder / f"test_set/{test['Index'][0]}RV-B.jpg")
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (64, 64))

    def test_presence_is_any_location_and_some_are_rare(self, samples):
        for table in ("train_set/train.csv", "truth/test.csv"):
            labels = read(samples("aneurysm") / table).drop(columns="Index")
            count_N = labels.drop(columns="Aneurysm").sum(axis=1)
            assert ((count_N > 0) == (labels["Aneurysm"] == 1)).all()
            assert 0.4 < labels["Aneurysm"].mean() < 0.55
            assert (count_N > 1).sum() >= 5
            assert (labels.sum() > 0).all()
            assert (labels.sum() < 5).sum() >= 8

    @pytest.mark.parametrize("view", VIEWS)
    def test_a_sac_is_seen_where_its_artery_is(self, view):
        def drawn(**radii):
            return draw_view(np.random.default_rng(5), view, radii)

        side, healthy = view[0], drawn()
        for artery in set.union(*SHOWN.values()):
            for name in ("BA",) if artery == "BA" else (f"L_{artery}", f"R_{artery}"):
                seen = artery in SHOWN[view[1:]] and name[0] in ("B", side)
                assert np.array_equal(drawn(**{name: 4.0}), healthy) != seen, name

    def test_a_right_side_is_the_mirror_image_of_a_left_one(self):
        for kind, arteries in SHOWN.items():
            left, right = (
                draw_view(
                    np.random.default_rng(7),
                    side + kind,
                    {name if name == "BA" else f"{side}_{name}": 4.0 for name in arteries},
                )
                for side in "LR"
            )
            assert np.array_equal(left, right[:, ::-1])

    def test_all_views_tell_more_than_one(self, samples):
        folder = samples("aneurysm")
        train = read(folder / "train_set/train.csv", Index=str)
        paths = [
            folder / f"train_set/{name}{view}.jpg" for name in train["Index"] for view in VIEWS
        ]
        images = pixels(*paths).astype(float)
        # The darkest square of 5 pixels: a vessel is not as wide as that, a sac is.
        cells = np.lib.stride_tricks.sliding_window_view(images, (5, 5), axis=(1, 2))
        square = cells.mean(axis=(-1, -2)).min(axis=(1, 2))
        contrast_NV = (np.median(images, axis=(1, 2)) - square).reshape(-1, 8)
        contrast_NV = (contrast_NV - contrast_NV.mean(axis=0)) / contrast_NV.std(axis=0)
        one = [roc_auc_score(train["Aneurysm"], contrast_NV[:, v]) for v in range(8)]
        every = roc_auc_score(train["Aneurysm"], contrast_NV.max(axis=1))
        assert max(one) < 0.75
        assert every > 0.65


class TestProteinAtlas:
    def test_the_layout_is_the_competitions(self, samples):
        folder = samples("protein_atlas")
        train, truth = read(folder / "train.csv"), read(folder / "truth/test.csv")
        submission = read(folder / "sample_submission.csv")
        assert list(train.columns) == list(truth.columns) == ["ID", "Label"]
        assert list(submission.columns) == ["ID", "ImageWidth", "ImageHeight", "PredictionString"]
        assert list(submission["ID"]) == list(truth["ID"])
        assert (len(train), len(truth)) == (200, 60)
        assert train["ID"].str.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").all()
        image = Image.open(folder / f"train/{train['ID'][0]}_yellow.png")
        assert (image.mode, image.size) == ("L", (64, 64))
        assert (submission[["ImageWidth", "ImageHeight"]] == 64).all(axis=None)

    def test_classes_are_as_unequal_as_the_competitions(self, samples):
        for table, rarest in (("train.csv", 6), ("truth/test.csv", 2)):
            labels = read(samples("protein_atlas") / table, Label=str)["Label"].str.split("|")
            count = labels.explode().value_counts()
            assert set(count.index) == {"0", "1", "2", "13", "14", "16", "17", "18"}
            assert count.index[0] == "0"
            assert (count.index[-1], count.iloc[-1]) == ("18", rarest) or rarest == 2
            assert count["18"] == rarest
            assert set(labels.map(len)) == {1, 2, 3}
            assert all(row == ["18"] for row in labels if "18" in row)

    def test_the_protein_is_where_the_label_says(self, samples):
        folder = samples("protein_atlas")
        train = read(folder / "train.csv", Label=str)
        red, green, blue, yellow = (
            pixels(*(folder / f"train/{name}_{channel}.png" for name in train["ID"])).astype(float)
            for channel in ("red", "green", "blue", "yellow")
        )
        labels = train["Label"].str.split("|")

        def mean(mask):
            return (green * mask).sum(axis=(1, 2)) / np.maximum(mask.sum(axis=(1, 2)), 1)

        nucleus, bare = blue > 70, (blue < 30) & (yellow < 30) & (red < 30)
        around = (red > 40) & ~nucleus
        feature = {
            "0": mean(nucleus) - mean(around) / 2,
            "16": mean(around) - mean(nucleus) / 2,
            "18": -green.std(axis=(1, 2)),
        }
        for label, value_N in feature.items():
            has_N = labels.map(lambda row, label=label: label in row)
            assert roc_auc_score(has_N, value_N) > 0.8, label
        assert np.median(mean(bare)) < 25


class TestCsv:
    def test_tables_and_groups(self, samples):
        folder = samples("csv")
        train, test = read(folder / "train.csv"), read(folder / "test.csv")
        truth = read(folder / "truth/test.csv")
        assert list(train.columns) == ["id", "image", "patient", "grade", "area", "count"]
        assert list(test.columns) == ["id", "image", "patient"]
        assert list(truth.columns) == ["id", "grade", "area", "count"]
        assert list(truth["id"]) == list(test["id"])
        assert (len(train), len(test)) == (180, 60)
        assert set(train["grade"]) == set(truth["grade"]) == {"low", "mid", "high"}
        assert not set(train["patient"]) & set(test["patient"])
        assert train.groupby("patient").size().eq(6).all()
        assert pixels(*(folder / path for path in test["image"])).shape == (60, 48, 48, 3)

    def test_images_tell_grade_area_and_count(self, samples):
        folder = samples("csv")
        train = read(folder / "train.csv")
        images = pixels(*(folder / path for path in train["image"])).astype(float)
        green = images[..., 1]
        light = np.quantile(green, 0.95, axis=(1, 2), keepdims=True)
        dark = light - green > 45
        area_N = 100 * dark.mean(axis=(1, 2))
        edge_N = sum((dark != np.roll(dark, 1, axis)).mean(axis=(1, 2)) for axis in (1, 2))
        assert np.corrcoef(area_N, train["area"])[0, 1] > 0.9
        assert np.corrcoef(area_N, train["count"])[0, 1] > 0.7
        features_NF = np.stack([edge_N / area_N, green.std(axis=(1, 2)), area_N], axis=1)
        model = make_pipeline(StandardScaler(), LogisticRegression())
        grade_N = cross_val_predict(model, features_NF, train["grade"])
        share = train["grade"].value_counts(normalize=True).max()
        assert share < 0.5
        assert share + 0.15 < (grade_N == train["grade"]).mean() < 0.95


CASES = [(task, name) for task in SMALL for name in faults_of(task)]


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_faulty_copy_differs_where_it_says(task, name, faulty, sound):
    fault = faulty(task, name)
    before, after = sound[task], contents(fault.folder)
    table = FORMS[task].train
    changed = {f for f in before.keys() | after.keys() if before.get(f) != after.get(f)}
    assert changed - {table} == set(fault.files)
    assert changed
    old, new = (set(tree[table].decode().splitlines()) for tree in (before, after))
    separator = " " if FORMS[task].headless else ","
    touched = {line.split(separator)[0] for line in new ^ old}
    assert touched <= set(fault.ids)
    assert bool(touched) == (
        name in ("duplicate", "near_duplicate", "conflicting", "mislabelled", "single_class")
    )
    assert fault.words
    for file in fault.files:
        assert any(id_ in file for id_ in fault.ids)


@pytest.mark.parametrize("task", SMALL)
class TestFault:
    def test_a_corrupt_image_cannot_be_decoded(self, task, faulty):
        for name in ("corrupt", "empty"):
            fault = faulty(task, name)
            with pytest.raises(OSError), Image.open(fault.folder / fault.files[0]) as image:
                image.load()

    def test_what_is_missing_is_gone(self, task, faulty):
        for name in {"missing", "missing_view", "missing_channel"} & set(faults_of(task)):
            fault = faulty(task, name)
            assert fault.files
            assert not any((fault.folder / file).exists() for file in fault.files)

    def test_a_copy_shows_the_same(self, task, faulty):
        for name in ("duplicate", "conflicting", "leaking", "near_duplicate"):
            fault = faulty(task, name)
            tree = contents(fault.folder)
            sources = image_files(task, "train", fault.ids[0])
            same = {tree[f] for f in sources} == {tree[f] for f in fault.files}
            assert same == (name != "near_duplicate")
        old, new = (
            pixels(*(fault.folder / file for file in sorted(files))).astype(float)
            for files in (sources, fault.files)
        )
        assert 0.5 < np.abs(old - new).mean() < 10

    def test_conflicting_rows_have_other_labels(self, task, faulty):
        form = FORMS[task]

        def labels(fault):
            rows = [
                line.split(" " if form.headless else ",")
                for line in (fault.folder / form.train).read_text().splitlines()
            ]
            found = {row[0]: row[form.label : form.last] for row in rows}
            return [found[id_] for id_ in fault.ids]

        first, second = labels(faulty(task, "conflicting"))
        assert first != second
        first, second = labels(faulty(task, "duplicate"))
        assert first == second

    def test_a_border_is_black_and_a_caption_white_on_black(self, task, faulty):
        fault = faulty(task, "bordered")
        for file in fault.files[:5]:
            image = pixels(fault.folder / file)[0].astype(float)
            assert image[:, :3].max() < 60
            assert image[:3].max() < 60
        fault = faulty(task, "captioned")
        for file in fault.files[:5]:
            corner = pixels(fault.folder / file)[0, :11, :27]
            assert corner.max() > 190
            assert (corner < 60).mean() > 0.5

    def test_sizes_and_modes_are_odd(self, task, faulty):
        fault = faulty(task, "odd_size")
        assert {Image.open(fault.folder / file).size for file in fault.files} == {(90, 70)}
        fault = faulty(task, "odd_mode")
        modes = {Image.open(fault.folder / file).mode for file in fault.files}
        assert modes == ({"RGB", "CMYK"} if task == "aneurysm" else {"RGBA", "I;16"})
