"""The annotation server on the command line: ``nny serve``."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path

import fire
import uvicorn
from monailabel.config import settings
from scripts.datalists import NIFTI
from scripts.prepare.phantom import write_phantom_cohort
from scripts.workflows import DEMO_RUN

from monailabel_app.lib.conf import read_conf
from monailabel_app.lib.models import find_source, read_config, takes_clinical
from monailabel_app.lib.server.guard import is_loopback

APP = Path(__file__).resolve().parent
PHANTOMS = Path("work/serve/phantoms")
EVERYWHERE = ("0.0.0.0", "::")  # addresses that stand for all of this computer's
ANY_NAME = (
    "the server answers whatever name it is called by, so a web page may reach it through a browser of this network, "
    "by a name of its own that leads here. Say the server's names by --names, unless a proxy asks for passwords."
)


def serve(
    studies: str | None = None,
    bundle: str = str(DEMO_RUN),
    clinical: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_remote: bool = False,
    names: str | None = None,
    output: str | None = None,
    strategy: str | None = None,
    epochs: int = 50,
    held_out: float = 0.2,
    margin: float = 0.01,
) -> None:
    """Serve networks to annotation clients such as 3D Slicer, until Ctrl+C.

    Example: nny serve --studies scans --bundle runs/first --clinical patients.xlsx

    Args:
        studies: folder of NIfTI files, or one that `prepare` wrote; the server adds datastore_v2.json, labels/ and nny/
            to it. Or the DICOMweb address of an archive, such as http://127.0.0.1:8042/dicom-web (`nny serve-dicom`
            starts one). Without it, four synthetic patients are written to work/serve/ and served.
        bundle: what segments: a run's folder, a released bundle (folder or zip), or <bundle>+<overlay>+<overlay> for a
            network that has no weights yet; several as name=path,name=path. By default the demo network, trained on
            synthetic patients.
        clinical: table (xlsx or csv) with the patients' clinical variables; an image belongs to the patient whose id is
            its file name without suffix, or the DICOM PatientID. Without it nothing is known of them.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        allow_remote: listen on an address that other computers reach, and answer them, without authentication. Where
            MONAI Label's own is on (MONAI_LABEL_AUTH_ENABLE), it is not needed.
        names: with allow_remote, the names by which other computers may call the server, such as scans.example.org, or
            several with commas between; by default the host, and any name where the host is 0.0.0.0 or ::.
        output: folder for versions, scores and replaced labels; by default nny/ in the folder of images, for an
            archive a folder of its address in work/annotate/.
        strategy: the active-learning strategy that clients are offered first.
        epochs: of a training that a client starts without saying how many.
        held_out: share of the patients that never train but judge new versions.
        margin: how much lower the Dice on held-out patients may be for a new version to be served.
    """
    _check_host(host, allow_remote)
    listener = _bind(host, port)
    port = listener.getsockname()[1]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if studies is None:
        studies = str(_phantoms())
        clinical = clinical or _table_of_phantoms(bundle)
    given = {
        "bundle": bundle,
        "clinical": clinical,
        "output": output,
        "strategy": strategy,
        "epochs": epochs,
        "held_out": held_out,
        "margin": margin,
        "allow_remote": str(allow_remote).lower(),
        "names": _names(names, host) if allow_remote else None,
    }
    conf = {key: str(value) for key, value in given.items() if value is not None}

    settings.MONAI_LABEL_APP_DIR = str(APP)
    dicom = studies.startswith(("http://", "https://"))
    settings.MONAI_LABEL_STUDIES = studies.rstrip("/") if dicom else str(images_folder(studies))
    settings.MONAI_LABEL_APP_CONF = conf
    settings.MONAI_LABEL_SERVER_PORT = port
    settings.MONAI_LABEL_DATASTORE_FILE_EXT = [f"*{suffix}" for suffix in NIFTI]
    settings.MONAI_LABEL_CORS_ORIGINS = [address]  # else any web page the user visits could read from the server
    _export_settings()
    from monailabel.app import app  # it reads the settings when it is imported
    from monailabel.interfaces.utils.app import app_instance

    app_instance().load()  # now, so that a bad argument ends in our message and not in the server's traceback
    server = _Server(uvicorn.Config(app, log_level="info"))
    page = f"{address}/ohif/ opens OHIF" if dicom else f"{address}/info/ says what is served"
    server.ready = (
        f"Ready. 3D Slicer: give {address} to the MONAI Label module. Browser: {page}. Ctrl+C stops the server."
    )
    with suppress(KeyboardInterrupt):  # raised again once the server has ended, unless the shell ignores Ctrl+C
        server.run(sockets=[listener])
    print("Stopped.", flush=True)


def images_folder(studies: str) -> Path:
    """The folder that holds the images of some studies.

    Args:
        studies: folder of NIfTI files, or one that `prepare` wrote.

    Returns:
        Its absolute path.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is no NIfTI file in it.
    """
    folder = Path(studies).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{studies} is not a folder; --studies takes a local folder of NIfTI files.")
    if (folder / "dataset.json").is_file() and (folder / "imagesTr").is_dir():
        folder = folder / "imagesTr"
    if not any(file.name.endswith(NIFTI) for file in folder.iterdir()):
        raise ValueError(f"{folder} holds no NIfTI file ({' or '.join(NIFTI)}). Give another folder by --studies.")
    return folder


class _Server(uvicorn.Server):
    """Prints a line once requests are answered."""

    ready = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(self.ready, flush=True)


def _check_host(host: str, allow_remote: bool) -> None:
    if not (is_loopback(host) or allow_remote or settings.MONAI_LABEL_AUTH_ENABLE):
        raise ValueError(
            f"{host} can be reached from other computers, and the server has no authentication: whoever reaches it "
            "reads and changes the studies. Keep --host 127.0.0.1 (from elsewhere: ssh -L 8000:127.0.0.1:8000 <this "
            "computer>), turn on MONAI Label's authentication (MONAI_LABEL_AUTH_ENABLE=true), or add --allow-remote."
        )


def _names(names: str | tuple[str, ...] | None, host: str) -> str | None:
    """The names by which other computers may call the server; None, with a warning, where any will do."""
    if names is None and host in EVERYWHERE:
        print(f"Warning: {ANY_NAME}", flush=True)
        return None
    given = host if names is None else names
    return given if isinstance(given, str) else ",".join(given)  # fire makes a tuple of a,b


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded; a client is refused until the server listens on it."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ValueError(f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another --port.") from None
    return listener


def _phantoms() -> Path:
    """The synthetic cohort, written at first use."""
    if not PHANTOMS.is_dir():
        part = PHANTOMS.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        write_phantom_cohort(str(part), cases=4, layout="msd", seed=1)  # the demo network learned from seed 0
        part.rename(PHANTOMS)
    return PHANTOMS


def _table_of_phantoms(bundle: str) -> str | None:
    """The table of the synthetic cohort, for a network that takes it."""
    conf = read_conf({"bundle": bundle}, str(PHANTOMS))
    sources = [find_source(name, text, conf.output / "bundles") for name, text in conf.models.items()]
    taken = any(takes_clinical(read_config(source)) for source in sources)
    return str((PHANTOMS / "clinical.csv").resolve()) if taken else None


def _export_settings() -> None:
    """Let the processes that MONAI Label starts, such as training, find what this one was told."""
    for key, value in settings.model_dump(warnings=False).items():
        if value is not None:
            os.environ[key] = json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [os.environ.get("PYTHONPATH"), str(APP.parent), str(APP.parent / "bundle")])
    )


if __name__ == "__main__":
    try:
        fire.Fire(serve, name="nny serve")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"nny: {error}")
