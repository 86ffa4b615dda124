"""What the tests of scoring share: images as a list, a worker that answers at once, and the background work on both."""

import contextlib
import json

from app_support import scored

from monailabel_app.lib.scoring.background import Background
from monailabel_app.lib.scoring.worker import to_json


class Store:
    """Images by name, as much of a datastore as scoring asks for."""

    def __init__(self, names, labelled=()):
        self.names, self.labelled = list(names), list(labelled)

    def list_images(self):
        return list(self.names)

    def get_labeled_images(self):
        return list(self.labelled)

    def get_image_info(self, name):
        return {"PatientID": f"patient of {name}", "path": "secret"}

    def get_image_uri(self, name):
        return f"/images/{name}"

    def refresh(self):
        pass


class Worker:
    """In place of the process: answers at once, and writes down what it was asked."""

    def __init__(self):
        self.asked, self.before, self.ends_at = [], lambda case: None, None
        self.starts = 0

    @contextlib.contextmanager
    def __call__(self, source, clinical):
        self.weights = source.weights
        self.starts += 1
        yield self, self

    def write(self, text):
        if text.strip():
            self.case = json.loads(text)

    def flush(self):
        pass

    def readline(self):
        self.asked.append(self.case["id"])
        self.before(self.case)
        if self.case["id"] == self.ends_at:
            return ""
        if self.case["id"] == "broken":
            return '{"id": "broken", "error": "OSError: not a NIfTI file"}\n'
        return to_json(self.case["id"], scored(0.5)) + "\n"


def background(versions, store, tmp_path, clinical=None, **settings):
    return Background(
        versions=versions, clinical=clinical, datastore=lambda: store, folder=tmp_path / "scores", **settings
    )
