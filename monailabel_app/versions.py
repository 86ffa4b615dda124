"""The versions of the served models on the command line: ``nny versions``."""

from __future__ import annotations

import sys
from pathlib import Path

import fire

from monailabel_app.lib.conf import read_conf
from monailabel_app.lib.models import find_source
from monailabel_app.lib.versions import BASE, Versions


def versions(
    studies: str,
    model: str | None = None,
    serve: str | int | None = None,
    bundle: str | None = None,
    output: str | None = None,
) -> str:
    """List the versions of a model, or serve another one: a running server notices at the next request.

    Example: nny versions --studies scans --serve 0

    Args:
        studies: folder of NIfTI files (or address of the archive) that is annotated, as given to `nny serve`.
        model: name of the model, if there are several.
        serve: number of the version to serve; 0 is the network that the server was started with.
        bundle: as given to `nny serve`.
        output: as given to `nny serve`.
    """
    conf = {key: value for key, value in {"bundle": bundle, "output": output}.items() if value}
    options = read_conf(conf, _images(studies))
    if model is None and len(options.models) == 1:
        model = next(iter(options.models))
    if model not in options.models:
        raise ValueError(f"--model is {model!r}; there are {', '.join(options.models)}.")
    source = find_source(model, options.models[model], options.output / "bundles")
    found = Versions(options.output / "models" / model, source)
    if serve is not None:
        found.serve(str(serve))
    lines = [_line(found, version) for version in found.known()]
    return "\n".join([f"{model} in {found.folder}", *lines])


def _line(found: Versions, version: str) -> str:
    text = f"as given: {found.base.weights}" if version == BASE else found.verdict(version)["reason"]
    return f"{'*' if version == found.served else ' '} {version:>3}  {text}"


def _images(studies: str) -> str:
    """What the server was told: the address of an archive, or the folder that holds the images."""
    if studies.startswith(("http://", "https://")):
        return studies.rstrip("/")
    folder = Path(studies).expanduser().resolve()
    return str(folder / "imagesTr" if (folder / "imagesTr").is_dir() else folder)


if __name__ == "__main__":
    try:
        fire.Fire(versions, name="nny versions")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"nny: {error}")
