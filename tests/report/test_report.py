"""The report page: complete, explicit about missing results, and safe for any name or completion."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from lightning_dpo.errors import ConfigError
from lightning_dpo.report import plots
from lightning_dpo.report.page import write
from lightning_dpo.report.rows import points, read
from tests.report import folders

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & \"q\" $x^"
TOO_LARGE = 3_000_000


class Page(HTMLParser):
    """The elements of a page, its visible text, and its JSON."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.json, self._inside = "", "", ""
        self.feed(html)
        self.data = json.loads(self.json)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = "json" if dict(attrs).get("type") == "application/json" else tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "json":
            self.json += data
        elif self._inside not in ("script", "style"):
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep's folder and its page, which tests must not change."""
    folder = folders.sweep(tmp_path_factory.mktemp("swept"))
    return folder, page(folder)


def page(folder) -> Page:
    return Page(write(folder).read_text(encoding="utf-8"))


def test_a_sweep_gets_a_page_a_table_and_plots(swept):
    tmp_path, _ = swept
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == [
        "beta.png", "beta.svg", "curves.png", "curves.svg", "frontier.png", "frontier.svg",
    ]  # fmt: skip
    for path in (tmp_path / "plots").glob("*.svg"):
        ElementTree.parse(path)
    for path in (tmp_path / "plots").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and list(rows[0])[:5] == ["run", "state", "loss", "beta", "seed"]
    assert {row["state"] for row in rows} == {"done", "failed", "stopped"}


def test_writing_the_page_again_gives_the_same_bytes(swept):
    folder, _ = swept
    assert (folder / "report.html").read_bytes() == write(folder).read_bytes()


def test_the_page_loads_nothing(swept):
    tmp_path, found = swept
    assert (tmp_path / "report.html").stat().st_size < TOO_LARGE
    for tag, attributes in found.tags:
        assert tag not in ("iframe", "object", "embed", "base", "img"), tag
        for name in ("src", "href", "xlink:href"):
            assert str(attributes.get(name, "#")).startswith(("#", "data:")), f"{tag} loads {attributes[name]}"
    styles = re.findall(r"<style>(.*?)</style>", (tmp_path / "report.html").read_text(), re.S)
    assert "@import" not in "".join(styles) and "url(" not in "".join(styles)
    policy = next(a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique(swept):
    ids = [attributes["id"] for _, attributes in swept[1].tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_frontier_names_the_best_point_and_where_more_kl_lowers_the_reward(tmp_path):
    folders.run(tmp_path / "a", "dpo", 0.5, kl=2.0, reward=1.0)
    folders.run(tmp_path / "b", "dpo", 0.1, kl=5.0, reward=2.0)
    folders.run(tmp_path / "c", "dpo", 0.01, kl=9.0, reward=1.5)
    folders.run(tmp_path / "d", "ipo", 0.5, kl=1.5, reward=1.25)
    text = page(tmp_path).text
    assert "Best reward: dpo at beta 0.1, 2 at a KL of 5 nats." in text
    assert "At a KL of at most 2 nats: ipo at beta 0.5, 1.25." in text
    assert "A larger KL lowers reward: dpo at beta 0.01, 1.5 at a KL of 9 nats." in text
    assert "One seed each, so there are no error bars." in text


def test_the_frontier_labels_each_line_with_its_name_and_each_point_with_its_beta(swept):
    tmp_path, _ = swept
    texts = [e.text for e in ElementTree.parse(tmp_path / "plots" / "frontier.svg").iter() if e.tag.endswith("}text")]
    assert {"dpo  β 0.05", "0.5", "ipo  β 0.05", "before training"} <= set(texts)


def test_the_theoretical_optimum_is_drawn_if_it_is_known(tmp_path, swept):
    assert "theoretical optimum" not in swept[1].text
    folders.sweep(tmp_path)
    optimum = {"points": [{"beta": 0.5, "kl": 2.0, "score": 2.5, "ess": 90}, {"beta": 0.1, "kl": 6.0, "score": 4.0}]}
    (tmp_path / "optimum.json").write_text(json.dumps(optimum | {"note": "by reweighting."}))
    text = page(tmp_path).text
    assert text.count("theoretical optimum") == 2, "wide and narrow"
    assert "Dashed: by reweighting." in text


def test_an_optimum_of_another_form_is_refused_with_the_expected_one(tmp_path):
    folders.sweep(tmp_path)
    (tmp_path / "optimum.json").write_text('{"points": [{"beta": 0.5}]}')
    with pytest.raises(ConfigError, match=r"optimum.json: KeyError 'kl'; expected"):
        write(tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"reward": None}, "no run scored its completions"),
        ({"kl": None}, "no finished run has a KL"),
        ({"finished": False}, "no run has finished"),
    ],
)
def test_a_missing_frontier_is_explained(tmp_path, options, reason):
    folders.run(tmp_path / "a", **options)
    text = page(tmp_path).text
    assert reason in text and not (tmp_path / "plots" / "frontier.svg").exists()


def test_a_single_run_has_a_page_in_its_folder(tmp_path):
    found = page(folders.run(tmp_path / "a"))
    assert "One run, done" in found.text and [run["name"] for run in found.data["runs"]] == ["a"]
    assert "fewer than two betas" in found.text
    assert "before training" in found.text, "a frontier of one point"


def test_losses_without_a_beta_are_points_without_a_number(tmp_path):
    folders.run(tmp_path / "a", "sft", None)
    assert "Best reward: sft, 1 at a KL of 2 nats." in page(tmp_path).text


def test_unfinished_jobs_are_listed_with_their_error(swept):
    text = swept[1].text
    assert "10 runs, 8 of them finished" in text and "Not finished: 2 of 10" in text
    assert "ConfigError: beta=-1: found -1" in text and "2 unfinished runs are left out." in text


