"""The report is one file that needs nothing else, and shows hostile names as text."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pretrain.evaluate import Evaluation, Example, evaluate
from pretrain.pictures import picture_error_over_time, picture_rollout
from pretrain.report import Picture, Section, Table, evaluation_section, summary, table, write_report
from tests.operator_fakes import MemoryStore, Shift, travelling_waves

HOSTILE = "<script>alert('x')</script>\"&{{ 7 * 7 }}$\\oops$"
PNG = b"\x89PNG\r\n\x1a\n"
WITH_ADDRESS = {"src", "href", "action", "data", "poster", "srcset", "formaction", "background"}
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags, addresses and text of a page; fails where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.images, self.text, self._open = [], [], [], "", []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in WITH_ADDRESS]
        self.images += [dict(attributes)] if tag == "img" else []
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(Shift(), MemoryStore(travelling_waves()))


def changed(evaluation: Evaluation, **changes: object) -> Evaluation:
    return evaluation.model_copy(update=changes)


def write(path: Path, evaluation: Evaluation, name: str = "pretrained") -> str:
    write_report(
        path,
        title=name,
        tables=[Table(name, summary({name: [evaluation]}), note=name)],
        sections=[
            evaluation_section({name: evaluation}),
            Section(name, name, [Table(name, [{name: name}], name)], [Picture(name, PNG)]),
        ],
        configuration={name: {"list": [1, name]}},
        lineage={"git revision": "abc123", "commands": ["pdepot pretrain", name], name: name},
    )
    return path.read_text()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, found: Evaluation) -> Path:
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    write(path, found)
    return path


def test_the_report_holds_what_it_was_given(report: Path, found: Evaluation) -> None:
    page = Page(report.read_text())
    for text in ("pretrained", "wave", "speed", "height", "persistence", f"{found.persistence:.4g}", "abc123"):
        assert text in page.text
    assert all(image["alt"] for image in page.images)
    pictures = [base64.b64decode(a.removeprefix("data:image/png;base64,"), validate=True) for a in page.addresses]
    assert len(pictures) == 3
    assert all(picture.startswith(PNG) for picture in pictures)
    assert [p.name for p in report.parent.iterdir()] == ["report.html"]


def test_the_report_needs_nothing_from_outside(report: Path) -> None:
    html = report.read_text()
    page = Page(html)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))


def test_hostile_names_are_text(tmp_path: Path, found: Evaluation) -> None:
    channels = (HOSTILE, "height")
    hostile = changed(
        found,
        dataset=HOSTILE,
        split=HOSTILE,
        channels=channels,
        per_channel=dict.fromkeys(channels, 0.1),
        persistence_per_channel=dict.fromkeys(channels, 0.1),
        example=Example(HOSTILE, channels, 0.5, found.example.truth, found.example.prediction),
    )
    page = Page(write(tmp_path / "report.html", hostile, name=HOSTILE))
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) > 10
    assert "49" not in page.text
    assert {image["alt"] for image in page.images} >= {HOSTILE}


def test_a_report_replaces_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    for title in ("older", "newer"):
        write_report(path, title=title, tables=[], sections=[], configuration={}, lineage={})
    assert "newer" in path.read_text()
    assert "older" not in path.read_text()


def test_summary_puts_models_side_by_side(found: Evaluation) -> None:
    few = changed(found, dataset="few", relative_l2=0.5)
    rows = summary({"pretrained": [found], "scratch": [few], "fine-tuned": [changed(few, relative_l2=0.25)]})
    assert [row["dataset"] for row in rows] == ["wave", "few"]
    assert rows[0]["pretrained"] == 0.0
    assert "scratch" not in rows[0]
    assert (rows[1]["scratch"], rows[1]["fine-tuned"]) == (0.5, 0.25)


@pytest.mark.parametrize("change", [{"split": "valid"}, {"digest": "1" * 64}, {"trajectories": 2}, {"frames": 1}])
def test_what_does_not_compare_is_not_put_side_by_side(found: Evaluation, change: dict[str, object]) -> None:
    assert len(summary({"a": [found], "b": [changed(found, **change)]})) == 2


def test_divergence_is_written_out(found: Evaluation) -> None:
    diverged = changed(found, relative_l2=None, diverged=2)
    assert summary({"pretrained": [diverged]})[0]["pretrained"] == "diverged (2 of 3)"
    assert evaluation_section({"pretrained": diverged}).tables[0].rows[1]["roll-out"] == "diverged (2 of 3)"


def test_table_is_aligned() -> None:
    rows = [{"dataset": "a", "error": 0.125}, {"dataset": "longer", "error": 10.0, "count": 3}]
    assert table(rows).splitlines() == [
        "dataset  error  count",
        "-------  -----  -----",
        "a        0.125      –",
        "longer      10      3",
    ]


@pytest.mark.parametrize(("frames", "space"), [(1, (8, 8)), (3, (8, 20)), (9, (8, 8, 6)), (1, (8,)), (9, (40,))])
def test_rollouts_of_every_shape_have_a_picture(frames: int, space: tuple[int, ...]) -> None:
    truth = np.random.default_rng(0).normal(size=(frames, *space, 1)).astype(np.float32)
    prediction = truth.copy()
    prediction[-1] = np.nan
    assert picture_rollout(Example("wave", ("u",), 0.5, truth, prediction)).startswith(PNG)


@pytest.mark.filterwarnings("error")
def test_extreme_rollouts_have_a_picture() -> None:
    truth = np.ones((1, 8, 8, 1), np.float32)
    for value in (1.0, np.nan, np.inf, 3e38):
        assert picture_rollout(Example("wave", ("u",), 1.0, truth, np.full_like(truth, value))).startswith(PNG)


@pytest.mark.filterwarnings("error")
def test_errors_of_every_kind_have_a_picture(found: Evaluation) -> None:
    zero = changed(found, persistence_over_time=(0.0,) * 5)  # found is exact: nothing for a logarithm
    diverged = changed(found, error_over_time=(0.1, 0.2, None, None, None), diverged=1)
    nothing = changed(found, error_over_time=(None,) * 5, diverged=3)
    many = {f"model {k}": changed(found, error_over_time=(0.1 * k,) * 5) for k in range(6)}
    for evaluations in ({"zero": zero}, {"diverged": diverged, "nothing": nothing}, many):
        assert picture_error_over_time(evaluations).startswith(PNG)
