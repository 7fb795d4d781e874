"""The HTML page: whole, self-contained, inert whatever names it shows, and true to the numbers."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.stored import CLASSES, HEIGHT, WIDTH, Stored, dataset_of, found, rectangle
from yolact_deploy.data.coco import CocoDataset
from yolact_deploy.drawing import save_picture
from yolact_deploy.errors import MissingDependencyError, OutputError
from yolact_deploy.evaluation.failures import analyse
from yolact_deploy.evaluation.parity import Lone, Parity, compare
from yolact_deploy.evaluation.plots import POINTS, ap_curves, score_scatter
from yolact_deploy.evaluation.records import ArtifactEvaluation, ClassMetrics, DatasetFacts, Evaluation, Metrics
from yolact_deploy.evaluation.report import _percent, _small, is_report, need_report, render_report, write_report
from yolact_deploy.evaluation.report_pictures import SIDE, shown_pictures

CAT, DOG, SCRIPT = 0, 1, 2
LEFT, RIGHT = (2, 2, 22, 22), (32, 2, 52, 22)
NAMES = {1: "plain.png", 2: "<img src=x onerror=alert(1)>.png", 3: "gone & lost.png"}
HOSTILE = 'fp16"><script>alert(2)</script>$x^'
VOID = {"meta", "br", "img", "path", "use", "link"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where elements are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "td" in self.open[-3:] or "th" in self.open[-3:]:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def metrics(iou_type: Any, ap: float | None) -> Metrics:
    thresholds = {f"{threshold / 100:.2f}": None if ap is None else ap - (threshold - 50) / 5 for threshold in range(50, 100, 5)}
    classes = {name: ClassMetrics(ap, ap, ap, 2, 3) for name in CLASSES.names}
    return Metrics(iou_type, ap, cast("dict[str, float | None]", thresholds), None, *[ap] * 8, classes, 6, 9)


def artifact(name: str, store: Stored, dataset: CocoDataset, ap: float | None, **more: Any) -> ArtifactEvaluation:
    given: dict[str, Any] = {
        "path": f"models/{name}.onnx",
        "kind": "ONNX FP32",
        "sha256": "ab" * 32,
        "box": metrics("bbox", None if ap is None else ap + 1),
        "mask": metrics("segm", ap),
        "milliseconds": {"preprocess": 1.5, "inference": 20.25},
        "pictures": len(store),
        "detections": sum(map(len, store.values())),
        "bytes_per_picture": 321.0,
        "store": store,
        "notes": (f"A note on {name}.",),
        "failures": analyse(dataset, store, store),
    }
    return ArtifactEvaluation(name, **{**given, **more})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    for image_id in (1, 2):
        save_picture(folder / "made.png", noise)
        (folder / "made.png").rename(folder / NAMES[image_id])
    crowd = (DOG, (0, 30, 60, 46), rectangle((0, 30, 60, 46)), True)
    return dataset_of({number: [(CAT, LEFT), (SCRIPT, RIGHT), crowd] for number in NAMES}, folder, NAMES)


@pytest.fixture(scope="module")
def evaluation(dataset: CocoDataset) -> Evaluation:
    full = [(CAT, 0.9, LEFT), (SCRIPT, 0.8, RIGHT)]
    reference = Stored({number: found(full) for number in NAMES})
    single = Stored({number: found([(CAT, 0.9001, LEFT), (SCRIPT, 0.8, RIGHT)]) for number in NAMES})
    half = Stored({**single, 2: found([*full[:1], (DOG, 0.1, RIGHT)]), 3: found([(CAT, 0.85, LEFT), (DOG, 0.7, LEFT)])})
    parities = [compare(reference, store, NAMES, names=NAMES) for store in (single, half)]
    lone = tuple(replace(one, reason="its score is at the cut") if one.image_id == 2 else one for one in parities[1].lone)
    explained = replace(parities[1], lone=lone, explained=True, notes=("A note on the parity.",))
    artifacts = (
        artifact("reference", reference, dataset, 40.0, kind="PyTorch"),
        artifact("single", single, dataset, 39.99, parity=parities[0], hop=parities[0]),
        artifact(HOSTILE, half, dataset, 39.5, parity=explained, hop=compare(single, half, NAMES, names=NAMES)),
    )
    facts = DatasetFacts(
        "data/<b>annotations</b>.json", "cd" * 32, 3, tuple(NAMES), 1, 0, ("lost.png",), 6, 2, CLASSES.names, False, ("2 boxes mended.",)
    )
    versions, machine = {"yolact-deploy": "0.1.0", "numpy": "2.0"}, {"system": "Linux", "cpu": "A <fast> one", "cores": "2"}
    command, date = "yolact-deploy evaluate 'a b.onnx' --html page.html", "2026-01-02T03:04:05+00:00"
    return Evaluation(facts, artifacts, "reference", 0.3, command, versions, machine, date, {"limit": None, "workers": 2})


@pytest.fixture(scope="module")
def html(evaluation: Evaluation, dataset: CocoDataset) -> str:
    return render_report(evaluation, dataset)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_is_loaded_from_anywhere(page: Page, html: str) -> None:
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not re.search(r"https?:|//\w|@import", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", html))
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.values("src"))
    assert all(value.startswith("#") for value in page.values("href", "xlink:href"))
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_names_are_shown_and_never_become_markup(page: Page, html: str) -> None:
    assert not re.search(r"<(script|img src=x|b>|fast)", html)
    for text in (CLASSES.names[SCRIPT], HOSTILE, NAMES[2], NAMES[3], "A <fast> one", "data/<b>annotations</b>.json"):
        assert text in page.text
    assert any(CLASSES.names[SCRIPT] in value for value in page.values("alt"))


def test_what_it_must_tell_is_there(page: Page, evaluation: Evaluation) -> None:
    for one in evaluation.artifacts:
        assert one.name in page.text
        assert one.path in page.text
        assert f"A note on {one.name}." in page.text
    parity = evaluation.artifacts[2].parity
    assert len(parity.excused) == 1
    assert len(parity.unexplained) == 2
    for sentence in (*parity.excused, *parity.unexplained, "A note on the parity.", "2 boxes mended.", "lost.png"):
        assert sentence in page.text
    for text in (evaluation.command, evaluation.date, "numpy 2.0", "ab" * 32, "cd" * 32, "321 bytes a picture"):
        assert text in page.text
    assert [picture.name for picture in parity.worst] == [NAMES[3], NAMES[2], NAMES[1]]


def test_the_tables_hold_the_numbers(page: Page) -> None:
    rows = {row[0].strip(): row[1:] for row in reversed(page.rows) if row}
    assert rows["reference (reference)"] == ["PyTorch", "40.00", "–", "–", "40.00", "35.00", "41.00", "41.00", "36.00", "21.8"]
    by_name = [row for row in page.rows if row[0].strip() == HOSTILE]
    assert by_name[0][2:5] == ["39.50", "−0.50", "−0.49"]
    parity = [row for row in page.rows if len(row) == 11 and row[0] == HOSTILE and row[1] == "reference"]
    differences = ["−0.0125", "0.0125", "0.0500"]  # of 0, 0, 0.0001 and -0.05
    assert parity == [[HOSTILE, "reference", "4 of 6 (66.7 %)", "2", "1", "1", "2", "1.0000", *differences]]
    (hop,) = [row for row in page.rows if len(row) == 11 and row[1] == "single"]
    assert hop[2:7] == ["4 of 6 (66.7 %)", "2", "1", "–", "3,not looked into"]
    assert rows[CLASSES.names[SCRIPT]] == ["2", "40.00", "41.00", "39.99", "40.99", "39.50", "40.50"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (0.0123, "0.0123"), (-0.5, "−0.5000"), (1.08e-7, "1.1e-07"), (-2.5e-5, "−2.5e-05")]
)
def test_small_differences_keep_their_digits(value: float | None, text: str) -> None:
    assert _small(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (1.0, "100.0 %"), (0.9999, "<100 %"), (0.0, "0.0 %"), (0.125, "12.5 %")])
def test_a_hundred_percent_is_all_of_it(value: float | None, text: str) -> None:
    assert _percent(value) == text


def test_a_drop_beyond_the_allowed_one_stands_out(html: str) -> None:
    assert '<td class="bad">−0.50</td>' in html
    assert '<td class="good">' in html
    assert "Mask AP may drop by 0.3 points" in html


def test_ids_are_there_once_and_each_one_used_is_there(page: Page, html: str) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids)) > 50
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert used
    assert used <= set(ids)


def test_the_same_evaluation_gives_the_same_page(html: str, evaluation: Evaluation, dataset: CocoDataset) -> None:
    assert render_report(evaluation, dataset) == html


def test_each_picture_stands_three_times_side_by_side(html: str, evaluation: Evaluation, dataset: CocoDataset) -> None:
    (first, second, third), sentence = shown_pictures(evaluation, dataset, evaluation.artifacts[2], 6)
    assert sentence.startswith("Those that differ most")
    assert [picture.name for picture in (first, second, third)] == [NAMES[3], NAMES[2], NAMES[1]]
    assert [panel.title for panel in second.panels] == ["reference", HOSTILE, "ground truth"]
    assert second.panels[1].alt == f"{HOSTILE}: 1 cat"
    assert second.panels[2].alt == f"ground truth: 1 cat, 1 {CLASSES.names[SCRIPT]}"
    assert len({panel.uri for panel in second.panels}) == 3
    assert "does not exist" in first.note
    assert second.note == ""
    assert second.lone == tuple(line.removeprefix(f"{NAMES[2]}: ") for line in evaluation.artifacts[2].parity.excused)
    grey = picture_of(first.panels[0].uri)
    assert grey[42:].std() < 5
    assert picture_of(second.panels[0].uri)[42:].std() > 40
    assert all(panel.uri in html for panel in second.panels)


def picture_of(uri: str) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.format == "JPEG"
    return np.asarray(image.convert("RGB"))


def test_pictures_are_made_smaller_and_stay_within_the_budget(tmp_path: Path, evaluation: Evaluation) -> None:
    size = 1000, 700
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    save_picture(tmp_path / "big.png", noise)
    small = dataset_of({1: [], 2: []}, tmp_path, {1: "big.png", 2: "big.png"})
    images = [replace(image, width=size[0], height=size[1]) for image in small.images]
    dataset = CocoDataset(tmp_path / "a.json", tmp_path, CLASSES, images, {}, sha256="")
    store = Stored({number: replace(found([]), width=size[0], height=size[1]) for number in (1, 2)})
    alone = replace(evaluation, reference=None, artifacts=(replace(evaluation.artifacts[0], store=cast(Any, store)),))
    shown, sentence = shown_pictures(alone, dataset, alone.artifacts[0], 2)
    assert sentence == "The first pictures of the data set."
    assert [len(picture.panels) for picture in shown] == [2, 2]
    assert picture_of(shown[0].panels[0].uri).shape == (SIDE * 7 // 10, SIDE, 3)
    one = sum(len(base64.b64decode(panel.uri.partition(",")[2])) for panel in shown[0].panels)
    fewer, told = shown_pictures(alone, dataset, alone.artifacts[0], 2, budget=one)
    assert len(fewer) == 1
    assert told.endswith("1 more would make this page too large.")


def test_without_a_reference_and_without_results(evaluation: Evaluation, dataset: CocoDataset) -> None:
    nothing = artifact("nothing", Stored({number: found([]) for number in NAMES}), dataset, None, milliseconds={})
    page = Page(render_report(replace(evaluation, artifacts=(nothing,), reference=None, max_drop=None), dataset, pictures=1))
    assert "Parity" not in page.text
    assert "Speed" not in page.text
    assert not re.search(r"\bnan\b", page.text.lower())
    assert "0 of 0" in page.text
    assert page.rows[1] == ["nothing", "ONNX FP32", *["–"] * 9]
    assert "The first pictures of the data set." in page.text


def test_an_empty_parity_is_no_hundred_percent(evaluation: Evaluation, dataset: CocoDataset) -> None:
    empty = Stored({number: found([]) for number in NAMES})
    parity = compare(empty, empty, NAMES, names=NAMES)
    artifacts = [artifact(name, empty, dataset, 0.0) for name in ("reference", "other")]
    page = Page(render_report(replace(evaluation, artifacts=(artifacts[0], replace(artifacts[1], parity=parity, hop=parity))), dataset))
    assert "no detections above 0.3" in page.text
    assert "There are no partners whose scores could be drawn." in page.text
    assert "No picture differs from the reference." in page.text
    assert "100.0 %" not in page.text


def test_pictures_without_annotations_are_named(evaluation: Evaluation, dataset: CocoDataset, page: Page) -> None:
    assert "1 picture, evaluated like all others; the original leaves such pictures out (--like-original)" in page.text
    left_out = replace(evaluation, dataset=replace(evaluation.dataset, like_original=True, left_out=7, unannotated=0))
    assert "7 pictures left out, as the original implementation does" in Page(render_report(left_out, dataset, pictures=0)).text


def test_long_lists_say_how_many_more_there_are(evaluation: Evaluation, dataset: CocoDataset) -> None:
    lone = tuple(Lone(1, "plain.png", "missing", 0, "cat", 0.5, (0, 0, float(number), 1), "no counterpart") for number in range(503))
    many = replace(evaluation.artifacts[1], parity=replace(evaluation.artifacts[1].parity, lone=lone))
    page = Page(render_report(replace(evaluation, artifacts=(evaluation.artifacts[0], many)), dataset, pictures=0))
    assert "Without partner: 503" in page.text
    assert "[0.0, 0.0, 499.0, 1.0]" in page.text
    assert "[0.0, 0.0, 500.0, 1.0]" not in page.text
    assert "… and 3 more" in page.text


def test_it_is_written_whole_and_replaces_only_its_own(tmp_path: Path, evaluation: Evaluation, dataset: CocoDataset) -> None:
    path = tmp_path / "folder" / "page.html"
    write_report(path, evaluation, dataset, pictures=0)
    assert is_report(path)
    write_report(path, evaluation, dataset, pictures=0)
    assert list(path.parent.iterdir()) == [path]
    foreign = tmp_path / "mine.html"
    foreign.write_text("<html>mine</html>", encoding="utf-8")
    assert not is_report(foreign)
    assert not is_report(tmp_path / "nothing.html")
    for refused in (lambda: write_report(foreign, evaluation, dataset), lambda: need_report(foreign)):
        with pytest.raises(OutputError, match="was not written by this command"):
            refused()
    assert foreign.read_text(encoding="utf-8") == "<html>mine</html>"
    need_report(foreign, force=True)
    write_report(foreign, evaluation, dataset, force=True, pictures=0)
    assert is_report(foreign)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_told_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf'The HTML report needs {package}, .* pip install "yolact-deploy\[report\]"'):
        need_report(tmp_path / "page.html")


def test_importing_it_needs_neither() -> None:
    program = "import sys, yolact_deploy.evaluation.report; print({'jinja2', 'matplotlib', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def pairs(count: int) -> Parity:
    scores = np.linspace(0.31, 0.99, count, dtype=np.float32)
    other = scores.copy()
    other[:: max(count // 3, 1)][:3] += np.float32(0.005)
    numbers = np.zeros(count, np.int64)
    return Parity(0.3, 0.9, 1, count, count, numbers, numbers, scores, other, np.ones(count))


@pytest.mark.parametrize(("count", "drawn"), [(1, 1), (7, 7), (POINTS, POINTS), (3 * POINTS, POINTS)])
def test_a_scatter_holds_each_pair_or_a_choice_with_those_that_differ_most(count: int, drawn: int) -> None:
    svg = score_scatter(pairs(count), "#123456", "s")
    left, right = re.findall(r'<g clip-path="[^"]*" style="[^"]*">(.*?)</g>', svg, re.DOTALL)
    assert left.count("<use") == right.count("<use") == drawn
    heights = [float(y) for y in re.findall(r'y="([\d.]+)"', right)]
    assert sum(height < min(heights) + 10 for height in heights) == min(count, 3)  # those that differ


def test_curves_leave_gaps_where_ap_is_not_defined(evaluation: Evaluation) -> None:
    artifacts = evaluation.artifacts[:1]
    whole = ap_curves(artifacts, "c").count("<use")
    by_threshold = {**artifacts[0].mask.by_threshold, "0.50": None, "0.75": None}
    gaps = ap_curves([replace(artifacts[0], mask=replace(artifacts[0].mask, by_threshold=by_threshold))], "c")
    assert whole - gaps.count("<use") == 2
    assert ap_curves([replace(artifacts[0], mask=metrics("segm", None), box=metrics("bbox", None))], "c").startswith("<svg viewBox=")


@pytest.mark.parametrize(("box", "mask"), [(90.0, 20.0), (20.0, 90.0), (0.0, 0.0)])
def test_both_curves_lie_inside_their_plot(evaluation: Evaluation, box: float, mask: float) -> None:
    svg = ap_curves([replace(evaluation.artifacts[0], box=metrics("bbox", box), mask=metrics("segm", mask))], "c")
    clips = [float(y) for y in re.findall(r'<clipPath[^>]*>\s*<rect x="[\d.]+" y="([\d.]+)"', svg)]
    groups = re.findall(r'<g clip-path="[^"]*"[^>]*>(.*?)</g>', svg, re.DOTALL)
    heights = [float(y) for group in groups for y in re.findall(r' y="(-?[\d.]+)"', group)]
    assert len(heights) == 20
    assert min(heights) > min(clips)


def test_masks_of_the_overlay_lie_where_they_were_found(evaluation: Evaluation, dataset: CocoDataset) -> None:
    store = Stored({1: found([(CAT, 0.9, LEFT, rectangle((32, 26, 52, 46))), (SCRIPT, 0.8, RIGHT)])})
    alone = replace(evaluation, reference=None, artifacts=(replace(evaluation.artifacts[0], store=cast(Any, store), failures=None),))
    ((shown,), _) = shown_pictures(alone, dataset, alone.artifacts[0], 1)
    drawn, truth = (picture_of(panel.uri).astype(int) for panel in shown.panels)
    differing = np.abs(drawn - truth).sum(2)
    assert differing[28:44, 34:50].mean() > 5 * differing[28:44, :28].mean()