def test_the_page_shows_the_command_versions_and_shared_configuration(swept):
    text = swept[1].text
    assert "python -m lightning_dpo.train -m beta=0.05,0.5 loss=dpo,ipo seed=0,1" in text
    assert "torch 2.13.0" in text and 'data.train: "pairs.jsonl"' in text


def test_names_and_texts_are_never_markup(tmp_path):
    for seed in (0, 1):
        folder = folders.run(
            tmp_path / f"r{seed}", seed=seed, texts=(EVIL, EVIL), more=f"note: {json.dumps(EVIL + str(seed))}\n"
        )
        folder.rename(tmp_path / f"<script>alert({seed})<b>&$x^")
    job = {"state": "failed", "error": EVIL, "overrides": [f"loss={EVIL}"]}
    folders.run(tmp_path / "x", EVIL.replace('"', ""), job=None).joinpath("job.json").write_text(json.dumps(job))
    (tmp_path / "sweep.json").write_text(json.dumps({"command": EVIL}))
    found = page(tmp_path)
    assert found.count("script") == 2 and found.count("img") == found.count("b") - 1 == 0
    assert "<script>alert(0)<b>&$x^" in [run["name"] for run in found.data["runs"]]
    assert found.data["runs"][0]["samples"][0][2] == f"{EVIL} at step 2", "and they are shown unchanged"
    assert EVIL in found.text


def test_completions_are_the_last_ones_and_those_before_training(tmp_path):
    data = page(folders.run(tmp_path / "a")).data
    assert [text for _, _, text, _ in data["runs"][0]["samples"]] == ["good plot at step 2", "clever cast at step 2"]
    assert [text for _, _, text, _ in data["before"]] == ["good plot at step 0", "clever cast at step 0"]
    assert data["prompts"] == list(folders.PROMPTS)


def test_a_large_sweep_stays_below_three_megabytes(tmp_path):
    """60 runs of 2000 steps with 500 long completions each."""
    for i in range(60):
        folder = folders.run(tmp_path / f"{i}-x", beta=0.01 * (1 + i // 3), seed=i % 3)
        with open(folder / "samples.jsonl", "a") as file:
            for k in range(500):
                file.write(json.dumps({"step": 9, "prompt": f"p{k}", "text": "word " * 60, "reward": 1.0}) + "\n")
        header, *rows = (folder / "metrics.csv").read_text().splitlines()
        steps = [f"{s},{0.123456789 + s},{','.join(['0.987654321'] * (header.count(',') - 1))}" for s in range(2000)]
        (folder / "metrics.csv").write_text("\n".join([header, *rows, *steps]) + "\n")
    found = page(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < TOO_LARGE
    assert all(run["samples"] and run["curves"]["logps/chosen"]["val"] for run in found.data["runs"])


def test_many_losses_are_distinguishable(tmp_path):
    """By colour and marker on the frontier, by colour and dashes in the curves; the legend fits in the figure."""
    lines = [f"loss{i}" for i in range(20)]
    assert len({plots.look(lines, line) for line in lines}) == 20
    assert len({tuple(plots.stroke(lines, line).values()) for line in lines}) == 20
    for i, line in enumerate(lines):
        folders.run(tmp_path / line, line, reward=i, kl=1 + i)
    runs = read(tmp_path)
    figure = plots.curves(runs, points(runs))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == sorted(lines)
    assert figure.bbox.containsx(legend.get_window_extent().x1), "no wider than the figure"


def test_repeated_runs_are_reported(tmp_path):
    for name in ("a", "b"):
        folders.run(tmp_path / name)
    assert "1 run repeats another one with the same seed; only the last one counts." in page(tmp_path).text


def test_a_folder_without_runs_and_an_unknown_score_are_refused(tmp_path):
    for wrong in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="no run"):
            write(wrong)
    with pytest.raises(ConfigError, match="score=fun: no run has it; allowed: reward"):
        write(folders.run(tmp_path / "a"), "fun")


def test_the_command_prints_the_table_and_the_path_of_the_page(tmp_path):
    folders.sweep(tmp_path / "s")
    command = [sys.executable, "-m", "lightning_dpo", "report", "s"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ipo +0\.5 +1 ", done.stdout, re.M) and "report     s/report.html" in done.stdout
    done = subprocess.run([*command[:-1], "empty"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: empty: no run")


def test_a_real_run_has_a_page(command, short, tmp_path):
    options = ["trainer.max_epochs=1", "samples.n=8", "samples.max_new_tokens=8", "logger=csv"]
    assert command(*short, *options)[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = page(tmp_path / "run")
    (run,) = found.data["runs"]
    assert len(run["samples"]) == 8 and len(found.data["before"]) == 8
    assert set(found.data["titles"]) == {
        "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
        "kl", "samples/reward", "samples/valid",
    }  # fmt: skip
    assert run["curves"]["kl"]["val"][-1][1] == pytest.approx(summary["metrics"]["val/kl"], rel=1e-4)
    assert run["curves"]["rewards/margins"]["train"], "every step"
    assert summary["command"] in found.text and summary["versions"]["torch"] in found.text


def test_a_run_that_diverged_does_not_break_the_page(tmp_path):
    folders.sweep(tmp_path)
    metrics = next(tmp_path.glob("*/metrics.csv"))
    head, *rows = metrics.read_text().splitlines()
    broken = ",".join([rows[-1].split(",")[0], *["nan" for _ in head.split(",")[1:]]])
    metrics.write_text("\n".join([head, *rows, broken]) + "\n")

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads(page(tmp_path).json, parse_constant=refuse)
