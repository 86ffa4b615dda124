"""The page on annotation names every key and parameter that the code takes, and no other."""

import inspect
import re

import pytest
from app_support import app, write_run
from scripts.acquisition import DEFAULT, STRATEGIES
from support import ROOT, ball_dataset

from monailabel_app.lib.conf import CONF, read_conf
from monailabel_app.lib.infers.bundle import RESULTS
from monailabel_app.lib.infers.files import DTYPES, EXTENSIONS
from monailabel_app.lib.patients import PREFIX
from monailabel_app.lib.server.requests import BATCH, BATCH_SENT, OF_THE_FILE, SENT_BY_CLIENTS
from monailabel_app.lib.trainers.bundle import SENT_BY_CLIENTS as SENT_WITH_TRAINING
from monailabel_app.serve import serve

PAGE = (ROOT / "bundle" / "docs" / "annotate.md").read_text()


def table(title, page=PAGE):
    """First column to the others of the first table after a title."""
    lines = page[page.index(title) + len(title) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return {re.match(r"`([^`]+)`", row[0])[1]: row[1:] for row in rows}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    studies = ball_dataset(folder, 2)
    return app(studies / "imagesTr", bundle=write_run(folder / "tiny", table=studies / "clinical.csv"))


def test_conf_keys():
    assert set(table("## `--conf` keys")) == set(CONF)


def test_defaults_of_the_conf_keys():
    options = read_conf({}, "scans")
    rows = table("## `--conf` keys")
    for name in ("epochs", "held_out", "margin"):
        assert float(rows[name][-1]) == getattr(options, name) == inspect.signature(serve).parameters[name].default
    assert rows["allow_remote"][-1] == str(options.allow_remote).lower()


def test_command_takes_every_conf_key():
    assert set(CONF) <= set(inspect.signature(serve).parameters)


def test_parameters_of_inference(served):
    task = served.infer_task("tiny")
    options = {f"{PREFIX}<column>" if name.startswith(PREFIX) else name for name in task.config()}
    rows = table("**`POST /infer/<model>`**")
    assert set(rows) == options | {"clinical"} | OF_THE_FILE
    starred = set(re.findall(r"\| `([^`]+)` \*", PAGE))
    assert starred == options  # what clients show
    assert re.findall(r"`([^`]+)`", rows["result"][0]) == list(RESULTS)
    assert set(re.findall(r"`([^`]+)`", rows["result_extension"][0])) == set(EXTENSIONS)
    assert set(re.findall(r"`([^`]+)`", rows["result_dtype"][0])) == set(DTYPES)


def test_what_clients_send_without_effect():
    said = PAGE.split("What clients send besides has no effect here:")[1].split(".")[0]
    assert set(re.findall(r"`([^`]+)`", said)) == SENT_BY_CLIENTS
    said = PAGE.split("`?images=unlabeled`")[0].rsplit("\n\n", 1)[1]
    assert set(re.findall(r"`([^`]+)`", said)) == BATCH_SENT


def test_what_an_answer_holds(served):
    told = served.infer({"model": "tiny", "image": "ball_00"})["params"]
    said = PAGE.split("The answer (`output=json`, or beside the file):")[1].split("\n\n")[0]
    assert set(told) | set(told["clinical"]) <= set(re.findall(r"`([^`]+)`", said))


def test_parameters_of_training(served):
    assert set(table("**`POST /train/<model>`**")) == set(served.train_task("tiny").config())
    assert not set(served.train_task("tiny").config()) & SENT_WITH_TRAINING


def test_parameters_of_batch_inference():
    assert set(table("**`POST /batch/infer/<model>`**")) == BATCH


def test_strategies():
    page = (ROOT / "bundle" / "docs" / "active_learning.md").read_text()
    assert set(table("## Strategies", page)) == set(STRATEGIES)
    assert f"`{DEFAULT}` (default)" in page
